/* ftb_pool_offer.c: events behind a slow one are run once, by whoever has time, and nobody
 * is woken for a batch that ends soon.
 *
 * The stress test must fail, or hang, if a worker goes to sleep for ever beside an open
 * batch, if a batch is offered and nobody is woken for it, if finish does not leave out what was taken, and, under ThreadSanitizer, if
 * it does not wait for who still copies. */
#include "pool.h"

#include <sched.h>
#include <string.h>

#include "ftb_pool_internal.h"

enum { WORKERS = 3, BURST_N = 256 };

#define YOUNG (ftb_now_ns() + 3600 * 1000 * MS)
#define OLD 1

static ftb_pool_t *pool;

/* A batch of n for a worker without taking it from a ring. */
static void
batch_make(struct ftb_batch *batch, uint32_t worker_ix, uint32_t n, uint64_t start_ns)
{
    memset(batch, 0, sizeof *batch);
    for (uint32_t i = 0; i < n; i++) {
        batch->items[i] = item_of(100 + i);
    }
    batch->n = n;
    batch->start_ns = start_ns;
    pool->workers[worker_ix].depth = 1;
    ftb_add_seq_cst(&pool->word, n * FTB_WORD_UNFINISHED_ONE);
}

static void
test_half_of_an_old_batch_can_be_taken(void)
{
    struct ftb_batch batch, other;
    uint32_t ix = 0;
    pool = pool_make(2, 64);
    pool->workers[1].batch_n = FTB_BATCH_MAX;
    batch_make(&batch, 0, 8, YOUNG);
    ftb_pool_offer(pool, 0, &batch);
    CHECK(ftb_pool_unclaimed_n(&batch) == 8 && ftb_pool_own_n(&batch) == 8);
    CHECK(ftb_pool_claim(&batch, &ix) && ix == 0);
    CHECK(ftb_pool_unclaimed_n(&batch) == 7);
    CHECK(ftb_pool_take(pool, 1, &other) == 0); /* too young */
    CHECK(ftb_pool_take_one(pool, &other) == 0);
    ftb_store_relaxed(&batch.offer->since_ns, OLD);
    CHECK(ftb_pool_take(pool, 0, &other) == 0); /* its own */
    CHECK(ftb_pool_take(pool, 1, &other) == 4);
    for (uintptr_t i = 0; i < 4; i++) {
        CHECK(number_of(&other.items[i]) == 101 + i);
        CHECK(ftb_pool_claim(&other, &ix) && ix == i);
    }
    CHECK(!ftb_pool_claim(&other, &ix));
    CHECK(ftb_pool_own_n(&batch) == 4 && ftb_pool_unclaimed_n(&batch) == 3);
    CHECK(ftb_pool_unfinished(pool) == 8);
    ftb_pool_finish(pool, 1, &other);
    CHECK(ftb_pool_unfinished(pool) == 4);
    CHECK(ftb_pool_claim(&batch, &ix) && ix == 5);
    CHECK(ftb_pool_take_one(pool, &other) == 1 && number_of(&other.items[0]) == 106);
    ftb_pool_finish(pool, FTB_NO_WORKER, &other);
    ftb_pool_keep(&batch);
    CHECK(ftb_pool_take(pool, 1, &other) == 0 && ftb_pool_take_one(pool, &other) == 0);
    CHECK(ftb_pool_own_n(&batch) == 3 && ftb_pool_unclaimed_n(&batch) == 1);
    CHECK(ftb_pool_claim(&batch, &ix) && ix == 7 && !ftb_pool_claim(&batch, &ix));
    ftb_pool_finish(pool, 0, &batch);
    CHECK(ftb_pool_unfinished(pool) == 0);
    struct ftb_pool_worker_stats stats;
    ftb_pool_worker_stats(pool, 0, &stats);
    CHECK(stats.taken == 3 && stats.stolen == 0);
    ftb_pool_worker_stats(pool, 1, &stats);
    CHECK(stats.taken == 4 && stats.stolen == 4 && stats.batches == 1);
    ftb_pool_free(pool);
}

/* One worker, one event, events of a partition: claimed one by one, but nobody else's. */
static void
test_what_is_not_offered(void)
{
    struct ftb_batch batch, other;
    uint32_t ix = 0;
    for (uint32_t workers_n = 1; workers_n <= 2; workers_n++) {
        pool = pool_make(workers_n, 64);
        for (uint32_t n = 1; n <= 3; n += 2) {
            struct ftb_strand *strand =
                workers_n == 2 && n > 1 ? &pool->strands[0] : NULL;
            batch_make(&batch, 0, n, OLD);
            batch.strand = strand;
            ftb_pool_offer(pool, 0, &batch);
            CHECK(ftb_pool_take_one(pool, &other) == 0);
            CHECK(ftb_pool_unclaimed_n(&batch) == n && ftb_pool_own_n(&batch) == n);
            for (uint32_t i = 0; i < n; i++) {
                CHECK(ftb_pool_claim(&batch, &ix) && ix == i);
            }
            CHECK(!ftb_pool_claim(&batch, &ix) && ftb_pool_unclaimed_n(&batch) == 0);
            batch.strand = NULL;
            ftb_pool_finish(pool, 0, &batch);
            CHECK(ftb_pool_unfinished(pool) == 0);
        }
        ftb_pool_free(pool);
    }
}

/* A batch that is given up counts as finished, and nobody gets any of it. */
static void
test_a_batch_may_be_given_up(void)
{
    struct ftb_batch batch, other;
    pool = pool_make(2, 64);
    batch_make(&batch, 0, 8, OLD);
    ftb_pool_offer(pool, 0, &batch);
    ftb_pool_finish(pool, 0, &batch);
    CHECK(ftb_pool_unfinished(pool) == 0 && ftb_pool_take(pool, 1, &other) == 0);
    ftb_pool_free(pool);
}

/* Worker 1 sleeps, and worker 0 offers batch after batch, all short. A wake-up needs a
 * whole pause in which nothing was offered; or a batch offered just when the worker has set
 * its bit and does not watch yet, which it does not do for most of them. */
static void
short_batches(int ix, void *unused)
{
    struct ftb_batch batch;
    (void)unused;
    if (ix == 1) {
        do {
            while (ftb_pool_take(pool, 1, &batch) > 0) {
                uint32_t item_ix;
                while (ftb_pool_claim(&batch, &item_ix)) {
                }
                ftb_pool_finish(pool, 1, &batch);
            }
        } while (ftb_pool_wait_work(pool, 1, FTB_FOREVER) != FTB_CLOSED);
        return;
    }
    while (!ftb_idle_has_any(&pool->idle)) {
        sched_yield();
    }
    uint64_t start_ns = ftb_now_ns();
    uint32_t batches_n = (uint32_t)scaled(200000), item_ix;
    for (uint32_t i = 0; i < batches_n; i++) {
        batch_make(&batch, 0, 8, ftb_now_ns());
        ftb_pool_offer(pool, 0, &batch);
        while (ftb_pool_claim(&batch, &item_ix)) {
        }
        ftb_pool_finish(pool, 0, &batch);
    }
    uint64_t pauses_n = (ftb_now_ns() - start_ns) / (4 * FTB_BATCH_GOAL_NS);
    struct ftb_pool_stats stats;
    ftb_pool_stats(pool, &stats);
    printf(
        "   %u batches, %u pauses, %u wake-ups\n", batches_n, (uint32_t)pauses_n,
        (uint32_t)stats.wakes);
    CHECK(stats.wakes <= pauses_n + batches_n / 4 + 2);
    /* Nothing to watch any more: it sleeps for ever. */
    while (ftb_load_acquire(&pool->watchers_n) > 0) {
        sched_yield();
    }
    ftb_pool_stop(pool);
}

static void
test_short_batches_wake_nobody(void)
{
    pool = pool_make(2, 64);
    run_threads(2, short_batches, NULL);
    ftb_pool_free(pool);
}

/* Bursts of short events, in each of which some wait until all others have run. */
static ftb_atomic(uint32_t) ran_n[BURST_N], ran_all_n;
static uint32_t slow_ix[WORKERS - 1];

static void
event_run(uint32_t ix)
{
    for (int i = 0; i < WORKERS - 1; i++) {
        while (ix == slow_ix[i]
               && ftb_load_acquire(&ran_all_n) < BURST_N - (WORKERS - 1)) {
            sched_yield();
        }
    }
    CHECK(ftb_add_relaxed(&ran_n[ix], 1) == 0);
    ftb_add_acq_rel(&ran_all_n, 1);
}

static void
stress_work(uint32_t worker_ix)
{
    struct ftb_batch batch;
    uint32_t ix;
    do {
        while (ftb_pool_take(pool, worker_ix, &batch) > 0) {
            ftb_pool_offer(pool, worker_ix, &batch);
            while (ftb_pool_claim(&batch, &ix)) {
                event_run((uint32_t)number_of(&batch.items[ix]));
            }
            ftb_pool_finish(pool, worker_ix, &batch);
        }
    } while (ftb_pool_wait_work(pool, worker_ix, FTB_FOREVER) != FTB_CLOSED);
}

static void
stress_post(void)
{
    uint64_t random = run_seed();
    struct ftb_item items[BURST_N];
    for (uintptr_t i = 0; i < BURST_N; i++) {
        items[i] = item_of(i);
    }
    for (long round = 0; round < scaled(3000); round++) {
        uint32_t accepted_n;
        bool has_slow = round % 4 != 0; /* so that batches grow again */
        for (int i = 0; i < WORKERS - 1; i++) {
            slow_ix[i] =
                has_slow ? (uint32_t)(next_random(&random) % BURST_N) : BURST_N;
        }
        ftb_store_relaxed(&ran_all_n, 0);
        for (int i = 0; i < BURST_N; i++) {
            ftb_store_relaxed(&ran_n[i], 0);
        }
        CHECK(ftb_pool_try_post_many(pool, items, BURST_N, &accepted_n) == FTB_OK);
        if (round % 2 == 0) { /* or from the side, as a handler that waits does */
            struct ftb_batch batch;
            while (ftb_pool_unfinished(pool) > 0) {
                if (ftb_pool_take_one(pool, &batch) == 0) {
                    sched_yield();
                    continue;
                }
                uint32_t number = (uint32_t)number_of(&batch.items[0]);
                event_run(number);
                ftb_pool_finish(pool, FTB_NO_WORKER, &batch);
            }
        }
        CHECK(ftb_pool_wait_drained(pool, 0, FTB_FOREVER) == FTB_OK);
        CHECK(ftb_load_relaxed(&ran_all_n) == BURST_N);
    }
    ftb_pool_stop(pool);
}

static void
stress_body(int ix, void *unused)
{
    (void)unused;
    if (ix == WORKERS) {
        stress_post();
    } else {
        stress_work((uint32_t)ix);
    }
}

static void
test_slow_events_hold_nobody_up(void)
{
    for (uint32_t spin_ns = 0; spin_ns <= 2000; spin_ns += 2000) {
        struct ftb_pool_options options = {
            .workers_n = WORKERS,
            .queue_size = BURST_N,
            .strands_n = 1,
            .spin_ns = spin_ns};
        struct ftb_pool_worker_stats stats;
        uint64_t stolen_n = 0;
        pool = ftb_pool_new(&options);
        CHECK(pool != NULL);
        run_threads(WORKERS + 1, stress_body, NULL);
        for (uint32_t i = 0; i < WORKERS; i++) {
            ftb_pool_worker_stats(pool, i, &stats);
            stolen_n += stats.stolen;
        }
        CHECK(stolen_n > 0 && ftb_pool_unfinished(pool) == 0);
        CHECK(ftb_load_relaxed(&pool->watchers_n) == 0);
        ftb_pool_free(pool);
    }
}

int
main(void)
{
    set_watchdog(120);
    RUN(test_half_of_an_old_batch_can_be_taken);
    RUN(test_what_is_not_offered);
    RUN(test_a_batch_may_be_given_up);
    RUN(test_short_batches_wake_nobody);
    RUN(test_slow_events_hold_nobody_up);
    return 0;
}

/* ftb_pool.h: bounds, batches, partitions, eviction, one promise at a time.
 * test_pool_close.c has the waits and the end, test_pool_stress.c the crowds. */
#include "check.h"

#include <string.h>

#include "ftb_pool_internal.h"
#include "pool.h"

static void
test_options_are_checked(void)
{
    const struct ftb_pool_options good = {1, 1, 1, 0, 0, NULL, NULL};
    const struct ftb_pool_options bad[] = {
        {0, 1, 1, 0, 0, NULL, NULL}, {FTB_POOL_MAX_WORKERS + 1, 1, 1, 0, 0, NULL, NULL},
        {1, 0, 1, 0, 0, NULL, NULL}, {1, FTB_POOL_MAX_QUEUE + 1, 1, 0, 0, NULL, NULL},
        {1, 1, 0, 0, 0, NULL, NULL}, {1, 1, FTB_POOL_MAX_STRANDS + 1, 0, 0, NULL, NULL},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        CHECK(ftb_pool_new(&bad[i]) == NULL);
    }
    ftb_pool_t *pool = ftb_pool_new(&good);
    CHECK(pool != NULL);
    ftb_pool_free(pool);
    ftb_pool_free(NULL);
}

static void
test_new_survives_every_failed_allocation(void)
{
    const struct ftb_pool_options options = {3, 100, 16, 0, 0, NULL, NULL};
    ftb_pool_t *pool = NULL;
    long count = 0;
    while (pool == NULL) {
        ftb_fault_alloc(count++);
        pool = ftb_pool_new(&options);
    }
    ftb_fault_alloc(-1);
    CHECK(count > 5); /* the pool, two arrays, three rings */
    CHECK(post(pool, 1) == FTB_OK && run_all(pool) == 1);
    ftb_pool_free(pool);
}

static void
test_the_bound_is_exact(void)
{
    const uint32_t sizes[] = {1, 2, 5, 64};
    for (int s = 0; s < 4; s++) {
        for (uint32_t workers_n = 1; workers_n <= 3; workers_n++) {
            uint32_t size = sizes[s];
            ftb_pool_t *pool = pool_make(workers_n, size);
            for (uint32_t i = 0; i < size; i++) {
                /* Events with and without a partition share the bound. */
                enum ftb_result result =
                    i % 3 == 1 ? post_strand(pool, i, i) : post(pool, i);
                CHECK(result == FTB_OK);
                CHECK(ftb_pool_queued(pool) == i + 1);
            }
            CHECK(post(pool, 99) == FTB_FULL);
            CHECK(post_strand(pool, 1, 99) == FTB_FULL);
            CHECK(ftb_pool_queued(pool) == size);
            CHECK(ftb_pool_unfinished(pool) == size);
            struct ftb_batch batch;
            CHECK(ftb_pool_take_one(pool, &batch) == 1);
            CHECK(ftb_pool_queued(pool) == size - 1);
            CHECK(ftb_pool_unfinished(pool) == size);
            CHECK(post(pool, 99) == FTB_OK); /* space for exactly one */
            CHECK(post(pool, 99) == FTB_FULL);
            ftb_pool_finish(pool, FTB_NO_WORKER, &batch);
            CHECK(run_all(pool) == size);
            CHECK(ftb_pool_unfinished(pool) == 0);
            struct ftb_pool_stats stats;
            ftb_pool_stats(pool, &stats);
            CHECK(stats.queued_max == size && stats.fulls == 3 && stats.helped == 1);
            ftb_pool_free(pool);
        }
    }
}

static void
test_post_many_takes_what_fits(void)
{
    ftb_pool_t *pool = pool_make(3, 50);
    struct ftb_item items[40];
    for (uintptr_t i = 0; i < 40; i++) {
        items[i] = item_of(i);
    }
    uint32_t accepted_n = 99;
    CHECK(ftb_pool_try_post_many(pool, items, 0, &accepted_n) == FTB_OK);
    CHECK(accepted_n == 0);
    CHECK(ftb_pool_try_post_many(pool, items, 40, &accepted_n) == FTB_OK);
    CHECK(accepted_n == 40);
    CHECK(ftb_pool_try_post_many(pool, items, 40, &accepted_n) == FTB_FULL);
    CHECK(accepted_n == 10 && ftb_pool_queued(pool) == 50);
    CHECK(ftb_pool_try_post_many(pool, items, 40, &accepted_n) == FTB_FULL);
    CHECK(accepted_n == 0);
    uint32_t seen[40] = {0};
    struct ftb_batch batch;
    while (ftb_pool_take(pool, 1, &batch) > 0) {
        for (uint32_t i = 0; i < batch.n; i++) {
            seen[number_of(&batch.items[i])]++;
        }
        ftb_pool_finish(pool, 1, &batch);
    }
    for (int i = 0; i < 40; i++) {
        CHECK(seen[i] == (i < 10 ? 2 : 1));
    }
    ftb_pool_close(pool);
    CHECK(ftb_pool_try_post_many(pool, items, 40, &accepted_n) == FTB_CLOSED);
    CHECK(accepted_n == 0);
    ftb_pool_free(pool);
}

static void
test_one_worker_keeps_the_order(void)
{
    ftb_pool_t *pool = pool_make(1, 1000);
    uintptr_t taken = 0;
    for (uintptr_t i = 0; i < 1000; i++) {
        CHECK(post(pool, i) == FTB_OK);
    }
    struct ftb_batch batch;
    while (ftb_pool_take(pool, 0, &batch) > 0) {
        for (uint32_t i = 0; i < batch.n; i++) {
            CHECK(number_of(&batch.items[i]) == taken++);
        }
        ftb_pool_finish(pool, 0, &batch);
    }
    CHECK(taken == 1000);
    ftb_pool_free(pool);
}

static void
busy_wait(uint64_t time_ns)
{
    uint64_t until_ns = ftb_now_ns() + time_ns;
    while (ftb_now_ns() < until_ns) {
    }
}

static void
test_batches_fit_the_handlers(void)
{
    ftb_pool_t *pool = pool_make(1, 4096);
    for (uintptr_t i = 0; i < 2000; i++) {
        CHECK(post(pool, i) == FTB_OK);
    }
    struct ftb_batch batch;
    uint32_t before = 1;
    uint32_t most = 0;
    uint32_t taken_n = 0;
    for (int i = 0; i < 30; i++) {
        CHECK(ftb_pool_take(pool, 0, &batch) > 0);
        CHECK(batch.n <= 2 * before && batch.n <= FTB_BATCH_MAX);
        taken_n += batch.n;
        /* Where the chain's first ring ends, so does a batch, whatever fits. */
        before = taken_n == FTB_CHAIN_FIRST_CELLS ? before : batch.n;
        most = batch.n > most ? batch.n : most;
        ftb_pool_finish(pool, 0, &batch);
    }
    CHECK(most >= 8); /* empty handlers: 64, unless the machine paused every batch */
    for (int i = 0; i < 2; i++) {
        CHECK(ftb_pool_take(pool, 0, &batch) > 0);
        busy_wait(batch.n * MS); /* 1 ms for each event */
        ftb_pool_finish(pool, 0, &batch);
    }
    CHECK(ftb_pool_take(pool, 0, &batch) == 1);
    ftb_pool_finish(pool, 0, &batch);
    struct ftb_pool_worker_stats stats;
    ftb_pool_worker_stats(pool, 0, &stats);
    CHECK(stats.batches == 33 && stats.busy_ns >= 2 * MS && stats.stolen == 0);
    ftb_pool_free(pool);
}

static void
test_a_batch_is_no_more_than_a_share(void)
{
    ftb_pool_t *pool = pool_make(4, 4096);
    struct ftb_batch batch;
    for (int lap = 0; lap < 20; lap++) { /* learn that the handler is fast */
        for (uintptr_t i = 0; i < 300; i++) {
            CHECK(post(pool, i) == FTB_OK);
        }
        CHECK(run_all(pool) == 300);
    }
    for (uintptr_t i = 0; i < 8; i++) {
        CHECK(post(pool, i) == FTB_OK);
    }
    for (uint32_t queued = 8; queued > 0; queued = ftb_pool_queued(pool)) {
        uint32_t n = ftb_pool_take(pool, 0, &batch);
        CHECK(n >= 1 && n <= (queued < 8 ? 1u : 2u));
        ftb_pool_finish(pool, 0, &batch);
    }
    ftb_pool_free(pool);
}

static void
test_idle_workers_steal(void)
{
    ftb_pool_t *pool = pool_make(3, 100);
    struct ftb_batch batch;
    struct ftb_pool_worker_stats stats;
    for (uintptr_t i = 0; i < 100; i++) {
        CHECK(post(pool, i) == FTB_OK);
    }
    uint32_t n = 0;
    while (ftb_pool_take(pool, 2, &batch) > 0) {
        n += batch.n;
        ftb_pool_finish(pool, 2, &batch);
    }
    ftb_pool_worker_stats(pool, 2, &stats);
    CHECK(n == 100 && stats.taken == 100);
    CHECK(stats.stolen > 0 && stats.stolen < 100);
    ftb_pool_free(pool);
}

static void
test_a_busy_worker_looks_at_other_rings(void)
{
    /* Worker 1 has no thread; worker 0 always finds something in its own ring. */
    ftb_pool_t *pool = pool_make(2, 1000);
    struct ftb_batch batch;
    struct ftb_pool_worker_stats stats = {0};
    uintptr_t posts = 0;
    while (posts < 64) { /* some into each ring */
        CHECK(post(pool, posts++) == FTB_OK);
    }
    while (stats.stolen == 0) {
        CHECK(post(pool, posts++) == FTB_OK && posts < 1000);
        CHECK(ftb_pool_take(pool, 0, &batch) > 0);
        for (uint32_t i = 1; i < batch.n; i++) {
            CHECK(post(pool, posts++) == FTB_OK);
        }
        ftb_pool_finish(pool, 0, &batch);
        ftb_pool_worker_stats(pool, 0, &stats);
    }
    CHECK(ftb_pool_queued(pool) >= 32); /* it stole before its own ring was empty */
    ftb_pool_free(pool);
}

static void
test_a_partition_runs_in_one_place(void)
{
    ftb_pool_t *pool = pool_make(2, 100);
    struct ftb_batch batch;
    struct ftb_batch other;
    for (uintptr_t i = 0; i < 10; i++) {
        CHECK(post_strand(pool, 7, i) == FTB_OK);
    }
    uintptr_t next = 0;
    while (ftb_pool_take(pool, 0, &batch) > 0) {
        CHECK(batch.strand != NULL);
        CHECK(ftb_pool_take(pool, 1, &other) == 0); /* its token is taken */
        CHECK(ftb_pool_take_one(pool, &other) == 0);
        CHECK(!ftb_pool_evict(pool, &other.items[0]));
        for (uint32_t i = 0; i < batch.n; i++) {
            CHECK(number_of(&batch.items[i]) == next++);
        }
        if (next == 10) {
            CHECK(post_strand(pool, 7, next) == FTB_OK); /* from its own handler */
        }
        ftb_pool_finish(pool, 0, &batch);
    }
    CHECK(next == 11 && ftb_pool_unfinished(pool) == 0);
    ftb_pool_free(pool);
}

static void
test_post_strand_without_memory_changes_nothing(void)
{
    enum { EVENTS_N = 6000 }; /* more nodes than any cache has in stock */
    ftb_pool_t *pool = pool_make(1, EVENTS_N + 1);
    for (uintptr_t i = 0; i < EVENTS_N; i++) {
        CHECK(post_strand(pool, 1, i) == FTB_OK);
    }
    ftb_fault_alloc(0);
    CHECK(post_strand(pool, 1, 0) == FTB_NOMEM);
    ftb_fault_alloc(-1);
    CHECK(ftb_pool_queued(pool) == EVENTS_N);
    CHECK(post_strand(pool, 1, EVENTS_N) == FTB_OK);
    CHECK(run_all(pool) == EVENTS_N + 1);
    ftb_pool_free(pool);
}

static void
test_evict_takes_the_oldest(void)
{
    ftb_pool_t *pool = pool_make(1, 10);
    struct ftb_item item;
    CHECK(!ftb_pool_evict(pool, &item));
    for (uintptr_t i = 0; i < 3; i++) {
        CHECK(post(pool, i) == FTB_OK);
    }
    for (uintptr_t i = 3; i < 6; i++) {
        CHECK(post_strand(pool, 5, i) == FTB_OK);
    }
    for (uintptr_t i = 0; i < 6; i++) {
        CHECK(ftb_pool_evict(pool, &item) && number_of(&item) == i);
        CHECK(ftb_pool_queued(pool) == 5 - i && ftb_pool_unfinished(pool) == 5 - i);
    }
    CHECK(!ftb_pool_evict(pool, &item));
    CHECK(post_strand(pool, 5, 6) == FTB_OK && run_all(pool) == 1);
    struct ftb_pool_stats stats;
    ftb_pool_stats(pool, &stats);
    CHECK(stats.evicted == 6);
    ftb_pool_free(pool);
}

static void
test_a_handler_helps_and_nests(void)
{
    ftb_pool_t *pool = pool_make(1, 2);
    struct ftb_batch outer;
    struct ftb_batch helped;
    struct ftb_batch nested;
    CHECK(post(pool, 1) == FTB_OK && ftb_pool_take(pool, 0, &outer) == 1);
    CHECK(post(pool, 2) == FTB_OK && post(pool, 3) == FTB_OK);
    CHECK(post(pool, 4) == FTB_FULL); /* inside the handler of 1 */
    CHECK(ftb_pool_take_one(pool, &helped) == 1 && number_of(&helped.items[0]) == 2);
    CHECK(post(pool, 4) == FTB_OK);
    ftb_pool_finish(pool, FTB_NO_WORKER, &helped);
    CHECK(ftb_pool_take(pool, 0, &nested) == 1 && number_of(&nested.items[0]) == 3);
    CHECK(ftb_pool_unfinished(pool) == 3);
    ftb_pool_finish(pool, 0, &nested);
    ftb_pool_finish(pool, 0, &outer);
    CHECK(ftb_pool_unfinished(pool) == 1 && run_all(pool) == 1);
    ftb_pool_free(pool);
}

/* Workers 0, 1 | 2, 3 share caches, 0 to 3 a node, and 4, 5 are on another. */
static void
test_near_workers_are_stolen_from_first(void)
{
    static const uint32_t cache_of[] = {0, 0, 1, 1, 5, 5};
    static const uint32_t node_of[] = {0, 0, 0, 0, 3, 3};
    /* From each worker's own ring: the order in which it looks at all. */
    static const uint32_t orders[6][6] = {
        {0, 1, 2, 3, 4, 5}, {1, 0, 2, 3, 4, 5}, {2, 3, 0, 1, 4, 5},
        {3, 2, 0, 1, 4, 5}, {4, 5, 0, 1, 2, 3}, {5, 4, 0, 1, 2, 3},
    };
    struct ftb_pool_options options = {
        .workers_n = 6,
        .queue_size = 64,
        .strands_n = 1,
        .cache_of = cache_of,
        .node_of = node_of,
    };
    for (uint32_t worker = 0; worker < 6; worker++) {
        ftb_pool_t *pool = ftb_pool_new(&options);
        struct ftb_batch batch;
        uint32_t ring_of[64];
        CHECK(pool != NULL);
        ftb_pool_touch(pool, worker);
        /* An idle worker's ring is chosen: one event in each. */
        for (uint32_t ix = 0; ix < 6; ix++) {
            ftb_idle_set(&pool->idle, ix);
            CHECK(post(pool, ix) == FTB_OK);
        }
        for (uint32_t n = 0; n < 6; n++) {
            CHECK(ftb_pool_take(pool, worker, &batch) == 1);
            ring_of[n] = (uint32_t)number_of(&batch.items[0]);
            ftb_pool_finish(pool, worker, &batch);
        }
        CHECK(memcmp(ring_of, orders[worker], sizeof orders[worker]) == 0);
        ftb_pool_free(pool);
    }
}

int
main(void)
{
    set_watchdog(60);
    RUN(test_options_are_checked);
    RUN(test_new_survives_every_failed_allocation);
    RUN(test_the_bound_is_exact);
    RUN(test_post_many_takes_what_fits);
    RUN(test_one_worker_keeps_the_order);
    RUN(test_batches_fit_the_handlers);
    RUN(test_a_batch_is_no_more_than_a_share);
    RUN(test_idle_workers_steal);
    RUN(test_a_busy_worker_looks_at_other_rings);
    RUN(test_a_partition_runs_in_one_place);
    RUN(test_post_strand_without_memory_changes_nothing);
    RUN(test_evict_takes_the_oldest);
    RUN(test_a_handler_helps_and_nests);
    RUN(test_near_workers_are_stolen_from_first);
    return 0;
}

/* ftb_pool_try_post_urgent: ahead of the others, counted and bounded like them, and never
 * so that the others stand still. */
#include "pool.h"

#include "ftb_atomic.h"

enum { URGENT = 1000 };

static enum ftb_result
post_urgent(ftb_pool_t *pool, uintptr_t number)
{
    struct ftb_item item = item_of(number);
    return ftb_pool_try_post_urgent(pool, &item);
}

static uintptr_t
take_one(ftb_pool_t *pool)
{
    struct ftb_batch batch;
    CHECK(ftb_pool_take_one(pool, &batch) == 1);
    uintptr_t number = number_of(&batch.items[0]);
    ftb_pool_finish(pool, FTB_NO_WORKER, &batch);
    return number;
}

static void
test_urgent_comes_first_in_its_own_order(void)
{
    ftb_pool_t *pool = pool_make(1, 8);
    CHECK(post(pool, 1) == FTB_OK && post_strand(pool, 7, 2) == FTB_OK);
    CHECK(post_urgent(pool, URGENT) == FTB_OK);
    CHECK(post_urgent(pool, URGENT + 1) == FTB_OK);
    CHECK(take_one(pool) == URGENT && take_one(pool) == URGENT + 1);
    CHECK(take_one(pool) == 1 && take_one(pool) == 2);
    CHECK(ftb_pool_unfinished(pool) == 0);
    ftb_pool_free(pool);
}

static void
test_urgent_counts_and_is_refused_like_others(void)
{
    ftb_pool_t *pool = pool_make(2, 3);
    struct ftb_pool_stats stats;
    struct ftb_item item;
    CHECK(post_urgent(pool, 1) == FTB_OK && post(pool, 2) == FTB_OK);
    CHECK(post_urgent(pool, 3) == FTB_OK && post_urgent(pool, 4) == FTB_FULL);
    CHECK(ftb_pool_queued(pool) == 3);
    CHECK(ftb_pool_evict(pool, &item) && number_of(&item) == 2); /* these go last */
    CHECK(ftb_pool_evict(pool, &item) && number_of(&item) == 1);
    ftb_pool_close(pool);
    CHECK(post_urgent(pool, 5) == FTB_CLOSED);
    CHECK(run_all(pool) == 1);
    ftb_pool_stats(pool, &stats);
    CHECK(stats.urgent == 2 && stats.queued == 0 && stats.unfinished == 0);
    ftb_pool_free(pool);
}

static void
test_a_stream_of_urgent_events_starves_nobody(void)
{
    ftb_pool_t *pool = pool_make(1, 64);
    struct ftb_batch batch;
    int takes_n = 0, plain_n = 0;
    for (uintptr_t i = 0; i < 4; i++) {
        CHECK(post(pool, i) == FTB_OK);
    }
    while (plain_n < 4) {
        CHECK(post_urgent(pool, URGENT) == FTB_OK);
        CHECK(++takes_n < 100 && ftb_pool_take(pool, 0, &batch) > 0);
        for (uint32_t i = 0; i < batch.n; i++) {
            plain_n += number_of(&batch.items[i]) < URGENT;
        }
        ftb_pool_finish(pool, 0, &batch);
    }
    ftb_pool_free(pool);
}

enum { PRODUCERS = 2, WORKERS = 2 };

static ftb_pool_t *shared_pool;
static _Atomic(uint64_t) run_n;
static _Atomic(int) producers_n;

static void
run_one(int ix, void *unused)
{
    (void)unused;
    long events_n = scaled(100000);
    if (ix < PRODUCERS) {
        for (long i = 0; i < events_n;) {
            i += (i % 3 == 0 ? post_urgent(shared_pool, 1) : post(shared_pool, 1))
                 == FTB_OK;
        }
        if (ftb_sub_acq_rel(&producers_n, 1) == 1) {
            CHECK(ftb_pool_wait_drained(shared_pool, 0, FTB_FOREVER) == FTB_OK);
            CHECK(ftb_load_acquire(&run_n) == (uint64_t)(PRODUCERS * events_n));
            ftb_pool_stop(shared_pool);
        }
        return;
    }
    struct ftb_batch batch;
    uint32_t worker_ix = (uint32_t)(ix - PRODUCERS);
    do {
        while (ftb_pool_take(shared_pool, worker_ix, &batch) > 0) {
            ftb_add_acq_rel(&run_n, batch.n);
            ftb_pool_finish(shared_pool, worker_ix, &batch);
        }
    } while (ftb_pool_wait_work(shared_pool, worker_ix, FTB_FOREVER) != FTB_CLOSED);
}

static void
test_stress(void)
{
    shared_pool = pool_make(WORKERS, 16);
    ftb_init(&producers_n, PRODUCERS);
    run_threads(PRODUCERS + WORKERS, run_one, NULL);
    CHECK(ftb_pool_unfinished(shared_pool) == 0);
    ftb_pool_free(shared_pool);
}

int
main(void)
{
    set_watchdog(120);
    RUN(test_urgent_comes_first_in_its_own_order);
    RUN(test_urgent_counts_and_is_refused_like_others);
    RUN(test_a_stream_of_urgent_events_starves_nobody);
    RUN(test_stress);
    return 0;
}

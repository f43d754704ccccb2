/* When a worker leaves the queue alone for a moment, and when it does not. */
#include "ftb_pool_internal.h"

#include "pool.h"

static ftb_pool_t *
lingering_pool(uint32_t linger_ns)
{
    struct ftb_pool_options options = {
        .workers_n = 1, .queue_size = 64, .strands_n = 16, .linger_ns = linger_ns};
    ftb_pool_t *pool = ftb_pool_new(&options);
    CHECK(pool != NULL);
    return pool;
}

/* Take a batch of at most `limit`, post `more` and finish it. Returns when it began. */
static uint64_t
run_one(ftb_pool_t *pool, uint32_t limit, uint32_t n, uint32_t more)
{
    struct ftb_batch batch;
    pool->workers[0].batch_n = limit; /* as if it had learned that */
    CHECK(ftb_pool_take(pool, 0, &batch) == n);
    for (uint32_t i = 0; i < more; i++) {
        CHECK(post(pool, i) == FTB_OK);
    }
    uint64_t start_ns = batch.start_ns;
    ftb_pool_finish(pool, 0, &batch);
    return start_ns;
}

static void
test_a_worker_lingers_after_a_short_batch(void)
{
    ftb_pool_t *pool = lingering_pool((uint32_t)(5 * MS));
    struct ftb_pool_worker_stats stats;
    struct ftb_batch batch;
    CHECK(post(pool, 0) == FTB_OK);
    uint64_t start_ns = run_one(pool, 5, 1, 1);
    ftb_pool_worker_stats(pool, 0, &stats);
    uint64_t busy_ns = stats.busy_ns;
    CHECK(pool->workers[0].linger_until_ns == start_ns + 5 * MS); /* not from its end */
    ftb_pool_linger(pool, 0);
    CHECK(ftb_now_ns() >= start_ns + 5 * MS);
    CHECK(ftb_pool_take(pool, 0, &batch) == 1);
    CHECK(batch.start_ns >= start_ns + 5 * MS); /* lingering does not count as busy */
    ftb_pool_worker_stats(pool, 0, &stats);
    CHECK(stats.busy_ns == busy_ns);
    ftb_pool_finish(pool, 0, &batch);
    ftb_pool_free(pool);
}

/* It would be seen as a time that was read. */
static void
check_goes_on_at_once(ftb_pool_t *pool)
{
    uint64_t stamp_ns = pool->workers[0].stamp_ns;
    ftb_pool_linger(pool, 0);
    CHECK(pool->workers[0].stamp_ns == stamp_ns);
}

static void
test_a_worker_does_not_linger_if_there_is_enough(void)
{
    ftb_pool_t *pool = lingering_pool(UINT32_MAX);
    CHECK(post(pool, 0) == FTB_OK && post(pool, 0) == FTB_OK);
    (void)run_one(pool, 6, 2, 1); /* half of what it may take, with what has come */
    check_goes_on_at_once(pool);
    (void)run_one(pool, 1, 1, 1);
    check_goes_on_at_once(pool);
    CHECK(run_all(pool) == 1);
    ftb_pool_free(pool);
}

static void
test_a_worker_does_not_linger_after_one_partition_of_many(void)
{
    ftb_pool_t *pool = lingering_pool(UINT32_MAX);
    for (uint64_t partition = 0; partition < 16; partition++) {
        CHECK(post_strand(pool, partition << 32, 0) == FTB_OK);
    }
    (void)run_one(pool, 8, 1, 0);
    check_goes_on_at_once(pool);
    CHECK(run_all(pool) == 15);
    ftb_pool_free(pool);
}

static void
test_a_worker_does_not_linger_with_an_empty_queue(void)
{
    ftb_pool_t *pool = lingering_pool(UINT32_MAX);
    CHECK(post(pool, 0) == FTB_OK);
    (void)run_one(pool, 64, 1, 0);
    check_goes_on_at_once(pool);
    ftb_pool_free(pool);
}

static void
test_a_worker_does_not_linger_if_not_told_to(void)
{
    ftb_pool_t *pool = lingering_pool(0);
    CHECK(post(pool, 0) == FTB_OK);
    (void)run_one(pool, 64, 1, 1);
    check_goes_on_at_once(pool);
    CHECK(run_all(pool) == 1);
    ftb_pool_free(pool);
}

int
main(void)
{
    set_watchdog(240);
    RUN(test_a_worker_lingers_after_a_short_batch);
    RUN(test_a_worker_does_not_linger_if_there_is_enough);
    RUN(test_a_worker_does_not_linger_after_one_partition_of_many);
    RUN(test_a_worker_does_not_linger_with_an_empty_queue);
    RUN(test_a_worker_does_not_linger_if_not_told_to);
    return 0;
}

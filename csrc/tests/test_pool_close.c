/* ftb_pool.h: the waits, and how a pool ends. */
#include "check.h"

#include <sys/wait.h>

#include "pool.h"

static void
test_close_lets_the_rest_run(void)
{
    ftb_pool_t *pool = pool_make(2, 100);
    CHECK(post(pool, 1) == FTB_OK && post_strand(pool, 1, 2) == FTB_OK);
    ftb_pool_close(pool);
    ftb_pool_close(pool);
    CHECK(post(pool, 3) == FTB_CLOSED && post_strand(pool, 1, 3) == FTB_CLOSED);
    CHECK(ftb_pool_wait_work(pool, 0, FTB_FOREVER) == FTB_OK);
    CHECK(run_all(pool) == 2);
    CHECK(ftb_pool_wait_drained(pool, 0, FTB_FOREVER) == FTB_OK);
    CHECK(ftb_pool_wait_work(pool, 0, ftb_now_ns() + MS) == FTB_TIMEOUT);
    ftb_pool_free(pool);
}

static void
test_stop_leaves_the_rest_to_evict(void)
{
    ftb_pool_t *pool = pool_make(2, 100);
    struct ftb_batch batch;
    struct ftb_batch other;
    struct ftb_item item;
    for (uintptr_t i = 0; i < 20; i++) {
        enum ftb_result result = i % 2 ? post(pool, i) : post_strand(pool, 3, i);
        CHECK(result == FTB_OK);
    }
    CHECK(ftb_pool_take(pool, 0, &batch) > 0);
    uint32_t left_n = 20 - batch.n;
    ftb_pool_stop(pool);
    CHECK(ftb_pool_take(pool, 1, &other) == 0 && ftb_pool_take_one(pool, &other) == 0);
    CHECK(ftb_pool_wait_work(pool, 1, FTB_FOREVER) == FTB_CLOSED);
    CHECK(ftb_pool_wait_drained(pool, 0, FTB_FOREVER) == FTB_CLOSED);
    CHECK(post(pool, 3) == FTB_CLOSED);
    ftb_pool_finish(pool, 0, &batch);
    while (ftb_pool_evict(pool, &item)) {
        left_n--;
    }
    CHECK(left_n == 0 && ftb_pool_unfinished(pool) == 0);
    CHECK(ftb_pool_wait_drained(pool, 0, FTB_FOREVER) == FTB_OK);
    struct ftb_pool_stats stats;
    ftb_pool_stats(pool, &stats);
    CHECK(stats.is_closed && stats.is_stopped && stats.queued == 0);
    ftb_pool_free(pool);
}

static void
test_events_behind_an_open_batch_are_counted_and_evicted(void)
{
    ftb_pool_t *pool = pool_make(1, 100);
    struct ftb_batch batch;
    struct ftb_item item;
    CHECK(post(pool, 1) == FTB_OK);
    CHECK(ftb_pool_take(pool, 0, &batch) == 1);
    CHECK(ftb_pool_behind(&batch) == 0 && !ftb_pool_evict_behind(pool, &batch, &item));
    ftb_pool_finish(pool, 0, &batch);
    CHECK(post_strand(pool, 3, 0) == FTB_OK);
    CHECK(ftb_pool_take(pool, 0, &batch) == 1);
    for (uintptr_t i = 1; i <= 5; i++) {
        CHECK(post_strand(pool, 3, i) == FTB_OK && ftb_pool_behind(&batch) == i);
    }
    CHECK(post_strand(pool, 4, 6) == FTB_OK); /* of another partition */
    CHECK(ftb_pool_behind(&batch) == 5 && ftb_pool_queued(pool) == 6);
    CHECK(ftb_pool_wait_drained(pool, 1 + 5 + 1, FTB_FOREVER) == FTB_OK);
    CHECK(ftb_pool_evict_behind(pool, &batch, &item));
    CHECK(ftb_pool_behind(&batch) == 4 && ftb_pool_queued(pool) == 5);
    ftb_pool_finish(pool, 0, &batch);
    CHECK(run_all(pool) == 5 && ftb_pool_unfinished(pool) == 0);
    ftb_pool_free(pool);
}

static void
test_waits_meet_their_deadlines(void)
{
    ftb_pool_t *pool = pool_make(1, 1);
    uint64_t start_ns = ftb_now_ns();
    CHECK(ftb_pool_wait_work(pool, 0, start_ns + 5 * MS) == FTB_TIMEOUT);
    CHECK(ftb_now_ns() >= start_ns + 5 * MS);
    CHECK(ftb_pool_wait_space(pool, 0) == FTB_OK);
    CHECK(ftb_pool_wait_drained(pool, 0, 0) == FTB_OK);
    CHECK(post(pool, 1) == FTB_OK);
    start_ns = ftb_now_ns();
    CHECK(ftb_pool_wait_space(pool, start_ns + 5 * MS) == FTB_TIMEOUT);
    CHECK(ftb_now_ns() >= start_ns + 5 * MS);
    CHECK(ftb_pool_wait_drained(pool, 0, ftb_now_ns() + 5 * MS) == FTB_TIMEOUT);
    CHECK(ftb_pool_wait_work(pool, 0, 0) == FTB_OK);
    ftb_pool_close(pool);
    CHECK(ftb_pool_wait_space(pool, FTB_FOREVER) == FTB_CLOSED);
    ftb_pool_free(pool);
}

static void
wait_for_one_slot(int ix, void *context)
{
    ftb_pool_t *pool = context;
    struct ftb_batch batch;
    if (ix < 3) {
        CHECK(ftb_pool_wait_space(pool, FTB_FOREVER) == FTB_OK);
        return; /* and does not post: it has changed its mind */
    }
    CHECK(ftb_pool_wait_drained(pool, 0, ftb_now_ns() + 2 * MS) == FTB_TIMEOUT);
    CHECK(ftb_pool_take(pool, 0, &batch) == 1);
    ftb_pool_finish(pool, 0, &batch);
}

static void
test_one_free_slot_reaches_every_waiter(void)
{
    /* Must hang if a waiter that leaves does not pass its wake-up on. */
    for (long i = 0; i < scaled(50); i++) {
        ftb_pool_t *pool = pool_make(1, 1);
        CHECK(post(pool, 1) == FTB_OK);
        run_threads(4, wait_for_one_slot, pool);
        ftb_pool_free(pool);
    }
}

static void
test_a_handler_may_drain(void)
{
    ftb_pool_t *pool = pool_make(1, 10);
    struct ftb_batch batch;
    struct ftb_batch other;
    CHECK(post(pool, 1) == FTB_OK && ftb_pool_take(pool, 0, &batch) == 1);
    CHECK(ftb_pool_wait_drained(pool, 1, FTB_FOREVER) == FTB_OK);
    CHECK(ftb_pool_wait_drained(pool, 0, ftb_now_ns() + MS) == FTB_TIMEOUT);
    CHECK(post(pool, 2) == FTB_OK);
    CHECK(ftb_pool_wait_drained(pool, 1, ftb_now_ns() + MS) == FTB_TIMEOUT);
    CHECK(ftb_pool_take_one(pool, &other) == 1);
    ftb_pool_finish(pool, FTB_NO_WORKER, &other);
    CHECK(ftb_pool_wait_drained(pool, 1, FTB_FOREVER) == FTB_OK);
    ftb_pool_finish(pool, 0, &batch);
    ftb_pool_free(pool);
}

static void
test_a_forked_child_can_clean_up(void)
{
    ftb_pool_t *pool = pool_make(2, 100);
    for (uintptr_t i = 0; i < 10; i++) {
        CHECK(post(pool, i) == FTB_OK && post_strand(pool, i, i) == FTB_OK);
    }
    fflush(stdout);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        struct ftb_item item;
        uint32_t left_n = 0;
        set_watchdog(20);
        ftb_pool_after_fork_child(pool);
        CHECK(post(pool, 1) == FTB_CLOSED);
        CHECK(ftb_pool_wait_work(pool, 0, FTB_FOREVER) == FTB_CLOSED);
        while (ftb_pool_evict(pool, &item)) {
            left_n++;
        }
        CHECK(left_n == 20);
        CHECK(ftb_pool_wait_drained(pool, 0, FTB_FOREVER) == FTB_OK);
        ftb_pool_free(pool);
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    CHECK(run_all(pool) == 20); /* the parent does not notice */
    ftb_pool_free(pool);
}

int
main(void)
{
    set_watchdog(60);
    RUN(test_close_lets_the_rest_run);
    RUN(test_stop_leaves_the_rest_to_evict);
    RUN(test_events_behind_an_open_batch_are_counted_and_evicted);
    RUN(test_waits_meet_their_deadlines);
    RUN(test_one_free_slot_reaches_every_waiter);
    RUN(test_a_handler_may_drain);
    RUN(test_a_forked_child_can_clean_up);
    return 0;
}

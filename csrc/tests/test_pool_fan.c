/* ftb_pool_fan.c: every handler of a shared event is run once, the last ends it, and the
 * drain waits for all of them.
 *
 * The stress test must fail if a share is not counted before it is claimed, and if the
 * open fans are not counted down. */
#include "pool.h"

#include <sched.h>
#include <string.h>

#include "ftb_pool_internal.h"

enum { WORKERS = 3, HANDLERS = 5, EVENTS_MAX = 20000 };

struct event {
    ftb_atomic(uint32_t) ran_n[HANDLERS];
    ftb_atomic(uint32_t) ended_n;
};

static ftb_pool_t *pool;
static struct event events[EVENTS_MAX];
static _Atomic(uint64_t) shared_n, shares_n;

/* Long enough for the worker to find its events worth sharing. */
static void
handler_run(struct event *event, uint32_t ix)
{
    uint64_t until_ns = ftb_now_ns() + 4000;
    while (ftb_now_ns() < until_ns) {
        ftb_relax();
    }
    if (ftb_load_relaxed(&shares_n) == 0) {
        sched_yield(); /* on a busy machine, whom it has woken gets no time otherwise */
    }
    CHECK(ftb_add_acq_rel(&event->ran_n[ix], 1) == 0);
}

static void
event_end(struct event *event)
{
    for (uint32_t i = 0; i < HANDLERS; i++) {
        CHECK(ftb_load_relaxed(&event->ran_n[i]) == 1); /* relaxed: the last sees all */
    }
    CHECK(ftb_add_acq_rel(&event->ended_n, 1) == 0);
}

static void
event_run(uint32_t worker_ix, struct event *event)
{
    uint32_t ix;
    if (!ftb_pool_wants_fan(pool, worker_ix)) {
        for (ix = 0; ix < HANDLERS; ix++) {
            handler_run(event, ix);
        }
        event_end(event);
        return;
    }
    ftb_add_relaxed(&shared_n, 1);
    ftb_pool_fan_open(pool, worker_ix, event, HANDLERS);
    while (ftb_pool_fan_claim(pool, worker_ix, &ix)) {
        handler_run(event, ix);
        if (ftb_pool_fan_done(pool, worker_ix, NULL)) {
            event_end(event);
        }
    }
}

static void
batch_run(uint32_t worker_ix, struct ftb_batch *batch)
{
    if (batch->fan != NULL) {
        struct event *event = batch->items[0].payload;
        ftb_add_relaxed(&shares_n, 1);
        handler_run(event, batch->fan_ix);
        if (ftb_pool_fan_done(pool, worker_ix, batch)) {
            event_end(event);
        }
        return;
    }
    for (uint32_t i = 0; i < batch->n; i++) {
        event_run(worker_ix, batch->items[i].payload);
    }
}

static void
work(uint32_t worker_ix)
{
    struct ftb_batch batch;
    do {
        while (ftb_pool_take(pool, worker_ix, &batch) > 0) {
            batch_run(worker_ix, &batch);
            ftb_pool_finish(pool, worker_ix, &batch);
        }
    } while (ftb_pool_wait_work(pool, worker_ix, FTB_FOREVER) != FTB_CLOSED);
}

static bool
is_shared(void)
{
    return ftb_load_relaxed(&shared_n) > 0 && ftb_load_relaxed(&shares_n) > 0;
}

static void
post_and_drain(void)
{
    uint64_t random = run_seed();
    long events_n = scaled(4000);
    events_n = events_n < EVENTS_MAX ? events_n : EVENTS_MAX;
    for (long i = 0; i < events_n || (i < EVENTS_MAX && !is_shared());) {
        long first = i, burst_n = 1 + (long)(next_random(&random) % 4);
        for (; i < EVENTS_MAX && i < first + burst_n; i++) {
            struct ftb_item item = {.payload = &events[i]};
            CHECK(ftb_pool_try_post(pool, &item) == FTB_OK);
        }
        CHECK(ftb_pool_wait_drained(pool, 0, FTB_FOREVER) == FTB_OK);
        for (long j = first; j < i; j++) {
            CHECK(ftb_load_acquire(&events[j].ended_n) == 1);
        }
    }
    ftb_pool_stop(pool);
}

static void
run_one(int ix, void *unused)
{
    (void)unused;
    if (ix == WORKERS) {
        post_and_drain();
    } else {
        work((uint32_t)ix);
    }
}

static void
test_stress(void)
{
    memset(events, 0, sizeof events);
    pool = pool_make(WORKERS, 64);
    run_threads(WORKERS + 1, run_one, NULL);
    CHECK(ftb_pool_unfinished(pool) == 0);
    CHECK(ftb_load_acquire(&pool->fans_n) == 0);
    CHECK(is_shared());
    ftb_pool_free(pool);
}

static void
test_nobody_idle_nothing_shared(void)
{
    pool = pool_make(2, 64);
    CHECK(!ftb_pool_wants_fan(pool, 0));
    ftb_pool_free(pool);
}

/* The owner runs everything itself, if nobody comes. */
static void
test_owner_may_be_alone(void)
{
    struct ftb_batch batch;
    uint32_t ix;
    struct event event;
    memset(&event, 0, sizeof event);
    pool = pool_make(2, 64);
    CHECK(ftb_pool_take(pool, 1, &batch) == 0);
    ftb_pool_fan_open(pool, 0, &event, 2);
    CHECK(!ftb_pool_wants_fan(pool, 0)); /* one at a time */
    CHECK(ftb_pool_fan_claim(pool, 0, &ix) && ix == 0);
    CHECK(!ftb_pool_fan_done(pool, 0, NULL));
    /* A share for the other worker, counted as unfinished until it is done. */
    CHECK(ftb_pool_take(pool, 1, &batch) == 1);
    CHECK(batch.fan != NULL && batch.fan_ix == 1 && batch.items[0].payload == &event);
    CHECK(ftb_pool_unfinished(pool) == 1);
    CHECK(!ftb_pool_fan_claim(pool, 0, &ix));
    CHECK(ftb_pool_fan_done(pool, 1, &batch));
    ftb_pool_finish(pool, 1, &batch);
    CHECK(ftb_pool_unfinished(pool) == 0);
    CHECK(ftb_pool_take(pool, 1, &batch) == 0);
    ftb_pool_free(pool);
}

static struct hand_over {
    struct ftb_fan fan;
    struct baton baton;
} hand_over;

static void
claim_behind_the_owner(int ix, void *event)
{
    uint32_t claimed_ix;
    void *work_seen;
    bool is_last_claim;
    if (ix == 0) {
        ftb_fan_open_local(&hand_over.fan, event, 1);
        baton_pass(&hand_over.baton, 1);
        baton_await(&hand_over.baton, 2);
        CHECK(ftb_fan_is_free_local(&hand_over.fan));
        ftb_fan_open_local(&hand_over.fan, NULL, 1);
    } else {
        baton_await(&hand_over.baton, 1);
        CHECK(
            ftb_fan_try_claim(&hand_over.fan, &claimed_ix, &work_seen, &is_last_claim));
        CHECK(claimed_ix == 0 && work_seen == event && is_last_claim);
        CHECK(ftb_fan_done(&hand_over.fan));
        baton_pass(&hand_over.baton, 2);
    }
}

/* Whoever claims sees the work of that opening; the owner opens anew behind it. Judged by
 * ThreadSanitizer. */
static void
test_a_claim_sees_what_the_owner_wrote(void)
{
    struct event event;
    run_threads(2, claim_behind_the_owner, &event);
}

int
main(void)
{
    set_watchdog(120);
    RUN(test_nobody_idle_nothing_shared);
    RUN(test_owner_may_be_alone);
    RUN(test_a_claim_sees_what_the_owner_wrote);
    RUN(test_stress);
    return 0;
}

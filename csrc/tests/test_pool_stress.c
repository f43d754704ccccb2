/* ftb_pool.h under contention: every event exactly once, partitions in order and one at a
 * time, bounds kept, nobody left asleep.
 *
 * Must fail if a worker parks without its second look, if a take does not wake the next
 * worker, if a token is put back without a wake-up, or if freed space wakes nobody. */
#include "check.h"

#include <sched.h>
#include <string.h>

#include "ftb_atomic.h"
#include "pool.h"

#define PRODUCERS_MAX 4
#define PARTITIONS_N 8

static uint64_t seed;

/* How a producer deals with a full queue. */
enum policy { WAIT, WAIT_BRIEFLY, EVICT, HELP, DROP };

struct stress {
    struct ftb_pool_options options;
    int producers_n;
    int workers_n; /* threads; fewer than options.workers_n is allowed */
    long events_n; /* by each producer */
    enum policy policy;
    int plain_percent; /* the others have a partition */
    bool closes_midway;

    ftb_pool_t *pool;
    ftb_atomic(int) producers_left_n;
    ftb_atomic(uint64_t) posted_n;
    ftb_atomic(uint64_t) delivered_n;
    ftb_atomic(uint64_t) evicted_n;
    ftb_atomic(uint8_t) * seen[PRODUCERS_MAX];
    /* Written by the handlers of the partition, without atomics: the pool's promise is
     * what keeps this free of races. next is one more than the last number seen. */
    struct {
        FTB_ALIGNED uint64_t next[PRODUCERS_MAX];
        uint32_t running_n;
    } partitions[PARTITIONS_N];
};

/* Event: stamp_ns = producer, payload = number, target = partition + 1 or NULL. */
static void
event_seen(struct stress *stress, const struct ftb_item *item, bool is_run)
{
    uint64_t producer = item->stamp_ns;
    uint64_t number = number_of(item);
    uint64_t partition = (uintptr_t)item->target;
    CHECK(producer < (uint64_t)stress->producers_n);
    CHECK(number < (uint64_t)stress->events_n);
    CHECK(ftb_add_relaxed(&stress->seen[producer][number], 1) == 0);
    if (is_run && partition != 0) {
        CHECK(++stress->partitions[partition - 1].running_n == 1);
        CHECK(number >= stress->partitions[partition - 1].next[producer]);
        stress->partitions[partition - 1].next[producer] = number + 1;
        CHECK(--stress->partitions[partition - 1].running_n == 0);
    }
}

static void
batch_run(struct stress *stress, uint32_t worker_ix, struct ftb_batch *batch)
{
    for (uint32_t i = 0; i < batch->n; i++) {
        event_seen(stress, &batch->items[i], true);
    }
    ftb_add_relaxed(&stress->delivered_n, batch->n);
    ftb_pool_finish(stress->pool, worker_ix, batch);
}

static void
deal_with_full(struct stress *stress, uint64_t *random)
{
    struct ftb_batch batch;
    struct ftb_item item;
    uint64_t now_ns = ftb_now_ns();
    CHECK(ftb_pool_queued(stress->pool) <= stress->options.queue_size);
    if (stress->policy == WAIT) {
        (void)!ftb_pool_wait_space(stress->pool, FTB_FOREVER);
    } else if (stress->policy == WAIT_BRIEFLY) {
        /* Half of the waiters give up soon: their wake-up must not get lost. */
        bool is_brief = next_random(random) % 2 == 0;
        uint64_t deadline_ns = now_ns + next_random(random) % 20000;
        (void)!ftb_pool_wait_space(stress->pool, is_brief ? deadline_ns : FTB_FOREVER);
    } else if (stress->policy == HELP) {
        if (ftb_pool_take_one(stress->pool, &batch) == 1) {
            batch_run(stress, FTB_NO_WORKER, &batch);
        } else {
            sched_yield();
        }
    } else if (ftb_pool_evict(stress->pool, &item)) {
        event_seen(stress, &item, false);
        ftb_add_relaxed(&stress->evicted_n, 1);
    } else {
        sched_yield();
    }
}

static void
producer_body(struct stress *stress, uint64_t producer)
{
    uint64_t random = seed + producer;
    for (uint64_t number = 0; number < (uint64_t)stress->events_n;) {
        uint64_t partition = 0;
        if ((int)(next_random(&random) % 100) >= stress->plain_percent) {
            partition = next_random(&random) % PARTITIONS_N + 1;
        }
        struct ftb_item item = {
            .target = (void *)(uintptr_t)partition,
            .payload = (void *)(uintptr_t)number,
            .stamp_ns = producer,
        };
        enum ftb_result result;
        do {
            result = partition == 0
                         ? ftb_pool_try_post(stress->pool, &item)
                         : ftb_pool_try_post_strand(stress->pool, partition, &item);
            if (result == FTB_FULL && stress->policy != DROP) {
                deal_with_full(stress, &random);
            }
        } while (result == FTB_FULL && stress->policy != DROP);
        CHECK(result == FTB_OK || result == FTB_FULL || stress->closes_midway);
        if (result == FTB_CLOSED) {
            break;
        }
        ftb_add_relaxed(&stress->posted_n, result == FTB_OK);
        number++;
        if (stress->closes_midway && producer == 0
            && number == (uint64_t)stress->events_n / 2) {
            ftb_pool_close(stress->pool);
        }
    }
    if (ftb_sub_seq_cst(&stress->producers_left_n, 1) == 1) {
        if (!stress->closes_midway) {
            CHECK(ftb_pool_wait_drained(stress->pool, 0, FTB_FOREVER) == FTB_OK);
        }
        ftb_pool_stop(stress->pool);
    }
}

static void
worker_body(struct stress *stress, uint32_t worker_ix)
{
    struct ftb_batch batch;
    do {
        while (ftb_pool_take(stress->pool, worker_ix, &batch) > 0) {
            batch_run(stress, worker_ix, &batch);
        }
    } while (ftb_pool_wait_work(stress->pool, worker_ix, FTB_FOREVER) != FTB_CLOSED);
}

static void
stress_body(int ix, void *context)
{
    struct stress *stress = context;
    if (ix < stress->producers_n) {
        producer_body(stress, (uint64_t)ix);
    } else {
        worker_body(stress, (uint32_t)(ix - stress->producers_n));
    }
}

static void
stress_run(struct stress *stress)
{
    set_watchdog(100);
    stress->pool = ftb_pool_new(&stress->options);
    CHECK(stress->pool != NULL);
    ftb_init(&stress->producers_left_n, stress->producers_n);
    for (int i = 0; i < stress->producers_n; i++) {
        stress->seen[i] = calloc((size_t)stress->events_n, 1);
        CHECK(stress->seen[i] != NULL);
    }
    run_threads(stress->producers_n + stress->workers_n, stress_body, stress);
    struct ftb_item item;
    while (ftb_pool_evict(stress->pool, &item)) {
        CHECK(stress->closes_midway);
        event_seen(stress, &item, false);
        ftb_add_relaxed(&stress->evicted_n, 1);
    }
    struct ftb_pool_stats stats;
    ftb_pool_stats(stress->pool, &stats);
    CHECK(stats.queued == 0 && stats.unfinished == 0);
    CHECK(stats.queued_max <= stress->options.queue_size);
    CHECK(stats.evicted == ftb_load_relaxed(&stress->evicted_n));
    uint64_t taken_n = stats.helped;
    for (uint32_t i = 0; i < stress->options.workers_n; i++) {
        struct ftb_pool_worker_stats worker;
        ftb_pool_worker_stats(stress->pool, i, &worker);
        taken_n += worker.taken;
    }
    CHECK(taken_n == ftb_load_relaxed(&stress->delivered_n));
    CHECK(ftb_load_relaxed(&stress->posted_n) == taken_n + stats.evicted);
    for (int i = 0; i < stress->producers_n; i++) {
        free((void *)stress->seen[i]);
    }
    ftb_pool_free(stress->pool);
}

static void
test_exactly_once_through_tiny_queues(void)
{
    const uint32_t sizes[] = {1, 2, 5};
    const enum policy policies[] = {WAIT, WAIT_BRIEFLY, EVICT, HELP, DROP};
    for (int s = 0; s < 3; s++) {
        for (int p = 0; p < 5; p++) {
            struct stress stress = {
                .options =
                    {.workers_n = 3,
                     .queue_size = sizes[s],
                     .strands_n = 8,
                     .spin_ns = p % 2 ? 2000 : 0},
                .producers_n = 3,
                .workers_n = 2, /* the third ring is emptied by the others */
                .events_n = scaled(policies[p] <= WAIT_BRIEFLY ? 3000 : 20000),
                .policy = policies[p],
                .plain_percent = 50,
            };
            stress_run(&stress);
        }
    }
}

static void
test_exactly_once_in_a_long_queue(void)
{
    for (int plain_percent = 0; plain_percent <= 100; plain_percent += 50) {
        struct stress stress = {
            /* 8 partitions share 3 strands */
            .options =
                {.workers_n = 2, .queue_size = 1000, .strands_n = 3, .spin_ns = 2000},
            .producers_n = 3,
            .workers_n = 2,
            .events_n = scaled(200000),
            .policy = WAIT,
            .plain_percent = plain_percent,
        };
        stress_run(&stress);
    }
}

static void
test_close_midway_conserves_events(void)
{
    for (int lap = 0; lap < 40; lap++) {
        struct stress stress = {
            .options =
                {.workers_n = 2, .queue_size = lap % 2 ? 4 : 4000, .strands_n = 8},
            .producers_n = 4,
            .workers_n = 2,
            .events_n = scaled(4000),
            .policy = lap % 4 < 2 ? WAIT : EVICT,
            .plain_percent = 50,
            .closes_midway = true,
        };
        stress_run(&stress);
    }
}

static void
test_a_pool_without_threads_takes_exactly_its_size(void)
{
    /* DROP stands for any producer that only tries: the sum of successes is the bound. */
    for (uint32_t size = 1; size <= 100; size += 33) {
        struct stress stress = {
            .options = {.workers_n = 2, .queue_size = size, .strands_n = 8},
            .producers_n = 4,
            .events_n = scaled(20000),
            .policy = DROP,
            .plain_percent = 50,
            .closes_midway = true, /* nobody to drain it */
        };
        stress.pool = NULL;
        stress_run(&stress);
        CHECK(ftb_load_relaxed(&stress.posted_n) >= size);
        CHECK(ftb_load_relaxed(&stress.posted_n) <= size);
    }
}

/* One event at a time, each awaited: every one finds the workers idle, about to be idle,
 * spinning or asleep. */
struct single {
    ftb_pool_t *pool;
    long rounds_n;
    int workers_n;
    uint64_t plain_done; /* written by handlers: the drain hands it over */
};

static void
single_body(int ix, void *context)
{
    struct single *single = context;
    struct ftb_batch batch;
    uint64_t random = seed;
    if (ix < single->workers_n) {
        do {
            while (ftb_pool_take(single->pool, (uint32_t)ix, &batch) > 0) {
                CHECK(batch.n == 1);
                single->plain_done++;
                ftb_pool_finish(single->pool, (uint32_t)ix, &batch);
            }
        } while (ftb_pool_wait_work(single->pool, (uint32_t)ix, FTB_FOREVER)
                 != FTB_CLOSED);
        return;
    }
    for (uint64_t round = 1; round <= (uint64_t)single->rounds_n; round++) {
        enum ftb_result result = round % 4 == 0
                                     ? post_strand(single->pool, round, round)
                                     : post(single->pool, round);
        CHECK(result == FTB_OK);
        /* Mostly without sleeping, so that the next post meets the worker on its way from
         * its last look to its sleep. */
        while (round % 8 != 0 && ftb_pool_unfinished(single->pool) > 0) {
            ftb_relax();
        }
        CHECK(ftb_pool_wait_drained(single->pool, 0, FTB_FOREVER) == FTB_OK);
        CHECK(single->plain_done == round);
        for (uint64_t i = next_random(&random) % 64; i > 0; i--) {
            ftb_relax();
        }
    }
    ftb_pool_stop(single->pool);
}

static void
single_run(uint32_t workers_n, uint32_t spin_ns, long rounds_n)
{
    set_watchdog(100);
    struct ftb_pool_options options = {
        .workers_n = workers_n, .queue_size = 8, .strands_n = 4, .spin_ns = spin_ns};
    struct single single = {
        .pool = ftb_pool_new(&options),
        .rounds_n = rounds_n,
        .workers_n = (int)workers_n,
    };
    CHECK(single.pool != NULL);
    run_threads((int)workers_n + 1, single_body, &single);
    ftb_pool_free(single.pool);
}

static void
test_no_wake_up_is_lost(void)
{
    single_run(1, 0, scaled(50000));
    single_run(1, 3000, scaled(50000));
    single_run(2, 0, scaled(30000));
    single_run(3, 3000, scaled(30000));
}

/* Handlers that wait for one another: they can only go on if every worker is woken. */
struct gathering {
    ftb_pool_t *pool;
    int workers_n;
    long rounds_n;
    bool with_partitions;
    ftb_atomic(long) arrived_n;
};

static void
gathering_body(int ix, void *context)
{
    struct gathering *gathering = context;
    struct ftb_batch batch;
    long all = gathering->workers_n;
    if (ix < gathering->workers_n) {
        do {
            while (ftb_pool_take(gathering->pool, (uint32_t)ix, &batch) > 0) {
                CHECK(batch.n == 1); /* a share, with as many events as workers */
                long round = (long)number_of(&batch.items[0]);
                ftb_add_seq_cst(&gathering->arrived_n, 1);
                while (ftb_load_seq_cst(&gathering->arrived_n) < (round + 1) * all) {
                    sched_yield();
                }
                ftb_pool_finish(gathering->pool, (uint32_t)ix, &batch);
            }
        } while (ftb_pool_wait_work(gathering->pool, (uint32_t)ix, FTB_FOREVER)
                 != FTB_CLOSED);
        return;
    }
    for (long round = 0; round < gathering->rounds_n; round++) {
        struct ftb_item items[8];
        for (long i = 0; i < all; i++) {
            items[i] = item_of((uintptr_t)round);
        }
        uint32_t accepted_n = (uint32_t)all;
        if (!gathering->with_partitions) {
            enum ftb_result result = ftb_pool_try_post_many(
                gathering->pool, items, (uint32_t)all, &accepted_n);
            CHECK(result == FTB_OK);
        }
        for (long i = 0; gathering->with_partitions && i < all; i++) {
            /* 1024 strands: these numbers fall on different ones */
            CHECK(
                post_strand(gathering->pool, (uint64_t)i, (uintptr_t)round) == FTB_OK);
        }
        CHECK(ftb_pool_wait_drained(gathering->pool, 0, FTB_FOREVER) == FTB_OK);
    }
    ftb_pool_stop(gathering->pool);
}

static void
test_every_worker_is_woken_for_its_share(void)
{
    for (int with_partitions = 0; with_partitions < 2; with_partitions++) {
        set_watchdog(100);
        struct ftb_pool_options options = {
            .workers_n = 4,
            .queue_size = 64,
            .strands_n = 1024,
            .spin_ns = with_partitions ? 2000 : 0,
        };
        struct gathering gathering = {
            .pool = ftb_pool_new(&options),
            .workers_n = 4,
            .rounds_n = scaled(5000),
            .with_partitions = with_partitions,
        };
        CHECK(gathering.pool != NULL);
        run_threads(5, gathering_body, &gathering);
        ftb_pool_free(gathering.pool);
    }
}

int
main(void)
{
    seed = run_seed();
    RUN(test_exactly_once_through_tiny_queues);
    RUN(test_exactly_once_in_a_long_queue);
    RUN(test_close_midway_conserves_events);
    RUN(test_a_pool_without_threads_takes_exactly_its_size);
    RUN(test_no_wake_up_is_lost);
    RUN(test_every_worker_is_woken_for_its_share);
    return 0;
}

/* The arena under threads. Each test says which bug it hunts; ../mutants_arena.py lists
 * what SAN=thread must notice. */
#include "arena_work.h"

#include <stdbool.h>

/* Even threads allocate, odd ones free what they get. */
static void
pass_body(int ix, void *context)
{
    struct work *work = context;
    struct ring *ring = &work->rings[ix / 2];
    uint64_t random = seed + (uint64_t)ix;
    for (long i = 0; i < work->rounds; i++) {
        if (ix % 2 == 0) {
            uint64_t size = next_random(&random) % 2 == 0 ? 200 : 1024;
            ftb_block_t *block = ftb_block_new(work->arena, size);
            CHECK(block != NULL);
            fill(block, random);
            ring_put(ring, block);
        } else {
            ftb_block_t *block = ring_get(ring);
            verify(block);
            ftb_block_release(block);
        }
    }
}

/* Hunts: blocks that drift to the freeing thread and never come back, and content
 * written by the next owner while the last one still reads. */
static void
test_blocks_come_back_from_other_threads(void)
{
    struct work work;
    work_init(&work, 0, scaled(100000));
    run_threads(4, pass_body, &work);
    check_at_rest(work.arena);
    struct ftb_arena_stats stats = stats_of(work.arena);
    CHECK(stats.allocs == 2 * (uint64_t)work.rounds);
    /* In flight at most: two rings, and four magazines of each class per thread. */
    CHECK(stats.misses <= 2 * RING + 4 * 2 * 4 * 32);
    work_fini(&work);
}

/* Hunts: a block in two hands, and counters that miss one. */
static void
test_random_sizes_keep_their_content(void)
{
    struct work work;
    work_init(&work, 0, scaled(40000));
    run_threads(4, random_body, &work);
    check_at_rest(work.arena);
    CHECK(stats_of(work.arena).allocs == 4 * (uint64_t)work.rounds);
    work_fini(&work);
}

/* Hunts: a bound that two threads can pass together, or a retry that loses bytes. */
static void
test_limit_holds_under_threads(void)
{
    struct work work;
    work_init(&work, 300000, scaled(40000));
    run_threads(4, random_body, &work);
    struct ftb_arena_stats stats = stats_of(work.arena);
    CHECK(stats.peak_bytes <= 300000);
    check_at_rest(work.arena);
    ftb_arena_trim(work.arena);
    CHECK(stats_of(work.arena).reserved_bytes == 0);
    work_fini(&work);
}

/* Thread 0 makes each block and gives it to three readers with one add. */
static void
fan_out_body(int ix, void *context)
{
    struct work *work = context;
    for (long i = 0; i < work->rounds; i++) {
        if (ix == 0) {
            ftb_block_t *block = ftb_block_new(work->arena, 300);
            fill(block, (uint64_t)i);
            ftb_block_retain_many(block, 2);
            for (int reader = 1; reader <= 3; reader++) {
                ring_put(&work->rings[reader], block);
            }
        } else {
            ftb_block_t *block = ring_get(&work->rings[ix]);
            verify(block);
            ftb_block_release(block);
        }
    }
}

/* Hunts: a last release that does not wait for the other readers' accesses. */
static void
test_fan_out_frees_once_after_all_readers(void)
{
    struct work work;
    work_init(&work, 0, scaled(30000));
    run_threads(4, fan_out_body, &work);
    check_at_rest(work.arena);
    CHECK(stats_of(work.arena).frees == (uint64_t)work.rounds);
    work_fini(&work);
}

/* Thread 0 writes, thread 1 reads; when it has let go, thread 0 writes again. */
static void
rewrite_body(int ix, void *context)
{
    struct work *work = context;
    for (long i = 0; i < work->rounds; i++) {
        if (ix == 1) {
            ftb_block_t *block = ring_get(&work->rings[0]);
            verify(block);
            ftb_block_release(block);
            continue;
        }
        ftb_block_t *block = ftb_block_new(work->arena, 100);
        fill(block, (uint64_t)i);
        ring_put(&work->rings[0], ftb_block_retain(block));
        while (!ftb_block_is_unique(block)) {
            sched_yield();
        }
        fill(block, (uint64_t)i + 1);
        ftb_block_release(block);
    }
}

/* Hunts: an only holder that writes while the one before still reads. */
static void
test_an_only_holder_may_write_again(void)
{
    struct work work;
    work_init(&work, 0, scaled(20000));
    run_threads(2, rewrite_body, &work);
    check_at_rest(work.arena);
    work_fini(&work);
}

static void
watched_body(int ix, void *context)
{
    struct work *work = context;
    if (ix > 0) {
        random_body(ix, work);
        atomic_fetch_sub(&work->running, 1);
        return;
    }
    uint64_t allocs = 0;
    while (atomic_load(&work->running) > 0) {
        struct ftb_arena_stats stats = stats_of(work->arena);
        CHECK(stats.allocs >= allocs && stats.allocs >= stats.frees);
        CHECK(stats.live_blocks <= stats.allocs);
        CHECK(stats.live_bytes <= UINT64_C(1) << 40);
        allocs = stats.allocs;
        ftb_arena_trim(work->arena);
    }
}

/* Hunts: a sum that goes negative, and a trim that takes what is in use. */
static void
test_stats_and_trim_amid_work(void)
{
    struct work work;
    work_init(&work, 0, scaled(20000));
    atomic_store(&work.running, 3);
    run_threads(4, watched_body, &work);
    check_at_rest(work.arena);
    work_fini(&work);
}

int
main(void)
{
    set_watchdog(240);
    seed = run_seed();
    RUN(test_blocks_come_back_from_other_threads);
    RUN(test_random_sizes_keep_their_content);
    RUN(test_limit_holds_under_threads);
    RUN(test_fan_out_frees_once_after_all_readers);
    RUN(test_an_only_holder_may_write_again);
    RUN(test_stats_and_trim_amid_work);
    return 0;
}

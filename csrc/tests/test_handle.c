/* Handles: good once, refused ever after, on one thread and on several. */
#include "ftb_arena.h"
#include "ftb_base.h"

#include "check.h"

#include <stdbool.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static uint64_t
live_blocks(ftb_arena_t *arena)
{
    struct ftb_arena_stats stats;
    ftb_arena_stats(arena, &stats);
    return stats.live_blocks;
}

static void
end_arena(ftb_arena_t *arena)
{
    CHECK(ftb_handle_count() == 0);
    CHECK(live_blocks(arena) == 0);
    CHECK(ftb_arena_check(arena));
    ftb_arena_free(arena);
}

static int
take(uint64_t handle, struct ftb_share *share)
{
    return ftb_handle_take(handle, NULL, 0, share);
}

static void
test_carries_one_reference_and_a_range(void)
{
    ftb_arena_t *arena = ftb_arena_new(0);
    ftb_block_t *block = ftb_block_new(arena, 100);
    uint64_t handle = ftb_handle_new(block, 10, 20);
    struct ftb_share share;
    CHECK(handle != 0);
    CHECK(ftb_handle_count() == 1);
    CHECK(ftb_block_refcount(block) == 1);
    CHECK(take(handle, &share) == FTB_HANDLE_OK);
    CHECK(share.block == block && share.start == 10 && share.length == 20);
    CHECK(ftb_block_refcount(block) == 1);
    ftb_block_release(share.block);
    end_arena(arena);
}

static void
test_is_good_once(void)
{
    ftb_arena_t *arena = ftb_arena_new(0);
    uint64_t before = 0;
    for (int i = 0; i < 1000; i++) {
        struct ftb_share share;
        uint64_t handle = ftb_handle_new(ftb_block_new(arena, 10), 0, 10);
        CHECK(handle != before); /* the slot is used again, its value is not */
        CHECK(take(before, &share) == FTB_HANDLE_STALE);
        CHECK(take(handle, &share) == FTB_HANDLE_OK);
        CHECK(take(handle, &share) == FTB_HANDLE_STALE);
        /* Nor is the next value of the slot, until there is a handle of that value. */
        uint64_t next = handle + (UINT64_C(1) << 32);
        CHECK(take(next, &share) == FTB_HANDLE_STALE);
        ftb_block_release(share.block);
        CHECK(before == 0 || handle == before + (UINT64_C(1) << 32));
        before = handle;
    }
    end_arena(arena);
}

static void
test_any_other_integer_is_refused(void)
{
    ftb_arena_t *arena = ftb_arena_new(0);
    struct ftb_share share = {NULL, 7, 7};
    uint64_t state = run_seed();
    uint64_t handle = ftb_handle_new(ftb_block_new(arena, 1), 0, 1);
    for (uint64_t n = 0; n < 100; n++) {
        CHECK(take(n, &share) == FTB_HANDLE_STALE);
        CHECK(take(UINT64_MAX - n, &share) == FTB_HANDLE_STALE);
    }
    for (uint32_t bit = 0; bit < 64; bit++) {
        CHECK(take(handle ^ (UINT64_C(1) << bit), &share) == FTB_HANDLE_STALE);
    }
    for (long i = 0; i < 100000; i++) {
        uint64_t guess = next_random(&state);
        CHECK(guess == handle || take(guess, &share) == FTB_HANDLE_STALE);
    }
    CHECK(share.block == NULL && share.start == 7 && share.length == 7);
    CHECK(take(handle, &share) == FTB_HANDLE_OK);
    ftb_block_release(share.block);
    end_arena(arena);
}

static void
test_ranges_stay_within_the_length(void)
{
    ftb_arena_t *arena = ftb_arena_new(0);
    ftb_block_t *block = ftb_block_new(arena, 30);
    struct ftb_share share;
    CHECK(ftb_block_capacity(block) == 64);
    CHECK(ftb_handle_new(block, 0, 31) == 0);
    CHECK(ftb_handle_new(block, 31, 0) == 0);
    CHECK(ftb_handle_new(block, 30, 1) == 0);
    CHECK(ftb_handle_new(block, 1, UINT64_MAX) == 0);
    CHECK(ftb_handle_new(block, UINT64_MAX, 2) == 0);
    CHECK(ftb_handle_count() == 0);
    CHECK(take(ftb_handle_new(block, 30, 0), &share) == FTB_HANDLE_OK);
    CHECK(take(ftb_handle_new(block, 0, 30), &share) == FTB_HANDLE_OK);
    ftb_block_release(block);
    end_arena(arena);
}

static void
test_a_refused_take_leaves_the_handle_good(void)
{
    ftb_arena_t *arena = ftb_arena_new(0);
    ftb_arena_t *other = ftb_arena_new(0);
    ftb_block_t *block = ftb_block_retain(ftb_block_new(arena, 10));
    uint64_t handle = ftb_handle_new(block, 0, 10);
    struct ftb_share share;
    CHECK(ftb_handle_take(handle, other, 0, &share) == FTB_HANDLE_FOREIGN);
    CHECK(ftb_handle_take(handle, other, 1, &share) == FTB_HANDLE_FOREIGN);
    CHECK(ftb_handle_take(handle, arena, 1, &share) == FTB_HANDLE_SHARED);
    ftb_block_release(block);
    CHECK(ftb_handle_take(handle, arena, 1, &share) == FTB_HANDLE_OK);
    ftb_block_release(share.block);
    ftb_arena_free(other);
    end_arena(arena);
}

static void
test_a_handle_outlives_its_arena(void)
{
    ftb_arena_t *arena = ftb_arena_new(0);
    ftb_block_t *block = ftb_block_new(arena, 6);
    struct ftb_share share;
    memcpy(ftb_block_data(block), "packet", 6);
    uint64_t handle = ftb_handle_new(block, 0, 6);
    ftb_arena_free(arena);
    CHECK(take(handle, &share) == FTB_HANDLE_OK);
    CHECK(memcmp(ftb_block_data(share.block), "packet", 6) == 0);
    ftb_block_release(share.block);
    CHECK(ftb_handle_count() == 0);
}

/* All handles share the block's one reference here: only their number matters. */
static void
test_a_shard_without_memory_is_passed_over(void)
{
    enum { MANY = 100000 };
    ftb_arena_t *arena = ftb_arena_new(0);
    ftb_block_t *block = ftb_block_new(arena, 1);
    uint64_t *handles = ftb_alloc(MANY * sizeof *handles);
    struct ftb_share share;
    uint32_t n = 0;
    CHECK(handles != NULL);
    for (; n < MANY; n++) {
        ftb_fault_alloc(0);
        handles[n] = ftb_handle_new(block, 0, 1);
        ftb_fault_alloc(-1);
        CHECK(handles[n] != 0);
    }
    CHECK(ftb_handle_count() == MANY);
    for (uint32_t i = 0; i < n; i++) {
        CHECK(take(handles[i], &share) == FTB_HANDLE_OK && share.block == block);
        CHECK(take(handles[i], &share) == FTB_HANDLE_STALE);
    }
    ftb_free(handles);
    ftb_block_release(block);
    end_arena(arena);
}

#define RACES 64

struct race {
    ftb_arena_t *arena;
    uint64_t handles[RACES];
    long rounds;
    pthread_barrier_t barrier;
    uint32_t taken[CHECK_MAX_THREADS];
};

static void
race_body(int ix, void *context)
{
    struct race *race = context;
    for (long round = 0; round < race->rounds; round++) {
        if (ix == 0) {
            for (int i = 0; i < RACES; i++) {
                ftb_block_t *block = ftb_block_new(race->arena, 64);
                memset(ftb_block_data(block), i, 64);
                race->handles[i] = ftb_handle_new(block, 0, 64);
            }
        }
        pthread_barrier_wait(&race->barrier);
        for (int i = 0; i < RACES; i++) {
            struct ftb_share share;
            if (take(race->handles[i], &share) == FTB_HANDLE_OK) {
                CHECK(ftb_block_is_unique(share.block));
                CHECK(ftb_block_data(share.block)[63] == i);
                race->taken[ix]++;
                ftb_block_release(share.block);
            }
        }
        pthread_barrier_wait(&race->barrier);
    }
}

static void
test_one_thread_gets_it(void)
{
    enum { THREADS = 4 };
    struct race race = {.arena = ftb_arena_new(0), .rounds = scaled(2000)};
    pthread_barrier_init(&race.barrier, NULL, THREADS);
    run_threads(THREADS, race_body, &race);
    pthread_barrier_destroy(&race.barrier);
    uint64_t taken = 0;
    for (int i = 0; i < THREADS; i++) {
        taken += race.taken[i];
    }
    CHECK(taken == (uint64_t)race.rounds * RACES);
    end_arena(race.arena);
}

enum { CHURNERS = 6 }; /* more threads than cores */

struct churn {
    ftb_arena_t *arena;
    long rounds;
    uint64_t seed;
};

/* Each thread keeps some handles at a time and takes them in any order. */
static void
churn_body(int ix, void *context)
{
    struct churn *churn = context;
    uint64_t state = churn->seed + (uint64_t)ix * 7919;
    uint64_t handles[32] = {0};
    unsigned char marks[32];
    for (long i = 0; i < churn->rounds; i++) {
        uint64_t random = next_random(&state);
        uint32_t at = random % 32;
        struct ftb_share share;
        if (i % 64 == 0) {
            CHECK(ftb_handle_count() <= 32 * CHURNERS);
        }
        if (handles[at] == 0) {
            ftb_block_t *block = ftb_block_new(churn->arena, random % 500 + 1);
            marks[at] = (unsigned char)(random >> 40);
            ftb_block_data(block)[0] = marks[at];
            handles[at] = ftb_handle_new(block, 0, 1);
            continue;
        }
        CHECK(ftb_handle_take(handles[at], churn->arena, 1, &share) == FTB_HANDLE_OK);
        CHECK(ftb_block_data(share.block)[0] == marks[at]);
        ftb_block_release(share.block);
        CHECK(take(handles[at], &share) == FTB_HANDLE_STALE);
        handles[at] = 0;
    }
    for (uint32_t at = 0; at < 32; at++) {
        struct ftb_share share;
        if (handles[at] != 0) {
            CHECK(take(handles[at], &share) == FTB_HANDLE_OK);
            ftb_block_release(share.block);
        }
    }
}

static void
test_threads_make_and_take(void)
{
    struct churn churn = {ftb_arena_new(0), scaled(200000), run_seed()};
    run_threads(CHURNERS, churn_body, &churn);
    end_arena(churn.arena);
}

/* The child may find shards locked for good, by threads it does not have. */
static void
fork_body(int ix, void *context)
{
    struct churn *churn = context;
    if (ix != 0) {
        churn_body(ix, churn);
        return;
    }
    for (long i = 0; i < scaled(50); i++) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            set_watchdog(60);
            ftb_arena_after_fork_child();
            (void)ftb_handle_count();
            struct ftb_share share;
            uint64_t handle = ftb_handle_new(ftb_block_new(churn->arena, 9), 0, 9);
            CHECK(take(handle, &share) == FTB_HANDLE_OK);
            CHECK(take(handle, &share) == FTB_HANDLE_STALE);
            ftb_block_release(share.block);
            _exit(0);
        }
        int status = 0;
        CHECK(waitpid(child, &status, 0) == child);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
}

static void
test_a_fork_child_has_handles(void)
{
    struct churn churn = {ftb_arena_new(0), scaled(200000), run_seed()};
    run_threads(3, fork_body, &churn);
    end_arena(churn.arena);
}

int
main(void)
{
    set_watchdog(600);
    RUN(test_carries_one_reference_and_a_range);
    RUN(test_is_good_once);
    RUN(test_any_other_integer_is_refused);
    RUN(test_ranges_stay_within_the_length);
    RUN(test_a_refused_take_leaves_the_handle_good);
    RUN(test_a_handle_outlives_its_arena);
    RUN(test_a_shard_without_memory_is_passed_over);
    RUN(test_one_thread_gets_it);
    RUN(test_threads_make_and_take);
    RUN(test_a_fork_child_has_handles);
    return 0;
}

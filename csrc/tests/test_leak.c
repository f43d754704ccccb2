/* Watched blocks: the records, the turns, the reports of misuse. */
#include "check.h"

#include "ftb_arena_internal.h"
#include "ftb_leak.h"

#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static char *
text_of(const char *text)
{
    char *copy = ftb_alloc(strlen(text) + 1);
    CHECK(copy != NULL);
    memcpy(copy, text, strlen(text) + 1);
    return copy;
}

static _Thread_local const char *place = "nowhere"; /* where this thread says it is */

static char *
site(bool is_long, uint64_t *thread)
{
    char text[100];
    *thread = 7;
    (void)snprintf(text, sizeof text, "%s%s", place, is_long ? "\ncaller" : "");
    return text_of(text);
}

static size_t
held(ftb_arena_t *arena, uint64_t owner)
{
    struct ftb_leak *leaks;
    size_t n = ftb_leaks(arena != NULL ? ftb_arena_serial(arena) : 0, owner, &leaks);
    ftb_leaks_free(leaks, n);
    return n;
}

static void
test_a_held_block_is_described(void)
{
    ftb_arena_t *arena = ftb_arena_new(0);
    ftb_leak_set_period(1, site);
    place = "maker";
    ftb_block_t *block = ftb_block_new(arena, 100);
    const char *places[] = {"one", "two", "two", "three", "four", "five"};
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        place = places[i];
        CHECK(ftb_leak_is_watched(block));
        ftb_leak_touch(block);
    }
    struct ftb_leak *leaks;
    CHECK(ftb_leaks(ftb_arena_serial(arena), 0, &leaks) == 1);
    CHECK(leaks->block == block && leaks->size_bytes == 100 && leaks->thread == 7);
    CHECK(strcmp(leaks->site, "maker\ncaller") == 0);
    CHECK(strcmp(leaks->touches[0], "five") == 0);
    CHECK(strcmp(leaks->touches[1], "four") == 0);
    CHECK(strcmp(leaks->touches[2], "three") == 0);
    CHECK(strcmp(leaks->touches[3], "two") == 0);
    ftb_leaks_free(leaks, 1);
    ftb_block_release(block);
    CHECK(held(arena, 0) == 0);
    ftb_leak_set_period(0, NULL);
    block = ftb_block_new(arena, 100);
    CHECK(!ftb_leak_is_watched(block));
    ftb_block_release(block);
    ftb_arena_free(arena);
}

static void
test_records_are_by_arena_and_owner(void)
{
    ftb_arena_t *one = ftb_arena_new(0), *two = ftb_arena_new(0);
    ftb_leak_set_period(1, site);
    CHECK(ftb_leak_set_owner(5) == 0);
    ftb_block_t *blocks[] = {
        ftb_block_new(one, 1), ftb_block_new(two, 300000), ftb_block_new(two, 5000)};
    CHECK(ftb_leak_set_owner(0) == 5);
    ftb_block_t *other = ftb_block_new(one, 1);
    CHECK(held(one, 0) == 2 && held(two, 0) == 2);
    CHECK(held(one, 5) == 1 && held(two, 5) == 2 && held(NULL, 5) == 3);
    CHECK(held(NULL, 6) == 0);
    for (int i = 0; i < 3; i++) {
        ftb_block_release(blocks[i]);
    }
    ftb_block_release(other);
    CHECK(held(NULL, 0) == 0);
    ftb_leak_set_period(0, NULL);
    ftb_arena_free(one);
    ftb_arena_free(two);
}

static void
test_without_memory_a_block_is_not_watched(void)
{
    ftb_arena_t *arena = ftb_arena_new(0);
    ftb_block_release(ftb_block_new(arena, 64)); /* the cache is there */
    ftb_leak_set_period(1, site);
    ftb_fault_alloc(0);
    ftb_block_t *block = ftb_block_new(arena, 64);
    ftb_fault_alloc(-1);
    CHECK(block != NULL && !ftb_leak_is_watched(block));
    CHECK(held(arena, 0) == 0);
    ftb_block_release(block);
    ftb_leak_set_period(0, NULL);
    ftb_arena_free(arena);
}

#define ROUNDS 2000
#define SLOTS 64

struct shared {
    ftb_arena_t *arena;
    ftb_atomic(ftb_block_t *) slots[SLOTS];
    ftb_atomic(uint32_t) is_done; /* with the forks */
};

/* Blocks wander from thread to thread through the slots, are used and released there. */
static void
wander(int ix, void *context)
{
    struct shared *shared = context;
    uint64_t random = (uint64_t)ix + 1;
    place = "wanderer";
    for (long i = scaled(ROUNDS); i > 0; i--) {
        ftb_block_t *block = ftb_block_new(shared->arena, next_random(&random) % 2000);
        CHECK(block != NULL);
        block =
            ftb_exchange_acq_rel(&shared->slots[next_random(&random) % SLOTS], block);
        if (block != NULL) {
            if (ftb_leak_is_watched(block)) {
                ftb_leak_touch(block);
            }
            ftb_block_release(block);
        }
        if (i % 64 == 0) {
            CHECK(held(shared->arena, 0) <= SLOTS + 8);
        }
    }
}

static void
test_records_follow_blocks_between_threads(void)
{
    for (uint32_t period = 1; period <= 16; period *= 16) {
        struct shared shared = {.arena = ftb_arena_new(0)};
        ftb_leak_set_period(period, site);
        run_threads(4, wander, &shared);
        size_t watched_n = 0;
        for (int i = 0; i < SLOTS; i++) {
            ftb_block_t *block = ftb_load_acquire(&shared.slots[i]);
            watched_n += block != NULL && ftb_leak_is_watched(block);
        }
        CHECK(held(shared.arena, 0) == watched_n);
        for (int i = 0; i < SLOTS; i++) {
            if (ftb_load_acquire(&shared.slots[i]) != NULL) {
                ftb_block_release(ftb_load_acquire(&shared.slots[i]));
            }
        }
        CHECK(held(shared.arena, 0) == 0);
        ftb_leak_set_period(0, NULL);
        ftb_arena_free(shared.arena);
    }
}

/* Blocks collide in the table's buckets, and are released in another order. */
static void
test_records_of_many_blocks(void)
{
    enum { MANY = 20000 };
    ftb_arena_t *arena = ftb_arena_new(0);
    static ftb_block_t *blocks[MANY];
    ftb_leak_set_period(1, NULL);
    for (int i = 0; i < MANY; i++) {
        blocks[i] = ftb_block_new(arena, 1);
    }
    CHECK(held(arena, 0) == MANY);
    for (int i = 0; i < MANY; i += 2) {
        ftb_block_release(blocks[i]);
    }
    CHECK(held(arena, 0) == MANY / 2);
    for (int i = 1; i < MANY; i += 2) {
        ftb_block_release(blocks[i]);
    }
    CHECK(held(arena, 0) == 0);
    ftb_leak_set_period(0, NULL);
    ftb_arena_free(arena);
}

/* The child forgets what was watched, and may find the lock held by no thread it has. */
static void
fork_or_wander(int ix, void *context)
{
    struct shared *shared = context;
    if (ix != 0) {
        while (ftb_load_acquire(&shared->is_done) == 0) {
            wander(ix, shared);
        }
        return;
    }
    ftb_block_t *block = ftb_block_new(shared->arena, 100);
    for (long i = 0; i < scaled(50); i++) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            set_watchdog(60);
            ftb_arena_after_fork_child();
            CHECK(held(NULL, 0) == 0);
            ftb_block_t *own = ftb_block_new(shared->arena, 100);
            CHECK(ftb_leak_is_watched(own) && held(NULL, 0) == 1);
            ftb_leak_touch(block);
            ftb_block_release(block);
            CHECK(held(NULL, 0) == 1);
            ftb_block_release(own);
            CHECK(held(NULL, 0) == 0);
            _exit(0);
        }
        int status = 0;
        CHECK(waitpid(child, &status, 0) == child);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    ftb_store_release(&shared->is_done, 1);
    ftb_block_release(block);
}

static void
test_a_fork_child_forgets(void)
{
    struct shared shared = {.arena = ftb_arena_new(0)};
    ftb_leak_set_period(1, site);
    run_threads(3, fork_or_wander, &shared);
    for (int i = 0; i < SLOTS; i++) {
        if (ftb_load_acquire(&shared.slots[i]) != NULL) {
            ftb_block_release(ftb_load_acquire(&shared.slots[i]));
        }
    }
    ftb_leak_set_period(0, NULL);
    ftb_arena_free(shared.arena);
}

int
main(void)
{
    set_watchdog(600);
    RUN(test_a_held_block_is_described);
    RUN(test_records_are_by_arena_and_owner);
    RUN(test_without_memory_a_block_is_not_watched);
    RUN(test_records_of_many_blocks);
    RUN(test_records_follow_blocks_between_threads);
    RUN(test_a_fork_child_forgets);
    return 0;
}

/* The arena on one thread: classes, counts, recycling, limits, trimming, faults. */
#include "ftb_arena.h"
#include "ftb_base.h"
#include "ftb_leak.h"

#include "check.h"

#include <stdbool.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static struct ftb_arena_stats
stats_of(ftb_arena_t *arena)
{
    struct ftb_arena_stats stats;
    ftb_arena_stats(arena, &stats);
    return stats;
}

static void
end_arena(ftb_arena_t *arena)
{
    CHECK(stats_of(arena).live_blocks == 0);
    CHECK(ftb_arena_check(arena));
    ftb_arena_free(arena);
}

static void
test_every_size_fits_its_class_with_little_waste(void)
{
    ftb_arena_t *arena = ftb_arena_new(0);
    for (uint64_t size = 0; size <= 300 * 1024; size += size < 5000 ? 1 : 97) {
        ftb_block_t *block = ftb_block_new(arena, size);
        uint64_t capacity = ftb_block_capacity(block);
        CHECK(capacity >= size);
        CHECK(size <= 64 || capacity * 4 < size * 5 + 4); /* under a quarter */
        CHECK(ftb_block_length(block) == size);
        CHECK((uintptr_t)ftb_block_data(block) % 64 == 0);
        memset(ftb_block_data(block), 0x5A, capacity);
        ftb_block_release(block);
    }
    struct ftb_arena_stats stats = stats_of(arena);
    for (int i = 1; i < FTB_ARENA_CLASSES; i++) {
        CHECK(stats.classes[i].capacity_bytes > stats.classes[i - 1].capacity_bytes);
        CHECK(stats.classes[i].misses == 1); /* each class needed one block */
    }
    CHECK(stats.classes[FTB_ARENA_CLASSES - 1].capacity_bytes == 256 * 1024);
    end_arena(arena);
}

static void
test_released_memory_is_used_again(void)
{
    ftb_arena_t *arena = ftb_arena_new(0);
    ftb_block_t *first = ftb_block_new(arena, 1000);
    uint32_t generation = ftb_block_generation(first);
    CHECK(ftb_block_generation(first) == generation);
    ftb_block_release(first);
    ftb_block_t *second = ftb_block_new(arena, 900);
    CHECK(second == first);
    CHECK(ftb_block_generation(second) == generation + 1);
    ftb_block_release(second);
    struct ftb_arena_stats stats = stats_of(arena);
    CHECK(stats.allocs == 2 && stats.frees == 2);
    CHECK(stats.hits == 1 && stats.misses == 1);
    end_arena(arena);
}

static void
test_steady_use_never_misses(void)
{
    ftb_arena_t *arena = ftb_arena_new(0);
    ftb_block_t *held[100];
    uint64_t misses = 0;
    for (int round = 0; round < 50; round++) {
        for (int i = 0; i < 100; i++) {
            held[i] = ftb_block_new(arena, 1024);
        }
        for (int i = 0; i < 100; i++) {
            ftb_block_release(held[i]);
        }
        if (round == 0) {
            misses = stats_of(arena).misses;
        }
    }
    CHECK(misses == 100);
    CHECK(stats_of(arena).misses == misses);
    end_arena(arena);
}

static void
test_the_last_of_many_references_frees(void)
{
    ftb_arena_t *arena = ftb_arena_new(0);
    ftb_block_t *block = ftb_block_new(arena, 10);
    CHECK(ftb_block_is_unique(block));
    CHECK(ftb_block_retain(block) == block);
    CHECK(!ftb_block_is_unique(block));
    ftb_block_retain_many(block, 16);
    CHECK(ftb_block_refcount(block) == 18);
    for (int i = 0; i < 17; i++) {
        ftb_block_release(block);
    }
    CHECK(ftb_block_is_unique(block));
    CHECK(stats_of(arena).live_blocks == 1);
    ftb_block_set_length(block, 64);
    CHECK(ftb_block_length(block) == 64);
    ftb_block_release(block);
    end_arena(arena);
}

static void
test_zeroed_memory_shows_nothing_old(void)
{
    ftb_arena_t *arena = ftb_arena_new(0);
    uint64_t sizes[] = {1, 64, 1000, 40000, 256 * 1024, 1000000};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        for (int round = 0; round < 3; round++) {
            ftb_block_t *block = ftb_block_new(arena, sizes[i]);
            ftb_block_zero(block, sizes[i]);
            unsigned char *data = ftb_block_data(block);
            for (uint64_t j = 0; j < sizes[i]; j++) {
                CHECK(data[j] == 0);
            }
            memset(data, 0xEE, ftb_block_capacity(block));
            ftb_block_release(block);
        }
    }
    end_arena(arena);
}

static void
test_large_blocks_are_counted_and_not_pooled(void)
{
    ftb_arena_t *arena = ftb_arena_new(0);
    ftb_block_t *block = ftb_block_new(arena, 5000000);
    struct ftb_arena_stats stats = stats_of(arena);
    CHECK(stats.large_live == 1 && stats.live_blocks == 1);
    CHECK(stats.live_bytes == 5000000);
    CHECK(stats.reserved_bytes >= 5000000);
    memset(ftb_block_data(block), 1, 5000000);
    ftb_block_release(block);
    stats = stats_of(arena);
    CHECK(stats.live_bytes == 0 && stats.reserved_bytes == 0);
    CHECK(stats.peak_bytes >= 5000000);
    CHECK(ftb_block_new(arena, UINT64_MAX) == NULL);
    CHECK(ftb_block_new(arena, (uint64_t)1 << 62) == NULL);
    CHECK(stats_of(arena).reserved_bytes == 0);
    end_arena(arena);
}

static void
test_limit_refuses_and_recovers(void)
{
    ftb_arena_t *arena = ftb_arena_new(100000);
    ftb_block_t *held[200];
    ftb_block_t *block = NULL;
    int n = 0;
    CHECK(ftb_block_try_new(arena, 200000, &block) == FTB_BLOCK_LIMIT);
    CHECK(ftb_block_try_new(arena, UINT64_MAX, &block) == FTB_BLOCK_LIMIT);
    while (ftb_block_try_new(arena, 1024, &block) == FTB_BLOCK_OK) {
        held[n++] = block;
        CHECK(n < 100);
    }
    CHECK(n > 70);
    CHECK(stats_of(arena).reserved_bytes <= 100000);
    CHECK(stats_of(arena).live_blocks == (uint64_t)n);
    for (int i = 0; i < n; i++) {
        ftb_block_release(held[i]);
    }
    /* All of it is cached as 1 KiB blocks: another size must get through to it. */
    block = ftb_block_new(arena, 60000);
    CHECK(block != NULL);
    ftb_block_release(block);
    CHECK(stats_of(arena).peak_bytes <= 100000);
    end_arena(arena);
}

static void
test_trim_gives_everything_back(void)
{
    ftb_arena_t *arena = ftb_arena_new(0);
    ftb_block_t *held[500];
    for (int i = 0; i < 500; i++) {
        held[i] = ftb_block_new(arena, (uint64_t)i * 300);
    }
    CHECK(ftb_arena_trim(arena) == 0);
    for (int i = 0; i < 500; i++) {
        ftb_block_release(held[i]);
    }
    uint64_t reserved = stats_of(arena).reserved_bytes;
    CHECK(reserved > 0);
    CHECK(ftb_arena_trim(arena) == reserved);
    CHECK(stats_of(arena).reserved_bytes == 0);
    end_arena(arena);
}

/* A burst is forgotten by use alone: 100 MiB once, then a little for a long time. */
static void
test_a_burst_is_given_back(void)
{
    enum { BURST = 3000 };
    ftb_arena_t *arena = ftb_arena_new(0);
    static ftb_block_t *held[BURST];
    for (int i = 0; i < BURST; i++) {
        held[i] = ftb_block_new(arena, 32768);
    }
    for (int i = 0; i < BURST; i++) {
        ftb_block_release(held[i]);
    }
    CHECK(stats_of(arena).reserved_bytes <= 34u << 20); /* a depot's bound */
    for (int round = 0; round < 3000; round++) {
        for (int i = 0; i < 20; i++) {
            held[i] = ftb_block_new(arena, 32768);
        }
        for (int i = 0; i < 20; i++) {
            ftb_block_release(held[i]);
        }
    }
    CHECK(stats_of(arena).reserved_bytes <= 2u << 20);
    end_arena(arena);
}

static void
test_blocks_outlive_a_freed_arena(void)
{
    ftb_arena_t *arena = ftb_arena_new(0);
    ftb_block_t *small = ftb_block_new(arena, 100);
    ftb_block_t *large = ftb_block_new(arena, 1000000);
    ftb_arena_free(arena);
    memset(ftb_block_data(small), 7, 100);
    ftb_block_retain(large);
    ftb_block_release(large);
    ftb_block_release(small);
    memset(ftb_block_data(large), 7, 1000000);
    ftb_block_release(large); /* the leak checker says whether the arena went */
}

static void
test_many_arenas_keep_apart(void)
{
    enum { ARENAS = 40 };
    ftb_arena_t *arenas[ARENAS];
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < ARENAS; i++) {
            arenas[i] = ftb_arena_new((uint64_t)i * 100000);
            ftb_block_t *block = ftb_block_new(arenas[i], 500);
            ftb_block_release(block);
        }
        for (int i = 0; i < ARENAS; i++) {
            struct ftb_arena_stats stats = stats_of(arenas[i]);
            CHECK(stats.allocs == 1 && stats.misses == 1 && stats.caches == 1);
            end_arena(arenas[i]);
        }
    }
    ftb_arena_free(NULL);
}

/* Fail the n-th allocation for every n: nothing is half done, and it works after. */
static void
test_every_allocation_may_fail(void)
{
    bool done = false;
    for (long n = 0; !done; n++) {
        CHECK(n < 20);
        ftb_fault_alloc(n);
        ftb_arena_t *arena = ftb_arena_new(0);
        ftb_block_t *small = arena != NULL ? ftb_block_new(arena, 100) : NULL;
        ftb_block_t *large = small != NULL ? ftb_block_new(arena, 300000) : NULL;
        done = large != NULL;
        ftb_fault_alloc(-1);
        if (arena == NULL) {
            continue;
        }
        if (small == NULL) {
            CHECK(stats_of(arena).reserved_bytes == 0);
            CHECK(stats_of(arena).live_blocks == 0);
            small = ftb_block_new(arena, 100);
        }
        CHECK(stats_of(arena).live_blocks == (large != NULL ? 2u : 1u));
        if (large != NULL) {
            ftb_block_release(large);
        }
        ftb_block_release(small);
        end_arena(arena);
    }
}

/* With no memory for a record the thread still allocates and frees, uncached. */
static void
stray_thread(int ix, void *context)
{
    (void)ix;
    ftb_fault_alloc(0); /* the thread's table; then the block */
    ftb_block_t *small = ftb_block_new(context, 100);
    CHECK(small != NULL);
    CHECK(stats_of(context).live_blocks == 1);
    ftb_fault_alloc(0);
    ftb_block_release(small);
    CHECK(stats_of(context).live_blocks == 0);
    ftb_fault_alloc(1); /* the block; then the table */
    ftb_block_t *large = ftb_block_new(context, 300000);
    CHECK(large != NULL);
    CHECK(stats_of(context).live_bytes == 300000);
    ftb_fault_alloc(0);
    ftb_block_release(large);
    CHECK(stats_of(context).live_bytes == 0);
    CHECK(stats_of(context).caches == 0);
    ftb_fault_alloc(-1);
}

static void
test_threads_without_a_cache_still_work(void)
{
    ftb_arena_t *arena = ftb_arena_new(0);
    run_threads(1, stray_thread, arena);
    CHECK(stats_of(arena).reserved_bytes == 0);
    end_arena(arena);
}

/* Where the misuses below say they are. */
static const char *place;

static char *
place_now(bool is_long, uint64_t *thread)
{
    char *text = ftb_alloc(100);
    *thread = 1;
    (void)snprintf(text, 100, "%s%s", place, is_long ? ", with callers" : "");
    return text;
}

static ftb_block_t *
block_from(ftb_arena_t *arena, const char *name)
{
    place = name;
    return ftb_block_new(arena, 100);
}

static void
release_at(ftb_block_t *block, const char *name)
{
    place = name;
    ftb_block_release(block);
}

static void
fault_double_free_of_watched(ftb_arena_t *arena)
{
    ftb_leak_set_period(1, place_now);
    ftb_block_t *block = block_from(arena, "the maker");
    place = "the user";
    ftb_leak_touch(block);
    release_at(block, "the first to release");
    release_at(block, "the second to release");
}

static void
fault_write_after_free_of_watched(ftb_arena_t *arena)
{
    ftb_leak_set_period(1, place_now);
    ftb_block_t *block = block_from(arena, "the maker");
    volatile unsigned char *data = ftb_block_data(block);
    release_at(block, "the first to release");
    data[50] = 1;
    block_from(arena, "the next");
}

static void
fault_overrun_of_watched(ftb_arena_t *arena)
{
    ftb_leak_set_period(1, place_now);
    ftb_block_t *block = block_from(arena, "the maker");
    volatile unsigned char *data = ftb_block_data(block);
    data[ftb_block_capacity(block)] ^= 1;
    release_at(block, "the first to release");
}

static void
fault_double_free(ftb_arena_t *arena)
{
    ftb_block_t *block = ftb_block_new(arena, 100);
    ftb_block_release(block);
    ftb_block_release(block);
}

static void
fault_retain_after_free(ftb_arena_t *arena)
{
    ftb_block_t *block = ftb_block_new(arena, 100);
    ftb_block_release(block);
    ftb_block_retain(block);
}

static void
fault_overrun(ftb_arena_t *arena)
{
    ftb_block_t *block = ftb_block_new(arena, 100);
    volatile unsigned char *data = ftb_block_data(block);
    data[ftb_block_capacity(block)] ^= 1;
    ftb_block_release(block);
}

static void
fault_underrun(ftb_arena_t *arena)
{
    ftb_block_t *block = ftb_block_new(arena, 100);
    volatile unsigned char *data = ftb_block_data(block);
    *(data - 1) ^= 1;
    ftb_block_release(block);
}

static void
fault_write_after_free(ftb_arena_t *arena)
{
    ftb_block_t *block = ftb_block_new(arena, 100);
    volatile unsigned char *data = ftb_block_data(block);
    ftb_block_release(block);
    data[50] = 1;
    ftb_block_new(arena, 100);
}

static void
fault_handle_after_free(ftb_arena_t *arena)
{
    ftb_block_t *block = ftb_block_new(arena, 100);
    ftb_block_release(block);
    ftb_handle_new(block, 0, 100);
}

/* Run the misuse in a child and look for the message on its stderr. */
static void
expect_fault(void (*misuse)(ftb_arena_t *), const char *message)
{
    int ends[2];
    char text[4096];
    size_t length = 0;
    CHECK(pipe(ends) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        dup2(ends[1], STDERR_FILENO);
        misuse(ftb_arena_new(0));
        _exit(0);
    }
    close(ends[1]);
    ssize_t got;
    while ((got = read(ends[0], text + length, sizeof text - 1 - length)) > 0) {
        length += (size_t)got;
    }
    text[length] = '\0';
    close(ends[0]);
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(!WIFEXITED(status) || WEXITSTATUS(status) != 0);
    CHECK(strstr(text, message) != NULL || strstr(text, "AddressSanitizer") != NULL);
}

static void
test_misuse_is_named(void)
{
    expect_fault(fault_double_free, "double free");
    expect_fault(fault_retain_after_free, "retained after free");
    expect_fault(fault_overrun, "written past its end");
    expect_fault(fault_underrun, "header overwritten");
    expect_fault(fault_write_after_free, "written after free");
    expect_fault(
        fault_double_free_of_watched,
        "allocated at:\nthe maker, with callers\nused at: the user\n"
        "released at: the first to release\n");
    expect_fault(
        fault_write_after_free_of_watched, "released at: the first to release");
    expect_fault(fault_overrun_of_watched, "allocated at:\nthe maker, with callers\n");
    expect_fault(fault_handle_after_free, "handed over after free");
}

int
main(void)
{
    set_watchdog(240);
    RUN(test_every_size_fits_its_class_with_little_waste);
    RUN(test_released_memory_is_used_again);
    RUN(test_steady_use_never_misses);
    RUN(test_the_last_of_many_references_frees);
    RUN(test_zeroed_memory_shows_nothing_old);
    RUN(test_large_blocks_are_counted_and_not_pooled);
    RUN(test_limit_refuses_and_recovers);
    RUN(test_trim_gives_everything_back);
    RUN(test_a_burst_is_given_back);
    RUN(test_blocks_outlive_a_freed_arena);
    RUN(test_many_arenas_keep_apart);
    RUN(test_every_allocation_may_fail);
    RUN(test_threads_without_a_cache_still_work);
    RUN(test_misuse_is_named);
    return 0;
}

/* The arena called through its table, as other shared objects do. */
#include "ftb_arena_api.h"

#include "check.h"

#include <string.h>

FTB_ARENA_API_DEFINE;

void ftb__arena_api_fill(ftb_arena_api_t *table, ftb_arena_t *default_arena);

static ftb_arena_api_t table;

static void
test_unsuitable_tables_are_refused(void)
{
    ftb_arena_api_t other = table;
    CHECK(ftb_arena_api_use(NULL) == 0);
    other.version = FTB_ARENA_API_VERSION + 1;
    CHECK(ftb_arena_api_use(&other) == 0);
    other = table;
    other.size_bytes =
        sizeof other - sizeof(void *); /* an ftbus without the last one */
    CHECK(ftb_arena_api_use(&other) == 0);
    CHECK(ftb_arena_api == NULL);
    other.size_bytes =
        sizeof other + sizeof(void *); /* one that is newer than we are */
    CHECK(ftb_arena_api_use(&other) == 1);
    CHECK(ftb_arena_api_use(&table) == 1);
    CHECK(ftb_arena_api == &table);
}

static void
test_every_function_is_reached_by_its_name(void)
{
    struct ftb_arena_stats stats;
    struct ftb_share share;
    ftb_block_t *block;
    ftb_arena_t *arena = ftb_arena_new(1 << 20);
    CHECK(ftb_block_try_new(arena, 100, &block) == FTB_BLOCK_OK);
    ftb_block_zero(block, 100);
    CHECK(ftb_block_data(block)[99] == 0);
    CHECK(ftb_block_capacity(block) >= 100 && ftb_block_length(block) == 100);
    ftb_block_set_length(block, 50);
    CHECK(ftb_block_length(block) == 50);
    CHECK(ftb_block_retain(block) == block);
    ftb_block_retain_many(block, 2);
    CHECK(ftb_block_refcount(block) == 4 && !ftb_block_is_unique(block));
    for (int i = 0; i < 3; i++) {
        ftb_block_release(block);
    }
    uint32_t generation = ftb_block_generation(block);
    uint64_t handle = ftb_handle_new(block, 1, 2);
    CHECK(ftb_handle_count() == 1);
    CHECK(ftb_handle_take(handle, arena, 1, &share) == FTB_HANDLE_OK);
    CHECK(share.block == block && share.start == 1 && share.length == 2);
    ftb_block_release(share.block);
    block = ftb_block_new(arena, 100);
    CHECK(ftb_block_generation(block) == generation + 1);
    ftb_block_release(block);
    ftb_arena_stats(arena, &stats);
    CHECK(stats.limit_bytes == 1 << 20 && stats.allocs == 2 && stats.live_blocks == 0);
    CHECK(ftb_arena_trim(arena) == stats.reserved_bytes);
    ftb_arena_after_fork_child(); /* harmless elsewhere, with one thread */
    CHECK(ftb_arena_check(arena));
    ftb_arena_free(arena);
}

static void
test_the_default_arena_is_the_one_it_was_made_with(void)
{
    ftb_block_t *block = ftb_block_new(ftb_arena_api->default_arena, 10);
    CHECK(block != NULL);
    ftb_block_release(block);
}

int
main(void)
{
    set_watchdog(240);
    ftb__arena_api_fill(&table, NULL);
    ftb_arena_t *arena = table.arena_new(0);
    ftb__arena_api_fill(&table, arena);
    RUN(test_unsuitable_tables_are_refused);
    RUN(test_every_function_is_reached_by_its_name);
    RUN(test_the_default_arena_is_the_one_it_was_made_with);
    ftb_arena_free(arena);
    return 0;
}

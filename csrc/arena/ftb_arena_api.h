/* The arena for code in another shared object: a table of its functions.
 *
 * Python loads an extension so that others cannot link with it, and a second copy of
 * the arena would have its own blocks. So ftbus hands out this table: its address is
 * ftbus.buffers.arena_api in Python and the capsule ftbus._core._arena_api in C
 * (ftb_arena_import.h). In one file of yours write FTB_ARENA_API_DEFINE; once, call
 * ftb_arena_api_use before all else, and then the functions of ftb_arena.h, by their
 * own names, in every file that includes this one.
 *
 * Plain C and C++, for gcc and clang; knows nothing of Python. */
#ifndef FTB_ARENA_API_H
#define FTB_ARENA_API_H

#include "ftb_arena.h"

/* Raised when an entry changes its meaning, never when one is added. */
#define FTB_ARENA_API_VERSION 1

/* Every function of ftb_arena.h without its prefix; new ones only at the end. */
#define FTB_ARENA_FUNCTIONS(X)                                                         \
    X(arena_new)                                                                       \
    X(arena_free)                                                                      \
    X(arena_trim)                                                                      \
    X(arena_stats)                                                                     \
    X(arena_check)                                                                     \
    X(arena_after_fork_child)                                                          \
    X(block_new)                                                                       \
    X(block_try_new)                                                                   \
    X(block_zero)                                                                      \
    X(block_data)                                                                      \
    X(block_capacity)                                                                  \
    X(block_length)                                                                    \
    X(block_set_length)                                                                \
    X(block_retain)                                                                    \
    X(block_retain_many)                                                               \
    X(block_release)                                                                   \
    X(block_is_unique)                                                                 \
    X(block_refcount)                                                                  \
    X(block_generation)                                                                \
    X(handle_new)                                                                      \
    X(handle_take)                                                                     \
    X(handle_count)

/* Written once, before anybody gets its address; good until the process ends. */
typedef struct ftb_arena_api {
    uint32_t version;           /* FTB_ARENA_API_VERSION of the ftbus that runs */
    uint32_t size_bytes;        /* of this struct there: what it has of the entries */
    ftb_arena_t *default_arena; /* behind ftbus.default_pool; never freed */
#define FTB_ARENA_ENTRY(name) __typeof__(&ftb_##name) name;
    FTB_ARENA_FUNCTIONS(FTB_ARENA_ENTRY)
#undef FTB_ARENA_ENTRY
} ftb_arena_api_t;

#ifndef FTB_ARENA_API_TABLE_ONLY

#ifdef __cplusplus
extern "C" {
#endif

/* Written by ftb_arena_api_use. Hidden: each shared object has its own. */
extern __attribute__((visibility("hidden"))) const ftb_arena_api_t *ftb_arena_api;

#define FTB_ARENA_API_DEFINE const ftb_arena_api_t *ftb_arena_api

/* Use the table at that address. Returns 1, or 0, and nothing is changed, if it is NULL
 * or its ftbus is too old or too new for these headers. */
static inline int
ftb_arena_api_use(const void *address)
{
    const ftb_arena_api_t *table = (const ftb_arena_api_t *)address;
    if (table == NULL || table->version != FTB_ARENA_API_VERSION
        || table->size_bytes < sizeof *table) {
        return 0;
    }
    ftb_arena_api = table;
    return 1;
}

#ifdef __cplusplus
}
#endif

#define ftb_arena_new (ftb_arena_api->arena_new)
#define ftb_arena_free (ftb_arena_api->arena_free)
#define ftb_arena_trim (ftb_arena_api->arena_trim)
#define ftb_arena_stats(arena, stats) (ftb_arena_api->arena_stats)(arena, stats)
#define ftb_arena_check (ftb_arena_api->arena_check)
#define ftb_arena_after_fork_child (ftb_arena_api->arena_after_fork_child)
#define ftb_block_new (ftb_arena_api->block_new)
#define ftb_block_try_new (ftb_arena_api->block_try_new)
#define ftb_block_zero (ftb_arena_api->block_zero)
#define ftb_block_data (ftb_arena_api->block_data)
#define ftb_block_capacity (ftb_arena_api->block_capacity)
#define ftb_block_length (ftb_arena_api->block_length)
#define ftb_block_set_length (ftb_arena_api->block_set_length)
#define ftb_block_retain (ftb_arena_api->block_retain)
#define ftb_block_retain_many (ftb_arena_api->block_retain_many)
#define ftb_block_release (ftb_arena_api->block_release)
#define ftb_block_is_unique (ftb_arena_api->block_is_unique)
#define ftb_block_refcount (ftb_arena_api->block_refcount)
#define ftb_block_generation (ftb_arena_api->block_generation)
#define ftb_handle_new (ftb_arena_api->handle_new)
#define ftb_handle_take (ftb_arena_api->handle_take)
#define ftb_handle_count (ftb_arena_api->handle_count)

#else /* ftbus itself: fill the table, before its address is handed out */

void ftb__arena_api_fill(ftb_arena_api_t *table, ftb_arena_t *default_arena);

#endif

#endif

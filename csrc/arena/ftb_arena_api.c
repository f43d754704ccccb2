/* The table that code in other shared objects calls the arena through. */
#define FTB_ARENA_API_TABLE_ONLY
#include "ftb_arena_api.h"

#include "ftb_arena_internal.h"

void
ftb__arena_api_fill(ftb_arena_api_t *table, ftb_arena_t *default_arena)
{
    table->version = FTB_ARENA_API_VERSION;
    table->size_bytes = sizeof *table;
    table->default_arena = default_arena;
#define ENTRY(name) table->name = ftb_##name;
    FTB_ARENA_FUNCTIONS(ENTRY)
#undef ENTRY
}

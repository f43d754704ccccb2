"""The mutants of the arena: references, the counts by which it ends, its depots.

See mutants.py.
"""

from __future__ import annotations

from mutants_base import Mutant

ARENA_C = "arena/ftb_arena.c"
BLOCK = "arena/ftb_block.c"
BLOCK_POOL = "arena/ftb_block_pool.c"
CACHE = "arena/ftb_cache.c"
DEPOT = "arena/ftb_depot.c"
STATS = "arena/ftb_arena_stats.c"

ARENA: tuple[Mutant, ...] = (
    # References: argument 2 and 3 of ftb_block_pool.c.
    Mutant(
        "arena-release-only",
        BLOCK_POOL,
        "uint32_t held = ftb_load_acquire(&block->rc);",
        "uint32_t held = ftb_load_relaxed(&block->rc);",
        ("test_arena_stress thread",),
    ),
    Mutant(
        "arena-release-one",
        BLOCK_POOL,
        "ftb_sub_release(",
        "ftb_sub_relaxed(",
        ("test_arena_stress thread",),
    ),
    # The yield widens a gap of nanoseconds after the first load, which acquires too.
    Mutant(
        "arena-release-last",
        BLOCK_POOL,
        "        if (ftb_sub_release(&block->rc, 1) != 1) {\n"
        "            return;\n"
        "        }\n"
        "        (void)ftb_load_acquire(&block->rc);",
        "        sched_yield();\n"
        "        if (ftb_sub_release(&block->rc, 1) != 1) {\n"
        "            return;\n"
        "        }\n"
        "        (void)ftb_load_relaxed(&block->rc);",
        ("test_arena_stress thread",),
    ),
    Mutant(
        "arena-unique",
        BLOCK,
        "ftb_load_acquire(&block->rc) == 1",
        "ftb_load_relaxed(&block->rc) == 1",
        ("test_arena_stress thread",),
    ),
    Mutant(
        "arena-recycled-in-use",
        BLOCK_POOL,
        "if (ftb_sub_release(&block->rc, 1) != 1) {",
        "if (ftb_sub_release(&block->rc, 1) > 2) {",
        ("test_arena_stress",),
    ),
    # The end: the counts of frees order it, and nothing else.
    Mutant(
        "arena-free-count",
        BLOCK_POOL,
        "ftb_store_release(&bin->frees",
        "ftb_store_relaxed(&bin->frees",
        ("test_arena_stress thread",),
    ),
    Mutant(
        "arena-free-sum",
        STATS,
        "ftb_load_acquire(&cache->bins[i].frees)",
        "ftb_load_relaxed(&cache->bins[i].frees)",
        ("test_arena_stress thread",),
    ),
    Mutant(
        "arena-large-count",
        BLOCK,
        "ftb_store_release(",
        "ftb_store_relaxed(",
        ("test_arena_stress thread",),
    ),
    Mutant(
        "arena-large-sum",
        STATS,
        "ftb_load_acquire(&cache->large_frees)",
        "ftb_load_relaxed(&cache->large_frees)",
        ("test_arena_stress thread",),
    ),
    Mutant(
        "arena-stray-count",
        BLOCK_POOL,
        "ftb_add_release(&depot->stray_frees",
        "ftb_add_relaxed(&depot->stray_frees",
        ("test_arena_stress thread",),
    ),
    Mutant(
        "arena-stray-sum",
        STATS,
        "ftb_load_acquire(&arena->depots[i].stray_frees)",
        "ftb_load_relaxed(&arena->depots[i].stray_frees)",
        ("test_arena_stress thread",),
    ),
    Mutant(
        "arena-stray-large-count",
        BLOCK,
        "ftb_add_release(&arena->stray_large_frees",
        "ftb_add_relaxed(&arena->stray_large_frees",
        ("test_arena_stress thread",),
    ),
    Mutant(
        "arena-stray-large-sum",
        STATS,
        "ftb_load_acquire(&arena->stray_large_frees)",
        "ftb_load_relaxed(&arena->stray_large_frees)",
        ("test_arena_stress thread",),
    ),
    Mutant(
        "arena-ends-early",
        ARENA_C,
        "    if (live == 0) {",
        "    if (live <= 1) {",
        ("test_arena_stress address,undefined",),
    ),
    Mutant(
        "arena-sums-in-wrong-order",
        STATS,
        "    sum_frees_locked(arena, &sums);\n"
        "    sum_allocs_locked(arena, &sums);\n"
        "    stats->caches",
        "    sum_allocs_locked(arena, &sums);\n"
        "    sched_yield();\n"
        "    sum_frees_locked(arena, &sums);\n"
        "    stats->caches",
        ("test_arena_stress",),
    ),
    # The limit and the depots.
    Mutant(
        "arena-limit-of-one",
        ARENA_C,
        "bytes > arena->limit_bytes - before",
        "bytes > arena->limit_bytes",
        ("test_arena_stress",),
    ),
    Mutant(
        "arena-depot-keeps-count",
        DEPOT,
        "depot->blocks_n -= chain->chain_n;",
        "(void)depot;",
        ("test_arena_stress",),
    ),
    Mutant(
        "arena-thread-keeps-cache",
        ARENA_C,
        "            ftb__cache_flush(arena, cache);\n            pthread_mutex_lock",
        "            ftb__cache_abandon(cache);\n            pthread_mutex_lock",
        ("test_arena_stress",),
    ),
)

"""The mutants of the arena: references, the counts by which it ends, its depots, the
handles, and the records of watched blocks.

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
HANDLE = "arena/ftb_handle.c"
LEAK = "arena/ftb_leak.c"

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
        ("test_arena_end thread",),
    ),
    Mutant(
        "arena-free-sum",
        STATS,
        "ftb_load_acquire(&cache->bins[i].frees)",
        "ftb_load_relaxed(&cache->bins[i].frees)",
        ("test_arena_end thread",),
    ),
    Mutant(
        "arena-large-count",
        BLOCK,
        "ftb_store_release(",
        "ftb_store_relaxed(",
        ("test_arena_end thread",),
    ),
    Mutant(
        "arena-large-sum",
        STATS,
        "ftb_load_acquire(&cache->large_frees)",
        "ftb_load_relaxed(&cache->large_frees)",
        ("test_arena_end thread",),
    ),
    Mutant(
        "arena-stray-count",
        BLOCK_POOL,
        "ftb_add_release(&depot->stray_frees",
        "ftb_add_relaxed(&depot->stray_frees",
        ("test_arena_end thread",),
    ),
    Mutant(
        "arena-stray-sum",
        STATS,
        "ftb_load_acquire(&arena->depots[i].stray_frees)",
        "ftb_load_relaxed(&arena->depots[i].stray_frees)",
        ("test_arena_end thread",),
    ),
    Mutant(
        "arena-stray-large-count",
        BLOCK,
        "ftb_add_release(&arena->stray_large_frees",
        "ftb_add_relaxed(&arena->stray_large_frees",
        ("test_arena_end thread",),
    ),
    Mutant(
        "arena-stray-large-sum",
        STATS,
        "ftb_load_acquire(&arena->stray_large_frees)",
        "ftb_load_relaxed(&arena->stray_large_frees)",
        ("test_arena_end thread",),
    ),
    Mutant(
        "arena-ends-early",
        ARENA_C,
        "    if (live == 0) {",
        "    if (live <= 1) {",
        ("test_arena_end address,undefined",),
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
        ("test_arena_end",),
    ),
    # Handles.
    Mutant(
        "handle-add-unlocked",
        HANDLE,
        "    pthread_mutex_lock(&shard->lock);\n    struct slot *slot =",
        "    struct slot *slot =",
        ("test_handle thread",),
    ),
    Mutant(
        "handle-take-unlocked",
        HANDLE,
        "    pthread_mutex_lock(&shard->lock);\n    if (!shard->lost",
        "    if (!shard->lost",
        ("test_handle thread",),
    ),
    Mutant(
        "handle-count-unlocked",
        HANDLE,
        "        pthread_mutex_lock(&shards[i].lock);\n        count",
        "        count",
        ("test_handle thread",),
    ),
    Mutant(
        "handle-keeps-generation",
        HANDLE,
        "    slot->gen++;\n",
        "",
        ("test_handle",),
    ),
    Mutant(
        "handle-keeps-block",
        HANDLE,
        "    slot->share.block = NULL;\n",
        "",
        ("test_handle",),
    ),
    Mutant(
        "handle-keeps-slot-free",
        HANDLE,
        "    shard->free_first = slot->next_free;\n",
        "",
        ("test_handle",),
    ),
    Mutant(
        "handle-never-frees-slot",
        HANDLE,
        "        shard->free_first = index + 1;\n",
        "",
        ("test_handle",),
    ),
    Mutant(
        "handle-begins-at-0",
        HANDLE,
        "    slot->gen = 1;",
        "    slot->gen = 0;",
        ("test_handle",),
    ),
    Mutant(
        "handle-counts-taken",
        HANDLE,
        "                shard->waiting_n--;\n",
        "",
        ("test_handle",),
    ),
    Mutant(
        "handle-free-after-unlock",
        HANDLE,
        "                *share = slot->share;\n",
        "                *share = slot->share;\n"
        "                pthread_mutex_unlock(&shard->lock);\n"
        "                sched_yield();\n"
        "                pthread_mutex_lock(&shard->lock);\n",
        ("test_handle",),
    ),
    Mutant(
        "handle-refusal-spends",
        HANDLE,
        "            if (result == FTB_HANDLE_OK) {",
        "            if (result != FTB_HANDLE_STALE) {",
        ("test_handle",),
    ),
    Mutant(
        "handle-child-keeps-locks",
        HANDLE,
        "        pthread_mutex_init(&shards[i].lock, NULL);\n",
        "",
        ("test_handle",),
    ),
    # Watched blocks.
    Mutant(
        "leak-alloc-unlocked",
        LEAK,
        "    pthread_mutex_lock(&lock);\n    struct record **bucket",
        "    struct record **bucket",
        ("test_leak thread",),
    ),
    Mutant(
        "leak-touch-unlocked",
        LEAK,
        "    pthread_mutex_lock(&lock);\n    struct record *record = *find",
        "    struct record *record = *find",
        ("test_leak thread",),
    ),
    Mutant(
        "leak-free-unlocked",
        LEAK,
        "    pthread_mutex_lock(&lock);\n    struct record **link",
        "    struct record **link",
        ("test_leak thread",),
    ),
    Mutant(
        "leak-copy-unlocked",
        LEAK,
        "    pthread_mutex_lock(&lock);\n    struct ftb_leak *found",
        "    struct ftb_leak *found",
        ("test_leak thread",),
    ),
    Mutant(
        "leak-keeps-entry",
        LEAK,
        "        *link = record->next;\n",
        "",
        ("test_leak",),
    ),
    Mutant(
        "leak-loses-chain",
        LEAK,
        "        *link = record->next;\n",
        "        *link = NULL;\n",
        ("test_leak",),
    ),
    Mutant(
        "leak-not-counted",
        LEAK,
        "    live_n++;\n",
        "",
        ("test_leak",),
    ),
    Mutant(
        "leak-frees-touch",
        LEAK,
        "        text = oldest;\n",
        "",
        ("test_leak address,undefined",),
    ),
    Mutant(
        "leak-frees-site",
        LEAK,
        "        record->freed_at = text;\n        text = NULL;\n",
        "        record->freed_at = text;\n",
        ("test_leak address,undefined",),
    ),
    Mutant(
        "leak-keeps-evicted",
        LEAK,
        "    record_free(evicted);\n",
        "    (void)evicted;\n",
        ("test_leak address,undefined",),
    ),
    Mutant(
        "leak-evicts-after-unlock",
        LEAK,
        "        evicted = freed[freed_n % FREED_N];\n"
        "        freed[freed_n++ % FREED_N] = record;\n"
        "        live_n--;\n"
        "    }\n"
        "    pthread_mutex_unlock(&lock);\n",
        "        live_n--;\n"
        "    }\n"
        "    pthread_mutex_unlock(&lock);\n"
        "    if (record != NULL) {\n"
        "        evicted = freed[freed_n % FREED_N];\n"
        "        freed[freed_n++ % FREED_N] = record;\n"
        "    }\n",
        ("test_leak thread",),
    ),
    Mutant(
        "leak-child-keeps-lock",
        LEAK,
        "    pthread_mutex_init(&lock, NULL);\n",
        "",
        ("test_leak",),
    ),
    Mutant(
        "leak-child-keeps-records",
        LEAK,
        "    memset(buckets, 0, sizeof buckets);\n",
        "",
        ("test_leak",),
    ),
)

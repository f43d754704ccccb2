/* What an arena says of itself: the sums of its counters, and the walk that checks
 * them against the blocks.
 *
 * Thread rule: sums from any thread at any time; the walk only at rest.
 *
 * Every counter only grows, and has one writer or is added to atomically. All counts
 * of frees are read before any count of allocations: a free that is counted happened
 * after its allocation was counted, so a sum taken amid work is never negative. For that
 * the counts of frees are released and acquired; all other loads here are relaxed. */
#include "ftb_arena_internal.h"

#include <stdio.h>
#include <string.h>

struct sums {
    uint64_t allocs[FTB_ARENA_CLASSES];
    uint64_t frees[FTB_ARENA_CLASSES];
    uint64_t large_allocs;
    uint64_t large_frees;
    uint64_t large_alloc_bytes;
    uint64_t large_free_bytes;
};

/* The acquire loads pair with the releases that count frees. */
static void
sum_frees_locked(ftb_arena_t *arena, struct sums *sums)
{
    for (struct ftb__cache *cache = arena->caches; cache != NULL; cache = cache->next) {
        for (uint32_t i = 0; i < FTB_ARENA_CLASSES; i++) {
            sums->frees[i] += ftb_load_acquire(&cache->bins[i].frees);
        }
        sums->large_frees += ftb_load_acquire(&cache->large_frees);
        sums->large_free_bytes += ftb_load_relaxed(&cache->large_free_bytes);
    }
    for (uint32_t i = 0; i < FTB_ARENA_CLASSES; i++) {
        sums->frees[i] += ftb_load_acquire(&arena->depots[i].stray_frees);
    }
    sums->large_frees += ftb_load_acquire(&arena->stray_large_frees);
    sums->large_free_bytes += ftb_load_relaxed(&arena->stray_large_free_bytes);
}

static void
sum_allocs_locked(ftb_arena_t *arena, struct sums *sums)
{
    for (struct ftb__cache *cache = arena->caches; cache != NULL; cache = cache->next) {
        for (uint32_t i = 0; i < FTB_ARENA_CLASSES; i++) {
            sums->allocs[i] += ftb_load_relaxed(&cache->bins[i].allocs);
        }
        sums->large_allocs += ftb_load_relaxed(&cache->large_allocs);
        sums->large_alloc_bytes += ftb_load_relaxed(&cache->large_alloc_bytes);
    }
    for (uint32_t i = 0; i < FTB_ARENA_CLASSES; i++) {
        sums->allocs[i] += ftb_load_relaxed(&arena->depots[i].stray_allocs);
    }
    sums->large_allocs += ftb_load_relaxed(&arena->stray_large_allocs);
    sums->large_alloc_bytes += ftb_load_relaxed(&arena->stray_large_alloc_bytes);
}

uint64_t
ftb__arena_live_locked(ftb_arena_t *arena)
{
    struct sums sums = {0};
    sum_frees_locked(arena, &sums);
    sum_allocs_locked(arena, &sums);
    uint64_t live = sums.large_allocs - sums.large_frees;
    for (uint32_t i = 0; i < FTB_ARENA_CLASSES; i++) {
        live += sums.allocs[i] - sums.frees[i];
    }
    return live;
}

static uint64_t
minus(uint64_t a, uint64_t b)
{
    return a > b ? a - b : 0;
}

void
ftb_arena_stats(ftb_arena_t *arena, struct ftb_arena_stats *stats)
{
    struct sums sums = {0};
    memset(stats, 0, sizeof *stats);
    pthread_mutex_lock(&arena->lock);
    sum_frees_locked(arena, &sums);
    sum_allocs_locked(arena, &sums);
    stats->caches = arena->caches_n;
    pthread_mutex_unlock(&arena->lock);
    stats->limit_bytes = arena->limit_bytes;
    stats->reserved_bytes = ftb_load_relaxed(&arena->reserved_bytes);
    stats->peak_bytes = ftb_load_relaxed(&arena->peak_bytes);
    stats->large_live = sums.large_allocs - sums.large_frees;
    stats->live_blocks = stats->large_live;
    stats->live_bytes = minus(sums.large_alloc_bytes, sums.large_free_bytes);
    stats->allocs = sums.large_allocs;
    stats->frees = sums.large_frees;
    stats->misses = ftb_load_relaxed(&arena->large_created);
    for (uint32_t i = 0; i < FTB_ARENA_CLASSES; i++) {
        struct ftb_arena_class_stats *class = &stats->classes[i];
        uint64_t destroyed = ftb_load_relaxed(&arena->depots[i].destroyed);
        class->capacity_bytes = ftb__class_capacity(i);
        class->allocs = sums.allocs[i];
        class->misses = ftb_load_relaxed(&arena->depots[i].created);
        class->live = sums.allocs[i] - sums.frees[i];
        class->cached = minus(class->misses, destroyed + class->live);
        stats->live_blocks += class->live;
        stats->live_bytes += class->live * class->capacity_bytes;
        stats->allocs += class->allocs;
        stats->frees += sums.frees[i];
        stats->misses += class->misses;
    }
    stats->hits = minus(stats->allocs, stats->misses);
}

/* The number of sound blocks in a chain, or UINT64_MAX after printing a fault. */
static uint64_t
chain_walk(ftb_block_t *chain, ftb_arena_t *arena, uint32_t class_ix)
{
    uint64_t n = 0;
    for (ftb_block_t *block = chain; block != NULL; block = block->next) {
        const char *fault = ftb__block_fault_if_free(block);
        if (fault == NULL && (block->arena != arena || block->class_ix != class_ix)) {
            fault = "in the wrong chain";
        }
        if (fault != NULL) {
            fprintf(stderr, "ftb_arena_check: block %p: %s\n", (void *)block, fault);
            return UINT64_MAX;
        }
        n++;
    }
    return n;
}

static bool
walk_matches(ftb_block_t *chain, ftb_arena_t *arena, uint32_t class_ix, uint64_t n)
{
    uint64_t found = chain_walk(chain, arena, class_ix);
    if (found != UINT64_MAX && found != n) {
        fprintf(
            stderr,
            "ftb_arena_check: class %u: a chain of %llu blocks says it has %llu\n",
            class_ix, (unsigned long long)found, (unsigned long long)n);
    }
    return found == n;
}

/* Walk all that is cached in one class and add its number to *cached. */
static bool
class_walk(ftb_arena_t *arena, uint32_t class_ix, uint64_t *cached)
{
    for (struct ftb__cache *cache = arena->caches; cache != NULL; cache = cache->next) {
        struct ftb__bin *bin = &cache->bins[class_ix];
        if (!walk_matches(bin->loaded, arena, class_ix, bin->loaded_n)
            || !walk_matches(bin->previous, arena, class_ix, bin->previous_n)) {
            return false;
        }
        *cached += (uint64_t)bin->loaded_n + bin->previous_n;
    }
    struct ftb__depot *depot = &arena->depots[class_ix];
    uint64_t blocks_n = 0;
    uint32_t chains_n = 0;
    ftb_block_t *chain = depot->chains;
    for (; chain != NULL; chain = chain->link.next_chain) {
        if (!walk_matches(chain, arena, class_ix, chain->chain_n)) {
            return false;
        }
        blocks_n += chain->chain_n;
        chains_n++;
    }
    *cached += blocks_n;
    if (blocks_n != depot->blocks_n || chains_n != depot->chains_n) {
        fprintf(stderr, "ftb_arena_check: class %u: depot miscounted\n", class_ix);
        return false;
    }
    return true;
}

int
ftb_arena_check(ftb_arena_t *arena)
{
    struct ftb_arena_stats stats;
    ftb_arena_stats(arena, &stats);
    for (uint32_t i = 0; i < FTB_ARENA_CLASSES; i++) {
        uint64_t cached = 0;
        if (!class_walk(arena, i, &cached)) {
            return 0;
        }
        if (cached != stats.classes[i].cached && !arena->lost_blocks) {
            fprintf(
                stderr, "ftb_arena_check: class %u: %llu blocks cached, counted %llu\n",
                i, (unsigned long long)cached,
                (unsigned long long)stats.classes[i].cached);
            return 0;
        }
    }
    return 1;
}

/* The pool: where an allocation finds its block and where the last release puts it.
 *
 * Thread rule: any thread may call the public functions. A magazine is its thread's
 * alone; blocks change threads through the depots.
 *
 * The count of holders (the scheme of Rust's bytes and of every shared_ptr):
 * 1. A reference is only made from another one, so the count of a held block cannot
 *    reach 0 meanwhile, and adding to it needs no order.
 * 2. Each drop is a release, and who drops the last one then loads with acquire, so
 *    every access by every former holder happens before the block is recycled. The
 *    acquire is a load and not a fence, because ThreadSanitizer sees no fence.
 * 3. A count of 1 seen by a holder is its own reference: nobody else can add to it or
 *    drop it, so the holder recycles without the locked subtraction. Its load is an
 *    acquire, so 2 holds. */
#include "ftb_arena_internal.h"
#include "ftb_leak.h"

static ftb_block_t *
bin_pop(struct ftb__bin *bin)
{
    if (bin->loaded == NULL) {
        if (bin->previous == NULL) {
            return NULL;
        }
        bin->loaded = bin->previous;
        bin->loaded_n = bin->previous_n;
        bin->previous = NULL;
        bin->previous_n = 0;
    }
    ftb_block_t *block = bin->loaded;
    bin->loaded = block->next;
    bin->loaded_n--;
    return block;
}

/* Magazines after Bonwick and Adams (USENIX 2001, "Magazines and Vmem"): with two of
 * them a thread goes to the depot at most once in magazine_n operations, however its
 * allocations and releases alternate, so a consumer that only frees and a producer
 * that only allocates meet there once per magazine. */
static void
bin_push(struct ftb__bin *bin, struct ftb__depot *depot, ftb_block_t *block)
{
    if (FTB_UNLIKELY(bin->magazine_n == 0)) {
        block->next = NULL;
        ftb__depot_put(depot, block, 1);
        return;
    }
    if (FTB_UNLIKELY(bin->loaded_n >= bin->magazine_n)) {
        if (bin->previous != NULL) {
            ftb__depot_put(depot, bin->previous, bin->previous_n);
        }
        bin->previous = bin->loaded;
        bin->previous_n = bin->loaded_n;
        bin->loaded = NULL;
        bin->loaded_n = 0;
    }
    block->next = bin->loaded;
    bin->loaded = block;
    bin->loaded_n++;
}

/* No block in this thread's cache: ask the depot, then the system. */
static FTB_NOINLINE int
block_obtain(
    ftb_arena_t *arena, struct ftb__cache *cache, uint32_t class_ix, ftb_block_t **out)
{
    struct ftb__depot *depot = &arena->depots[class_ix];
    ftb_block_t *chain = ftb__depot_take(depot);
    if (chain == NULL) {
        return ftb__block_create(arena, class_ix, out);
    }
    if (cache != NULL) {
        cache->bins[class_ix].loaded = chain->next;
        cache->bins[class_ix].loaded_n = chain->chain_n - 1;
    } else if (chain->next != NULL) {
        ftb__depot_put(depot, chain->next, chain->chain_n - 1);
    }
    *out = chain;
    return FTB_BLOCK_OK;
}

/* Cached blocks of other classes may stand between the arena and its limit, or hold
 * the memory the system lacks: give them back once and try again. */
static FTB_NOINLINE int
pooled_retry(ftb_arena_t *arena, uint32_t class_ix, int result, ftb_block_t **out)
{
    uint64_t bytes = ftb__block_pooled_bytes(ftb__class_capacity(class_ix));
    bool hopeless = arena->limit_bytes != 0 && bytes > arena->limit_bytes;
    if (hopeless || ftb_arena_trim(arena) == 0) {
        return result;
    }
    return ftb__block_create(arena, class_ix, out);
}

/* A free block that this thread took from the pool becomes a held one. */
static ftb_block_t *
block_hand_out(ftb_block_t *block, uint64_t size)
{
    block->len = size;
    /* Relaxed: one holder, which hands the block on through something ordered. */
    ftb_store_relaxed(&block->rc, 1);
    return block;
}

static FTB_NOINLINE int
large_try_new(ftb_arena_t *arena, uint64_t size, ftb_block_t **out)
{
    if (size > FTB_BLOCK_MAX_BYTES) {
        return arena->limit_bytes != 0 ? FTB_BLOCK_LIMIT : FTB_BLOCK_NOMEM;
    }
    int result = ftb__block_create_large(arena, size, out);
    bool hopeless =
        arena->limit_bytes != 0 && ftb__block_large_bytes(size) > arena->limit_bytes;
    if (result != FTB_BLOCK_OK && !hopeless && ftb_arena_trim(arena) > 0) {
        result = ftb__block_create_large(arena, size, out);
    }
    if (result == FTB_BLOCK_OK) {
        ftb__leak_allocated(block_hand_out(*out, size));
    }
    return result;
}

static FTB_NOINLINE int
pooled_try_new(ftb_arena_t *arena, uint64_t size, ftb_block_t **out)
{
    uint32_t class_ix = ftb__class_of(size);
    struct ftb__cache *cache = ftb__cache_get(arena);
    ftb_block_t *block = cache != NULL ? bin_pop(&cache->bins[class_ix]) : NULL;
    if (block == NULL) {
        int result = block_obtain(arena, cache, class_ix, &block);
        if (result != FTB_BLOCK_OK) {
            result = pooled_retry(arena, class_ix, result, &block);
        }
        if (result != FTB_BLOCK_OK) {
            return result;
        }
    }
    if (cache != NULL) {
        ftb_count_local(&cache->bins[class_ix].allocs, 1);
    } else {
        ftb_add_relaxed(&arena->depots[class_ix].stray_allocs, 1); /* a count */
    }
    ftb__block_leave_free(block);
    *out = block_hand_out(block, size);
    ftb__leak_allocated(block);
    return FTB_BLOCK_OK;
}

/* The usual case first and alone, so that it needs no frame and no call. While blocks are
 * being watched it is none. */
int
ftb_block_try_new(ftb_arena_t *arena, uint64_t size, ftb_block_t **out)
{
    if (FTB_UNLIKELY(size > FTB__MAX_CAPACITY)) {
        return large_try_new(arena, size, out);
    }
    struct ftb__cache *cache = ftb__cache_peek(arena);
    if (FTB_LIKELY(cache != NULL && ftb_leak_period() == 0)) {
        struct ftb__bin *bin = &cache->bins[ftb__class_of(size)];
        ftb_block_t *block = bin->loaded;
        if (FTB_LIKELY(block != NULL)) {
            bin->loaded = block->next;
            bin->loaded_n--;
            ftb_count_local(&bin->allocs, 1);
            ftb__block_leave_free(block);
            *out = block_hand_out(block, size);
            return FTB_BLOCK_OK;
        }
    }
    return pooled_try_new(arena, size, out);
}

ftb_block_t *
ftb_block_new(ftb_arena_t *arena, uint64_t size)
{
    ftb_block_t *block;
    return ftb_block_try_new(arena, size, &block) == FTB_BLOCK_OK ? block : NULL;
}

static void
bin_count_free(struct ftb__bin *bin)
{
    /* Release, as in ftb__block_destroy_large; the load is relaxed because only this
     * thread writes the count. */
    ftb_store_release(&bin->frees, ftb_load_relaxed(&bin->frees) + 1);
}

/* What is read of the arena is read before the block counts as free, for then the
 * arena may end. */
static FTB_NOINLINE void
recycle_slowly(ftb_block_t *block)
{
    ftb_arena_t *arena = block->arena;
    bool closing = ftb_load_relaxed(&arena->closing); /* relaxed: 3 in ftb_arena.c */
    uint32_t slot = arena->slot;
    uint64_t serial = arena->serial;
    struct ftb__cache *cache = ftb__cache_get(arena);
    if (ftb_leak_is_watched(block)) {
        ftb__leak_freed(block);
    }
    if (block->class_ix == FTB__LARGE) {
        ftb__block_destroy_large(arena, cache, block);
    } else {
        struct ftb__depot *depot = &arena->depots[block->class_ix];
        ftb__block_enter_free(block);
        if (cache != NULL) {
            struct ftb__bin *bin = &cache->bins[block->class_ix];
            bin_push(bin, depot, block);
            bin_count_free(bin);
        } else {
            block->next = NULL;
            ftb__block_destroy_chain(block);
            ftb_add_release(&depot->stray_frees, 1);
        }
    }
    if (closing) {
        ftb__arena_reap(slot, serial);
    }
}

/* The last reference is gone: the block is this thread's alone. As in
 * ftb_block_try_new, the usual case needs no frame and no call. */
static void
block_recycle(ftb_block_t *block)
{
    ftb_arena_t *arena = block->arena;
    ftb__block_verify_held(block);
    /* Relaxed: one writer at a time, ordered by the count; a stale holder who reads
     * this without a reference can only be told so sooner or later. */
    ftb_store_relaxed(&block->gen, ftb_load_relaxed(&block->gen) + 1);
    struct ftb__cache *cache = ftb__cache_peek(arena);
    if (FTB_LIKELY(
            cache != NULL && block->class_ix != FTB__LARGE
            && !ftb_leak_is_watched(block)
            && !ftb_load_relaxed(&arena->closing))) { /* relaxed: as above */
        struct ftb__bin *bin = &cache->bins[block->class_ix];
        if (FTB_LIKELY(bin->loaded_n < bin->magazine_n)) {
            ftb__block_enter_free(block);
            block->next = bin->loaded;
            bin->loaded = block;
            bin->loaded_n++;
            bin_count_free(bin);
            return;
        }
    }
    recycle_slowly(block);
}

void
ftb_block_release(ftb_block_t *block)
{
    uint32_t held = ftb_load_acquire(&block->rc);
    if (FTB_UNLIKELY(held == 0)) {
        ftb__block_fault(block, "released too often (double free)");
    }
    if (held == 1) {
        ftb_store_relaxed(&block->rc, 0); /* relaxed: argument 3, nobody else counts */
    } else {
        if (ftb_sub_release(&block->rc, 1) != 1) {
            return;
        }
        (void)ftb_load_acquire(&block->rc); /* pairs with the other holders' releases */
    }
    block_recycle(block);
}

ftb_block_t *
ftb_block_retain(ftb_block_t *block)
{
    ftb_block_retain_many(block, 1);
    return block;
}

void
ftb_block_retain_many(ftb_block_t *block, uint32_t n)
{
    uint32_t held = ftb_add_relaxed(&block->rc, n); /* relaxed: argument 1 */
    if (FTB_UNLIKELY(held == 0)) {
        ftb__block_fault(block, "retained after free");
    }
}

/* One block: its layout, how it is made and given back, how misuse of it is noticed.
 *
 * Thread rule: any thread may call the public functions. A block that is free is
 * touched only by the owner of its magazine, or under its depot's lock.
 *
 * Debug builds (FTB_DEBUG) fill free blocks with 0xDD and look for changes when they
 * are handed out again; a second canary after the data finds overruns. The checks of
 * the count and of the canary in the header are in every build. */
#include "ftb_arena_internal.h"
#include "ftb_leak.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef FTB_DEBUG
#define TAIL_BYTES sizeof(uint64_t) /* a canary after the data */
#else
#define TAIL_BYTES 0u
#endif

/* Under AddressSanitizer the data of a free block is out of bounds for everybody. */
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define HIDE_DATA(block)                                                               \
    ASAN_POISON_MEMORY_REGION(ftb__block_bytes(block), (block)->cap)
#define SHOW_DATA(block)                                                               \
    ASAN_UNPOISON_MEMORY_REGION(ftb__block_bytes(block), (block)->cap)
#else
#define HIDE_DATA(block) ((void)(block))
#define SHOW_DATA(block) ((void)(block))
#endif

_Static_assert(
    (int)FTB_BLOCK_OK == (int)FTB_OK && (int)FTB_BLOCK_LIMIT == (int)FTB_FULL
        && (int)FTB_BLOCK_NOMEM == (int)FTB_NOMEM,
    "the public results are the core's own");

/* What a pooled block takes from the system: ftb_alloc_line rounds to FTB_LINE. */
uint64_t
ftb__block_pooled_bytes(uint64_t cap)
{
    uint64_t bytes = sizeof(struct ftb_block) + cap + TAIL_BYTES;
    return (bytes + FTB_LINE - 1) / FTB_LINE * FTB_LINE;
}

/* The same for a large one, with what its alignment may cost. */
uint64_t
ftb__block_large_bytes(uint64_t cap)
{
    return sizeof(struct ftb_block) + cap + TAIL_BYTES + 63u;
}

static void
tail_write(ftb_block_t *block)
{
#ifdef FTB_DEBUG
    uint64_t canary = ftb__block_canary(block);
    memcpy(ftb__block_bytes(block) + block->cap, &canary, sizeof canary);
#else
    (void)block;
#endif
}

static bool
tail_is_whole(const ftb_block_t *block)
{
#ifdef FTB_DEBUG
    uint64_t canary = ftb__block_canary(block);
    const unsigned char *end = (const unsigned char *)(block + 1) + block->cap;
    return memcmp(end, &canary, sizeof canary) == 0;
#else
    (void)block;
    return true;
#endif
}

static bool
is_poisoned(ftb_block_t *block)
{
#ifdef FTB_DEBUG
    SHOW_DATA(block);
    const unsigned char *bytes = ftb__block_bytes(block);
    bool same =
        bytes[0] == FTB__POISON && memcmp(bytes, bytes + 1, block->cap - 1) == 0;
    HIDE_DATA(block);
    return same;
#else
    (void)block;
    return true;
#endif
}

/* A caller broke the rules, and memory may be damaged already: name it and stop. */
FTB_NOINLINE void
ftb__block_fault(const ftb_block_t *block, const char *fault)
{
    fprintf(
        stderr,
        "ftb_arena: %s: block %p, capacity %llu bytes, generation %u, "
        "%u references\n",
        fault, (const void *)block, (unsigned long long)block->cap,
        (unsigned)ftb_load_relaxed(&block->gen), /* relaxed: to look at */
        (unsigned)ftb_load_relaxed(&block->rc));
    ftb__leak_describe(block);
    abort();
}

const char *
ftb__block_fault_if_free(ftb_block_t *block)
{
    if (block->canary != ftb__block_canary(block)) {
        return "header overwritten while free";
    }
    if (ftb_load_relaxed(&block->rc) != 0) { /* relaxed: the block is ours */
        return "retained while free";
    }
    if (!tail_is_whole(block)) {
        return "written past its end while free";
    }
    if ((block->flags & FTB__FRESH) == 0 && !is_poisoned(block)) {
        return "written after free";
    }
    return NULL;
}

void
ftb__block_poison(ftb_block_t *block)
{
#ifdef FTB_DEBUG
    memset(ftb__block_bytes(block), FTB__POISON, (size_t)block->cap);
#endif
    HIDE_DATA(block);
}

void
ftb__block_unpoison(ftb_block_t *block)
{
#ifdef FTB_DEBUG
    const char *fault = ftb__block_fault_if_free(block);
    if (fault != NULL) {
        ftb__block_fault(block, fault);
    }
#endif
    SHOW_DATA(block);
}

void
ftb__block_verify_tail(const ftb_block_t *block)
{
    if (!tail_is_whole(block)) {
        ftb__block_fault(block, "written past its end");
    }
}

static void
block_init(ftb_block_t *block, ftb_arena_t *arena, uint16_t class_ix, uint64_t cap)
{
    ftb_init(&block->rc, 0);
    ftb_init(&block->gen, 1);
    block->class_ix = class_ix;
    block->flags = FTB__FRESH;
    block->cap = cap;
    block->arena = arena;
    block->canary = ftb__block_canary(block);
    tail_write(block);
}

/* Take a block of a pooled class from the system. */
int
ftb__block_create(ftb_arena_t *arena, uint32_t class_ix, ftb_block_t **out)
{
    uint64_t cap = ftb__class_capacity(class_ix);
    uint64_t bytes = ftb__block_pooled_bytes(cap);
    if (!ftb__arena_reserve(arena, bytes)) {
        return FTB_BLOCK_LIMIT;
    }
    ftb_block_t *block = ftb_alloc_line((size_t)bytes);
    if (block == NULL) {
        ftb__arena_unreserve(arena, bytes);
        return FTB_BLOCK_NOMEM;
    }
    block_init(block, arena, (uint16_t)class_ix, cap);
    ftb_add_relaxed(&arena->depots[class_ix].created, 1); /* relaxed: only a count */
    *out = block;
    return FTB_BLOCK_OK;
}

uint64_t
ftb__block_destroy_chain(ftb_block_t *chain)
{
    uint64_t given_back = 0;
    while (chain != NULL) {
        ftb_block_t *next = chain->next;
        ftb_arena_t *arena = chain->arena;
        uint64_t bytes = ftb__block_pooled_bytes(chain->cap);
        /* Relaxed: only a count. */
        ftb_add_relaxed(&arena->depots[chain->class_ix].destroyed, 1);
        SHOW_DATA(chain);
        ftb_free(chain);
        ftb__arena_unreserve(arena, bytes);
        given_back += bytes;
        chain = next;
    }
    return given_back;
}

/* Large blocks go straight to the system: calloc gets pages the kernel has zeroed,
 * which a pooled block's memset would have touched one by one. */
int
ftb__block_create_large(ftb_arena_t *arena, uint64_t size, ftb_block_t **out)
{
    uint64_t bytes = ftb__block_large_bytes(size);
    if (!ftb__arena_reserve(arena, bytes)) {
        return FTB_BLOCK_LIMIT;
    }
    void *base = ftb_alloc((size_t)bytes);
    if (base == NULL) {
        ftb__arena_unreserve(arena, bytes);
        return FTB_BLOCK_NOMEM;
    }
    ftb_block_t *block = (ftb_block_t *)(((uintptr_t)base + 63u) & ~(uintptr_t)63u);
    block_init(block, arena, FTB__LARGE, size);
    block->link.base = base;
    ftb_add_relaxed(&arena->large_created, 1); /* relaxed: only a count */
    struct ftb__cache *cache = ftb__cache_get(arena);
    if (cache != NULL) {
        ftb_count_local(&cache->large_allocs, 1);
        ftb_count_local(&cache->large_alloc_bytes, size);
    } else {
        ftb_add_relaxed(&arena->stray_large_allocs, 1); /* relaxed: only counts */
        ftb_add_relaxed(&arena->stray_large_alloc_bytes, size);
    }
    *out = block;
    return FTB_BLOCK_OK;
}

/* The count of frees comes last and is a release: it pairs with the acquire loads of
 * ftb__arena_live_locked, whose caller may then free the arena and its records. The
 * count's own load is relaxed: only this thread writes it. */
void
ftb__block_destroy_large(
    ftb_arena_t *arena, struct ftb__cache *cache, ftb_block_t *block)
{
    uint64_t size = block->cap;
    ftb_free(block->link.base);
    ftb__arena_unreserve(arena, ftb__block_large_bytes(size));
    if (cache != NULL) {
        ftb_count_local(&cache->large_free_bytes, size);
        ftb_store_release(
            &cache->large_frees, ftb_load_relaxed(&cache->large_frees) + 1);
    } else {
        ftb_add_relaxed(&arena->stray_large_free_bytes, size); /* relaxed: a count */
        ftb_add_release(&arena->stray_large_frees, 1);
    }
}

void
ftb_block_zero(ftb_block_t *block, uint64_t size)
{
    ftb_assert(size <= block->cap && ftb_block_is_unique(block));
    ftb__block_zero(block, size);
}

int
ftb_block_is_unique(const ftb_block_t *block)
{
    /* Acquire: the former holders' last accesses come before ours. */
    return ftb_load_acquire(&block->rc) == 1;
}

uint32_t
ftb_block_refcount(const ftb_block_t *block)
{
    return ftb_load_relaxed(&block->rc); /* relaxed: it orders nothing */
}

uint32_t
ftb_block_generation(const ftb_block_t *block)
{
    return ftb__block_gen(block);
}

unsigned char *
ftb_block_data(ftb_block_t *block)
{
    return ftb__block_bytes(block);
}

uint64_t
ftb_block_capacity(const ftb_block_t *block)
{
    return block->cap;
}

uint64_t
ftb_block_length(const ftb_block_t *block)
{
    return block->len;
}

void
ftb_block_set_length(ftb_block_t *block, uint64_t length)
{
    ftb_assert(length <= block->cap);
    block->len = length;
}

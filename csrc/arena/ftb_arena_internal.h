/* What the arena's own .c files share: the layout of blocks, caches and depots.
 *
 * Not for inclusion elsewhere. Lock order: the registry, then an arena's lock, then
 * one depot's lock; no two depots at once, and no allocation under a depot's lock. */
#ifndef FTB_ARENA_INTERNAL_H
#define FTB_ARENA_INTERNAL_H

#include "ftb_block_layout.h"

#include "ftb_base.h"

#include <pthread.h>

#define FTB__MIN_CAPACITY 64u
#define FTB__MAX_CAPACITY (256u * 1024u) /* larger blocks are not pooled */
#define FTB__MAX_CACHED (32u * 1024u)    /* larger classes have no magazines */
#define FTB__MAGAZINE_MAX 32u
#define FTB__MAGAZINE_BYTES (128u * 1024u)     /* what one magazine may hold at most */
#define FTB__DEPOT_BYTES (32u * 1024u * 1024u) /* what one depot may hold at most */
#define FTB__DEPOT_PERIOD 256u /* puts between two looks at the working set */
#define FTB__LARGE UINT16_MAX  /* class_ix of a block above the largest class */
#define FTB__POISON 0xDD

/* One class in one thread's cache: one cache line. A magazine is a chain of blocks,
 * so an empty one needs no memory and a release can never fail. The counters have one
 * writer, the owner of the cache, and any reader; the rest is the owner's alone. */
struct ftb__bin {
    _Alignas(64) ftb_block_t *loaded;
    ftb_block_t *previous; /* full or empty, nothing between */
    uint32_t loaded_n;
    uint32_t previous_n;
    uint32_t magazine_n; /* blocks in a full magazine; 0: this class has none */
    ftb_atomic(uint64_t) allocs;
    ftb_atomic(uint64_t) frees;
};

/* What one thread holds of one arena. Never freed while the arena lives: when its
 * thread ends, the next new thread takes it over with its counters. */
struct ftb__cache {
    FTB_ALIGNED struct ftb__bin bins[FTB_ARENA_CLASSES];
    /* Large blocks; written by the owner, read by any thread. */
    FTB_ALIGNED ftb_atomic(uint64_t) large_allocs;
    ftb_atomic(uint64_t) large_frees;
    ftb_atomic(uint64_t) large_alloc_bytes;
    ftb_atomic(uint64_t) large_free_bytes;
    struct ftb__cache *next; /* written once, before the record is linked */
    bool in_use;             /* guarded by the arena's lock */
};

/* The free magazines of one class, for all threads. */
struct ftb__depot {
    FTB_ALIGNED pthread_mutex_t lock;
    ftb_block_t *chains; /* stack; this and the next four are guarded by lock */
    uint32_t chains_n;
    uint32_t low_n; /* the fewest chains since the last look */
    uint32_t puts_n;
    uint64_t blocks_n;
    /* Blocks taken from and given back to the system; written by any thread. */
    ftb_atomic(uint64_t) created;
    ftb_atomic(uint64_t) destroyed;
    /* Counts of threads that could get no cache; written by any thread. */
    ftb_atomic(uint64_t) stray_allocs;
    ftb_atomic(uint64_t) stray_frees;
};

struct ftb_arena {
    /* Written once, before the arena is shared, except closing. */
    FTB_ALIGNED uint64_t limit_bytes;
    uint64_t serial;     /* never used twice in a process */
    uint32_t slot;       /* index in the registry, reused after the arena's end */
    atomic_bool closing; /* written by ftb_arena_free, under the registry's lock */
    /* Written by any thread that goes to the system. */
    FTB_ALIGNED ftb_atomic(uint64_t) reserved_bytes;
    ftb_atomic(uint64_t) peak_bytes;
    ftb_atomic(uint64_t) large_created;
    ftb_atomic(uint64_t) stray_large_allocs; /* counts of threads without a cache */
    ftb_atomic(uint64_t) stray_large_frees;
    ftb_atomic(uint64_t) stray_large_alloc_bytes;
    ftb_atomic(uint64_t) stray_large_free_bytes;
    FTB_ALIGNED pthread_mutex_t lock;
    struct ftb__cache *caches; /* guarded by lock */
    uint32_t caches_n;         /* guarded by lock */
    bool lost_blocks;          /* written in a fork child only */
    struct ftb__depot depots[FTB_ARENA_CLASSES];
};

/* One thread's caches, by arena slot. Its thread's alone. */
struct ftb__thread {
    uint32_t entries_n;
    struct {
        uint64_t serial; /* the arena the cache belongs to; 0: none */
        struct ftb__cache *cache;
    } entries[];
};

extern FTB_TLS struct ftb__thread *ftb__thread_self;

/* The smallest class that holds size <= FTB__MAX_CAPACITY. With k = size - 1, the
 * highest bit of k names the doubling and the next two bits the quarter of it. */
static inline uint32_t
ftb__class_of(uint64_t size)
{
    if (size <= FTB__MIN_CAPACITY) {
        return 0;
    }
    uint64_t k = size - 1;
    uint32_t top = 63u - (uint32_t)__builtin_clzll(k);
    return (top - 6u) * 4u + (uint32_t)((k >> (top - 2u)) & 3u) + 1u;
}

/* The inverse: how much a block of that class holds. */
static inline uint64_t
ftb__class_capacity(uint32_t class_ix)
{
    if (class_ix == 0) {
        return FTB__MIN_CAPACITY;
    }
    uint32_t top = 6u + (class_ix - 1u) / 4u;
    uint64_t quarter = (class_ix - 1u) % 4u + 1u;
    return (UINT64_C(1) << top) + (quarter << (top - 2u));
}

/* ftb_cache.c */

/* The slow half of ftb__cache_get: find or make this thread's record. Returns NULL
 * when there is no memory for one. */
struct ftb__cache *ftb__cache_attach(ftb_arena_t *arena);

/* Hand every magazine of the record to the depots. The caller owns the record. */
void ftb__cache_flush(ftb_arena_t *arena, struct ftb__cache *cache);

/* Forget what the record caches, without touching the blocks: in a fork child, whose
 * other threads stopped anywhere. */
void ftb__cache_abandon(struct ftb__cache *cache);

/* This thread's record if it has one, else NULL. */
static inline struct ftb__cache *
ftb__cache_peek(ftb_arena_t *arena)
{
    struct ftb__thread *self = ftb__thread_self;
    if (FTB_LIKELY(
            self != NULL && arena->slot < self->entries_n
            && self->entries[arena->slot].serial == arena->serial)) {
        return self->entries[arena->slot].cache;
    }
    return NULL;
}

/* This thread's record, made if need be. NULL without memory for one: then count in
 * the arena's stray counters. */
static inline struct ftb__cache *
ftb__cache_get(ftb_arena_t *arena)
{
    struct ftb__cache *cache = ftb__cache_peek(arena);
    return FTB_LIKELY(cache != NULL) ? cache : ftb__cache_attach(arena);
}

/* ftb_depot.c */

/* Take a chain (its length is in chain_n), or NULL when there is none. */
ftb_block_t *ftb__depot_take(struct ftb__depot *depot);

/* Add a chain of n blocks. What the depot should not hold goes to the system. */
void ftb__depot_put(struct ftb__depot *depot, ftb_block_t *chain, uint32_t n);

/* Give all back to the system. Returns how many bytes. */
uint64_t ftb__depot_empty(struct ftb__depot *depot);

/* Make the depot usable in a fork child. Returns false if its content was lost. */
bool ftb__depot_after_fork_child(struct ftb__depot *depot);

/* ftb_block.c */

/* What a block of that capacity takes from the system. */
uint64_t ftb__block_pooled_bytes(uint64_t cap);

uint64_t ftb__block_large_bytes(uint64_t cap);

/* What the canary of that block's header must be. */
static inline uint64_t
ftb__block_canary(const ftb_block_t *block)
{
    return UINT64_C(0xF7B0C0DEC0FFEE42) ^ (uint64_t)(uintptr_t)block;
}

/* Take a block from the system: an enum ftb_block_result. */
FTB_MUST_USE int
ftb__block_create(ftb_arena_t *arena, uint32_t class_ix, ftb_block_t **out);

FTB_MUST_USE int
ftb__block_create_large(ftb_arena_t *arena, uint64_t size, ftb_block_t **out);

/* Give one free pooled block, or a chain of them, back to the system. Returns how
 * many bytes. */
uint64_t ftb__block_destroy_chain(ftb_block_t *chain);

/* Give a large block back and count it as free, in the arena if cache is NULL. The
 * arena may be gone on return. */
void ftb__block_destroy_large(
    ftb_arena_t *arena, struct ftb__cache *cache, ftb_block_t *block);

/* A caller broke the rules and memory may be damaged: name the fault and stop. */
_Noreturn void ftb__block_fault(const ftb_block_t *block, const char *fault);

/* What is wrong with a free block, or NULL. */
const char *ftb__block_fault_if_free(ftb_block_t *block);

/* Stop if the end of a block that is being released was damaged by its holders. */
void ftb__block_verify_tail(const ftb_block_t *block);

/* Poison a block's data, and stop if it changed. */
void ftb__block_poison(ftb_block_t *block);

void ftb__block_unpoison(ftb_block_t *block);

#if defined(FTB_DEBUG) || defined(__SANITIZE_ADDRESS__)
#define FTB__CHECKED 1
#else
#define FTB__CHECKED 0
#endif

/* Stop if a block that is being released was damaged by its holders. */
static inline void
ftb__block_verify_held(const ftb_block_t *block)
{
    if (FTB_UNLIKELY(block->canary != ftb__block_canary(block))) {
        ftb__block_fault(block, "header overwritten");
    }
    if (FTB__CHECKED) {
        ftb__block_verify_tail(block);
    }
}

/* Around a block's time in the pool. */
static inline void
ftb__block_enter_free(ftb_block_t *block)
{
    block->flags = 0;
    if (FTB__CHECKED) {
        ftb__block_poison(block);
    }
}

static inline void
ftb__block_leave_free(ftb_block_t *block)
{
    if (FTB__CHECKED) {
        ftb__block_unpoison(block);
    }
}

/* ftb_arena.c */

/* Account for bytes from the system. Returns false at the limit. */
FTB_MUST_USE bool ftb__arena_reserve(ftb_arena_t *arena, uint64_t bytes);

void ftb__arena_unreserve(ftb_arena_t *arena, uint64_t bytes);

/* After a release into a closing arena: end it if that was the last block. The arena
 * may be gone already, so it is named by slot and serial. */
void ftb__arena_reap(uint32_t slot, uint64_t serial);

/* At a thread's end: hand every record in its table back. */
void ftb__arena_thread_exit(struct ftb__thread *thread);

/* ftb_handle.c: make the table usable in a fork child. */
void ftb__handle_after_fork_child(void);

/* ftb_arena_stats.c */

/* Blocks handed out and not yet released. The caller holds the arena's lock. */
uint64_t ftb__arena_live_locked(ftb_arena_t *arena);

#endif

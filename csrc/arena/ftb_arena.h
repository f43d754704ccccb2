/* The arena: pooled, reference-counted buffers for any number of threads.
 *
 * A block is a piece of memory with a count of its holders. Whoever holds it may read
 * it; the holder that fills it does so before it shares it. The last release gives the
 * block back to the releasing thread's own cache, so that the next allocation of that
 * size costs neither a lock nor a system call.
 *
 * Thread rule: every function here may be called from any thread at any time, except
 * where it says otherwise.
 *
 * This is the one public header of the arena: plain C, no other header of ftbus, and
 * the text between the two cdef marks goes to cffi as it is. */
#ifndef FTB_ARENA_H
#define FTB_ARENA_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* cdef: begin */

/* Size classes: 64 bytes and then four for each doubling up to 256 KiB. */
#define FTB_ARENA_CLASSES 49

/* No block is larger: asking for more is a slip in the caller's arithmetic. 2**39. */
#define FTB_BLOCK_MAX_BYTES 549755813888

typedef struct ftb_arena ftb_arena_t;
typedef struct ftb_block ftb_block_t;

/* How ftb_block_try_new ended. */
enum ftb_block_result {
    FTB_BLOCK_OK = 0,    /* *block holds one reference */
    FTB_BLOCK_LIMIT = 1, /* the arena would hold more than its limit */
    FTB_BLOCK_NOMEM = 3, /* the system gave no memory */
};

/* One size class. Counts are of blocks. */
struct ftb_arena_class_stats {
    uint64_t capacity_bytes; /* what a block of this class can hold */
    uint64_t allocs;         /* handed out since the arena was made */
    uint64_t misses;         /* of these, taken from the system */
    uint64_t live;           /* handed out and not yet released */
    uint64_t cached;         /* held ready for the next allocation */
};

/* The arena as a whole. Each figure is exact for some moment during the call; two
 * figures read while other threads work may belong to two moments. */
struct ftb_arena_stats {
    uint64_t limit_bytes;    /* 0: no limit */
    uint64_t reserved_bytes; /* held from the system now, headers included */
    uint64_t peak_bytes;     /* the most ever reserved */
    uint64_t live_blocks;    /* handed out and not yet released, large ones included */
    uint64_t live_bytes;     /* their capacity */
    uint64_t allocs;         /* blocks handed out since the arena was made */
    uint64_t frees;          /* blocks whose last reference was released */
    uint64_t hits;           /* allocations served without the system */
    uint64_t misses;         /* allocations that went to the system */
    uint64_t large_live;     /* live blocks above the largest class */
    uint64_t caches;         /* thread records ever made: at most the peak of threads */
    struct ftb_arena_class_stats classes[FTB_ARENA_CLASSES];
};

/* Make an arena that holds at most limit_bytes from the system, headers and cached
 * blocks included; 0 means no limit. Returns NULL when there is no memory. */
ftb_arena_t *ftb_arena_new(uint64_t limit_bytes);

/* Give the arena up. Nothing may be allocated from it any more, and it may not be used
 * in any other call; blocks still held stay valid, and its memory goes back to the
 * system with the last of them (or at a later call that meets the arena's registry,
 * such as ftb_arena_new or a thread's end). NULL is allowed. */
void ftb_arena_free(ftb_arena_t *arena);

/* Give cached blocks back to the system: all in the shared depots and all in the
 * calling thread's cache. Other threads keep theirs until they end. Returns how many
 * bytes were given back. */
uint64_t ftb_arena_trim(ftb_arena_t *arena);

/* Fill *stats. */
void ftb_arena_stats(ftb_arena_t *arena, struct ftb_arena_stats *stats);

/* For tests: walk every cached block and compare with the counters. No other thread
 * may use the arena meanwhile. Returns 1 if all is well; otherwise prints the fault on
 * stderr and returns 0. */
int ftb_arena_check(ftb_arena_t *arena);

/* In the child of a fork, before anything else here: every arena becomes usable again.
 * What other threads of the parent had cached is lost to the child. */
void ftb_arena_after_fork_child(void);

/* A block that holds at least `size` bytes, with one reference. Its content is
 * whatever was there before: see ftb_block_zero. Returns NULL at the limit or when
 * there is no memory; nothing is changed then. */
ftb_block_t *ftb_block_new(ftb_arena_t *arena, uint64_t size);

/* The same, with the reason: returns an enum ftb_block_result, and sets *block only
 * for FTB_BLOCK_OK. */
int ftb_block_try_new(ftb_arena_t *arena, uint64_t size, ftb_block_t **block);

/* Make the first `size` bytes zero. Only right after the block was made; costs nothing
 * where the memory is fresh from the system. */
void ftb_block_zero(ftb_block_t *block, uint64_t size);

/* The first byte, aligned to 64. Valid as long as the caller holds a reference. */
unsigned char *ftb_block_data(ftb_block_t *block);

/* How many bytes fit. */
uint64_t ftb_block_capacity(const ftb_block_t *block);

/* How many bytes count: at first the size asked for. */
uint64_t ftb_block_length(const ftb_block_t *block);

/* Set that, to at most the capacity. Only while the block is not shared. */
void ftb_block_set_length(ftb_block_t *block, uint64_t length);

/* Take one more reference. The caller already holds one. Returns the block. */
ftb_block_t *ftb_block_retain(ftb_block_t *block);

/* Take n more references in one step, for a fan-out to n receivers. */
void ftb_block_retain_many(ftb_block_t *block, uint32_t n);

/* Drop one reference. A release too many ends the process with a message. */
void ftb_block_release(ftb_block_t *block);

/* 1 if the caller's reference is the only one, so that it may write again. */
int ftb_block_is_unique(const ftb_block_t *block);

/* How many references there are; out of date at once where the block is shared. */
uint32_t ftb_block_refcount(const ftb_block_t *block);

/* Changes each time the block is recycled. A holder that remembers it can tell that
 * somebody released its reference. */
uint32_t ftb_block_generation(const ftb_block_t *block);

/* Handles: references as integers, for whatever cannot keep a pointer safe, such as
 * Python code. A handle carries one reference until it is taken; then it is used up.
 * An integer that is not a handle, or no longer, is refused and never followed. */

/* How ftb_handle_take ended. */
enum ftb_handle_result {
    FTB_HANDLE_OK = 0,      /* *share is the caller's, and the handle is used up */
    FTB_HANDLE_STALE = 1,   /* no such handle: never made, or taken before */
    FTB_HANDLE_FOREIGN = 2, /* its block is of another arena; the handle stays good */
    FTB_HANDLE_SHARED = 3,  /* others hold its block too; the handle stays good */
};

/* Some of a block's bytes, with one reference to the block. */
struct ftb_share {
    ftb_block_t *block;
    uint64_t start;
    uint64_t length;
};

/* Hand the caller's reference over to a new handle on `length` bytes from `start`.
 * Returns the handle, never one that was used before; or 0, and the reference stays
 * the caller's, if there is no memory or the range is not within the block's length. */
uint64_t ftb_handle_new(ftb_block_t *block, uint64_t start, uint64_t length);

/* Take what the handle carries. With an arena that is not NULL, only if the block is
 * from there; with `unique` not 0, only if nobody else holds the block, so that the
 * caller may write to it. Of several threads that take one handle, one succeeds.
 * Returns an enum ftb_handle_result, and sets *share only for FTB_HANDLE_OK. */
int ftb_handle_take(
    uint64_t handle, ftb_arena_t *arena, int unique, struct ftb_share *share);

/* How many handles were made and not yet taken, in the whole process. */
uint64_t ftb_handle_count(void);

/* cdef: end */

#ifdef __cplusplus
}
#endif

#endif

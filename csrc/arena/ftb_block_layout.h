/* The header of a block, for code that is linked with the arena and reads it inline.
 *
 * Everybody else goes through ftb_arena.h, whose contract the functions here keep. */
#ifndef FTB_BLOCK_LAYOUT_H
#define FTB_BLOCK_LAYOUT_H

#include "ftb_arena.h"

#include "ftb_atomic.h"

#include <string.h>

#define FTB__FRESH 1u   /* flag: the data is zero, as it came from the system */
#define FTB__WATCHED 2u /* flag: ftb_leak.c has a record of it */

/* The header before a block's data. While the block is free, its fields belong to
 * the thread whose magazine holds it, or are guarded by the depot's lock. */
struct ftb_block {
    ftb_atomic(uint32_t) rc;  /* written by every holder; 0 while free */
    ftb_atomic(uint32_t) gen; /* written by the thread that drops the last reference */
    uint16_t class_ix;        /* written once, when the block is made */
    uint16_t flags;           /* written while free, and by the first holder */
    uint32_t chain_n;         /* blocks in the chain that begins here; while free */
    uint64_t len;             /* written by the only holder, before it shares */
    uint64_t cap;             /* written once */
    ftb_arena_t *arena;       /* written once */
    ftb_block_t *next;        /* next in the chain; while free */
    union {
        ftb_block_t *next_chain; /* next in the depot; guarded by its lock */
        void *base;              /* a large block's allocation; written once */
    } link;
    uint64_t canary; /* written once; last, so that an underrun of the data hits it */
};

_Static_assert(sizeof(struct ftb_block) == 64, "the data starts 64 bytes on");

/* ftb_block_data */
static inline unsigned char *
ftb__block_bytes(ftb_block_t *block)
{
    return (unsigned char *)(block + 1);
}

/* ftb_block_generation */
static inline uint32_t
ftb__block_gen(const ftb_block_t *block)
{
    return ftb_load_relaxed(
        &block->gen); /* relaxed: who asks holds a reference, or did */
}

/* ftb_block_zero */
static inline void
ftb__block_zero(ftb_block_t *block, uint64_t size)
{
    if ((block->flags & FTB__FRESH) == 0) {
        memset(ftb__block_bytes(block), 0, (size_t)size);
    }
}

#endif

/* Who holds a block: for blocks that are being watched, where they were allocated and
 * where they were last used.
 *
 * Thread rule: any thread may call everything here. What is known of a block stands in a
 * table of its own under one lock; of the block itself only a flag says that it is
 * watched, so that others pay a branch and no more. */
#ifndef FTB_LEAK_H
#define FTB_LEAK_H

#include "ftb_block_layout.h"

#include "ftb_base.h"

#define FTB_LEAK_TOUCHES 4u
#define FTB_LEAK_SAMPLE 128u /* "sampled" watches one allocation in so many */

/* What is known of one live block. */
struct ftb_leak {
    const ftb_block_t *block;
    uint64_t serial; /* order of allocation */
    uint64_t arena_serial;
    uint64_t owner;      /* as set by ftb_leak_set_owner when it was allocated */
    uint64_t thread;     /* as the site function said */
    uint64_t size_bytes; /* as asked for */
    char *site;          /* where it was allocated; may be NULL without memory */
    char *touches[FTB_LEAK_TOUCHES]; /* the latest first; NULL where there is none */
};

/* Return a text that says where the calling thread is, for ftb_free, or NULL; and which
 * thread it is. is_long: with its callers. Must not allocate blocks. */
typedef char *(*ftb_leak_site_fn)(bool is_long, uint64_t *thread);

/* Every how many allocations one is watched: 0 is none. Written by ftb_leak_set_period;
 * alone on its line, as every allocation reads it. */
struct ftb__leak_period {
    FTB_ALIGNED ftb_atomic(uint32_t) value;
};
extern struct ftb__leak_period ftb__leak_period;

/* Watch one allocation in `period`, from now on; 0: none. Blocks that are watched already
 * stay so. */
void ftb_leak_set_period(uint32_t period, ftb_leak_site_fn site);

static inline uint32_t
ftb_leak_period(void)
{
    /* relaxed: an allocation that misses a change was made before it */
    return ftb_load_relaxed(&ftb__leak_period.value);
}

/* Tag what this thread allocates from now on; 0 for nothing. Returns the tag before. */
uint64_t ftb_leak_set_owner(uint64_t owner);

/* A block is being handed out: watch it if it is its turn. */
void ftb__leak_allocated(ftb_block_t *block);

/* A watched block was used. The same place twice in a row is one touch. */
void ftb_leak_touch(const ftb_block_t *block);

/* The last reference to a watched block is gone. Its record stays for a while, for
 * ftb__leak_describe. */
void ftb__leak_freed(ftb_block_t *block);

/* Copies of the records of live blocks in the order of allocation, of one arena or owner
 * if these are not 0. Returns how many, and *out for ftb_leaks_free; without memory 0 and
 * NULL. */
size_t ftb_leaks(uint64_t arena_serial, uint64_t owner, struct ftb_leak **out);

void ftb_leaks_free(struct ftb_leak *leaks, size_t n);

/* Print on stderr what is known of a block, live or freed lately. */
void ftb__leak_describe(const ftb_block_t *block);

/* In the child of a fork: forget all. */
void ftb__leak_after_fork_child(void);

static inline bool
ftb_leak_is_watched(const ftb_block_t *block)
{
    return FTB_UNLIKELY((block->flags & FTB__WATCHED) != 0);
}

/* The arena's name among all that ever were. */
uint64_t ftb_arena_serial(const ftb_arena_t *arena);

#endif

/* A queue that grows: rings one after the other, each larger than the one before.
 *
 * Any thread may call everything marked _mpmc. Most queues are short most of the time; a
 * ring as large as the queue may ever get would still walk through all of its memory, lap
 * by lap, and find it cold (measured with 131,072 cells: 300 to 600 ns per event in the
 * first lap and 54 to 115 in the next ones). So items go through a small ring until it is
 * full once; then that is closed and the next one takes over, for good.
 *
 *   push: l = push_level (1); push to ring l; if that took nothing and ring l is not the
 *         last: close it (2), push_level l -> l + 1 (3), again.
 *   pop:  l = pop_level (4); pop from ring l; if there is nothing, and ring l is closed and
 *         its head is at its tail (5): pop_level l -> l + 1 (6), again.
 * 1. Nothing enters a closed ring, so one whose head is at its tail after it was closed is
 *    empty for good: no item is left behind by (6).
 * 2. Items pushed by one thread are popped in that order: within a ring they are
 *    (ftb_ring.h); from one to the next, because a pop goes on only from a ring out of
 *    which every position was claimed. A position claimed by a slow producer holds up what
 *    is in the rings behind, as it holds up what is behind it in its own.
 * 3. No wake-up is lost (ftb_idle.h): W2 is now ftb_chain_is_empty. If it stops at ring l
 *    because the tail it reads is not closed, then that load comes before (2) in the total
 *    order, hence before (3), which the producer of anything in a later ring has acquired
 *    at (1), hence before its P1. If it stops there because the head is not at the tail,
 *    the item at the head is not published yet, and argument 3 of ftb_idle.h applies.
 * 4. pop_level carries nothing: whichever value is read, all rings before it are passed,
 *    and those from it on are looked at; what an item is made of comes with its turn.
 * 5. The rings are all made at the start, of memory that is not touched, so that growing
 *    cannot fail; the last has room for everything. */
#ifndef FTB_CHAIN_H
#define FTB_CHAIN_H

#include "ftb_ring.h"

#ifndef FTB_CHAIN_FIRST_CELLS       /* a model has fewer */
#define FTB_CHAIN_FIRST_CELLS 1024u /* 64 KiB: stays in a core's own cache */
#endif

#define FTB_CHAIN_GROWTH 8u /* from one ring to the next */
#define FTB_CHAIN_RINGS_MAX 10u

struct ftb_chain {
    uint32_t rings_n; /* written once, by init */
    struct ftb_ring rings[FTB_CHAIN_RINGS_MAX];
    /* The ring that producers use; written by them. Never goes back. */
    FTB_ALIGNED ftb_atomic(uint32_t) push_level;
    /* The ring that consumers use; written by them. Likewise. */
    FTB_ALIGNED ftb_atomic(uint32_t) pop_level;
};

/* Make a chain with room for `capacity` items, a power of two of at most 2**31. Returns
 * FTB_NOMEM, with whatever was made, which ftb_chain_fini can take. */
FTB_MUST_USE enum ftb_result ftb_chain_init(struct ftb_chain *chain, uint64_t capacity);

/* Free the cells. Items still inside are forgotten. */
void ftb_chain_fini(struct ftb_chain *chain);

/* Push items[0..n) in order; n is at least 1. Returns how many went in, as
 * ftb_ring_try_push_mpmc does; 0 only if the last ring is full. */
static inline uint32_t
ftb_chain_try_push_mpmc(
    struct ftb_chain *chain, const struct ftb_item *items, uint32_t n,
    enum ftb_ring_kind kind)
{
    uint32_t level = ftb_load_acquire(&chain->push_level); /* (1) pairs with (3) */
    for (;;) {
        uint32_t pushed_n =
            ftb_ring_try_push_mpmc(&chain->rings[level], items, n, kind);
        if (FTB_LIKELY(pushed_n > 0) || level + 1 == chain->rings_n) {
            return pushed_n;
        }
        ftb_ring_close(&chain->rings[level]); /* (2) */
        uint32_t seen = level++;
        /* (3) acq_rel: see 3 above. If it fails, another thread was first. */
        (void)ftb_cas_acq_rel(&chain->push_level, &seen, level);
    }
}

/* Whether the ring of that level is done with, its head being where it was seen. */
static inline bool
ftb_chain_is_passed(struct ftb_chain *chain, uint32_t level, uint64_t head)
{
    return level + 1 < chain->rings_n
           && ftb_load_seq_cst(&chain->rings[level].tail) == (head | FTB_RING_CLOSED);
}

/* Pop up to n plain items in order, or one token, as ftb_ring_try_pop_mpmc does. */
static inline uint32_t
ftb_chain_try_pop_mpmc(
    struct ftb_chain *chain, struct ftb_item *items, uint32_t n,
    enum ftb_ring_kind *kind)
{
    uint32_t level = ftb_load_relaxed(&chain->pop_level); /* (4) relaxed: a hint */
    for (;;) {
        struct ftb_ring *ring = &chain->rings[level];
        uint64_t head = 0;
        uint32_t popped_n = ftb_ring_try_pop_mpmc(ring, items, n, kind);
        if (FTB_LIKELY(popped_n > 0) || !ftb_ring_is_empty_at(ring, &head)
            || !ftb_chain_is_passed(chain, level, head)) {
            return popped_n; /* (5) */
        }
        uint32_t seen = level++;
        (void)ftb_cas_relaxed(&chain->pop_level, &seen, level); /* (6) as (4) */
    }
}

/* Whether there is nothing to pop right now; for a worker about to sleep, too. */
static inline bool
ftb_chain_is_empty(struct ftb_chain *chain)
{
    uint64_t head;
    uint32_t level = ftb_load_relaxed(&chain->pop_level); /* relaxed: as (4) */
    while (ftb_ring_is_empty_at(&chain->rings[level], &head)) {
        if (!ftb_chain_is_passed(chain, level, head)) {
            return true;
        }
        level++;
    }
    return false;
}

#endif

/* A bounded ring of items for many producers and many consumers.
 *
 * Any thread may call everything marked _mpmc; init and fini want the ring to
 * themselves. A push linearizes at its claim of the tail, a pop at its claim of the head.
 *
 * Dmitry Vyukov's bounded MPMC queue (1024cores.net), with the lap in the cell's turn as
 * in rigtorp's MPMCQueue, so that zeroed memory is an empty ring: making one of a million
 * cells costs nothing, and a page is first touched when its cells are first used.
 *
 * The cell of position p = lap * capacity + index passes through these turns:
 *     4 * lap          free for p
 *     4 * lap + kind   holds the item pushed at p (kind is FTB_RING_PLAIN or _TOKEN)
 *     4 * lap + 4      free for p + capacity
 * Why it is correct:
 * 1. Turns of a cell only grow, and each step has one author: from free to full the
 *    producer that claimed p, from full to free the consumer that claimed p. A claim is a
 *    compare-and-swap of tail or head from p, so p has one of each.
 * 2. A producer claims p after it read the cell free for p. By 1 the cell stays so until
 *    that producer fills it; a consumer's claim likewise. The same holds for several
 *    positions claimed at once: tail == p at the claim means that no one claimed p or
 *    anything after it.
 * 3. The item is written before the turn says full (released) and read after the turn
 *    said full (acquired); the reading is over before the turn says free (released), and
 *    the next producer writes after it read free (acquired). So no access to an item is a
 *    race, and head and tail carry no data: their swaps are relaxed.
 * 4. Items pushed by one thread into one ring are popped in that order: positions grow.
 * A thread stopped between its claim and its turn hides the cells behind it from consumers
 * (or from producers, a lap later) until it goes on; it never makes them lose an item. */
#ifndef FTB_RING_H
#define FTB_RING_H

#include "ftb_atomic.h"
#include "ftb_base.h"

/* One queued event, as the layer above made it; the core only carries it. With its turn it
 * makes half a cache line. */
struct ftb_item {
    void *target;
    void *payload;
    uint64_t stamp_ns;
};

/* What a cell holds. Consumers learn the kind with the turn, before they claim. */
enum ftb_ring_kind {
    FTB_RING_NONE = 0,
    FTB_RING_PLAIN = 1, /* an event */
    FTB_RING_TOKEN = 2, /* the right to run the strand in item.target */
};

#define FTB_RING_LAP 4u /* the step of a turn from one lap to the next */

/* In the tail: the ring takes no more items. A claim swaps the tail as it read it without
 * this bit, so none succeeds once the bit is set. */
#define FTB_RING_CLOSED (UINT64_C(1) << 63)

struct ftb_ring_cell {
    /* Written by the producer, then by the consumer, of the current position. */
    FTB_ALIGNED_TO(32) ftb_atomic(uint64_t) turn;
    /* Written by that producer before it publishes the turn. */
    ftb_plain(struct ftb_item) item;
};

struct ftb_ring {
    /* Written once, by init. */
    struct ftb_ring_cell *cells;
    void *memory;
    uint64_t mask;
    uint32_t shift;
    /* The next position to push, and FTB_RING_CLOSED; written by producers. */
    FTB_ALIGNED ftb_atomic(uint64_t) tail;
    /* The next position to pop; written by consumers. */
    FTB_ALIGNED ftb_atomic(uint64_t) head;
};

/* Make a ring of `capacity` cells, a power of two. Returns FTB_NOMEM if there is no
 * memory. */
FTB_MUST_USE enum ftb_result ftb_ring_init(struct ftb_ring *ring, uint64_t capacity);

/* Free the cells. Items still inside are forgotten. */
void ftb_ring_fini(struct ftb_ring *ring);

static inline struct ftb_ring_cell *
ftb_ring_cell_at(struct ftb_ring *ring, uint64_t position)
{
    return &ring->cells[position & ring->mask];
}

/* The turn that says: free for this position. */
static inline uint64_t
ftb_ring_turn_at(struct ftb_ring *ring, uint64_t position)
{
    return (position >> ring->shift) * FTB_RING_LAP;
}

/* Claim up to n free positions in a row. Returns how many, 0 if the ring is closed or full
 * (or a slow consumer still holds the next cell), and the first in *position. */
static inline uint32_t
ftb_ring_claim_free(struct ftb_ring *ring, uint32_t n, uint64_t *position)
{
    uint64_t first = ftb_load_relaxed(&ring->tail); /* relaxed: the swap checks it */
    for (;;) {
        uint64_t turn = 0;
        uint32_t free_n = 0;
        if (FTB_UNLIKELY((first & FTB_RING_CLOSED) != 0)) {
            return 0;
        }
        while (free_n < n) {
            /* Pairs with the release in ftb_ring_try_pop_mpmc. */
            turn = ftb_load_acquire(&ftb_ring_cell_at(ring, first + free_n)->turn);
            if (turn != ftb_ring_turn_at(ring, first + free_n)) {
                break;
            }
            free_n++;
        }
        if (free_n > 0) {
            /* relaxed: by 3 above; a failed swap loads the tail anew. */
            if (ftb_cas_relaxed(&ring->tail, &first, first + free_n)) {
                *position = first;
                return free_n;
            }
            continue;
        }
        if ((int64_t)(turn - ftb_ring_turn_at(ring, first)) < 0) {
            return 0; /* the item of the lap before is still in there */
        }
        first = ftb_load_relaxed(&ring->tail); /* relaxed: as above */
    }
}

/* Push items[0..n) in order; n is at least 1. Returns how many went in: fewer than n if
 * the ring is closed or full, or if only a few cells in a row were free; call again for
 * the rest. */
static inline uint32_t
ftb_ring_try_push_mpmc(
    struct ftb_ring *ring, const struct ftb_item *items, uint32_t n,
    enum ftb_ring_kind kind)
{
    uint64_t position;
    uint32_t claimed_n = ftb_ring_claim_free(ring, n, &position);
    for (uint32_t i = 0; i < claimed_n; i++) {
        struct ftb_ring_cell *cell = ftb_ring_cell_at(ring, position + i);
        ftb_plain_set(&cell->item, items[i]);
        /* Pairs with the acquire in ftb_ring_claim_full; seq_cst, also with the load in
         * ftb_ring_is_empty, for the argument in ftb_idle.h. */
        ftb_store_seq_cst(
            &cell->turn, ftb_ring_turn_at(ring, position + i) + (uint64_t)kind);
    }
    return claimed_n;
}

/* Claim up to n positions in a row that hold plain items, or one that holds a token.
 * Returns how many, 0 if the ring is empty (or a slow producer has not yet published the
 * next item), with the first in *position and the kind in *kind. */
static inline uint32_t
ftb_ring_claim_full(
    struct ftb_ring *ring, uint32_t n, uint64_t *position, enum ftb_ring_kind *kind)
{
    uint64_t first = ftb_load_relaxed(&ring->head); /* relaxed: the swap checks it */
    for (;;) {
        /* Pairs with the publishing store in ftb_ring_try_push_mpmc. */
        uint64_t turn = ftb_load_acquire(&ftb_ring_cell_at(ring, first)->turn);
        int64_t ahead = (int64_t)(turn - ftb_ring_turn_at(ring, first));
        if (ahead <= 0) {
            return 0;
        }
        if (ahead >= (int64_t)FTB_RING_LAP) {
            first = ftb_load_relaxed(&ring->head); /* relaxed: as above */
            continue;
        }
        uint32_t full_n = 1;
        while (ahead == FTB_RING_PLAIN && full_n < n
               && ftb_load_acquire(&ftb_ring_cell_at(ring, first + full_n)->turn)
                      == ftb_ring_turn_at(ring, first + full_n) + FTB_RING_PLAIN) {
            full_n++;
        }
        /* relaxed: by 3 above; a failed swap loads the head anew. */
        if (ftb_cas_relaxed(&ring->head, &first, first + full_n)) {
            *position = first;
            *kind = (enum ftb_ring_kind)ahead;
            return full_n;
        }
    }
}

/* Pop up to n plain items in order, or one token, into `items`; n is at least 1. Returns
 * how many, 0 if there is none, and what they are in *kind. */
static inline uint32_t
ftb_ring_try_pop_mpmc(
    struct ftb_ring *ring, struct ftb_item *items, uint32_t n, enum ftb_ring_kind *kind)
{
    uint64_t position;
    uint32_t claimed_n = ftb_ring_claim_full(ring, n, &position, kind);
    for (uint32_t i = 0; i < claimed_n; i++) {
        struct ftb_ring_cell *cell = ftb_ring_cell_at(ring, position + i);
        items[i] = ftb_plain_get(&cell->item);
        /* Pairs with the acquire in ftb_ring_claim_free. */
        ftb_store_release(
            &cell->turn, ftb_ring_turn_at(ring, position + i) + FTB_RING_LAP);
    }
    return claimed_n;
}

/* Whether there is nothing to pop right now, at the position in *head. The load of the turn
 * is seq_cst because a worker about to sleep relies on it (ftb_idle.h): if the item at the
 * head is not published yet, its producer has not looked for a sleeper yet either. */
static inline bool
ftb_ring_is_empty_at(struct ftb_ring *ring, uint64_t *head)
{
    for (;;) {
        /* relaxed: what was said about the head holds for every earlier one, too; and if
         * its cell is free already, the turn read next orders a newer head. */
        *head = ftb_load_relaxed(&ring->head);
        uint64_t turn = ftb_load_seq_cst(&ftb_ring_cell_at(ring, *head)->turn);
        int64_t ahead = (int64_t)(turn - ftb_ring_turn_at(ring, *head));
        if (ahead < (int64_t)FTB_RING_LAP) {
            return ahead <= 0;
        }
    }
}

static inline bool
ftb_ring_is_empty(struct ftb_ring *ring)
{
    uint64_t head;
    return ftb_ring_is_empty_at(ring, &head);
}

/* Let no more items in. Those inside can still be popped. */
static inline void
ftb_ring_close(struct ftb_ring *ring)
{
    ftb_or_seq_cst(&ring->tail, FTB_RING_CLOSED);
}

/* How many positions are claimed by producers and not by consumers, at some moment near
 * now. Relaxed: a hint, for statistics and tests. */
static inline uint64_t
ftb_ring_length(struct ftb_ring *ring)
{
    uint64_t head = ftb_load_relaxed(&ring->head);
    uint64_t tail = ftb_load_relaxed(&ring->tail) & ~FTB_RING_CLOSED;
    return tail > head ? tail - head : 0;
}

#endif

/* The events of an open batch that its worker has not started: any thread may take some.
 *
 * An offer belongs to one worker, which opens it for a batch and claims from it one by
 * one, at the front, as thieves do. It is memory that is never freed while the pool
 * lives, so a thief may look at one that has been opened anew since it was found. A word
 * that tells how far a queue was claimed and that somebody still copies out of it is what
 * tokio's work-stealing queue has, too.
 *
 *   owner                                     thief
 *   (1) items := array; word := (n, 1)  seq_cst   (4) read word             seq_cst
 *   (2) claim: next -> next + 1   CAS, relaxed    (5) next -> next + k,
 *   (3) close: until copiers == 0  acquire            stolen += k, copiers += 1
 *                                                                           CAS, relaxed
 *                                                     copy items[next .. next + k)
 *                                                 (6) copiers -= 1          release
 * 1. Each of (2) and (5) takes what is next in the opening that is current when it
 *    succeeds: every event goes to one thread.
 * 2. (4) reads the value of (1) or of a swap after it, which continues the release
 *    sequence that (1) heads: the array's address and contents are visible. They are those
 *    of the opening that (5) takes from, as its number is in the word that (5) swaps.
 * 3. Nothing can be claimed any more when the owner closes, and copiers only shrinks then.
 *    (3) reads 0 from the last (6) and acquires what all of them release, so the copies
 *    come before the owner's next write to the array. A thief between (5) and (6) is a
 *    few instructions from its end, and waits for nobody.
 * 4. (2) is relaxed: the owner reads what it wrote itself, and releases nothing.
 * 5. For the same reason as in 2, a thief that found an offer old enough takes from that
 *    opening or from none. (since_ns may be that of the next one already: then it looks too
 *    young.)
 * 6. (1) and (4) are seq_cst for the argument in ftb_pool_offer.c. */
#ifndef FTB_OFFER_H
#define FTB_OFFER_H

#include "ftb_atomic.h"
#include "ftb_base.h"
#include "ftb_ring.h"

/* The word: bits 0..7 next, 8..15 n, 16..23 stolen, 24..30 copiers, 31 kept, 32..63 the
 * number of the opening. */
#define FTB_OFFER_N_MAX 0xFFu
#define FTB_OFFER_NEXT_ONE UINT64_C(1)
#define FTB_OFFER_N_ONE (UINT64_C(1) << 8)
#define FTB_OFFER_STOLEN_ONE (UINT64_C(1) << 16)
#define FTB_OFFER_COPIERS_ONE (UINT64_C(1) << 24)
#define FTB_OFFER_COPIERS (UINT64_C(0x7F) << 24)
#define FTB_OFFER_KEPT (UINT64_C(1) << 31) /* the rest is for the owner alone */
#define FTB_OFFER_OPENING_ONE (UINT64_C(1) << 32)

struct ftb_offer {
    /* Stored by the owner to open; swapped by whoever claims. */
    FTB_ALIGNED ftb_atomic(uint64_t) word;
    /* When the batch was taken; written by the owner before it opens. */
    ftb_atomic(uint64_t) since_ns;
    ftb_plain(const struct ftb_item *) items; /* likewise */
};

/* How many events of the word's opening nobody has claimed. */
static inline uint32_t
ftb_offer_left(uint64_t word)
{
    return (uint32_t)((word >> 8) & 0xFF) - (uint32_t)(word & 0xFF);
}

/* How many thieves have taken. */
static inline uint32_t
ftb_offer_stolen(uint64_t word)
{
    return (uint32_t)((word >> 16) & 0xFF);
}

/* Whether a thief can take something. */
static inline bool
ftb_offer_is_open(uint64_t word)
{
    return ftb_offer_left(word) > 0 && (word & FTB_OFFER_KEPT) == 0;
}

/* (4) */
static inline uint64_t
ftb_offer_look(struct ftb_offer *offer)
{
    return ftb_load_seq_cst(&offer->word);
}

/* Offer items[1 .. n); the first is the owner's. Owner only, and the last opening is
 * closed. */
static inline void
ftb_offer_open_local(
    struct ftb_offer *offer, const struct ftb_item *items, uint32_t n,
    uint64_t since_ns)
{
    uint64_t word = ftb_load_relaxed(&offer->word); /* relaxed: our own */
    word = (word & ~(FTB_OFFER_OPENING_ONE - 1)) + FTB_OFFER_OPENING_ONE;
    ftb_plain_set(&offer->items, items);
    ftb_store_relaxed(&offer->since_ns, since_ns); /* relaxed: (1) publishes it */
    ftb_store_seq_cst(&offer->word, word + n * FTB_OFFER_N_ONE + 1); /* (1) */
}

/* Claim the next event. Returns false if none is left. Owner only. */
static inline bool
ftb_offer_claim_local(struct ftb_offer *offer, uint32_t *ix)
{
    uint64_t word = ftb_load_relaxed(&offer->word); /* relaxed: the swap checks it */
    while (ftb_offer_left(word) > 0) {
        if (ftb_cas_relaxed(&offer->word, &word, word + FTB_OFFER_NEXT_ONE)) { /* (2) */
            *ix = (uint32_t)(word & 0xFF);
            return true;
        }
    }
    return false;
}

/* Keep the rest: no thief gets any of it from now on. Owner only. */
static inline void
ftb_offer_keep_local(struct ftb_offer *offer)
{
    uint64_t word = ftb_load_relaxed(&offer->word); /* relaxed: the swap checks it */
    while (!ftb_cas_relaxed(&offer->word, &word, word | FTB_OFFER_KEPT)) {
    }
}

/* Take up to k events of the opening that `word` is of, as seen by ftb_offer_look. Returns
 * how many: items[*first ..) of *items, to be copied before ftb_offer_copied. 0: somebody
 * else was faster. */
static inline uint32_t
ftb_offer_try_take(
    struct ftb_offer *offer, uint64_t word, uint32_t k, const struct ftb_item **items,
    uint32_t *first)
{
    uint32_t left_n = ftb_offer_left(word);
    uint32_t taken_n = left_n < k ? left_n : k;
    uint64_t one = FTB_OFFER_NEXT_ONE + FTB_OFFER_STOLEN_ONE;
    /* (5) relaxed: by 2 above */
    if (!ftb_cas_relaxed(
            &offer->word, &word, word + taken_n * one + FTB_OFFER_COPIERS_ONE)) {
        return 0;
    }
    *first = (uint32_t)(word & 0xFF);
    *items = ftb_plain_get(&offer->items);
    return taken_n;
}

static inline void
ftb_offer_copied(struct ftb_offer *offer)
{
    ftb_sub_release(&offer->word, FTB_OFFER_COPIERS_ONE); /* (6) */
}

/* Give up what is left. Returns false while a thief copies; or true, with how many events
 * thieves have taken, and the array is the owner's again. Owner only. */
static inline bool
ftb_offer_try_close_local(struct ftb_offer *offer, uint32_t *stolen_n)
{
    uint64_t word = ftb_load_relaxed(&offer->word); /* relaxed: the swap checks it */
    while (ftb_offer_left(word) > 0) {
        uint64_t none_left = word + ftb_offer_left(word) * FTB_OFFER_NEXT_ONE;
        if (ftb_cas_relaxed(&offer->word, &word, none_left)) { /* as (2) */
            break;
        }
    }
    word = ftb_load_acquire(&offer->word); /* (3) */
    *stolen_n = ftb_offer_stolen(word);
    return (word & FTB_OFFER_COPIERS) == 0;
}

#endif

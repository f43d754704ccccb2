/* One event whose handlers several workers run: whoever claims an index runs that handler.
 *
 * A fan belongs to one worker, which opens it for an event and claims from it like the
 * others. It is memory that is never freed while the pool lives, so a thread may look at
 * one that has been closed, or opened anew, since it was found.
 *
 *   owner                                      anybody, the owner included
 *   (1) left_n == 0 ?           acquire        (4) read claim                seq_cst
 *   (2) work := w; left_n := n                 (5) claim: next -> next + 1   CAS, acquire
 *   (3) claim := (n, 0)         seq_cst            read work, run handler `next`
 *                                              (6) left_n -= 1               acq_rel
 * 1. A swap (5) takes the next index of the opening that is current when it succeeds, and
 *    each is taken once. That (4) may have seen an earlier opening in the same state does
 *    not matter: what is read of the fan is read after (5).
 * 2. (5) reads the value of (3) or of a swap after it; a swap continues the release
 *    sequence that (3) heads, so `work` and `left_n` of that opening are visible.
 * 3. The owner opens anew only when left_n is 0, hence after every index of the last
 *    opening was claimed and run: between (5) and (6) neither `work` nor `left_n` of that
 *    opening can change under the claimer. (6) releases and (1) acquires, so the claimers'
 *    reads of `work` come before the owner's next write.
 * 4. Exactly one (6) leaves 0: its thread is the last. The chain of (6), each acq_rel,
 *    makes all that the handlers did visible to it.
 * 5. (3) and (4) are seq_cst for the argument in ftb_idle.h: they are a P1 and a W2. */
#ifndef FTB_FAN_H
#define FTB_FAN_H

#include "ftb_atomic.h"
#include "ftb_base.h"

#define FTB_FAN_MAX 0xFFFFu /* handlers of one event */

struct ftb_fan {
    /* n << 16 | next. Written by the owner to open, then by claimers. */
    FTB_ALIGNED ftb_atomic(uint32_t) claim;
    /* Indexes not yet run. Written by the owner while 0, then by claimers. */
    ftb_atomic(uint32_t) left_n;
    ftb_plain(void *) work; /* written by the owner while left_n is 0 */
};

static inline bool
ftb_fan_is_free_local(struct ftb_fan *fan)
{
    return ftb_load_acquire(&fan->left_n) == 0; /* (1) */
}

/* Open a free fan with n indexes, 1 .. FTB_FAN_MAX. Owner only. */
static inline void
ftb_fan_open_local(struct ftb_fan *fan, void *work, uint32_t n)
{
    ftb_plain_set(&fan->work, work);
    ftb_store_relaxed(&fan->left_n, n);      /* relaxed: (3) publishes it */
    ftb_store_seq_cst(&fan->claim, n << 16); /* (3) */
}

/* Whether an index is left to claim. */
static inline bool
ftb_fan_is_open(struct ftb_fan *fan)
{
    uint32_t claim = ftb_load_seq_cst(&fan->claim); /* (4) */
    return (claim & 0xFFFF) < claim >> 16;
}

/* Claim the next index. Returns false if none is left; *is_last_claim says that none is
 * left now. */
static inline bool
ftb_fan_try_claim(struct ftb_fan *fan, uint32_t *ix, void **work, bool *is_last_claim)
{
    uint32_t claim = ftb_load_seq_cst(&fan->claim); /* (4) */
    for (;;) {
        uint32_t next = claim & 0xFFFF, n = claim >> 16;
        if (next >= n) {
            return false;
        }
        if (ftb_cas_acquire(&fan->claim, &claim, claim + 1)) { /* (5) */
            *ix = next;
            *work = ftb_plain_get(&fan->work);
            *is_last_claim = next + 1 == n;
            return true;
        }
    }
}

/* The claimed index has been run. Returns whether it was the last of its opening; the fan
 * is then free, and `work` is the caller's. */
static inline bool
ftb_fan_done(struct ftb_fan *fan)
{
    return ftb_sub_acq_rel(&fan->left_n, 1) == 1; /* (6) */
}

#endif

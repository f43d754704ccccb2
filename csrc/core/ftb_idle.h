/* Which workers are idle: one bit each, set by the worker, cleared by whoever wakes it.
 *
 * Any thread may claim; a worker sets and clears its own bit.
 *
 * Why no wake-up is lost (the store-then-load argument of Dekker; the same shape as
 * rayon's sleep protocol and Go's wakep):
 * 1. A producer publishes, then looks for an idle worker: the store of the cell's turn in
 *    ftb_ring_try_push_mpmc (P1), the loads in ftb_idle_claim (P2).
 *    A worker sets its bit, then looks for work: the fetch-or in ftb_idle_set (W1), the
 *    load of the turn at the head in ftb_ring_is_empty (W2). It parks only if it finds
 *    none.
 * 2. All four are seq_cst, so they are in one total order. If P2 does not see the bit,
 *    then P2 comes before W1, hence P1 before W2, and the worker sees the item. If it sees
 *    the bit, the producer clears it and unparks that worker, or fails to clear it because
 *    another thread did: then look on, until a bit is cleared or none is left.
 * 3. W2 looks at the head only. If an item behind the head is published but the head is
 *    not, the producer of the head has still to do its own P1 and P2.
 * 4. A cleared bit wakes one worker, which is then awake and looks at every ring before
 *    its next W1. If it takes a batch and sees that more is left while others are idle, it
 *    wakes one more, so that an event never waits in a ring while a worker sleeps.
 * 5. An unpark persists (ftb_park.h): if it comes before the worker parks, the worker does
 *    not; one that comes late, for a worker that found work by itself, makes its next wait
 *    return once for nothing. */
#ifndef FTB_IDLE_H
#define FTB_IDLE_H

#include "ftb_atomic.h"
#include "ftb_base.h"

#ifndef FTB_IDLE_MAX       /* a model has fewer, and each in a word of its own */
#define FTB_IDLE_MAX 1024u /* workers of one bitmap */
#define FTB_IDLE_WORD_BITS 64u
#endif

struct ftb_idle {
    uint32_t words_n; /* written once, by init */
    /* Bit ix % 64 of word ix / 64: set by worker ix, cleared by it or by a waker. */
    FTB_ALIGNED ftb_atomic(uint64_t) words[FTB_IDLE_MAX / FTB_IDLE_WORD_BITS];
};

/* Make a bitmap of workers_n bits, all clear. */
static inline void
ftb_idle_init(struct ftb_idle *idle, uint32_t workers_n)
{
    ftb_assert(workers_n <= FTB_IDLE_MAX);
    idle->words_n = (workers_n + FTB_IDLE_WORD_BITS - 1) / FTB_IDLE_WORD_BITS;
    for (uint32_t i = 0; i < idle->words_n; i++) {
        ftb_init(&idle->words[i], 0);
    }
}

static inline uint64_t
ftb_idle_bit(uint32_t ix)
{
    return UINT64_C(1) << (ix % FTB_IDLE_WORD_BITS);
}

/* W1: announce that worker ix is about to sleep. */
static inline void
ftb_idle_set(struct ftb_idle *idle, uint32_t ix)
{
    ftb_or_seq_cst(&idle->words[ix / FTB_IDLE_WORD_BITS], ftb_idle_bit(ix));
}

/* Take the announcement back. Returns false if a waker cleared the bit first; its unpark
 * has come or will. Then what it published before is visible: both acquire, the claim
 * releases. More is not needed, as the worker sets its bit again, and looks again, before
 * it sleeps. (The clearing releases too: by the letter of C11 a seq_cst load may miss a
 * set for an older store, unless that is seq_cst itself or happens before the set.) */
static inline bool
ftb_idle_clear(struct ftb_idle *idle, uint32_t ix)
{
    ftb_atomic(uint64_t) *word = &idle->words[ix / FTB_IDLE_WORD_BITS];
    if ((ftb_load_acquire(word) & ftb_idle_bit(ix)) == 0) {
        return false;
    }
    return (ftb_and_acq_rel(word, ~ftb_idle_bit(ix)) & ftb_idle_bit(ix)) != 0;
}

/* Some worker that was idle a moment ago, or -1. Relaxed: a hint where to put an item. */
static inline int32_t
ftb_idle_find(struct ftb_idle *idle)
{
    for (uint32_t i = 0; i < idle->words_n; i++) {
        uint64_t word = ftb_load_relaxed(&idle->words[i]);
        if (word != 0) {
            return (int32_t)(i * FTB_IDLE_WORD_BITS) + __builtin_ctzll(word);
        }
    }
    return -1;
}

/* Whether any worker is idle. Seq_cst: the thread that asks has just taken an item (see 4
 * above), so an idle worker that looked before the item was published is seen here. */
static inline bool
ftb_idle_has_any(struct ftb_idle *idle)
{
    for (uint32_t i = 0; i < idle->words_n; i++) {
        if (ftb_load_seq_cst(&idle->words[i]) != 0) {
            return true;
        }
    }
    return false;
}

/* P2: clear one idle worker's bit, that of `preferred` if it is set. Returns the worker,
 * which the caller must unpark, or -1 if none is idle. */
static inline int32_t
ftb_idle_claim(struct ftb_idle *idle, uint32_t preferred)
{
    uint32_t start = preferred / FTB_IDLE_WORD_BITS;
    for (uint32_t i = 0; i < idle->words_n; i++) {
        uint32_t at = (start + i) % idle->words_n;
        uint64_t word = ftb_load_seq_cst(&idle->words[at]);
        while (word != 0) {
            uint64_t bit = ftb_idle_bit(preferred);
            if (i != 0 || (word & bit) == 0) {
                bit = word & (~word + 1);
            }
            /* Release: pairs with ftb_idle_clear. More is not needed, and relaxed if it
             * fails: the load above has decided the order against every worker whose bit
             * it did not see. */
            if (ftb_cas_release(&idle->words[at], &word, word & ~bit)) {
                return (int32_t)(at * FTB_IDLE_WORD_BITS) + __builtin_ctzll(bit);
            }
        }
    }
    return -1;
}

#endif

/* Work that one thread at a time does for all who ask for it, and no request forgotten.
 *
 * Each request is one that a whole round of the work serves: it must see what was done
 * before the request. Who asks while a round is under way goes away, and the thread at
 * work does one more round. (Flat combining, of Hendler, Incze, Shavit and Tzafrir, SPAA
 * 2010, where all requests are the same.)
 *
 *   who asks                                 who has the turn
 *   (1) ... what the round must see          (3) lock
 *   (2) state := ASKED    release exchange   (4) state := TAKEN    acquire exchange
 *       it was FREE: has the turn                ... the round
 *       otherwise: go away                   (5) unlock
 *                                            (6) state: TAKEN to FREE, or it is ASKED:
 *                                                from (3) again
 *
 * Claim: after every (1) a round follows that sees it, and its (4) is after the (2).
 * 1. All changes of the state are read-modify-writes, so they stand in one order, and each
 *    reads the one before. (2) leaves ASKED. The next that is not another (2) is a (4):
 *    (6) leaves ASKED alone.
 * 2. There is a next. Who finds FREE at (2) goes on to (4). Who finds ASKED comes before
 *    the (4) of another (2), by 1. Who finds TAKEN finds a thread before its (6), which
 *    fails and leads to a (4).
 * 3. That (4) reads from the (2), or from a later (2) in the release sequence that it heads
 *    (each change between is a read-modify-write; a store would break the sequence, and
 *    then nothing would order what the first of two threads did). So (1) happens before
 *    the round.
 * 4. Nobody serves others without end: in its last round a thread writes FREE at (4), and
 *    leaves without (6). Who asks after that has the turn and waits at (3) for the end of
 *    this one round.
 * 5. The lock may be taken for other ends too (a look at what the rounds change; a fork).
 *    Who has the turn waits for it; an attempt that fails would forget the request.
 *
 * No mutex's failed attempt is looked at, of which C says nothing that could be relied on.
 * Only who has the turn ever waits, for others' ends or for another's last round. */
#ifndef FTB_TURN_H
#define FTB_TURN_H

#include "ftb_atomic.h"
#include "ftb_park.h"

#ifndef FTB_TURN_ROUNDS_MAX /* a model has fewer */
#define FTB_TURN_ROUNDS_MAX 8
#endif

enum ftb_turn_state {
    FTB_TURN_FREE = 0,
    FTB_TURN_TAKEN = 1, /* nobody asked since the last round began */
    FTB_TURN_ASKED = 2, /* taken, and the next round is still to begin */
};

struct ftb_turn {
    /* Exchanged by who asks and by who has the turn, swapped by the latter. */
    ftb_atomic(uint32_t) state;
    ftb_mutex_t lock; /* held during a round */
};

/* (2) Release: pairs with (4). Returns whether the caller has the turn. */
static inline bool
ftb__turn_ask(struct ftb_turn *turn)
{
    return ftb_exchange_release(&turn->state, FTB_TURN_ASKED) == FTB_TURN_FREE;
}

/* (4) Acquire: pairs with every (2) that this round serves. */
static inline void
ftb__turn_begin(struct ftb_turn *turn, bool is_last)
{
    (void)ftb_exchange_acquire(&turn->state, is_last ? FTB_TURN_FREE : FTB_TURN_TAKEN);
}

/* (6) Returns whether the turn is given back. Relaxed: the lock orders the rounds. */
static inline bool
ftb__turn_end(struct ftb_turn *turn)
{
    uint32_t state = FTB_TURN_TAKEN;
    return ftb_cas_relaxed(&turn->state, &state, FTB_TURN_FREE);
}

/* Have a round of the work done that sees all that this thread did before, here or by the
 * thread that is at it. `round` is called under the lock, some times or never. Returns
 * whether it was done here; if not, it may not have begun. */
static inline bool
ftb_turn_run(struct ftb_turn *turn, void (*round)(void *context), void *context)
{
    if (!ftb__turn_ask(turn)) {
        return false;
    }
    bool is_last = false;
    for (int rounds_n = 1; !is_last; rounds_n++) {
        is_last = rounds_n == FTB_TURN_ROUNDS_MAX;
        ftb_mutex_lock(&turn->lock);
        ftb__turn_begin(turn, is_last);
        round(context);
        ftb_mutex_unlock(&turn->lock);
        if (!is_last && ftb__turn_end(turn)) {
            break;
        }
    }
    return true;
}

#endif

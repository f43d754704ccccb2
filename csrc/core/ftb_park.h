/* Sleeping and waking: ftb_parker for one known thread, ftb_waitset for any number of
 * threads that wait for a condition.
 *
 * Only the parker's owner may wait; any thread may unpark it. Any thread may use a
 * waitset. Both sleep on a pthread condition variable by the monotonic clock; every
 * deadline is a time of ftb_now_ns or FTB_FOREVER. A wait may return FTB_OK for no reason:
 * the caller looks again at what it waits for.
 *
 * Parker (the one of Rust's standard library): one word, EMPTY, PARKED or NOTIFIED.
 * 1. A notification is never lost: NOTIFIED is only ever replaced by EMPTY, by the owner,
 *    and then the owner returns FTB_OK. The owner sleeps only after it swapped EMPTY into
 *    PARKED, so an unpark before that makes the swap fail and one after it reads PARKED.
 * 2. An unpark that read PARKED passes through the mutex before it signals. The owner
 *    holds the mutex from its swap to its sleep, so the signal cannot fall in between.
 * 3. Whoever returns FTB_OK has read NOTIFIED with an acquire, and unpark releases: what
 *    a waker did before it woke happens before the return.
 *
 * Waitset (Vyukov's eventcount): an epoch and a number of waiters in one word.
 * 1. A waiter registers (the add in prepare), then looks at its condition; a notifier
 *    changes the condition, then looks for waiters (the load in notify). All four are
 *    seq_cst, so one of them sees the other (Dekker). Whatever else changes the word
 *    releases: by the letter of C11 the load in notify may otherwise miss a prepare for
 *    an older change that is neither seq_cst nor happens before it.
 * 2. The key is the epoch at registration. The epoch grows under the mutex, where the
 *    waiter compares it before it sleeps, so a notification after prepare ends the commit.
 *    (The epoch has 32 bits: a waiter would have to stand still for 2**32 notifications.)
 * 3. A waiter that a signal reached returns FTB_OK even if its deadline passed at the same
 *    time, because it sees the epoch moved; so a signal for one is not swallowed. */
#ifndef FTB_PARK_H
#define FTB_PARK_H

#include "ftb_atomic.h"
#include "ftb_base.h"

#ifndef FTB_RELACY
#include <pthread.h>

typedef pthread_mutex_t ftb_mutex_t;
typedef pthread_cond_t ftb_cond_t;

#define ftb_mutex_lock(mutex) ((void)pthread_mutex_lock(mutex))
#define ftb_mutex_unlock(mutex) ((void)pthread_mutex_unlock(mutex))
#define ftb_cond_signal(cond) ((void)pthread_cond_signal(cond))
#define ftb_cond_broadcast(cond) ((void)pthread_cond_broadcast(cond))

/* Sleep on the condition variable; returns true if the deadline passed. May return false
 * for no reason. */
bool ftb_cond_wait(ftb_cond_t *cond, ftb_mutex_t *mutex, uint64_t deadline_ns);
#endif

enum ftb_parker_state {
    FTB_PARKER_EMPTY = 0,
    FTB_PARKER_PARKED = 1,   /* the owner sleeps, or is about to and holds the mutex */
    FTB_PARKER_NOTIFIED = 2, /* the next wait returns at once */
};

struct ftb_parker {
    /* Exchanged by wakers (NOTIFIED), swapped by the owner. */
    ftb_atomic(uint32_t) state;
    ftb_mutex_t mutex;
    ftb_cond_t cond;
};

struct ftb_waitset {
    /* Waiters in the low 32 bits, added by themselves; the epoch in the high ones, added
     * by notifiers that hold the mutex. */
    ftb_atomic(uint64_t) word;
    ftb_mutex_t mutex;
    ftb_cond_t cond;
};

/* Make (or, in the child of a fork, make anew) a parker nobody waits on. */
void ftb_parker_init(struct ftb_parker *parker);

void ftb_parker_fini(struct ftb_parker *parker);

/* Make (or, in the child of a fork, make anew) a waitset nobody waits on. */
void ftb_waitset_init(struct ftb_waitset *waitset);

void ftb_waitset_fini(struct ftb_waitset *waitset);

/* Let the owner's current or next wait return. Returns true if that took a system call,
 * that is if the owner slept. */
static inline bool
ftb_parker_unpark(struct ftb_parker *parker)
{
    /* Pairs with the acquires in take_note and wait; the waker reads nothing of the
     * owner's. An exchange, so that two notes that come as one release what both did. */
    uint32_t before = ftb_exchange_release(&parker->state, FTB_PARKER_NOTIFIED);
    if (before != FTB_PARKER_PARKED) {
        return false;
    }
    ftb_mutex_lock(&parker->mutex);
    ftb_mutex_unlock(&parker->mutex);
    ftb_cond_signal(&parker->cond);
    return true;
}

/* Consume a notification without waiting. Returns whether there was one. Owner only. */
static inline bool
ftb_parker_take_note_local(struct ftb_parker *parker)
{
    uint32_t state = FTB_PARKER_NOTIFIED;
    return ftb_cas_acquire(&parker->state, &state, FTB_PARKER_EMPTY);
}

/* Whether take_note would succeed, at the price of a load. Relaxed: it decides only
 * whether to try. Owner only. */
static inline bool
ftb_parker_has_note_local(struct ftb_parker *parker)
{
    return ftb_load_relaxed(&parker->state) == FTB_PARKER_NOTIFIED;
}

/* Sleep until an unpark or the deadline. Returns FTB_OK or FTB_TIMEOUT. Owner only. */
static inline enum ftb_result
ftb_parker_wait(struct ftb_parker *parker, uint64_t deadline_ns)
{
    if (ftb_parker_take_note_local(parker)) {
        return FTB_OK;
    }
    enum ftb_result result = FTB_OK;
    ftb_mutex_lock(&parker->mutex);
    uint32_t state = FTB_PARKER_EMPTY;
    /* relaxed: EMPTY was written by the owner, and going to sleep publishes nothing */
    if (ftb_cas_relaxed(&parker->state, &state, FTB_PARKER_PARKED)) {
        bool is_late = false;
        do {
            is_late = ftb_cond_wait(&parker->cond, &parker->mutex, deadline_ns);
        } while (!is_late && ftb_load_relaxed(&parker->state) == FTB_PARKER_PARKED);
        /* (relaxed above: the exchange below acquires) */
        if (ftb_exchange_acquire(&parker->state, FTB_PARKER_EMPTY)
            != FTB_PARKER_NOTIFIED) {
            result = FTB_TIMEOUT;
        }
    } else {
        /* An exchange and not a store: it must acquire the latest unpark. */
        (void)ftb_exchange_acquire(&parker->state, FTB_PARKER_EMPTY);
    }
    ftb_mutex_unlock(&parker->mutex);
    return result;
}

/* Register as a waiter. Look at the condition again, then either cancel or commit with
 * the key this returns. */
static inline uint32_t
ftb_waitset_prepare(struct ftb_waitset *waitset)
{
    return (uint32_t)(ftb_add_seq_cst(&waitset->word, 1) >> 32);
}

/* Unregister without waiting. */
static inline void
ftb_waitset_cancel(struct ftb_waitset *waitset)
{
    ftb_sub_release(&waitset->word, 1); /* late, it costs a signal; release: 1 above */
}

/* Sleep until a notification after the prepare that gave the key, or the deadline, and
 * unregister. Returns FTB_OK or FTB_TIMEOUT. */
static inline enum ftb_result
ftb_waitset_commit(struct ftb_waitset *waitset, uint32_t key, uint64_t deadline_ns)
{
    bool is_late = false;
    ftb_mutex_lock(&waitset->mutex);
    /* relaxed: the epoch changes under the mutex only */
    while (!is_late && (uint32_t)(ftb_load_relaxed(&waitset->word) >> 32) == key) {
        is_late = ftb_cond_wait(&waitset->cond, &waitset->mutex, deadline_ns);
    }
    bool is_notified = (uint32_t)(ftb_load_relaxed(&waitset->word) >> 32) != key;
    ftb_mutex_unlock(&waitset->mutex);
    ftb_waitset_cancel(waitset);
    return is_notified ? FTB_OK : FTB_TIMEOUT;
}

/* Wake one waiter, or all; one load when there is none. Call it after the change that
 * waiters look for, which must be a seq_cst store or read-modify-write. */
static inline void
ftb_waitset_notify(struct ftb_waitset *waitset, bool all)
{
    if ((uint32_t)ftb_load_seq_cst(&waitset->word) == 0) {
        return;
    }
    ftb_mutex_lock(&waitset->mutex);
    /* Release: 1 above; waiters compare the epoch under the mutex. */
    ftb_add_release(&waitset->word, UINT64_C(1) << 32);
    ftb_mutex_unlock(&waitset->mutex);
    if (all) {
        ftb_cond_broadcast(&waitset->cond);
    } else {
        ftb_cond_signal(&waitset->cond);
    }
}

#endif

/* How often each handler was called, without a counter per handler in the usual emit.
 *
 * An emit counts one event in its thread's cell of the topic, and runs all handlers of the
 * snapshot or says otherwise. So the calls of a handler are inferred: a cell remembers the
 * version of the snapshot that its emits run (one comparison, which also finds snapshots
 * with flags), and when a thread meets another version it folds: it adds the runs since
 * the last fold to the tallies of the handlers that were in the old snapshot and are in
 * the new one. Those that are in neither are gone and need none.
 *
 * 1. A handler is in the snapshots from its first_version on until it is cancelled, and
 *    comes never back. So one that is in the new snapshot was in the old one if and only
 *    if its first_version is not after the old version.
 * 2. An emit that ends while its snapshot is still the topic's was under the cell's
 *    version when it began, and is so when it ends: an emit nested in it that met a newer
 *    one, in this thread, would have read that from topic->snapshot, and no later read of
 *    it in this thread gives an older value. All others tally their calls one by one.
 * 3. Emits, calls and deliveries that run handlers one by one (once, weak, timed, shared
 *    out, failed) tally each call, and count their events apart.
 *
 * Tallies live as long as their handler; a thread's end leaves them to whoever takes over
 * its record. Without memory for a tally its calls are not in it; all totals are right. */
#ifndef FTB_TALLY_H
#define FTB_TALLY_H

#include "ftb_histogram.h"
#include "ftb_shard.h"
#include "ftb_snapshot.h"

/* One handler's calls in one thread; written by the thread only. */
struct ftb_tally {
    struct ftb_tally *next;   /* set before the push */
    struct ftb_thread *owner; /* likewise */
    ftb_atomic(uint64_t) calls;
    ftb_atomic(uint64_t) failed;
    ftb_atomic(struct ftb_histogram *) time;
};

/* What all threads together know of a handler. */
struct ftb_tally_sum {
    uint64_t calls, failed;
    uint64_t longest_ns; /* of its timed calls; 0: none */
};

/* The slow way: makes this thread's tally. NULL: no memory. */
FTB_NOINLINE struct ftb_tally *
ftb_tally_make_local(struct ftb_handler *handler, struct ftb_thread *thread);

/* This thread's tally of a handler that it holds, or NULL without memory. */
static inline struct ftb_tally *
ftb_tally_local(struct ftb_handler *handler, struct ftb_thread *thread)
{
    struct ftb_tally *tally = ftb_load_acquire(&handler->tallies);
    while (tally != NULL && tally->owner != thread) {
        tally = tally->next;
    }
    return FTB_LIKELY(tally != NULL) ? tally : ftb_tally_make_local(handler, thread);
}

/* Record how long a call took. Returns whether the handler's were no longer in this thread
 * before; false without memory. Owner only. */
bool ftb_tally_record_local(struct ftb_tally *tally, uint64_t ns);

/* The runs since the last fold belong to the handlers they ran; from now on they are runs
 * of this snapshot, which the caller holds. Owner only. */
FTB_NOINLINE void ftb_tally_fold(
    struct ftb_thread *thread, struct ftb_cell *cell, struct ftb_snapshot *snapshot);

/* Let the cell count runs of this snapshot. Owner only. */
static inline void
ftb_tally_sync(
    struct ftb_thread *thread, struct ftb_cell *cell, struct ftb_snapshot *snapshot)
{
    /* relaxed: the owner's own */
    uint64_t version = snapshot->version & ~FTB_VERSION_FLAGGED;
    if (FTB_UNLIKELY(ftb_load_relaxed(&cell->version) != version)) {
        ftb_tally_fold(thread, cell, snapshot);
    }
}

/* Count one run of the cell's version that is no emit. Owner only. */
void ftb_tally_run_local(struct ftb_cell *cell);

/* Sum up a handler that the caller holds; its times are added to *time, unless that is
 * NULL. Exact when the threads that call it are quiet, and never less than before. */
void ftb_tally_sum(
    struct ftb_handler *handler, struct ftb_tally_sum *sum,
    struct ftb_histogram_sum *time);

/* Free a handler's tallies, with the handler. */
void ftb_tallies_free(struct ftb_handler *handler);

#endif

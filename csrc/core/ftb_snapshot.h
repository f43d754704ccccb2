/* Handlers, and the immutable tuple of them that an emit walks.
 *
 * A subscription is one ftb_handler. It owns the references to the callable; snapshots
 * count handlers, never Python objects, and only writers touch that count. A snapshot is
 * never changed: subscribing and cancelling publish a new one and retire the old. */
#ifndef FTB_SNAPSHOT_H
#define FTB_SNAPSHOT_H

#include "ftb_atomic.h"
#include "ftb_base.h"
#include "ftb_reclaim.h"

struct ftb_topic;

/* What is special about a handler, or about a snapshot; 0 for most. */
enum {
    FTB_HANDLER_ONCE = 1,       /* runs at most once, whoever emits */
    FTB_HANDLER_WEAK = 2,       /* `self`, or else `func`, is a weak reference */
    FTB_HANDLER_ENCODED = 4,    /* wants the event as encoded bytes */
    FTB_SNAPSHOT_CLASS = 8,     /* of a class: the handlers of its bases follow */
    FTB_SNAPSHOT_SAMPLED = 16,  /* some of its events are timed */
    FTB_SNAPSHOT_TIMED = 32,    /* all are */
    FTB_SNAPSHOT_OBSERVED = 64, /* somebody wants to hear of each call */
};

/* What does not change how handlers are called. */
#define FTB_SNAPSHOT_TIMINGS (FTB_SNAPSHOT_SAMPLED | FTB_SNAPSHOT_TIMED)

/* Set in the version of a snapshot that has flags. */
#define FTB_VERSION_FLAGGED (UINT64_C(1) << 63)

enum ftb_handler_state {
    FTB_HANDLER_ACTIVE = 0,
    FTB_HANDLER_SPENT = 1,     /* a once-handler that has started */
    FTB_HANDLER_CANCELLED = 2, /* starts no more */
    FTB_HANDLER_RESERVED = 3,  /* a once-handler that a call has claimed, not started */
};

struct ftb_handler {
    ftb_atomic(uint32_t) refs; /* snapshots + the subscription object */
    /* enum ftb_handler_state; goes back only from RESERVED, by who set that */
    ftb_atomic(uint32_t) state;
    uint32_t flags;
    int32_t priority;
    uint64_t serial; /* unique on its bus, unlike an address */
    void *func;      /* called with (self, event), or with (event) if self is NULL */
    void *self;      /* set for bound methods, which are unwrapped */
    void *callable;  /* what the user passed in, or its weak reference; for messages */
    const void *target; /* where the weak one's object is or was; only compared */
    void *owner;        /* the subscription object while it lives, for the collector */
    struct ftb_topic *topic;
    /* The first snapshot it is in; written before that is published. 0: none yet. */
    uint64_t first_version;
    ftb_atomic(struct ftb_tally *) tallies; /* ftb_tally.h */
    struct ftb_handler *previous, *next;    /* the bus's list; guarded by its lock */
};

/* One call to make. */
struct ftb_call {
    void *func;
    void *self;
};

/* In memory: this header, calls[n], handlers[n], the retire link; perhaps room to spare.
 * With room for one handler, as most have, it is one cell of ftb_slab. */
struct ftb_snapshot {
    /* Never used twice, and larger than those of the topic's earlier snapshots; with
     * FTB_VERSION_FLAGGED if flags is not 0, so that one comparison finds out both. */
    uint64_t version;
    uint32_t n;       /* at least 1 */
    uint16_t flags;   /* every handler's flags and its own, or-ed */
    uint16_t is_cell; /* where its memory came from */
    struct ftb_call calls[];
};

static inline struct ftb_handler **
ftb_snapshot_handlers(struct ftb_snapshot *snapshot)
{
    return (struct ftb_handler **)(void *)(snapshot->calls + snapshot->n);
}

static inline struct ftb_topic *
ftb_snapshot_topic(struct ftb_snapshot *snapshot)
{
    return ftb_snapshot_handlers(snapshot)[0]->topic;
}

static inline struct ftb_retired *
ftb_snapshot_retired(struct ftb_snapshot *snapshot)
{
    return (struct ftb_retired *)(void *)(ftb_snapshot_handlers(snapshot)
                                          + snapshot->n);
}

/* Room for a snapshot of up to `most` handlers. NULL: no memory. Taken before anything is
 * changed, so that the change itself cannot fail. */
FTB_MUST_USE struct ftb_snapshot *ftb_snapshot_reserve(size_t most);

/* Make the room a snapshot: `old` (may be NULL) with `added` (may be NULL) in its place
 * by priority, without the handlers that are cancelled. NULL if none is left: then the
 * room is freed. */
FTB_MUST_USE struct ftb_snapshot *ftb_snapshot_fill(
    struct ftb_snapshot *room, struct ftb_topic *topic, struct ftb_snapshot *old,
    struct ftb_handler *added);

/* Retire an unlinked snapshot (NULL is allowed). */
void ftb_snapshot_retire(struct ftb_snapshot *snapshot);

/* Free one that nobody can see: it was never published, or its time has come. */
void ftb_snapshot_discard(struct ftb_snapshot *snapshot);

static inline void
ftb_handler_retain(struct ftb_handler *handler)
{
    ftb_add_relaxed(&handler->refs, 1); /* relaxed: the caller holds one already */
}

/* Drop a reference; the last one unlinks the handler from its bus and calls
 * ftb_handler_release_fn. Holds no lock while it does. */
void ftb_handler_release(struct ftb_handler *handler);

/* Frees what the Python layer hung on a handler; set once, before the first handler. */
extern void (*ftb_handler_release_fn)(struct ftb_handler *handler);

#endif

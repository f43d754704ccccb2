/* Topics and the bus that owns them: key -> topic -> snapshot of handlers.
 *
 * A topic is interned: one per key and bus, made on first use, living as long as the bus
 * core. Its snapshot is replaced under the stripe lock of its key and read without any
 * lock. Any thread may call everything here; nothing here runs user code except
 * ftb_bus_release and ftb_bus_clear, through ftb_handler_release_fn. */
#ifndef FTB_TOPIC_H
#define FTB_TOPIC_H

#include "ftb_map.h"
#include "ftb_snapshot.h"

struct ftb_bus;

/* One cell of ftb_slab, so that a look-up in a million topics waits for one line of it. */
struct ftb_topic {
    struct ftb_entry entry; /* first: the map finds topics by it */
    /* Written under the stripe lock; read inside sections. NULL: no handlers. */
    ftb_atomic(struct ftb_snapshot *) snapshot;
    struct ftb_bus *bus; /* set before the topic is published */
    void *key_object;    /* the Python layer's owned reference; likewise */
};

/* The number of a topic's counters. */
static inline uint32_t
ftb_topic_id(const struct ftb_topic *topic)
{
    return topic->entry.key.owner_id;
}

/* Which events of a topic, or of a bus, are timed. */
enum ftb_timing {
    FTB_TIMING_OFF = 0,
    FTB_TIMING_SAMPLED = 1,
    FTB_TIMING_ALL = 2,
};

/* A topic that has a timing of its own; kept as long as the bus. */
struct ftb_timing_choice {
    struct ftb_timing_choice *next;
    struct ftb_topic *topic;
    ftb_atomic(uint32_t) timing;
};

struct ftb_bus {
    struct ftb_map topics;
    void *
        object; /* the Python layer's, which owns one reference; good while that lives */
    uint64_t serial;     /* never reused, so that caches can tell buses apart */
    uint32_t unheard_id; /* counters of events whose key has no topic */
    uint32_t own_id;     /* counters of look-ups (emitted, unheard) and partitions */
    uint32_t times_id;   /* times of all its events, whatever their topic */
    /* Written once, before the first topic. */
    bool is_uncounted;        /* its topics have no counters of their own */
    enum ftb_timing timing;   /* of topics that have no choice of their own */
    uint32_t timing_interval; /* sampled: one event in so many on average, 1 .. 2**30 */
    ftb_atomic(uint32_t) is_observed; /* FTB_SNAPSHOT_OBSERVED is to be set, or 0 */
    ftb_atomic(struct ftb_timing_choice *) choices; /* pushed under handlers_lock */
    ftb_atomic(uint32_t) refs;                      /* the bus object + its handlers */
    ftb_atomic(uint32_t) is_closed;
    ftb_atomic(uint64_t) subscribed; /* handlers in the snapshots of its topics */
    pthread_mutex_t index_lock;
    struct ftb_topic_index *index; /* of its topics, or NULL; guarded by index_lock */
    pthread_mutex_t handlers_lock;
    struct ftb_handler *handlers; /* all that exist; guarded by handlers_lock */
    uint64_t next_serial;         /* of handlers; likewise */
};

/* Frees what the Python layer hung on a topic; set once. */
extern void (*ftb_topic_release_fn)(struct ftb_topic *topic);

/* A bus core with one reference. NULL: no memory. */
struct ftb_bus *ftb_bus_new(uint32_t stripes_n);

static inline void
ftb_bus_retain(struct ftb_bus *bus)
{
    ftb_add_relaxed(&bus->refs, 1); /* relaxed: the caller holds one already */
}

/* Drop a reference; the last one frees all topics. */
void ftb_bus_release(struct ftb_bus *bus);

/* The topic of a key inside a section, or NULL. It lives as long as the bus core. */
static inline struct ftb_topic *
ftb_bus_find(const struct ftb_bus *bus, const struct ftb_keyview *view)
{
    return (struct ftb_topic *)(void *)ftb_map_find(&bus->topics, view);
}

/* Hold the snapshot that a topic has now, until ftb_hazard_drop: (1) to (4) of
 * ftb_reclaim.c. NULL, and nothing is held, if it has no handlers. The caller has checked
 * that thread->depth is under FTB_DEPTH_MAX. */
static inline struct ftb_snapshot *
ftb_topic_hold(struct ftb_thread *thread, struct ftb_topic *topic)
{
    uint64_t odd = ftb_section_enter(thread);
    struct ftb_snapshot *snapshot = ftb_load_seq_cst(&topic->snapshot); /* (2) */
    if (snapshot != NULL) {
        ftb_hazard_hold(thread, snapshot);
    }
    ftb_section_leave(thread, odd);
    return snapshot;
}

/* The topic of a key, made if it is new. *is_new says which: then the caller gave its
 * key_object away. FTB_NOMEM: nothing changed. */
FTB_MUST_USE enum ftb_result ftb_bus_topic(
    struct ftb_bus *bus, const struct ftb_keyview *view, void *key_object,
    struct ftb_topic **topic, bool *is_new);

/* Subscribe: publish a snapshot with the handler in it. The caller made the handler and
 * keeps its own reference. FTB_CLOSED after ftb_bus_clear; FTB_NOMEM: nothing changed. */
FTB_MUST_USE enum ftb_result
ftb_topic_add(struct ftb_topic *topic, struct ftb_handler *handler);

/* Cancel the handlers for which match is true (all if match is NULL) and publish a
 * snapshot without them. Sets *removed_n to how many of them can start no more that could. `match` runs under the
 * stripe's lock: it must not run user code, drop a reference or block.
 * FTB_NOMEM: nothing changed. */
FTB_MUST_USE enum ftb_result ftb_topic_remove(
    struct ftb_topic *topic,
    bool (*match)(const struct ftb_handler *handler, void *context), void *context,
    size_t *removed_n);

/* The timing of a topic. Any thread. */
static inline enum ftb_timing
ftb_topic_timing(const struct ftb_topic *topic)
{
    struct ftb_timing_choice *choice = ftb_load_acquire(&topic->bus->choices);
    while (FTB_UNLIKELY(choice != NULL)) {
        if (choice->topic == topic) {
            /* relaxed: whoever set it just now may be missed */
            return (enum ftb_timing)ftb_load_relaxed(&choice->timing);
        }
        choice = choice->next;
    }
    return topic->bus->timing;
}

/* The flags that a snapshot of this topic has whatever its handlers. */
uint16_t ftb_topic_flags(const struct ftb_topic *topic);

/* Give a topic a timing of its own. FTB_NOMEM: nothing changed. */
FTB_MUST_USE enum ftb_result
ftb_topic_set_timing(struct ftb_topic *topic, enum ftb_timing timing);

/* Set whether each call is observed, in every topic. FTB_NOMEM: in some it is not yet. */
FTB_MUST_USE enum ftb_result
ftb_bus_set_observed(struct ftb_bus *bus, bool is_observed);

/* Close: no topic takes handlers any more, and all handlers are cancelled. */
void ftb_bus_clear(struct ftb_bus *bus);

/* A new, unlinked handler for a topic, with one reference. NULL: no memory. */
struct ftb_handler *ftb_handler_new(struct ftb_topic *topic);

/* Called by ftb_handler_release. */
void ftb_bus_unlink_handler(struct ftb_bus *bus, struct ftb_handler *handler);

/* In a fork's child: make the locks new, and whole what they guard, whoever was at it. */
void ftb_bus_after_fork_child(struct ftb_bus *bus);

#endif

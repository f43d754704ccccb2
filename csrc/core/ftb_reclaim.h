/* Safe memory reclamation: read without locks, hold for hours, free when nobody looks.
 *
 * A reader opens a short sequence section, finds what it wants, parks one pointer in a
 * hazard slot and leaves the section; the slot then protects that one object for as long
 * as it likes (a handler may block for an hour). A writer unlinks, retires, and frees
 * once no section that could have seen the object is open and no slot holds it.
 * The argument is in ftb_reclaim.c; the model is models/reclaim.cpp.
 *
 * Thread rule: sections and slots belong to their own thread; ftb_retire from any thread
 * (under locks too); ftb_reclaim from any thread that holds no lock. Inside a section
 * nothing may block, allocate or call user code. */
#ifndef FTB_RECLAIM_H
#define FTB_RECLAIM_H

#include "ftb_atomic.h"
#include "ftb_base.h"

/* Emits nested deeper than this in one thread are refused (EmitDepthError): by then it
 * is a handler that emits its own key without end. */
#define FTB_DEPTH_MAX 64

#define FTB_FRONT_SLOTS 64

struct ftb_shard; /* ftb_shard.h */

struct ftb_front {
    const void *key;
    uint64_t bus_serial;
    void *topic;
};

/* One thread's record. Records are reused by later threads and never freed, so that a
 * scan needs no lock on the list. */
struct ftb_thread {
    /* Even: outside any section; odd: inside. Written by the owner only. */
    FTB_ALIGNED ftb_atomic(uint64_t) seq;
    /* Slots in use, also the nesting depth of emit. Owner only. */
    uint32_t depth;
    /* The deepest slot ever used, so that a scan is short. Written by the owner before
     * the slot itself; published by the end of the same section. */
    ftb_atomic(uint32_t) depth_peak;
    struct ftb_shard *shard; /* counters; set once when the record is made */
    /* Topics of recently emitted keys, by the key object's address. Filled only for
     * objects that are never freed, so that no address can come to mean another key;
     * valid for the bus with that serial. Owner only; kept for the record's next owner. */
    struct ftb_front front[FTB_FRONT_SLOTS];
    /* hazard[i] is set inside a section and cleared by the owner. */
    ftb_atomic(const void *) hazard[FTB_DEPTH_MAX];
    FTB_ALIGNED ftb_atomic(struct ftb_thread *) next; /* set once, before the push */
    ftb_atomic(uint32_t) in_use; /* 1 while a live thread owns the record */
};

/* Embedded in whatever can be retired. */
struct ftb_retired {
    struct ftb_retired *next;
    const void *object; /* what a hazard slot would hold */
    void (*free_fn)(struct ftb_retired *self);
};

/* This thread's record, or NULL before its first use. */
extern FTB_TLS struct ftb_thread *ftb_thread_local;

/* This thread's record, made or taken over on first use. NULL: no memory. */
FTB_NOINLINE struct ftb_thread *
ftb_thread_register(void);

static inline struct ftb_thread *
ftb_thread_current(void)
{
    struct ftb_thread *thread = ftb_thread_local;
    return FTB_LIKELY(thread != NULL) ? thread : ftb_thread_register();
}

/* (1) Open a section. seq_cst: in the one total order with the writer's unlinking (6)
 * and its scan (7). */
static inline uint64_t
ftb_section_enter(struct ftb_thread *thread)
{
    uint64_t odd = ftb_load_relaxed(&thread->seq) + 1; /* relaxed: own field */
    ftb_store_seq_cst(&thread->seq, odd);
    return odd;
}

/* (4) Close it. Release: publishes the slot (3) to the scan that waits for this. */
static inline void
ftb_section_leave(struct ftb_thread *thread, uint64_t odd)
{
    ftb_store_release(&thread->seq, odd + 1);
}

/* (3) Take the next slot for `object`, inside a section, with thread->depth checked to
 * be under FTB_DEPTH_MAX. Relaxed: (4) publishes both stores. */
static inline void
ftb_hazard_hold(struct ftb_thread *thread, const void *object)
{
    uint32_t slot = thread->depth++;
    if (FTB_UNLIKELY(thread->depth > ftb_load_relaxed(&thread->depth_peak))) {
        ftb_store_relaxed(&thread->depth_peak, thread->depth);
    }
    ftb_store_relaxed(&thread->hazard[slot], object);
}

/* (5) Give the newest slot back. Release: what was read through it happens before the
 * scan that finds it empty, hence before the free. */
static inline void
ftb_hazard_drop(struct ftb_thread *thread)
{
    ftb_store_release(&thread->hazard[--thread->depth], (const void *)NULL);
}

/* Hand over an unlinked object; free_fn runs later, from some thread's ftb_reclaim. */
void
ftb_retire(
    struct ftb_retired *self, const void *object, void (*free_fn)(struct ftb_retired *));

/* Free what nobody can see any more. Returns how many objects are still held. */
size_t
ftb_reclaim(void);

/* Wait-list of slots that hold objects for which `match` is true, in threads other than
 * the caller's. Fills up to slots_n entries, returns how many there are; SIZE_MAX if a
 * section did not close in time (ask again). `match` runs with the objects protected. */
struct ftb_hazard_seen {
    struct ftb_thread *thread;
    const void *object;
    uint32_t slot;
};
size_t
ftb_hazard_find(
    bool (*match)(const void *object, void *context),
    void *context,
    struct ftb_hazard_seen *slots,
    size_t slots_n);

/* True while the slot still holds what ftb_hazard_find saw there. */
static inline bool
ftb_hazard_is_held(const struct ftb_hazard_seen *seen)
{
    return ftb_load_acquire(&seen->thread->hazard[seen->slot]) == seen->object;
}

/* Call fn for every record ever made, live or not. */
void
ftb_thread_each(void (*fn)(struct ftb_thread *thread, void *context), void *context);

/* In a fork's child, before anything else: the other threads are gone. */
void
ftb_reclaim_after_fork_child(void);

#endif

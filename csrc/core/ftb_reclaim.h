/* Safe memory reclamation: read without locks, hold for hours, free when nobody looks.
 *
 * A reader opens a short sequence section, finds what it wants, parks one pointer in a
 * hazard slot and leaves the section; the slot then protects that one object for as long
 * as it likes (a handler may block for an hour). A writer unlinks, retires, and frees
 * once no section that could have seen the object is open and no slot holds it.
 * The argument is in ftb_reclaim.c; the models are models/reclaim.cpp and
 * models/reclaim_asked.cpp.
 *
 * Thread rule: sections and slots belong to their own thread; ftb_retire from any thread
 * (under locks too); ftb_reclaim from any thread that holds no lock. Inside a section
 * nothing may block, allocate or call user code. */
#ifndef FTB_RECLAIM_H
#define FTB_RECLAIM_H

#include <sched.h>

#include "ftb_atomic.h"
#include "ftb_base.h"

/* Emits nested deeper than this in one thread are refused (EmitDepthError): by then it
 * is a handler that emits its own key without end. */
#ifndef FTB_DEPTH_MAX /* a model has fewer */
#define FTB_DEPTH_MAX 64
#endif

#define FTB_FRONT_SLOTS 64

/* How long a scan waits for an open section before it gives up: a section ends in tens of
 * nanoseconds, unless its thread lost the processor. */
#ifndef FTB_SECTION_SPINS
#define FTB_SECTION_SPINS 2000
#endif

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
    /* Which events of this thread are timed, see ftb_thread_samples. Owner only. */
    int32_t sample_left;
    uint32_t sample_random;
    /* Topics of recently emitted keys, by the key object's address. Filled only for
     * objects that are never freed, so that no address can come to mean another key;
     * valid for the bus with that serial. Owner only; kept for the record's next owner. */
    struct ftb_front front[FTB_FRONT_SLOTS];
    /* Addresses of what is held, or 0: set inside a section and cleared by the owner,
     * newest first. */
    ftb_atomic(uintptr_t) hazard[FTB_DEPTH_MAX];
    FTB_ALIGNED ftb_atomic(struct ftb_thread *) next; /* set once, before the push */
    ftb_atomic(uint32_t) in_use; /* 1 while a live thread owns the record */
};

/* Embedded in whatever can be retired. */
struct ftb_retired {
    struct ftb_retired *next;
    const void *object; /* what a hazard slot would hold */
    void (*free_fn)(struct ftb_retired *self);
};

/* Every record ever made. Pushed to, never popped. */
struct ftb_threads {
    ftb_atomic(struct ftb_thread *) head;
};

#ifndef FTB_RELACY /* the model keeps its own records */
/* This thread's record, or NULL before its first use. */
extern FTB_TLS struct ftb_thread *ftb_thread_local;

/* This thread's record, made or taken over on first use. NULL: no memory. */
FTB_NOINLINE struct ftb_thread *ftb_thread_register(void);

static inline struct ftb_thread *
ftb_thread_current(void)
{
    struct ftb_thread *thread = ftb_thread_local;
    return FTB_LIKELY(thread != NULL) ? thread : ftb_thread_register();
}
#endif

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
 * be under FTB_DEPTH_MAX. (4) publishes both stores to the scan. Release: a scan that sees
 * the slot before (4) must know that its last user is done (point 4 of ftb_reclaim.c),
 * and ftb_hazard_find looks into the object. */
static inline void
ftb_hazard_hold(struct ftb_thread *thread, const void *object)
{
    uint32_t slot = thread->depth++;
    if (FTB_UNLIKELY(thread->depth > ftb_load_relaxed(&thread->depth_peak))) {
        ftb_store_relaxed(&thread->depth_peak, thread->depth);
    }
    ftb_store_release(&thread->hazard[slot], (uintptr_t)object);
}

/* (5) Give the newest slot back. Release: what was read through it happens before the
 * scan that finds it empty, hence before the free. */
static inline void
ftb_hazard_drop(struct ftb_thread *thread)
{
    ftb_store_release(&thread->hazard[--thread->depth], (uintptr_t)0);
}

/* What follows is called by ftb_reclaim.c only; it is here so that the model checks it. */

/* Own a record that nobody owns. Acquire: its seq and depth as the last owner left them. */
static inline bool
ftb__thread_try_own(struct ftb_thread *thread)
{
    uint32_t is_owned = 0;
    return ftb_load_relaxed(&thread->in_use) == 0 /* relaxed: the CAS decides */
           && ftb_cas_acquire(&thread->in_use, &is_owned, 1);
}

/* Release: pairs with the above. */
static inline void
ftb__thread_disown(struct ftb_thread *thread)
{
    while (thread->depth > 0) { /* pthread_exit in a handler: nobody uses them now */
        ftb_hazard_drop(thread);
    }
    ftb_store_release(&thread->in_use, 0);
}

/* Add a record. seq_cst: point 5 of ftb_reclaim.c. */
static inline void
ftb__threads_push(struct ftb_threads *threads, struct ftb_thread *thread)
{
    struct ftb_thread *head = ftb_load_relaxed(&threads->head); /* the CAS checks */
    do {
        ftb_store_relaxed(&thread->next, head); /* relaxed: the CAS publishes it */
    } while (!ftb_cas_seq_cst(&threads->head, &head, thread));
}

/* The record pushed last; the others follow by next, each pushed before (relaxed: and so
 * visible with this one). seq_cst: point 5 of ftb_reclaim.c. */
static inline struct ftb_thread *
ftb__threads_first(struct ftb_threads *threads)
{
    return ftb_load_seq_cst(&threads->head);
}

/* (7) True once the thread's section, if it has one open, is closed; false if that took
 * too long. */
static inline bool
ftb__section_is_closed(struct ftb_thread *thread)
{
    uint64_t seen = ftb_load_seq_cst(&thread->seq);
    if ((seen & 1) == 0) {
        return true;
    }
    /* Acquire is enough from here on: any later value of seq says that it is closed. */
    for (int spins = 1; ftb_load_acquire(&thread->seq) == seen; spins++) {
        if (spins == FTB_SECTION_SPINS) {
            return false;
        }
        ftb_relax();
        if (spins % 64 == 0) {
            sched_yield(); /* its owner may need this very core */
        }
    }
    return true;
}

static inline bool
ftb__sections_closed(struct ftb_threads *threads)
{
    struct ftb_thread *thread = ftb__threads_first(threads);
    for (; thread != NULL; thread = ftb_load_relaxed(&thread->next)) {
        if (!ftb__section_is_closed(thread)) {
            return false;
        }
    }
    return true;
}

/* (8) Call fn for the object in every slot of a thread until it returns false; returns
 * whether it never did. */
static inline bool
ftb__hazards_each(
    struct ftb_thread *thread, bool (*fn)(const void *object, void *context),
    void *context)
{
    /* relaxed: what the closed sections wrote is visible by (7), more is not needed */
    uint32_t peak = ftb_load_relaxed(&thread->depth_peak);
    for (uint32_t i = 0; i < peak; i++) {
        uintptr_t object = ftb_load_acquire(&thread->hazard[i]);
        if (object != 0 && !fn((const void *)object, context)) {
            return false;
        }
    }
    return true;
}

/* Who retires shares nothing else with who reclaims. Release: pairs with the take. */
static inline void
ftb__retired_push(ftb_atomic(struct ftb_retired *) * list, struct ftb_retired *self)
{
    struct ftb_retired *head = ftb_load_relaxed(list); /* relaxed: the CAS checks */
    do {
        self->next = head;
    } while (!ftb_cas_release(list, &head, self));
}

/* All of them, the newest first. Acquires what the pushes released. */
static inline struct ftb_retired *
ftb__retired_take(ftb_atomic(struct ftb_retired *) * list)
{
    if (ftb_load_relaxed(list) == NULL) { /* relaxed: the exchange acquires */
        return NULL;
    }
    return ftb_exchange_acquire(list, (struct ftb_retired *)NULL);
}

/* Hand over an unlinked object; free_fn runs later, from some thread's ftb_reclaim. */
void ftb_retire(
    struct ftb_retired *self, const void *object,
    void (*free_fn)(struct ftb_retired *));

/* Free what nobody can see any more, or leave it to the thread that is at it. Returns how
 * many objects are still held, or 1 if it is left to another. */
size_t ftb_reclaim(void);

/* True if a slot of a thread other than the caller's holds an object for which `match` is
 * true, or if that cannot be told now (a section did not close in time: ask again).
 * `match` may look into the objects; it runs under the reclaimer's lock. */
bool ftb_hazard_find(bool (*match)(const void *object, void *context), void *context);

/* Call fn for every record ever made, live or not. */
void
ftb_thread_each(void (*fn)(struct ftb_thread *thread, void *context), void *context);

/* In a fork's child, before anything else: the other threads are gone. */
void ftb_reclaim_after_fork_child(void);

#endif

/* The bus, topic and subscription objects, and what their files share.
 *
 * Types are static, so immortal: creating an object writes no shared reference count. */
#ifndef FTB_PY_BUS_H
#define FTB_PY_BUS_H

#include <Python.h>

#include "ftb_pool.h"
#include "ftb_shard.h"
#include "ftb_tally.h"
#include "ftb_topic.h"

enum bus_overflow {
    BUS_BLOCK = 0,
    BUS_RAISE = 1,
    BUS_DROP_NEWEST = 2,
    BUS_DROP_OLDEST = 3,
};

typedef struct {
    PyObject_HEAD
    struct ftb_bus *core;
    ftb_atomic(ftb_pool_t *) pool; /* NULL until the first post; freed with the bus */
    uint32_t queue_size;
    uint32_t workers_n;
    uint32_t spin_ns;   /* how long an idle worker looks on before it sleeps */
    uint32_t linger_ns; /* see ftb_pool_linger */
    enum bus_overflow overflow;
    int orders_by_key; /* an event without a partition is in that of its key */
    int is_forked;     /* the workers stayed in the parent process */
    int logs_errors;   /* emit reports failures instead of raising them */
    PyObject *codec;   /* what decodes the bytes again; set once */
    PyObject *encode;  /* its methods, as bound; set once; encode_into may be NULL */
    PyObject *encode_into;
    ftb_atomic(uint64_t) room; /* what events took lately; written by any thread */
    PyObject *weakrefs;
} BusObject;

typedef struct {
    PyObject_HEAD
    struct ftb_topic *topic; /* lives as long as the bus */
    BusObject *bus;          /* strong */
    PyObject *weakrefs;
} TopicObject;

typedef struct {
    PyObject_HEAD
    struct ftb_handler *handler; /* one reference */
    BusObject *bus;              /* strong */
    PyObject *weakrefs;
} SubscriptionObject;

extern PyTypeObject ftb_bus_type;
extern PyTypeObject ftb_topic_type;
extern PyTypeObject ftb_subscription_type;

/* This thread's record, or NULL with MemoryError set. */
static inline struct ftb_thread *
bus_thread(void)
{
    struct ftb_thread *thread = ftb_thread_current();
    if (thread == NULL) {
        PyErr_NoMemory();
    }
    return thread;
}

/* This thread's counters of a topic, of what has none (NULL), or of a bus that does not
 * count by topic. NULL with MemoryError set. */
static inline struct ftb_cell *
bus_cell(BusObject *bus, struct ftb_thread *thread, const struct ftb_topic *topic)
{
    int has_own = topic != NULL && !bus->core->is_uncounted;
    struct ftb_cell *cell = ftb_shard_cell_local(
        thread->shard, has_own ? ftb_topic_id(topic) : bus->core->unheard_id);
    if (cell == NULL) {
        PyErr_NoMemory();
    }
    return cell;
}

/* timing.c: draw after how many events the next one is timed. Returns whether this one
 * is: not in a thread's first draw. */
FTB_NOINLINE int timing_draw(struct ftb_thread *thread, uint32_t interval);

/* Whether to time the event that this thread is about to emit or post. One countdown for
 * all topics of a thread, with gaps at random, so that no pattern of events is missed. */
static inline int
timing_samples(BusObject *bus, struct ftb_thread *thread)
{
    return FTB_UNLIKELY(--thread->sample_left <= 0)
           && timing_draw(thread, bus->core->timing_interval);
}

/* The time, or 0 if the event of this topic (NULL: a task) is not to be timed. */
uint64_t
timing_start(BusObject *bus, struct ftb_thread *thread, const struct ftb_topic *topic);

/* Record how long something took, in a cell and among the times of the bus: there first,
 * and without memory in neither, so that the bus has no less than its cells. */
void timing_record(
    const struct ftb_bus *bus, struct ftb_thread *thread, struct ftb_cell *cell,
    enum ftb_time what, uint64_t ns);

/* A posted event starts: record its wait since `posted_ns`. Returns the time. */
uint64_t timing_waited(
    BusObject *bus, struct ftb_thread *thread, struct ftb_cell *cell,
    uint64_t posted_ns, int has_partition);

/* One call of a handler that the caller holds has ended: tally it, and if start_ns is not
 * 0 record how long it took. Returns the time then, else 0. */
uint64_t timing_called(
    struct ftb_thread *thread, struct ftb_cell *cell, struct ftb_handler *handler,
    int has_failed, uint64_t start_ns);

/* _set_timing(key, mode): 0 off, 1 sampled, 2 all. */
PyObject *bus_set_timing(PyObject *self, PyObject *args);

/* observe.c: whether somebody wants to hear of calls. */
static inline int
bus_is_observed(BusObject *bus)
{
    /* relaxed: who was added a moment ago may miss a call */
    return FTB_UNLIKELY(ftb_load_relaxed(&bus->core->is_observed) != 0);
}

/* Tell the observers; the exception that is set stays so, and is passed on to "failed".
 * What they raise goes to sys.unraisablehook. */
void bus_observe(
    BusObject *bus, const char *what, PyObject *key, PyObject *handler,
    PyObject *event);

/* Tell them what has become of a call. */
static inline void
bus_observe_result(
    BusObject *bus, const struct ftb_handler *handler, PyObject *event,
    const PyObject *result)
{
    if (bus_is_observed(bus)) {
        bus_observe(
            bus, result != NULL ? "finished" : "failed", handler->topic->key_object,
            handler->callable, event);
    }
}

/* Tell them that a queued event (topic NULL: a task) was given up. */
void
bus_observe_dropped(BusObject *bus, const struct ftb_topic *topic, PyObject *payload);

/* _set_observed(bool) */
PyObject *bus_set_observed(PyObject *self, PyObject *is_observed);

/* Raise BusClosedError(bus, doing). Returns NULL. */
PyObject *bus_raise_closed(BusObject *bus, const char *doing);

/* The topic of a key object, made on first use; NULL with an exception set. */
struct ftb_topic *bus_topic_of(BusObject *bus, PyObject *key);

/* The topic of a key object if there is one. 1: found, 0: none, -1: exception. */
int bus_topic_find(BusObject *bus, PyObject *key, struct ftb_topic **topic);

/* Sort out (key, event): an instance of a Python class alone (event NULL) goes under its
 * class, a key alone with the event None. Borrowed; 0, or -1 with an exception. */
int
bus_key_and_event(PyObject *first, PyObject *second, PyObject **key, PyObject **event);

/* Subscription objects (subscription.c). */
PyObject *subscription_new(
    BusObject *bus, PyObject *key, PyObject *callable, PyObject *original, int priority,
    uint32_t flags);

/* Number cancelled, or -1: all handlers of a topic, or those that call `callable`. */
Py_ssize_t subscription_cancel_matching(struct ftb_topic *topic, PyObject *callable);

/* claim.c: a list of Claims on a topic's handlers, in order. A once-handler that is
 * claimed runs for no other event, unless its claim is given back. */
PyObject *topic_claim_handlers(BusObject *bus, struct ftb_topic *topic);
int ftb_claim_type_ready(PyObject *module);

int subscription_traverse_handlers(struct ftb_bus *core, visitproc visit, void *arg);

/* How an event is to be queued. */
struct post_options {
    PyObject *partition; /* borrowed; NULL or None: none */
    uint64_t timeout_ns; /* FTB_FOREVER for none */
    int is_urgent;
    PyObject *context; /* what context_snapshot gave; borrowed */
};

/* post.c: queue one event. New reference to True (queued) or False (dropped by policy),
 * or NULL. */
PyObject *bus_post_event(
    BusObject *bus, struct ftb_topic *topic, PyObject *event,
    const struct post_options *options);
PyObject *
bus_post(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);
PyObject *bus_post_many(
    PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);
PyObject *
topic_post(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);
PyObject *topic_post_many(
    PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);
PyObject *bus_submit(PyObject *self, PyObject *const *args, Py_ssize_t nargs);

/* worker.c: the loop of one worker thread, waiting, stopping. */
PyObject *bus_start_pool(PyObject *self, PyObject *args);
PyObject *bus_work(PyObject *self, PyObject *args);
PyObject *bus_drain(PyObject *self, PyObject *timeout);
PyObject *bus_close_pool(PyObject *self, PyObject *unused);
PyObject *bus_stop_pool(PyObject *self, PyObject *unused);
PyObject *bus_drop_queued(PyObject *self, PyObject *unused);
/* In item.stamp_ns, beside the time it was posted at (0: it is not timed). */
#define ITEM_HAS_PARTITION (UINT64_C(1) << 63)

/* What has become of a posted event that ITEM_HAS_PARTITION. */
enum partition_step { PARTITION_POSTED, PARTITION_STARTED, PARTITION_DROPPED };
void bus_count_partitioned(BusObject *bus, enum partition_step step);

/* Give up a queued item (stolen) and count it as dropped; a task is told: dropped(). */
void bus_drop_item(BusObject *bus, struct ftb_item *item);

/* Run one queued event or task here, for a worker that waits on its own pool. 1: ran,
 * 0: nothing queued, -1: exception. */
int bus_help(BusObject *bus);

/* Call a task; it is told failed(exception) of what it raises, which is also reported. */
void bus_run_task(BusObject *bus, PyObject *task);

/* help.c: _help(), _run_task(task), _is_full(), _count_failed(key, target),
 * _check_key(key). */
PyObject *bus_help_one(PyObject *self, PyObject *unused);
PyObject *bus_run_task_here(PyObject *self, PyObject *task);
PyObject *bus_is_full(PyObject *self, PyObject *unused);
PyObject *bus_count_failed(PyObject *self, PyObject *args);
PyObject *bus_check_key(PyObject *self, PyObject *key);

/* How many unfinished events of this bus the calling thread is itself executing. */
uint32_t bus_executing(BusObject *bus);

/* How many of these have not been started. */
uint32_t bus_unstarted(BusObject *bus);

/* Seconds (float, None for ever) to a duration in ns. 0 or -1. */
int bus_timeout_ns(PyObject *seconds, uint64_t *timeout_ns);

/* stats.c */
PyObject *bus_figures(PyObject *self, PyObject *args);
PyObject *bus_pool_stats(PyObject *self, PyObject *unused);

/* now + timeout, saturating. */
static inline uint64_t
bus_deadline_ns(uint64_t timeout_ns)
{
    uint64_t now = ftb_now_ns();
    return timeout_ns > FTB_FOREVER - now ? FTB_FOREVER : now + timeout_ns;
}

#endif

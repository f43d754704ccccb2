/* Running the handlers of one event. */
#ifndef FTB_PY_EMIT_H
#define FTB_PY_EMIT_H

#include "bus.h"

/* One event on its way through its handlers; lives on the stack of one thread. */
struct delivery {
    BusObject *bus;
    PyObject *event;
    PyObject *encoded;     /* the event as a Buffer, made on first need; owned */
    PyObject *unencodable; /* what the codec raised instead, or NULL; owned */
    PyObject *errors;      /* list of what handlers raised, made on first need; owned */
    int collects;          /* failures go to `errors`; else they are reported at once */
    int has_caller;        /* KeyboardInterrupt and its like go up; else reported too */
    uint64_t handled_n;
    uint64_t failed_n;
    uint64_t given_n;  /* handler calls that got bytes */
    uint64_t stamp_ns; /* when its last step ended; 0: this event is not timed */
    /* Of the topic whose handlers run now. */
    struct ftb_thread *thread;
    struct ftb_cell *cell;
};

/* deliver.c: call the handlers of a held snapshot from `i` on, whatever they are. Returns
 * 0, or -1 to stop with an exception. One that was cancelled meanwhile starts no more. */
int
snapshot_run_any(struct delivery *delivery, struct ftb_snapshot *snapshot, uint32_t i);

/* The handlers of a held snapshot after snapshot_run_plain stopped at `i`. */
FTB_NOINLINE int snapshot_run_rest(
    struct delivery *delivery, struct ftb_snapshot *snapshot, uint32_t i,
    int has_raised);

/* Give the snapshot back and count what the delivery did with it. Returns how many
 * handlers ran, or -1 if it was stopped. */
Py_ssize_t topic_done(
    struct delivery *delivery, struct ftb_topic *topic,
    const struct ftb_snapshot *snapshot, const struct delivery *before, int stopped);

/* Run the handlers of a topic, and for a class those of its bases. Returns how many
 * ran, or -1 if one raised what must not be held back (KeyboardInterrupt and the like,
 * only if delivery->has_caller) or the record could not be had. */
Py_ssize_t delivery_run(struct delivery *delivery, struct ftb_topic *topic);

/* Run the handlers of a posted event of the usual kind, that is not timed and has no
 * context, of a topic without bases whose handlers are plain, and count it as delivered.
 * Returns 0 if it is of another kind, with nothing done. */
int delivery_run_posted(BusObject *bus, struct ftb_topic *topic, PyObject *event);

/* As delivery_run, for a class that has no topic of its own. */
Py_ssize_t delivery_run_bases(struct delivery *delivery, PyObject *class);

/* encode.c: the event as a frozen Buffer that knows its codec, made anew. New reference,
 * or NULL with what the codec raised. */
PyObject *bus_encode_event(BusObject *bus, PyObject *event);

/* How often encode_into may ask for more room for one event. */
#define BUS_GROWTHS_MAX 8

/* _encode(key, event): the event as encoded handlers get it, counted under the key. */
PyObject *bus_encode(PyObject *self, PyObject *const *args, Py_ssize_t nargs);

/* Call a handler that has flags; *skip is set if it turned out that it must not run. */
PyObject *delivery_call_special(
    struct delivery *delivery, struct ftb_handler *handler, int *skip);

/* A handler raised: returns 0 to go on with the next one, -1 to let it through. */
int delivery_failed(struct delivery *delivery, struct ftb_handler *handler);

/* Drop what the delivery owns. */
void delivery_fini(struct delivery *delivery);

/* Whether somebody subscribed or cancelled meanwhile. relaxed: a hint; what it leads to
 * acquires the handlers' states. */
static inline int
is_replaced(const struct ftb_topic *topic, const struct ftb_snapshot *snapshot)
{
    return ftb_load_relaxed(&topic->snapshot) != snapshot;
}

/* The snapshot was replaced while this thread held it, by a cancel or by its own
 * once-handler: who did that could not free it. */
FTB_NOINLINE void reclaim_replaced(void);

/* Give a held snapshot back. A cancel between the look and the drop leaves the snapshot to
 * the next reclaim: to look after the drop for certain takes a barrier in every emit. */
static inline void
snapshot_drop(
    struct ftb_thread *thread, const struct ftb_topic *topic,
    const struct ftb_snapshot *snapshot)
{
    int must_reclaim = is_replaced(topic, snapshot);
    ftb_hazard_drop(thread);
    if (FTB_UNLIKELY(must_reclaim)) {
        reclaim_replaced();
    }
}

/* Call one handler with an event; new reference or NULL. PyObject_Vectorcall, inline. */
static inline PyObject *
call_handler(const struct ftb_call *call, PyObject *event)
{
    PyObject *func = call->func;
    /* One spare place in front, as the vectorcall protocol lets the callee use. */
    PyObject *stack[3] = {NULL, call->self, event};
    PyObject **args = call->self == NULL ? stack + 2 : stack + 1;
    size_t nargs = (size_t)(stack + 3 - args) | PY_VECTORCALL_ARGUMENTS_OFFSET;
    PyTypeObject *type = Py_TYPE(func);
    if (FTB_LIKELY(PyType_HasFeature(type, Py_TPFLAGS_HAVE_VECTORCALL))) {
        vectorcallfunc vectorcall;
        memcpy(
            &vectorcall, (char *)func + type->tp_vectorcall_offset, sizeof vectorcall);
        if (FTB_LIKELY(vectorcall != NULL)) {
            return vectorcall(func, args, nargs, NULL);
        }
    }
    return PyObject_Vectorcall(func, args, nargs, NULL);
}

/* Call the handlers of a held snapshot, none of them special. Returns whether all returned
 * and it is still the topic's. Otherwise *ran_n of them did, and the next one raised
 * (*result is then NULL), or may have been cancelled meanwhile. */
static inline int
snapshot_run_plain(
    const struct ftb_topic *topic, const struct ftb_snapshot *snapshot, PyObject *event,
    uint32_t *ran_n, PyObject **result)
{
    *ran_n = 0;
    for (;;) {
        *result = call_handler(&snapshot->calls[*ran_n], event);
        if (FTB_UNLIKELY(*result == NULL)) {
            return 0;
        }
        Py_DECREF(*result);
        if (++*ran_n == snapshot->n) {
            return FTB_LIKELY(!is_replaced(topic, snapshot));
        }
        if (FTB_UNLIKELY(is_replaced(topic, snapshot))) {
            return 0;
        }
    }
}

/* fan.c: one posted event whose handlers idle workers share. */
struct fan_work;

/* The event's handlers as work to share, if it has several and they are plain. NULL: run
 * them here. Takes the payload's reference only if it returns work. */
struct fan_work *fan_work_new(
    BusObject *bus, struct ftb_topic *topic, PyObject *payload, int is_timed,
    uint32_t *n);

/* Run one of them. */
void fan_work_run(struct fan_work *work, uint32_t ix);

/* All have been run: count the event and let go of everything. */
void fan_work_end(struct fan_work *work);

/* Count a posted event as delivered, or dropped, under its topic (NULL: a task). */
void bus_count_done(BusObject *bus, struct ftb_topic *topic, int was_dropped);

/* Prepare what every emit needs; by the import of the module. 0 or -1. */
int ftb_emit_ready(void);

/* The bodies of bus.emit, bus.emit_many, topic.emit, topic.emit_many. */
PyObject *
bus_emit(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);
PyObject *bus_emit_many(PyObject *self, PyObject *const *args, Py_ssize_t nargs);
PyObject *
topic_emit(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);
PyObject *topic_emit_many(PyObject *self, PyObject *events);

/* Count an exception under its type, by bus._note_failure(exception, key, handler). */
void
bus_note_failure(BusObject *bus, PyObject *error, PyObject *key, PyObject *handler);

/* Hand an exception (stolen) to bus._report_failure(exception, key, handler); whatever
 * that raises goes to sys.unraisablehook. */
void
bus_report_failure(BusObject *bus, PyObject *error, PyObject *key, PyObject *handler);

#endif

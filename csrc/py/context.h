/* Context variables on their way from who posts an event to its handlers.
 *
 * An event whose poster has none set is queued as it is. Otherwise the item's payload is
 * a small object of event and snapshot; the snapshot is never entered itself, as several
 * runs may want to at once: each enters a copy. */
#ifndef FTB_PY_CONTEXT_H
#define FTB_PY_CONTEXT_H

#include <Python.h>

/* What a run holds between context_enter and context_exit. */
struct entered {
    PyObject *context; /* owned; NULL: none was entered */
};

int context_snapshot_slow(PyObject *chosen, PyObject **snapshot);

/* Whether this thread surely has no variables set. */
static inline int
context_is_absent(void)
{
#if PY_VERSION_HEX < 0x030F0000
    /* No documented call tells whether a thread has a context at all without making one:
     * a copy, made to look, costs 25 ns of each post. The field has been there since 3.7.
     */
    return PyThreadState_GetUnchecked()->context == NULL;
#else
    return 0;
#endif
}

/* The variables to run an event with, in *snapshot: a copy of `chosen`, or of the current
 * context if that is NULL or None; NULL if none are set. 0, or -1 with an exception. */
static inline int
context_snapshot(PyObject *chosen, PyObject **snapshot)
{
    *snapshot = NULL;
    if ((chosen == NULL || chosen == Py_None) && context_is_absent()) {
        return 0;
    }
    return context_snapshot_slow(chosen, snapshot);
}

/* What to queue: a new reference to the event, or to the object that has both. */
PyObject *context_payload(PyObject *event, PyObject *snapshot);

/* The event of a payload; borrowed. */
PyObject *context_event(PyObject *payload);

extern PyTypeObject ftb_context_event_type;

int context_enter_payload(PyObject **payload, struct entered *entered);

/* Whether what is queued is an event with its context. */
static inline int
context_is_with(PyObject *payload)
{
    return Py_TYPE(payload) == &ftb_context_event_type;
}

/* Go into a copy of the payload's context, if it has one. *payload is the event then,
 * borrowed from it. 0, or -1 with an exception. */
static inline int
context_enter(PyObject **payload, struct entered *entered)
{
    entered->context = NULL;
    return context_is_with(*payload) ? context_enter_payload(payload, entered) : 0;
}

/* Go into an empty context. 0, or -1 with an exception. */
int context_enter_empty(struct entered *entered);

void context_leave(struct entered *entered);

/* Come back; the current exception is kept. */
static inline void
context_exit(struct entered *entered)
{
    if (entered->context != NULL) {
        context_leave(entered);
    }
}

#endif

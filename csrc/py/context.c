#include "context.h"

#include "errors.h"

typedef struct {
    PyObject_HEAD
    PyObject *event;
    PyObject *snapshot;
} ContextEventObject;

static void
context_event_dealloc(PyObject *object)
{
    ContextEventObject *self = (ContextEventObject *)object;
    Py_DECREF(self->event);
    Py_DECREF(self->snapshot);
    PyObject_Free(self);
}

/* Only ever seen by the queue, which the collector does not look into. */
PyTypeObject ftb_context_event_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "ftbus._core.ContextEvent",
    .tp_basicsize = sizeof(ContextEventObject),
    .tp_dealloc = context_event_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
};

int
context_snapshot_slow(PyObject *chosen, PyObject **snapshot)
{
    int is_current = chosen == NULL || chosen == Py_None;
    *snapshot = NULL;
    if (!is_current && !PyContext_CheckExact(chosen)) {
        ftb_raise(
            "InvalidOptionError",
            Py_BuildValue("(sOs)", "context", chosen, "None or a contextvars.Context"));
        return -1;
    }
    PyObject *copy = is_current ? PyContext_CopyCurrent() : PyContext_Copy(chosen);
    Py_ssize_t n = copy != NULL ? PyObject_Size(copy) : -1;
    if (n > 0) {
        *snapshot = copy;
    } else {
        Py_XDECREF(copy);
    }
    return n < 0 ? -1 : 0;
}

PyObject *
context_payload(PyObject *event, PyObject *snapshot)
{
    if (snapshot == NULL) {
        return Py_NewRef(event);
    }
    ContextEventObject *self =
        PyObject_New(ContextEventObject, &ftb_context_event_type);
    if (self != NULL) {
        self->event = Py_NewRef(event);
        self->snapshot = Py_NewRef(snapshot);
    }
    return (PyObject *)self;
}

PyObject *
context_event(PyObject *payload)
{
    return Py_TYPE(payload) == &ftb_context_event_type
               ? ((ContextEventObject *)payload)->event
               : payload;
}

/* Enter a context of which the reference is stolen; NULL is an exception. */
static int
enter(PyObject *context, struct entered *entered)
{
    entered->context = NULL;
    if (context == NULL || PyContext_Enter(context) < 0) {
        Py_XDECREF(context);
        return -1;
    }
    entered->context = context;
    return 0;
}

int
context_enter_payload(PyObject **payload, struct entered *entered)
{
    ContextEventObject *self = (ContextEventObject *)*payload;
    *payload = self->event;
    return enter(PyContext_Copy(self->snapshot), entered);
}

int
context_enter_empty(struct entered *entered)
{
    return enter(PyContext_New(), entered);
}

void
context_leave(struct entered *entered)
{
    PyObject *error = PyErr_GetRaisedException(); /* values may have finalizers */
    if (PyContext_Exit(entered->context) < 0) {
        PyErr_WriteUnraisable(entered->context);
    }
    Py_CLEAR(entered->context);
    PyErr_SetRaisedException(error);
}

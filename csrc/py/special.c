/* The cold side of an emit: handlers that are once, weak or encoded, and failures. */
#include "buffer.h"
#include "emit.h"
#include "errors.h"

void
bus_report_failure(BusObject *bus, PyObject *error, PyObject *key, PyObject *handler)
{
    PyObject *done = PyObject_CallMethod(
        (PyObject *)bus, "_report_failure", "OOO", error, key,
        handler != NULL ? handler : Py_None);
    if (done == NULL) {
        PyErr_WriteUnraisable((PyObject *)bus);
    }
    Py_XDECREF(done);
    Py_DECREF(error);
}

void
bus_note_failure(BusObject *bus, PyObject *error, PyObject *key, PyObject *handler)
{
    PyObject *done = PyObject_CallMethod(
        (PyObject *)bus, "_note_failure", "OOO", error, key, handler);
    if (done == NULL) {
        PyErr_WriteUnraisable((PyObject *)bus);
    }
    Py_XDECREF(done);
}

/* Note which handler and key on the exception, and keep it for the group. */
static int
failure_collect(struct delivery *delivery, PyObject *error, struct ftb_handler *handler)
{
    PyObject *note = PyUnicode_FromFormat(
        "ftbus: handler %R of key %R", handler->callable, handler->topic->key_object);
    PyObject *done =
        note != NULL ? PyObject_CallMethod(error, "add_note", "O", note) : NULL;
    if (done == NULL) {
        PyErr_Clear(); /* a repr that fails must not hide the failure itself */
    }
    Py_XDECREF(done);
    Py_XDECREF(note);
    if (delivery->errors == NULL) {
        delivery->errors = PyList_New(0);
    }
    int result = delivery->errors == NULL ? -1 : PyList_Append(delivery->errors, error);
    Py_DECREF(error);
    return result;
}

/* Emits without end leave by the way they came. If each level went on with its other
 * handlers, two that emit their own key would run 2 ** FTB_DEPTH_MAX times. */
static int
is_nested_too_deep(PyObject *error)
{
    struct ftb_thread *thread = bus_thread();
    if (thread == NULL || thread->depth <= 1
        || !PyErr_GivenExceptionMatches(error, PyExc_RecursionError)) {
        return 0;
    }
    PyObject *type = ftb_error_type("EmitDepthError");
    int is_ours = type != NULL && PyErr_GivenExceptionMatches(error, type);
    PyErr_Clear();
    Py_XDECREF(type);
    return is_ours;
}

/* A handler raised: returns 0 to go on with the next one, -1 to let it through. */
int
delivery_failed(struct delivery *delivery, struct ftb_handler *handler)
{
    delivery->failed_n++;
    PyObject *error = PyErr_GetRaisedException();
    if (error == NULL) { /* a handler in C that breaks the calling convention */
        PyErr_Format(
            PyExc_SystemError, "%R returned NULL without an exception",
            handler->callable);
        error = PyErr_GetRaisedException();
    }
    if (delivery->has_caller && is_nested_too_deep(error)) {
        PyErr_SetRaisedException(error); /* the outermost emit notes it, once */
        return -1;
    }
    bus_note_failure(
        delivery->bus, error, handler->topic->key_object, handler->callable);
    if (delivery->has_caller && !PyErr_GivenExceptionMatches(error, PyExc_Exception)) {
        PyErr_SetRaisedException(error); /* KeyboardInterrupt, SystemExit */
        return -1;
    }
    if (!delivery->collects) {
        bus_report_failure(
            delivery->bus, error, handler->topic->key_object, handler->callable);
        return 0;
    }
    return failure_collect(delivery, error, handler);
}

/* Name the event's type and key on the exception that is set, and take it. */
static PyObject *
encoding_failure(PyObject *event, PyObject *key)
{
    PyObject *error = PyErr_GetRaisedException();
    PyObject *name = PyType_GetQualName(Py_TYPE(event));
    PyObject *note =
        name != NULL ? PyUnicode_FromFormat(
                           "ftbus: encoding an event of type %U for key %R", name, key)
                     : NULL;
    PyObject *done =
        note != NULL ? PyObject_CallMethod(error, "add_note", "O", note) : NULL;
    if (done == NULL) {
        PyErr_Clear(); /* a repr that fails must not hide the failure itself */
    }
    Py_XDECREF(done);
    Py_XDECREF(note);
    Py_XDECREF(name);
    return error;
}

/* The event as bytes, encoded at most once per delivery; who else wants them gets the
 * same Buffer, or the same exception. Borrowed; NULL with an exception. */
static PyObject *
delivery_encoded(struct delivery *delivery, PyObject *key)
{
    if (delivery->encoded != NULL) {
        return delivery->encoded;
    }
    if (delivery->unencodable != NULL) {
        PyErr_SetRaisedException(Py_NewRef(delivery->unencodable));
        return NULL;
    }
    if (PyBytes_Check(delivery->event) || ftb_buffer_check(delivery->event)) {
        delivery->encoded = Py_NewRef(delivery->event);
        return delivery->encoded;
    }
    delivery->encoded = bus_encode_event(delivery->bus, delivery->event);
    if (delivery->stamp_ns != 0) {
        uint64_t now_ns = ftb_now_ns();
        timing_record(
            delivery->bus->core, delivery->thread, delivery->cell, FTB_TIME_ENCODE,
            now_ns - delivery->stamp_ns);
        delivery->stamp_ns = now_ns;
    }
    if (delivery->encoded == NULL) {
        delivery->unencodable = encoding_failure(delivery->event, key);
        PyErr_SetRaisedException(Py_NewRef(delivery->unencodable));
    }
    return delivery->encoded;
}

PyObject *
bus_encode(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 2) {
        return PyErr_Format(PyExc_TypeError, "_encode() takes a key and an event");
    }
    BusObject *bus = (BusObject *)self;
    struct ftb_topic *topic = bus_topic_of(bus, args[0]);
    struct ftb_thread *thread = topic != NULL ? bus_thread() : NULL;
    struct ftb_cell *cell = thread != NULL ? bus_cell(bus, thread, topic) : NULL;
    struct delivery delivery = {
        .bus = bus, .event = args[1], .thread = thread, .cell = cell};
    delivery.stamp_ns = cell != NULL ? timing_start(bus, thread, topic) : 0;
    PyObject *encoded =
        cell != NULL ? Py_XNewRef(delivery_encoded(&delivery, args[0])) : NULL;
    if (encoded != NULL && encoded != delivery.event) {
        ftb_count_local(&cell->encoded, 1);
    }
    delivery_fini(&delivery);
    return encoded;
}

static bool
is_same_handler(const struct ftb_handler *handler, void *context)
{
    return handler == context;
}

/* Call a once-handler if this thread is the one that claims it. Returns a result, or
 * NULL with or without (*skip) an exception. */
static PyObject *
call_once(
    struct ftb_handler *handler, const struct ftb_call *call, PyObject *event,
    int *skip)
{
    uint32_t active = FTB_HANDLER_ACTIVE;
    /* acq_rel: racing emits and cancel agree on one owner. */
    if (!ftb_cas_acq_rel(&handler->state, &active, FTB_HANDLER_SPENT)) {
        *skip = 1;
        return NULL;
    }
    PyObject *result = call_handler(call, event);
    PyObject *error = PyErr_GetRaisedException();
    size_t removed_n;
    if (ftb_topic_remove(handler->topic, is_same_handler, handler, &removed_n)
        != FTB_OK) {
        removed_n = 0; /* no memory for a shorter snapshot: it is spent all the same */
    }
    PyErr_SetRaisedException(error);
    return result;
}

PyObject *
delivery_call_special(struct delivery *delivery, struct ftb_handler *handler, int *skip)
{
    struct ftb_call call = {handler->func, handler->self};
    PyObject *event = delivery->event, *target = NULL, *result = NULL;
    if (handler->flags & FTB_HANDLER_WEAK) {
        PyObject **weak = (PyObject **)(call.self != NULL ? &call.self : &call.func);
        int alive = PyWeakref_GetRef(*weak, &target);
        if (alive <= 0) {
            *skip = alive == 0; /* its callback takes the handler out */
            return NULL;
        }
        *weak = target;
    }
    if (handler->flags & FTB_HANDLER_ENCODED) {
        event = delivery_encoded(delivery, handler->topic->key_object);
        delivery->given_n += event != NULL;
    }
    if (bus_is_observed(delivery->bus)) {
        bus_observe(
            delivery->bus, "started", handler->topic->key_object, handler->callable,
            delivery->event);
    }
    if (event != NULL) {
        result = handler->flags & FTB_HANDLER_ONCE
                     ? call_once(handler, &call, event, skip)
                     : call_handler(&call, event);
    }
    Py_XDECREF(target);
    return result;
}

/* Claims: a call's hold on one handler, from when it was asked for until a worker ran it.
 *
 * A claimed once-handler runs for no other event, but stays subscribed until it ran; a
 * claim that does not come to that gives it back. A claim belongs to one thread at a
 * time. */
#include "emit.h"
#include "errors.h"

typedef struct {
    PyObject_HEAD
    struct ftb_handler *handler; /* one reference */
    BusObject *bus;              /* strong */
    int is_reserved;             /* a once-handler, RESERVED by this claim */
} ClaimObject;

static PyTypeObject claim_type;

static bool
is_this_handler(const struct ftb_handler *handler, void *context)
{
    return handler == context;
}

/* A claim on a handler; NULL without an exception: another emit or call has it. */
static PyObject *
claim_new(BusObject *bus, struct ftb_handler *handler)
{
    int is_once = (handler->flags & FTB_HANDLER_ONCE) != 0;
    uint32_t active = FTB_HANDLER_ACTIVE;
    ClaimObject *self = PyObject_New(ClaimObject, &claim_type);
    if (self == NULL) {
        return NULL;
    }
    ftb_handler_retain(handler);
    self->handler = handler;
    self->bus = (BusObject *)Py_NewRef(bus);
    /* acq_rel: racing emits, calls and cancel agree on one owner. */
    self->is_reserved =
        is_once && ftb_cas_acq_rel(&handler->state, &active, FTB_HANDLER_RESERVED);
    if (is_once && !self->is_reserved) {
        Py_CLEAR(self);
    }
    return (PyObject *)self;
}

static void
topic_drop(struct ftb_thread *thread)
{
    PyObject *error = PyErr_GetRaisedException(); /* finalizers may run */
    ftb_hazard_drop(thread);
    ftb_reclaim();
    PyErr_SetRaisedException(error);
}

static int
claim_append(BusObject *bus, struct ftb_handler *handler, PyObject *list)
{
    PyObject *claim = claim_new(bus, handler);
    if (claim == NULL) {
        return PyErr_Occurred() ? -1 : 0;
    }
    int result = PyList_Append(list, claim);
    Py_DECREF(claim);
    return result;
}

PyObject *
topic_claim_handlers(BusObject *bus, struct ftb_topic *topic)
{
    struct ftb_thread *thread = bus_thread();
    if (thread == NULL) {
        return NULL;
    }
    if (thread->depth >= FTB_DEPTH_MAX) {
        return ftb_raise(
            "EmitDepthError",
            Py_BuildValue("(OOi)", bus, topic->key_object, FTB_DEPTH_MAX));
    }
    PyObject *list = PyList_New(0);
    if (list == NULL) {
        return NULL;
    }
    struct ftb_snapshot *snapshot = ftb_topic_hold(thread, topic);
    for (uint32_t i = 0; snapshot != NULL && i < snapshot->n; i++) {
        if (claim_append(bus, ftb_snapshot_handlers(snapshot)[i], list) < 0) {
            Py_CLEAR(list); /* which gives them back */
            break;
        }
    }
    if (snapshot != NULL) {
        topic_drop(thread);
    }
    return list;
}

static PyObject *
claim_give_back(PyObject *object, PyObject *unused)
{
    (void)unused;
    ClaimObject *self = (ClaimObject *)object;
    uint32_t reserved = FTB_HANDLER_RESERVED;
    if (self->is_reserved) {
        self->is_reserved = 0;
        /* acq_rel: the next owner's claim; not if it was cancelled meanwhile. */
        (void)ftb_cas_acq_rel(&self->handler->state, &reserved, FTB_HANDLER_ACTIVE);
    }
    Py_RETURN_NONE;
}

static void
claim_dealloc(PyObject *object)
{
    ClaimObject *self = (ClaimObject *)object;
    Py_XDECREF(claim_give_back(object, NULL));
    ftb_handler_release(self->handler);
    Py_DECREF(self->bus);
    PyObject_Free(self);
}

/* The handler's call with a weak reference made strong: *target, owned. 1, or 0 if it
 * died, or -1. */
static int
claim_target(struct ftb_handler *handler, struct ftb_call *call, PyObject **target)
{
    *call = (struct ftb_call){handler->func, handler->self};
    *target = NULL;
    if ((handler->flags & FTB_HANDLER_WEAK) == 0) {
        return 1;
    }
    PyObject **weak = (PyObject **)(call->self != NULL ? &call->self : &call->func);
    int alive = PyWeakref_GetRef(*weak, target);
    *weak = *target;
    return alive;
}

/* After a once-handler ran: nothing may keep it. */
static void
claim_spend(ClaimObject *self)
{
    if (self->is_reserved) {
        PyObject *error = PyErr_GetRaisedException(); /* finalizers may run */
        size_t removed_n;
        self->is_reserved = 0;
        enum ftb_result result = ftb_topic_remove(
            self->handler->topic, is_this_handler, self->handler, &removed_n);
        (void)result; /* without memory it stays, and stays spent */
        ftb_reclaim();
        PyErr_SetRaisedException(error);
    }
}

/* Call the handler, or a function in its place, unless it was cancelled or died. */
static PyObject *
claim_call(ClaimObject *self, PyObject *event, PyObject *function, int *skip)
{
    struct ftb_call call;
    PyObject *target, *result = NULL;
    if (self->is_reserved) {
        /* acq_rel: either this starts it, or a cancel that says so keeps it from starting.
         */
        uint32_t reserved = FTB_HANDLER_RESERVED;
        *skip = !ftb_cas_acq_rel(&self->handler->state, &reserved, FTB_HANDLER_SPENT);
    } else {
        /* acquire: a cancelled handler may be in the snapshot no more. */
        *skip = ftb_load_acquire(&self->handler->state) == FTB_HANDLER_CANCELLED;
    }
    if (*skip) {
        return NULL;
    }
    int alive = claim_target(self->handler, &call, &target);
    if (alive > 0 && bus_is_observed(self->bus)) {
        bus_observe(
            self->bus, "started", self->handler->topic->key_object,
            self->handler->callable, event);
    }
    if (alive > 0) {
        result = function != NULL ? PyObject_CallOneArg(function, event)
                                  : call_handler(&call, event);
    }
    *skip = alive == 0;
    Py_XDECREF(target);
    return result;
}

/* run(event[, function]): what the handler returns, or the claim itself if it must not
 * run. While it runs the thread holds the snapshot, so that cancel(wait=True) waits. */
static PyObject *
claim_run(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    ClaimObject *self = (ClaimObject *)object;
    struct ftb_topic *topic = self->handler->topic;
    if (nargs < 1 || nargs > 2) {
        return PyErr_Format(PyExc_TypeError, "run() takes an event and a function");
    }
    struct ftb_thread *thread = bus_thread();
    struct ftb_cell *cell = thread != NULL ? bus_cell(self->bus, thread, topic) : NULL;
    if (cell == NULL) {
        return NULL;
    }
    if (thread->depth >= FTB_DEPTH_MAX) {
        return ftb_raise(
            "EmitDepthError",
            Py_BuildValue("(OOi)", self->bus, topic->key_object, FTB_DEPTH_MAX));
    }
    struct ftb_snapshot *snapshot = ftb_topic_hold(thread, topic);
    if (snapshot == NULL) {
        return Py_NewRef(object);
    }
    int skip;
    uint64_t start_ns = timing_start(self->bus, thread, topic);
    PyObject *result = claim_call(self, args[0], nargs == 2 ? args[1] : NULL, &skip);
    if (!skip) {
        (void)timing_called(thread, cell, self->handler, result == NULL, start_ns);
        bus_observe_result(self->bus, self->handler, args[0], result);
    }
    topic_drop(thread);
    if (skip) {
        return Py_NewRef(object);
    }
    ftb_count_local(&cell->handled, 1);
    ftb_count_local(&cell->given, (self->handler->flags & FTB_HANDLER_ENCODED) != 0);
    ftb_count_local(&cell->failed, result == NULL);
    if (result == NULL) {
        PyObject *error = PyErr_GetRaisedException();
        if (error != NULL) { /* else the handler broke the calling convention */
            PyObject *key = topic->key_object;
            bus_note_failure(self->bus, error, key, self->handler->callable);
        }
        PyErr_SetRaisedException(error);
    }
    claim_spend(self);
    return result;
}

static PyObject *
claim_flags(PyObject *self, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLong(((ClaimObject *)self)->handler->flags);
}

static PyObject *
claim_function(PyObject *self, void *unused)
{
    (void)unused;
    return Py_NewRef((PyObject *)((ClaimObject *)self)->handler->func);
}

static PyObject *
claim_handler(PyObject *self, void *unused)
{
    (void)unused;
    return Py_NewRef((PyObject *)((ClaimObject *)self)->handler->callable);
}

static PyObject *
claim_key(PyObject *self, void *unused)
{
    (void)unused;
    return Py_NewRef((PyObject *)((ClaimObject *)self)->handler->topic->key_object);
}

static PyGetSetDef claim_getset[] = {
    {"flags", claim_flags, NULL, NULL, NULL},
    {"function", claim_function, NULL, "What the core calls.", NULL},
    {"handler", claim_handler, NULL, "What was subscribed, for messages.", NULL},
    {"key", claim_key, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef claim_methods[] = {
    {"run", (PyCFunction)(void (*)(void))claim_run, METH_FASTCALL, NULL},
    {"give_back", claim_give_back, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject claim_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "ftbus._core.Claim",
    .tp_basicsize = sizeof(ClaimObject),
    .tp_dealloc = claim_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_doc = PyDoc_STR("A call's hold on one handler."),
    .tp_methods = claim_methods,
    .tp_getset = claim_getset,
};

int
ftb_claim_type_ready(PyObject *module)
{
    return PyModule_AddType(module, &claim_type);
}

/* Subscriptions: making handlers out of Python callables, and taking them back. */
#include "bus.h"
#include "errors.h"
#include "ftb_quiet.h"
#include "key.h"
#include "stats.h"

/* Handlers that exist, of all buses; relaxed, as nothing is inferred from it. */
static _Atomic(size_t) live_n = 0;

PyObject *
ftb_live_handlers(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    return PyLong_FromSize_t(ftb_load_relaxed(&live_n));
}

/* Called once per handler, attached, under no lock (ftb_handler_release). */
static void
release_references(struct ftb_handler *handler)
{
    ftb_sub_relaxed(&live_n, 1);
    Py_XDECREF((PyObject *)handler->func);
    Py_XDECREF((PyObject *)handler->self);
    Py_XDECREF((PyObject *)handler->callable);
}

static bool
is_this_handler(const struct ftb_handler *handler, void *context)
{
    return handler == context;
}

/* Publish the cancellation of one handler; returns whether it was active. */
static int
handler_cancel(struct ftb_handler *handler)
{
    size_t removed_n;
    enum ftb_result result =
        ftb_topic_remove(handler->topic, is_this_handler, handler, &removed_n);
    ftb_reclaim();
    if (result != FTB_OK) {
        PyErr_NoMemory();
        return -1;
    }
    return removed_n > 0;
}

/* What a weak reference's callback knows: enough to find the handler again, without
 * owning it, since the handler owns the reference. */
struct weak_link {
    struct ftb_topic *topic; /* alive by the core reference below */
    struct ftb_bus *core;
    uint64_t serial;
};

#define WEAK_LINK "ftbus.weak_link"

static bool
has_serial(const struct ftb_handler *handler, void *context)
{
    return handler->serial == *(uint64_t *)context;
}

static PyObject *
weak_target_died(PyObject *capsule, PyObject *unused)
{
    (void)unused;
    struct weak_link *link = PyCapsule_GetPointer(capsule, WEAK_LINK);
    size_t removed_n;
    if (link == NULL) {
        return NULL;
    }
    if (ftb_topic_remove(link->topic, has_serial, &link->serial, &removed_n)
        != FTB_OK) {
        return PyErr_NoMemory();
    }
    ftb_reclaim();
    Py_RETURN_NONE;
}

static PyMethodDef weak_target_died_def = {
    "_weak_target_died", weak_target_died, METH_O, NULL};

static void
weak_link_free(PyObject *capsule)
{
    struct weak_link *link = PyCapsule_GetPointer(capsule, WEAK_LINK);
    ftb_bus_release(link->core);
    ftb_free(link);
}

/* A weak reference to `target` whose death cancels the handler. */
static PyObject *
weak_reference(PyObject *target, struct ftb_handler *handler)
{
    struct weak_link *link = ftb_alloc(sizeof *link);
    if (link == NULL) {
        return PyErr_NoMemory();
    }
    *link = (struct weak_link){handler->topic, handler->topic->bus, handler->serial};
    PyObject *capsule = PyCapsule_New(link, WEAK_LINK, weak_link_free);
    if (capsule == NULL) {
        ftb_free(link);
        return NULL;
    }
    ftb_bus_retain(link->core);
    PyObject *callback = PyCFunction_New(&weak_target_died_def, capsule);
    Py_DECREF(capsule);
    PyObject *weak = callback != NULL ? PyWeakref_NewRef(target, callback) : NULL;
    Py_XDECREF(callback);
    return weak;
}

/* A callable taken apart: of a bound method, its function and object. */
struct callable_parts {
    PyObject *func, *self;
};

static struct callable_parts
parts_of(PyObject *callable)
{
    if (PyMethod_Check(callable)) {
        return (struct callable_parts){
            PyMethod_GET_FUNCTION(callable), PyMethod_GET_SELF(callable)};
    }
    return (struct callable_parts){callable, NULL};
}

/* Unwrap a bound method and take the references, strong or weak. 0 or -1. */
static int
handler_fill(struct ftb_handler *handler, PyObject *callable, PyObject *original)
{
    struct callable_parts parts = parts_of(callable);
    PyObject *func = parts.func, *self = parts.self;
    if ((handler->flags & FTB_HANDLER_WEAK) == 0) {
        handler->func = Py_NewRef(func);
        handler->self = Py_XNewRef(self);
        handler->callable = Py_NewRef(original);
        return 0;
    }
    PyObject *weak = weak_reference(self != NULL ? self : func, handler);
    if (weak == NULL) {
        return -1;
    }
    handler->target = self != NULL ? self : func;
    handler->func = self != NULL ? Py_NewRef(func) : weak;
    handler->self = self != NULL ? weak : NULL;
    handler->callable = Py_NewRef(weak);
    return 0;
}

PyObject *
subscription_new(
    BusObject *bus, PyObject *key, PyObject *callable, PyObject *original, int priority,
    uint32_t flags)
{
    if (!PyCallable_Check(callable)) {
        return ftb_raise("HandlerTypeError", Py_BuildValue("(OO)", key, original));
    }
    struct ftb_topic *topic = bus_topic_of(bus, key);
    if (topic == NULL) {
        return NULL;
    }
    SubscriptionObject *self =
        PyObject_GC_New(SubscriptionObject, &ftb_subscription_type);
    if (self == NULL) {
        return NULL;
    }
    self->bus = (BusObject *)Py_NewRef(bus);
    self->weakrefs = NULL;
    self->handler = ftb_handler_new(topic);
    PyObject_GC_Track(self);
    if (self->handler == NULL) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    ftb_add_relaxed(&live_n, 1);
    self->handler->owner = self;
    self->handler->priority = priority;
    self->handler->flags = flags;
    if (handler_fill(self->handler, callable, original) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    enum ftb_result result = ftb_topic_add(topic, self->handler);
    ftb_reclaim();
    if (result != FTB_OK) {
        Py_DECREF(self);
        return result == FTB_CLOSED ? bus_raise_closed(bus, "subscribe")
                                    : PyErr_NoMemory();
    }
    return (PyObject *)self;
}

static bool
is_same_builtin(PyObject *a, PyObject *b)
{
    return PyCFunction_Check(a) && PyCFunction_Check(b)
           && PyCFunction_GET_SELF(a) == PyCFunction_GET_SELF(b)
           && PyCFunction_GET_FUNCTION(a) == PyCFunction_GET_FUNCTION(b);
}

/* Identity of what was subscribed, so that no __eq__ runs under the stripe's lock; a new
 * bound method of the same object and function matches. */
static bool
calls_the_same(const struct ftb_handler *handler, void *context)
{
    struct callable_parts wanted = parts_of(context);
    if ((handler->flags & FTB_HANDLER_WEAK) == 0) {
        struct callable_parts own = parts_of(handler->callable);
        return (own.func == wanted.func && own.self == wanted.self)
               || (own.self == NULL && wanted.self == NULL
                   && is_same_builtin(own.func, wanted.func));
    }
    PyObject *held = wanted.self != NULL ? wanted.self : wanted.func, *target;
    if (handler->target != held || (wanted.self != NULL) != (handler->self != NULL)
        || (wanted.self != NULL && handler->func != wanted.func)
        || PyWeakref_GetRef(handler->callable, &target) <= 0) {
        return false; /* or something new where the dead one was */
    }
    Py_DECREF(target); /* it is `held`: not the last reference, so no finalizer runs */
    return true;
}

Py_ssize_t
subscription_cancel_matching(struct ftb_topic *topic, PyObject *callable)
{
    size_t removed_n;
    enum ftb_result result = ftb_topic_remove(
        topic, callable != NULL ? calls_the_same : NULL, callable, &removed_n);
    ftb_reclaim();
    if (result != FTB_OK) {
        PyErr_NoMemory();
        return -1;
    }
    return (Py_ssize_t)removed_n;
}

/* The callable of a handler as a strong reference, NULL if its weak target died. */
PyObject *
ftb_handler_callable(struct ftb_handler *handler)
{
    if ((handler->flags & FTB_HANDLER_WEAK) == 0) {
        return Py_NewRef((PyObject *)handler->callable);
    }
    PyObject *target;
    if (PyWeakref_GetRef(handler->callable, &target) <= 0) {
        return NULL;
    }
    if (handler->self == NULL) {
        return target;
    }
    PyObject *method = PyMethod_New(handler->func, target);
    Py_DECREF(target);
    return method;
}

/* A handler that is in no snapshot any more belongs to its subscription object, not to
 * the bus: else one that refers to its own subscription would live as long as the bus.
 * Only the collector asks, with every other thread stopped. */
static int
is_held_by_owner_only(const struct ftb_handler *handler)
{
    return handler->owner != NULL
           && ftb_load_relaxed(&handler->refs) == 1; /* relaxed: all are stopped */
}

static int
handler_traverse(const struct ftb_handler *handler, visitproc visit, void *arg)
{
    Py_VISIT((PyObject *)handler->func);
    Py_VISIT((PyObject *)handler->self);
    Py_VISIT((PyObject *)handler->callable);
    return 0;
}

/* For the bus's tp_traverse: each handler once, those of retired snapshots too. The
 * collector has stopped every thread outside the list's lock. */
int
subscription_traverse_handlers(struct ftb_bus *core, visitproc visit, void *arg)
{
    int result = 0;
    for (struct ftb_handler *h = core->handlers; h != NULL && result == 0;
         h = h->next) {
        result = is_held_by_owner_only(h) ? 0 : handler_traverse(h, visit, arg);
    }
    return result;
}

/* Wait until other threads run the cancelled handler no more. 0 or -1. */
static int
wait_quiet(SubscriptionObject *self)
{
    struct ftb_quiet_wait wait;
    if (!ftb_quiet_begin(&wait, self->handler)) {
        ftb_raise(
            "DeadlockError",
            Py_BuildValue(
                "(Os)", self, "it is cancelled; wait for it outside of handlers"));
        return -1;
    }
    enum ftb_result result = FTB_TIMEOUT;
    while (result != FTB_OK && PyErr_CheckSignals() == 0) {
        Py_BEGIN_ALLOW_THREADS result =
            ftb_handler_wait_quiet(self->handler, bus_deadline_ns(50000000));
        Py_END_ALLOW_THREADS
    }
    ftb_quiet_end(&wait);
    if (result != FTB_OK) {
        return -1;
    }
    ftb_reclaim();
    return 0;
}

static PyObject *
subscription_cancel(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"wait", NULL};
    SubscriptionObject *self = (SubscriptionObject *)object;
    int wait = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|p:cancel", names, &wait)) {
        return NULL;
    }
    int was_active = handler_cancel(self->handler);
    if (was_active < 0) {
        return NULL;
    }
    if (wait && wait_quiet(self) < 0) {
        return NULL;
    }
    return PyBool_FromLong(was_active);
}

static PyObject *
subscription_active(PyObject *self, void *unused)
{
    (void)unused;
    struct ftb_handler *handler = ((SubscriptionObject *)self)->handler;
    return PyBool_FromLong(ftb_load_acquire(&handler->state) == FTB_HANDLER_ACTIVE);
}

static PyObject *
subscription_key(PyObject *self, void *unused)
{
    (void)unused;
    return Py_NewRef(
        (PyObject *)((SubscriptionObject *)self)->handler->topic->key_object);
}

static PyObject *
subscription_handler(PyObject *self, void *unused)
{
    (void)unused;
    PyObject *callable = ftb_handler_callable(((SubscriptionObject *)self)->handler);
    if (callable == NULL && !PyErr_Occurred()) {
        Py_RETURN_NONE;
    }
    return callable;
}

static PyObject *
subscription_enter(PyObject *self, PyObject *unused)
{
    (void)unused;
    return Py_NewRef(self);
}

static PyObject *
subscription_exit(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    (void)args;
    (void)nargs;
    if (handler_cancel(((SubscriptionObject *)self)->handler) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *
subscription_repr(PyObject *self)
{
    struct ftb_handler *handler = ((SubscriptionObject *)self)->handler;
    int is_active = ftb_load_acquire(&handler->state) == FTB_HANDLER_ACTIVE;
    return PyUnicode_FromFormat(
        "<Subscription %R -> %R, %s>", handler->topic->key_object, handler->callable,
        is_active ? "active" : "cancelled");
}

static int
subscription_traverse(PyObject *object, visitproc visit, void *arg)
{
    SubscriptionObject *self = (SubscriptionObject *)object;
    Py_VISIT(self->bus);
    return self->handler != NULL && is_held_by_owner_only(self->handler)
               ? handler_traverse(self->handler, visit, arg)
               : 0;
}

static int
subscription_clear(PyObject *object)
{
    (void)object; /* something else in every cycle through here can be cleared */
    return 0;
}

static void
subscription_dealloc(PyObject *object)
{
    SubscriptionObject *self = (SubscriptionObject *)object;
    PyObject_GC_UnTrack(self);
    if (self->weakrefs != NULL) {
        PyObject_ClearWeakRefs(object);
    }
    if (self->handler != NULL) {
        self->handler->owner = NULL;
        ftb_handler_release(self->handler);
    }
    Py_XDECREF(self->bus);
    PyObject_GC_Del(self);
}

static PyGetSetDef subscription_getset[] = {
    {"active", subscription_active, NULL,
     "False once cancelled, or once a once-handler has been claimed.", NULL},
    {"key", subscription_key, NULL, "The key that was subscribed to.", NULL},
    {"handler", subscription_handler, NULL,
     "The callable, or None if it was held weakly and has died.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef subscription_methods[] = {
    {"cancel", (PyCFunction)(void (*)(void))subscription_cancel,
     METH_VARARGS | METH_KEYWORDS,
     PyDoc_STR(
         "cancel($self, /, wait=False)\n--\n\n"
         "Stop the handler: it starts in no emit that begins after this returns.\n\n"
         "With wait=True, also wait until every call of it in other threads has\n"
         "ended (a call in this thread is not waited for). Handlers that wait for\n"
         "each other in this way would never end: the last of them to ask gets\n"
         "DeadlockError, and its handler is cancelled all the same. What else a\n"
         "handler waits for (a lock, a Future, drain()) is not looked at: to be safe,\n"
         "wait outside of handlers. Returns True the first time. Idempotent; any\n"
         "thread.")},
    {"__enter__", subscription_enter, METH_NOARGS, NULL},
    {"__exit__", (PyCFunction)(void (*)(void))subscription_exit, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

PyTypeObject ftb_subscription_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "ftbus.Subscription",
    .tp_basicsize = sizeof(SubscriptionObject),
    .tp_dealloc = subscription_dealloc,
    .tp_repr = subscription_repr,
    .tp_flags =
        Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_doc = PyDoc_STR(
        "One handler's subscription; made by bus.subscribe().\n\n"
        "A context manager: leaving it cancels."),
    .tp_traverse = subscription_traverse,
    .tp_clear = subscription_clear,
    .tp_methods = subscription_methods,
    .tp_getset = subscription_getset,
    .tp_weaklistoffset = offsetof(SubscriptionObject, weakrefs),
};

__attribute__((constructor)) static void
install_release(void)
{
    ftb_handler_release_fn = release_references;
}

/* The Bus object: construction, keys, subscriptions, collection. */
#include "bus.h"

#include "args.h"
#include "emit.h"
#include "errors.h"
#include "key.h"

PyObject *
bus_raise_closed(BusObject *bus, const char *doing)
{
    return ftb_raise(
        bus->is_forked ? "BusForkedError" : "BusClosedError",
        Py_BuildValue("(Os)", bus, doing));
}

/* `class` itself if events of it can be told apart from keys: made by a class
 * statement, not int, dict and their like. */
static int
is_event_class(PyTypeObject *type)
{
    return (type->tp_flags & Py_TPFLAGS_HEAPTYPE) != 0;
}

int
bus_key_and_event(PyObject *first, PyObject *second, PyObject **key, PyObject **event)
{
    if (second != NULL) {
        *key = first;
        *event = second;
        return 0;
    }
    struct ftb_object_key unused;
    int is_key = ftb_object_key_try(first, &unused);
    if (is_key < 0) {
        return -1;
    }
    if (is_key) {
        *key = first;
        *event = Py_None;
    } else if (is_event_class(Py_TYPE(first))) {
        *key = (PyObject *)Py_TYPE(first);
        *event = first;
    } else {
        ftb_raise("UnsupportedKeyError", Py_BuildValue("(O)", first));
        return -1;
    }
    return 0;
}

int
bus_topic_find(BusObject *bus, PyObject *key, struct ftb_topic **topic)
{
    struct ftb_object_key object_key;
    struct ftb_thread *thread = bus_thread();
    if (thread == NULL || ftb_object_key_of(key, &object_key) < 0) {
        return -1;
    }
    uint64_t odd = ftb_section_enter(thread);
    *topic = ftb_bus_find(bus->core, &object_key.view); /* lives as long as the bus */
    ftb_section_leave(thread, odd);
    return *topic != NULL;
}

struct ftb_topic *
bus_topic_of(BusObject *bus, PyObject *key)
{
    struct ftb_topic *topic;
    int found = bus_topic_find(bus, key, &topic);
    if (found != 0) {
        return found > 0 ? topic : NULL;
    }
    struct ftb_object_key object_key;
    if (ftb_object_key_of(key, &object_key) < 0) {
        return NULL;
    }
    bool is_new;
    Py_INCREF(key);
    enum ftb_result result =
        ftb_bus_topic(bus->core, &object_key.view, key, &topic, &is_new);
    if (!is_new) {
        Py_DECREF(key);
    }
    if (result != FTB_OK) {
        PyErr_NoMemory();
        return NULL;
    }
    return topic;
}

static void
release_key(struct ftb_topic *topic)
{
    Py_DECREF((PyObject *)topic->key_object);
}

__attribute__((constructor)) static void
install_release(void)
{
    ftb_topic_release_fn = release_key;
}

static PyObject *
bus_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    (void)args; /* the Python class's __init__ looks at them */
    (void)kwargs;
    BusObject *self = (BusObject *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->core = ftb_bus_new(64);
    if (self->core == NULL) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    self->core->object = self;
    return (PyObject *)self;
}

/* _configure(codec, logs_errors, overflow, queue_size, workers, spin_ns, linger_ns,
 * orders_by_key, counts, timing, timing_interval): once, by __init__. */
static PyObject *
bus_configure(PyObject *object, PyObject *args)
{
    BusObject *self = (BusObject *)object;
    PyObject *codec, *encode, *encode_into;
    int logs_errors, overflow, orders_by_key, counts, timing;
    unsigned int queue_size, workers_n, spin_ns, linger_ns, timing_interval;
    if (!PyArg_ParseTuple(
            args, "OpiIIIIppiI:_configure", &codec, &logs_errors, &overflow,
            &queue_size, &workers_n, &spin_ns, &linger_ns, &orders_by_key, &counts,
            &timing, &timing_interval)) {
        return NULL;
    }
    encode = PyObject_GetAttrString(codec, "encode");
    if (encode == NULL
        || PyObject_GetOptionalAttrString(codec, "encode_into", &encode_into) < 0) {
        Py_XDECREF(encode);
        return NULL;
    }
    Py_XSETREF(self->codec, Py_NewRef(codec));
    Py_XSETREF(self->encode, encode);
    if (encode_into == Py_None) {
        Py_CLEAR(encode_into);
    }
    Py_XSETREF(self->encode_into, encode_into);
    self->logs_errors = logs_errors;
    self->overflow = (enum bus_overflow)overflow;
    self->queue_size = queue_size;
    self->workers_n = workers_n;
    self->spin_ns = spin_ns;
    self->linger_ns = linger_ns;
    self->orders_by_key = orders_by_key;
    self->core->is_uncounted = !counts;
    self->core->timing = (enum ftb_timing)timing;
    self->core->timing_interval = timing_interval;
    Py_RETURN_NONE;
}

struct key_visit {
    visitproc visit;
    void *arg;
    int result;
};

/* A class may refer to the bus it is a key of; other keys refer to nothing. */
static void
visit_key(struct ftb_entry *entry, void *context)
{
    struct key_visit *to = context;
    struct ftb_topic *topic = (struct ftb_topic *)(void *)entry;
    if (to->result == 0 && entry->key.kind == FTB_KEY_CLASS) {
        to->result = to->visit((PyObject *)topic->key_object, to->arg);
    }
}

static int
bus_traverse(PyObject *object, visitproc visit, void *arg)
{
    BusObject *self = (BusObject *)object;
    Py_VISIT(self->codec);
    Py_VISIT(self->encode);
    Py_VISIT(self->encode_into);
    struct key_visit to = {visit, arg, 0};
    if (self->core != NULL) {
        ftb_map_each(&self->core->topics, visit_key, &to);
    }
    if (to.result != 0) {
        return to.result;
    }
    return self->core != NULL ? subscription_traverse_handlers(self->core, visit, arg)
                              : 0;
}

static int
bus_clear(PyObject *object)
{
    BusObject *self = (BusObject *)object;
    if (self->core != NULL) {
        ftb_bus_clear(self->core);
        ftb_reclaim();
    }
    Py_CLEAR(self->codec);
    Py_CLEAR(self->encode);
    Py_CLEAR(self->encode_into);
    return 0;
}

static void
bus_dealloc(PyObject *object)
{
    BusObject *self = (BusObject *)object;
    PyObject_GC_UnTrack(self);
    if (self->weakrefs != NULL) {
        PyObject_ClearWeakRefs(object);
    }
    ftb_pool_t *pool = ftb_load_acquire(&self->pool);
    /* Its workers held the bus, so they are gone; but the interpreter takes it from them
     * when it exits, and then they may still be in there. */
    if (pool != NULL && !Py_IsFinalizing()) {
        Py_XDECREF(bus_drop_queued(object, NULL));
        ftb_pool_free(pool);
    }
    bus_clear(object);
    if (self->core != NULL) {
        ftb_bus_release(self->core);
    }
    Py_TYPE(object)->tp_free(object);
}

/* _subscribe(key, callable, priority, flags, original) -> Subscription; `original` is
 * what the user passed in, for messages and off(). */
static PyObject *
bus_subscribe(PyObject *self, PyObject *args)
{
    PyObject *key, *callable, *original;
    int priority;
    unsigned int flags;
    if (!PyArg_ParseTuple(
            args, "OOiIO:_subscribe", &key, &callable, &priority, &flags, &original)) {
        return NULL;
    }
    return subscription_new(
        (BusObject *)self, key, callable, original, priority, flags);
}

static PyObject *
bus_off(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"key", "handler"};
    static const struct args_spec spec = {"off", names, 2, 2, 1};
    PyObject *out[2];
    struct ftb_topic *topic;
    if (args_unpack(&spec, args, nargs, kwnames, out) < 0) {
        return NULL;
    }
    int found = bus_topic_find((BusObject *)self, out[0], &topic);
    if (found <= 0) {
        return found < 0 ? NULL : PyLong_FromLong(0);
    }
    PyObject *callable = out[1] == Py_None ? NULL : out[1];
    Py_ssize_t removed_n = subscription_cancel_matching(topic, callable);
    return removed_n < 0 ? NULL : PyLong_FromSsize_t(removed_n);
}

/* _resolve(key) or _resolve(event) or _resolve(key, event) -> (key, event) */
static PyObject *
bus_resolve(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    (void)self;
    PyObject *key, *event;
    if (nargs < 1 || nargs > 2) {
        return PyErr_Format(PyExc_TypeError, "a key, an event, or both are needed");
    }
    if (bus_key_and_event(args[0], nargs == 2 ? args[1] : NULL, &key, &event) < 0) {
        return NULL;
    }
    return PyTuple_Pack(2, key, event);
}

/* _claim_handlers(key) -> [Claim, ...] in order, not those of base classes. */
static PyObject *
bus_claim_handlers(PyObject *self, PyObject *key)
{
    struct ftb_topic *topic;
    int found = bus_topic_find((BusObject *)self, key, &topic);
    if (found <= 0) {
        return found < 0 ? NULL : PyList_New(0);
    }
    return topic_claim_handlers((BusObject *)self, topic);
}

static PyObject *
bus_clear_handlers(PyObject *self, PyObject *unused)
{
    (void)unused;
    ftb_bus_clear(((BusObject *)self)->core);
    ftb_reclaim();
    Py_RETURN_NONE;
}

/* Make an object immortal: its reference count is never written again. Its owner thread
 * calls this; the collector stops tracking it at its next run. */
static void
pin(PyObject *object)
{
#if defined(Py_GIL_DISABLED) && PY_VERSION_HEX >= 0x030E0000
    PyUnstable_Object_EnableDeferredRefcount(object);
#elif defined(Py_GIL_DISABLED)
    Py_SET_REFCNT(object, (Py_ssize_t)UINT32_MAX + 1);
#else
    (void)object; /* with a GIL there is no contention to avoid */
#endif
}

static PyObject *
bus_pin(PyObject *self, PyObject *unused)
{
    (void)unused;
    pin(self);
    return Py_NewRef(self);
}

PyObject *
ftb_pin_object(PyObject *module, PyObject *object)
{
    (void)module;
    pin(object);
    return Py_NewRef(object);
}

/* Whether the workers stayed in the parent: they are this bus's once it has a pool,
 * before and after the list of their threads is there to look at. */
static PyObject *
bus_after_fork_child(PyObject *self, PyObject *unused)
{
    (void)unused;
    BusObject *bus = (BusObject *)self;
    ftb_bus_after_fork_child(bus->core);
    ftb_pool_t *pool = ftb_load_acquire(&bus->pool);
    if (pool != NULL) {
        ftb_pool_after_fork_child(pool);
        bus->is_forked = 1;
    }
    return PyBool_FromLong(bus->is_forked);
}

static PyObject *
bus_executing_here(PyObject *self, PyObject *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLong(bus_executing((BusObject *)self));
}

static PyObject *
bus_unstarted_here(PyObject *self, PyObject *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLong(bus_unstarted((BusObject *)self));
}

static PyObject *
bus_is_started(PyObject *self, void *unused)
{
    (void)unused;
    return PyBool_FromLong(ftb_load_acquire(&((BusObject *)self)->pool) != NULL);
}

static PyObject *
bus_is_closed(PyObject *self, void *unused)
{
    (void)unused;
    return PyBool_FromLong(
        ftb_load_acquire(&((BusObject *)self)->core->is_closed) != 0);
}

static PyGetSetDef bus_getset[] = {
    {"_is_started", bus_is_started, NULL, NULL, NULL},
    {"closed", bus_is_closed, NULL, "True after close().", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

#define FASTCALL(function) ((PyCFunction)(void (*)(void))(function))

static PyMethodDef bus_methods[] = {
    {"emit", FASTCALL(bus_emit), METH_FASTCALL | METH_KEYWORDS,
     PyDoc_STR(
         "emit($self, key, event=None, /)\n--\n\n"
         "Run the handlers of a key here and now; return how many ran.\n\n"
         "emit(event) alone takes the event's class as the key; handlers of a class "
         "and\n"
         "of its bases run, along the MRO. All handlers run even if one raises; then\n"
         "HandlerErrors, an ExceptionGroup, is raised with all failures (or they are\n"
         "logged, with errors='log'). KeyboardInterrupt and SystemExit pass at "
         "once.\n\n"
         "Any thread, without locks. Raises UnsupportedKeyError, BusClosedError,\n"
         "EmitDepthError.")},
    {"emit_many", FASTCALL(bus_emit_many), METH_FASTCALL,
     PyDoc_STR(
         "emit_many($self, key, events, /)\n--\n\n"
         "Emit each event of an iterable with one look-up of the key.\n\n"
         "Returns the number of handler calls. Stops at the first event whose\n"
         "handlers raise. Any thread.")},
    {"off", FASTCALL(bus_off), METH_FASTCALL | METH_KEYWORDS,
     PyDoc_STR(
         "off($self, key, handler=None)\n--\n\n"
         "Remove one handler from a key, or all; return how many were removed.\n\n"
         "Idempotent; any thread, handlers included.")},
    {"pin", bus_pin, METH_NOARGS,
     PyDoc_STR(
         "pin($self)\n--\n\n"
         "Let this bus live until close(), and return it.\n\n"
         "Threads that share a pinned bus do not contend for its reference count. On\n"
         "3.13t the object itself, a small shell, then stays until the process ends;\n"
         "what it holds is released by close().")},
    {"post", FASTCALL(bus_post), METH_FASTCALL | METH_KEYWORDS,
     PyDoc_STR(
         "post($self, key, event=None, *, partition=None, timeout=None,\n"
         "    urgent=False, context=None)\n--\n\n"
         "Queue an event for the workers; return True, or False if it was dropped.\n\n"
         "Events with one partition (a str, int or bytes) run one at a time, in "
         "posting\n"
         "order; two partitions wait for each other only if their hashes fall\n"
         "together, as those of one pair in 2**20 do. A full queue blocks (for at most "
         "`timeout` seconds), raises\n"
         "QueueFullError or drops, as the bus's overflow says. What handlers raise "
         "goes\n"
         "to on_error or the log. Urgent events run before the others, but never so\n"
         "that these stand still. Handlers see the context variables that are set "
         "here,\n"
         "or those of `context`: a copy of it, one for each event. Any thread, "
         "handlers\n"
         "included.")},
    {"post_many", FASTCALL(bus_post_many), METH_FASTCALL | METH_KEYWORDS,
     PyDoc_STR(
         "post_many($self, key, events, *, partition=None, timeout=None,\n"
         "    urgent=False, context=None)\n--\n\n"
         "Queue each event of an iterable; return how many were queued.\n\n"
         "`partition` may be a function of the event. Any thread.")},
    {"_after_fork_child", bus_after_fork_child, METH_NOARGS, NULL},
    {"_check_key", bus_check_key, METH_O, NULL},
    {"_claim_handlers", bus_claim_handlers, METH_O, NULL},
    {"_clear_handlers", bus_clear_handlers, METH_NOARGS, NULL},
    {"_close_pool", bus_close_pool, METH_NOARGS, NULL},
    {"_configure", bus_configure, METH_VARARGS, NULL},
    {"_count_failed", bus_count_failed, METH_VARARGS, NULL},
    {"_drain", bus_drain, METH_O, NULL},
    {"_drop_queued", bus_drop_queued, METH_NOARGS, NULL},
    {"_encode", FASTCALL(bus_encode), METH_FASTCALL, NULL},
    {"_executing", bus_executing_here, METH_NOARGS, NULL},
    {"_figures", bus_figures, METH_VARARGS, NULL},
    {"_help", bus_help_one, METH_NOARGS, NULL},
    {"_is_full", bus_is_full, METH_NOARGS, NULL},
    {"_pool_stats", bus_pool_stats, METH_NOARGS, NULL},
    {"_resolve", FASTCALL(bus_resolve), METH_FASTCALL, NULL},
    {"_run_task", bus_run_task_here, METH_O, NULL},
    {"_set_observed", bus_set_observed, METH_O, NULL},
    {"_set_timing", bus_set_timing, METH_VARARGS, NULL},
    {"_start_pool", bus_start_pool, METH_VARARGS, NULL},
    {"_stop_pool", bus_stop_pool, METH_NOARGS, NULL},
    {"_submit", FASTCALL(bus_submit), METH_FASTCALL, NULL},
    {"_subscribe", bus_subscribe, METH_VARARGS, NULL},
    {"_unstarted", bus_unstarted_here, METH_NOARGS, NULL},
    {"_work", bus_work, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

PyTypeObject ftb_bus_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "ftbus._core.Bus",
    .tp_basicsize = sizeof(BusObject),
    .tp_dealloc = bus_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .tp_doc = PyDoc_STR("The hot half of ftbus.EventBus."),
    .tp_traverse = bus_traverse,
    .tp_clear = bus_clear,
    .tp_methods = bus_methods,
    .tp_getset = bus_getset,
    .tp_new = bus_new,
    .tp_weaklistoffset = offsetof(BusObject, weakrefs),
};

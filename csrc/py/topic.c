/* The Topic object: a key whose look-up is done. */
#include "bus.h"
#include "emit.h"

static int
topic_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(((TopicObject *)self)->bus);
    return 0;
}

static void
topic_dealloc(PyObject *object)
{
    TopicObject *self = (TopicObject *)object;
    PyObject_GC_UnTrack(self);
    if (self->weakrefs != NULL) {
        PyObject_ClearWeakRefs(object);
    }
    Py_XDECREF(self->bus);
    Py_TYPE(object)->tp_free(object);
}

static PyObject *
topic_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"bus", "key", NULL};
    PyObject *bus, *key;
    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "O!O:Topic", names, &ftb_bus_type, &bus, &key)) {
        return NULL;
    }
    struct ftb_topic *topic = bus_topic_of((BusObject *)bus, key);
    if (topic == NULL) {
        return NULL;
    }
    TopicObject *self = (TopicObject *)type->tp_alloc(type, 0);
    if (self != NULL) {
        self->topic = topic;
        self->bus = (BusObject *)Py_NewRef(bus);
    }
    return (PyObject *)self;
}

static PyObject *
topic_key(PyObject *self, void *unused)
{
    (void)unused;
    return Py_NewRef((PyObject *)((TopicObject *)self)->topic->key_object);
}

static PyObject *
topic_bus(PyObject *self, void *unused)
{
    (void)unused;
    return Py_NewRef((PyObject *)((TopicObject *)self)->bus);
}

static PyGetSetDef topic_getset[] = {
    {"bus", topic_bus, NULL, "The bus this topic belongs to.", NULL},
    {"key", topic_key, NULL, "The key, as it was first used on the bus.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef topic_methods[] = {
    {"emit", (PyCFunction)(void (*)(void))topic_emit, METH_FASTCALL | METH_KEYWORDS,
     PyDoc_STR(
         "emit($self, event=None, /)\n--\n\n"
         "Run the handlers here and now; return how many ran.\n\n"
         "All handlers run even if one raises; then HandlerErrors, an\n"
         "ExceptionGroup, is raised with all failures (or they are logged, with\n"
         "errors='log'). Any thread. Bind it once per thread for the best speed:\n"
         "emit = topic.emit.")},
    {"emit_many", topic_emit_many, METH_O,
     PyDoc_STR(
         "emit_many($self, events, /)\n--\n\n"
         "Emit each event of an iterable; return how many handler calls ran.\n\n"
         "Stops at the first event whose handlers raise. Any thread.")},
    {"post", (PyCFunction)(void (*)(void))topic_post, METH_FASTCALL | METH_KEYWORDS,
     PyDoc_STR(
         "post($self, event=None, *, partition=None, timeout=None,\n"
         "    urgent=False, context=None)\n--\n\n"
         "Queue the event for the workers; see EventBus.post.")},
    {"post_many", (PyCFunction)(void (*)(void))topic_post_many,
     METH_FASTCALL | METH_KEYWORDS,
     PyDoc_STR(
         "post_many($self, events, *, partition=None, timeout=None,\n"
         "    urgent=False, context=None)\n--\n\n"
         "Queue each event of an iterable; see EventBus.post_many.")},
    {NULL, NULL, 0, NULL},
};

PyTypeObject ftb_topic_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "ftbus._core.Topic",
    .tp_basicsize = sizeof(TopicObject),
    .tp_dealloc = topic_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .tp_doc = PyDoc_STR("The hot half of ftbus.Topic."),
    .tp_traverse = topic_traverse,
    .tp_methods = topic_methods,
    .tp_getset = topic_getset,
    .tp_new = topic_new,
    .tp_weaklistoffset = offsetof(TopicObject, weakrefs),
};

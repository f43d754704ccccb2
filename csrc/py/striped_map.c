/* The StripedMap type: making, collecting, and the mapping slots. */
#include "striped_map.h"

#include <unistd.h>

enum { STRIPES_MIN = 32, STRIPES_MAX = 256, STRIPES_PER_CORE = 8 };

/* Writers of different keys rarely meet when there are several stripes per core. */
static uint32_t
stripes_wanted(void)
{
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    long wanted = STRIPES_PER_CORE * (cores < 1 ? 1 : cores);
    return (uint32_t)(wanted < STRIPES_MIN   ? STRIPES_MIN
                      : wanted > STRIPES_MAX ? STRIPES_MAX
                                             : wanted);
}

static PyObject *
striped_map_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    (void)args; /* the Python class's __init__ looks at them */
    (void)kwargs;
    StripedMapObject *self = (StripedMapObject *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    if (ftb_map_init(&self->map, stripes_wanted()) != FTB_OK) {
        self->map.stripes_n = 0;
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    return (PyObject *)self;
}

struct visiting {
    visitproc visit;
    void *arg;
    int result;
};

static void
entry_visit(struct ftb_entry *found, void *context)
{
    struct visiting *visiting = context;
    struct map_entry *entry = (struct map_entry *)(void *)found;
    PyObject *references[] = {entry->key, ftb_load_acquire(&entry->value)};
    for (int i = 0; i < 2 && visiting->result == 0; i++) {
        visiting->result = visiting->visit(references[i], visiting->arg);
    }
}

/* The world is stopped, or the GIL held: no thread is inside a section or has a lock, as
 * none can be stopped there. What waits for a grace period is not visited, which the
 * collector takes for a reference from outside: it is collected the next time. */
static int
striped_map_traverse(PyObject *op, visitproc visit, void *arg)
{
    struct visiting visiting = {visit, arg, 0};
    ftb_map_each(&((StripedMapObject *)op)->map, entry_visit, &visiting);
    return visiting.result;
}

static int
striped_map_clear_references(PyObject *op)
{
    if (map_remove_all((StripedMapObject *)op) < 0) {
        PyErr_Clear(); /* no memory: what is left stays until the next collection */
    }
    return 0;
}

static void
entry_dealloc(struct ftb_entry *found)
{
    struct map_entry *entry = (struct map_entry *)(void *)found;
    PyObject *key = entry->key;
    PyObject *value = ftb_load_acquire(&entry->value);
    map_entry_free(entry);
    Py_DECREF(key);
    Py_DECREF(value);
}

static void
striped_map_dealloc(PyObject *op)
{
    StripedMapObject *self = (StripedMapObject *)op;
    PyObject_GC_UnTrack(op);
    Py_TRASHCAN_BEGIN(op, striped_map_dealloc) if (self->weakrefs != NULL)
    {
        PyObject_ClearWeakRefs(op);
    }
    if (self->map.stripes_n > 0) { /* nobody has the map: no locks, no grace period */
        ftb_map_dismantle(&self->map, entry_dealloc);
        ftb_map_fini(&self->map);
    }
    Py_TYPE(op)->tp_free(op);
    Py_TRASHCAN_END
}

static Py_ssize_t
striped_map_length(PyObject *op)
{
    map_drop_waiting();
    return (Py_ssize_t)ftb_map_len(&((StripedMapObject *)op)->map);
}

static PyObject *
striped_map_subscript(PyObject *op, PyObject *key)
{
    PyObject *value;
    int found = map_read((StripedMapObject *)op, key, &value);
    if (FTB_LIKELY(found > 0)) {
        return value;
    }
    return found < 0 ? NULL : map_raise_missing(key);
}

static int
striped_map_ass_subscript(PyObject *op, PyObject *key, PyObject *value)
{
    StripedMapObject *self = (StripedMapObject *)op;
    if (value != NULL) {
        return map_write(self, key, value);
    }
    int found = map_remove(self, key, &value);
    if (found > 0) {
        Py_DECREF(value);
    } else if (found == 0) {
        map_raise_missing(key);
    }
    return found > 0 ? 0 : -1;
}

static int
striped_map_contains(PyObject *op, PyObject *key)
{
    return map_has((StripedMapObject *)op, key);
}

static PyObject *
striped_map_iter(PyObject *op)
{
    return map_iter_new((StripedMapObject *)op, MAP_ITER_KEYS);
}

static PyMappingMethods striped_map_as_mapping = {
    .mp_length = striped_map_length,
    .mp_subscript = striped_map_subscript,
    .mp_ass_subscript = striped_map_ass_subscript,
};

static PySequenceMethods striped_map_as_sequence = {
    .sq_contains = striped_map_contains,
};

PyTypeObject ftb_striped_map_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "ftbus._core.StripedMap",
    .tp_basicsize = sizeof(StripedMapObject),
    .tp_dealloc = striped_map_dealloc,
    .tp_as_mapping = &striped_map_as_mapping,
    .tp_as_sequence = &striped_map_as_sequence,
    .tp_hash = PyObject_HashNotImplemented,
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE
                | Py_TPFLAGS_MAPPING,
    .tp_doc = PyDoc_STR("The C half of ftbus.StripedMap."),
    .tp_traverse = striped_map_traverse,
    .tp_clear = striped_map_clear_references,
    .tp_weaklistoffset = offsetof(StripedMapObject, weakrefs),
    .tp_iter = striped_map_iter,
    .tp_methods = striped_map_methods,
    .tp_new = striped_map_new,
};

int
ftb_striped_map_type_ready(PyObject *module)
{
    if (PyType_Ready(&ftb_striped_map_iter_type) < 0) {
        return -1;
    }
    return PyModule_AddType(module, &ftb_striped_map_type);
}

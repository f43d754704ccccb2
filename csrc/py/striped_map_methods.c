/* The methods of StripedMap: arguments and results around striped_map_core.c. */
#include "args.h"
#include "errors.h"
#include "striped_map.h"

/* 0 if nargs is within the bounds, else -1 with TypeError. */
static int
check_nargs(const char *method, Py_ssize_t nargs, Py_ssize_t least, Py_ssize_t most)
{
    if (FTB_LIKELY(nargs >= least && nargs <= most)) {
        return 0;
    }
    PyErr_Format(
        PyExc_TypeError, "%s() takes %zd to %zd arguments, %zd given", method, least,
        most, nargs);
    return -1;
}

PyDoc_STRVAR(
    get_doc, "get($self, key, default=None, /)\n--\n\n"
             "Return the value of the key, or the default if it is not there.\n"
             "\n"
             "Takes no lock. Raises UnsupportedKeyError.");

static PyObject *
striped_map_get(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    PyObject *value;
    if (check_nargs("get", nargs, 1, 2) < 0) {
        return NULL;
    }
    int found = map_read((StripedMapObject *)op, args[0], &value);
    if (found == 0) {
        return Py_NewRef(nargs == 2 ? args[1] : Py_None);
    }
    return found > 0 ? value : NULL;
}

PyDoc_STRVAR(
    setdefault_doc,
    "setdefault($self, key, default=None, /)\n--\n\n"
    "Return the value of the key; if it is not there, give it the default first.\n"
    "\n"
    "Atomic: of several threads that call this for a missing key, one has its default\n"
    "stored, and all return that one. Raises UnsupportedKeyError.");

static PyObject *
striped_map_setdefault(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    PyObject *value;
    if (check_nargs("setdefault", nargs, 1, 2) < 0) {
        return NULL;
    }
    PyObject *missing = nargs == 2 ? args[1] : Py_None;
    for (;;) { /* others may add and remove the key in between */
        int done = map_read((StripedMapObject *)op, args[0], &value);
        if (done != 0) {
            return done > 0 ? value : NULL;
        }
        done = map_add((StripedMapObject *)op, args[0], missing);
        if (done != 0) {
            return done > 0 ? Py_NewRef(missing) : NULL;
        }
    }
}

PyDoc_STRVAR(
    pop_doc, "pop($self, key, /, [default])\n--\n\n"
             "Remove the key and return its value, or the default if it is not there.\n"
             "\n"
             "Atomic: a value is returned to one caller only. Raises KeyError for a "
             "missing key\n"
             "without a default, and UnsupportedKeyError.");

static PyObject *
striped_map_pop(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    PyObject *value;
    if (check_nargs("pop", nargs, 1, 2) < 0) {
        return NULL;
    }
    int found = map_remove((StripedMapObject *)op, args[0], &value);
    if (found == 0) {
        return nargs == 2 ? Py_NewRef(args[1]) : map_raise_missing(args[0]);
    }
    return found > 0 ? value : NULL;
}

PyDoc_STRVAR(
    popitem_doc,
    "popitem($self, /)\n--\n\n"
    "Remove some key and return it with its value, as a pair.\n"
    "\n"
    "Which one is left open; it is not the newest. Atomic: a pair is returned to one\n"
    "caller only. Raises KeyError if the map is empty.");

static PyObject *
striped_map_popitem(PyObject *op, PyObject *unused)
{
    (void)unused;
    PyObject *pair =
        PyTuple_New(2); /* before, so that nothing is lost without memory */
    PyObject *key, *value;
    int found =
        pair != NULL ? map_remove_any((StripedMapObject *)op, &key, &value) : -1;
    if (found <= 0) {
        Py_XDECREF(pair);
        if (found == 0) {
            PyErr_SetString(PyExc_KeyError, "popitem(): the map is empty");
        }
        return NULL;
    }
    PyTuple_SET_ITEM(pair, 0, key);
    PyTuple_SET_ITEM(pair, 1, value);
    return pair;
}

PyDoc_STRVAR(
    clear_doc, "clear($self, /)\n--\n\n"
               "Remove every key that is there when its stripe is reached.\n"
               "\n"
               "Keys that others add meanwhile may stay.");

static PyObject *
striped_map_clear(PyObject *op, PyObject *unused)
{
    (void)unused;
    if (map_remove_all((StripedMapObject *)op) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

/* 1 if the key has a value equal to `old`, which is in *value then; 0 if not; -1. */
static int
read_equal(StripedMapObject *self, PyObject *key, PyObject *old, PyObject **value)
{
    int found = map_read(self, key, value);
    if (found <= 0) {
        return found;
    }
    int is_equal = PyObject_RichCompareBool(*value, old, Py_EQ);
    if (is_equal <= 0) {
        Py_DECREF(*value);
    }
    return is_equal;
}

PyDoc_STRVAR(
    replace_doc,
    "replace($self, key, old, new, /)\n--\n\n"
    "Give the key the value new if its value equals old; return whether it did.\n"
    "\n"
    "Equal means == (or the same object), evaluated outside any lock. Atomic: the "
    "value\n"
    "replaced is the very object that was compared; if another thread was faster, the\n"
    "comparison is done again. Raises UnsupportedKeyError, and what == raises.");

static PyObject *
striped_map_replace(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    StripedMapObject *self = (StripedMapObject *)op;
    if (check_nargs("replace", nargs, 3, 3) < 0) {
        return NULL;
    }
    int done = 0;
    while (done == 0) {
        PyObject *value;
        int is_equal = read_equal(self, args[0], args[1], &value);
        if (is_equal <= 0) {
            return is_equal < 0 ? NULL : Py_NewRef(Py_False);
        }
        done = map_swap(self, args[0], value, args[2]);
        Py_DECREF(value);
    }
    return done > 0 ? Py_NewRef(Py_True) : NULL;
}

/* One attempt of update_with: 1 and the stored value in *fresh, 0: try again, -1. */
static int
update_try(
    StripedMapObject *self, PyObject *key, PyObject *fn, PyObject *missing,
    PyObject **fresh)
{
    PyObject *value;
    int found = map_read(self, key, &value);
    if (found == 0 && missing == NULL) {
        map_raise_missing(key);
        return -1;
    }
    if (found < 0) {
        return -1;
    }
    *fresh = PyObject_CallOneArg(fn, found ? value : missing);
    int done = -1;
    if (*fresh != NULL) {
        done = found ? map_swap(self, key, value, *fresh) : map_add(self, key, *fresh);
    }
    if (found) {
        Py_DECREF(value);
    }
    if (done <= 0) {
        Py_CLEAR(*fresh);
    }
    return done;
}

PyDoc_STRVAR(
    update_with_doc,
    "update_with($self, key, fn, default=<unrepresentable>)\n--\n\n"
    "Give the key the value fn(its value), atomically; return the new value.\n"
    "\n"
    "A missing key gets fn(default); without a default that is a KeyError. fn runs\n"
    "outside any lock and may use the map; when another thread changed the value in "
    "the\n"
    "meantime, fn is called again with the newer one. So fn should have no effect but\n"
    "its result, which must be a new object rather than the old one changed. What fn\n"
    "raises is passed on, and the map is unchanged. Raises KeyError and\n"
    "UnsupportedKeyError.");

static PyObject *
striped_map_update_with(
    PyObject *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"key", "fn", "default"};
    static const struct args_spec spec = {"update_with", names, 3, 3, 2};
    PyObject *out[3], *fresh = NULL;
    if (args_unpack(&spec, args, nargs, kwnames, out) < 0) {
        return NULL;
    }
    int done = 0;
    while (done == 0) {
        done = update_try((StripedMapObject *)op, out[0], out[1], out[2], &fresh);
    }
    return done > 0 ? fresh : NULL;
}

static PyObject *
striped_map_iter_values(PyObject *op, PyObject *unused)
{
    (void)unused;
    return map_iter_new((StripedMapObject *)op, MAP_ITER_VALUES);
}

static PyObject *
striped_map_iter_items(PyObject *op, PyObject *unused)
{
    (void)unused;
    return map_iter_new((StripedMapObject *)op, MAP_ITER_ITEMS);
}

PyDoc_STRVAR(
    sizeof_doc, "__sizeof__($self, /)\n--\n\n"
                "Return the bytes that the map takes, without its keys and values.");

static PyObject *
striped_map_sizeof(PyObject *op, PyObject *unused)
{
    (void)unused;
    struct ftb_map *map = &((StripedMapObject *)op)->map;
    return PyLong_FromSize_t(
        (size_t)Py_TYPE(op)->tp_basicsize + ftb_map_bytes(map)
        + ftb_map_len(map) * FTB_SLAB_CELL_BYTES);
}

static PyObject *
striped_map_is_valid(PyObject *op, PyObject *unused)
{
    (void)unused;
    return PyBool_FromLong(ftb_map_is_valid(&((StripedMapObject *)op)->map));
}

PyMethodDef striped_map_methods[] = {
    {"get", (PyCFunction)(void (*)(void))striped_map_get, METH_FASTCALL, get_doc},
    {"setdefault", (PyCFunction)(void (*)(void))striped_map_setdefault, METH_FASTCALL,
     setdefault_doc},
    {"pop", (PyCFunction)(void (*)(void))striped_map_pop, METH_FASTCALL, pop_doc},
    {"popitem", striped_map_popitem, METH_NOARGS, popitem_doc},
    {"clear", striped_map_clear, METH_NOARGS, clear_doc},
    {"replace", (PyCFunction)(void (*)(void))striped_map_replace, METH_FASTCALL,
     replace_doc},
    {"update_with", (PyCFunction)(void (*)(void))striped_map_update_with,
     METH_FASTCALL | METH_KEYWORDS, update_with_doc},
    {"_iter_values", striped_map_iter_values, METH_NOARGS, NULL},
    {"_iter_items", striped_map_iter_items, METH_NOARGS, NULL},
    {"_is_valid", striped_map_is_valid, METH_NOARGS, NULL},
    {"__sizeof__", striped_map_sizeof, METH_NOARGS, sizeof_doc},
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS, NULL},
    {NULL, NULL, 0, NULL},
};

#include "key.h"

#include "errors.h"

typedef struct {
    PyObject_HEAD
    struct ftb_key key;
    PyObject *value; /* exact str, bytes or int */
    PyObject *weakrefs;
} KeyObject;

/* The Keys that exist: value -> weak reference. Equal Keys are one object. Look-ups are
 * the dict's own, which take no lock; changes are made under the mutex. A PyMutex, unlike
 * a pthread one, lets the collector stop those who wait for it, so the holder may use
 * dict and weak references, which may wait themselves. Only builtin __eq__ runs. */
static PyObject *interned = NULL;
static PyMutex intern_lock;

/* enum.EnumType; set once at import. */
static PyObject *enum_type = NULL;

static int
str_key(PyObject *object, struct ftb_object_key *key)
{
    Py_ssize_t len;
    const char *utf8 = PyUnicode_AsUTF8AndSize(object, &len);
    if (utf8 == NULL || len > FTB_KEY_MAX_BYTES) {
        PyErr_Clear(); /* lone surrogates: not text */
        ftb_raise("UnsupportedKeyError", Py_BuildValue("(O)", object));
        return -1;
    }
    ftb_keyview_init(&key->view, FTB_KEY_STR, utf8, (uint32_t)len);
    return 1;
}

static int
int_key(PyObject *object, struct ftb_object_key *key)
{
    int overflow;
    long long value = PyLong_AsLongLongAndOverflow(object, &overflow);
    if (overflow != 0) {
        ftb_raise("UnsupportedKeyError", Py_BuildValue("(O)", object));
        return -1;
    }
    for (int i = 0; i < 8; i++) {
        key->scratch[i] = (uint8_t)((unsigned long long)value >> (8 * i));
    }
    ftb_keyview_init(&key->view, FTB_KEY_INT, key->scratch, 8);
    return 1;
}

static int
identity_key(PyObject *object, enum ftb_key_kind kind, struct ftb_object_key *key)
{
    memcpy(key->scratch, &object, sizeof object);
    ftb_keyview_init(&key->view, kind, key->scratch, sizeof object);
    return 1;
}

int
ftb_object_key_try(PyObject *object, struct ftb_object_key *key)
{
    if (PyUnicode_CheckExact(object)) {
        return str_key(object, key);
    }
    if (Py_IS_TYPE(object, &ftb_key_type)) {
        key->view = ftb_key_view(&((KeyObject *)object)->key);
        return 1;
    }
    if (PyType_Check(object)) {
        return identity_key(object, FTB_KEY_CLASS, key);
    }
    if (PyLong_CheckExact(object)) {
        return int_key(object, key);
    }
    if (PyBytes_CheckExact(object) && PyBytes_GET_SIZE(object) <= FTB_KEY_MAX_BYTES) {
        ftb_keyview_init(
            &key->view, FTB_KEY_BYTES, PyBytes_AS_STRING(object),
            (uint32_t)PyBytes_GET_SIZE(object));
        return 1;
    }
    if (PyObject_TypeCheck((PyObject *)Py_TYPE(object), (PyTypeObject *)enum_type)) {
        return identity_key(object, FTB_KEY_OBJECT, key);
    }
    return 0;
}

int
ftb_object_key_of(PyObject *object, struct ftb_object_key *key)
{
    int found = ftb_object_key_try(object, key);
    if (found == 0) {
        ftb_raise("UnsupportedKeyError", Py_BuildValue("(O)", object));
    }
    return found == 1 ? 0 : -1;
}

/* The live Key of a value, a new reference; NULL without exception if there is none. */
static PyObject *
interned_get(PyObject *value)
{
    PyObject *weak, *key = NULL;
    if (PyDict_GetItemRef(interned, value, &weak) <= 0) {
        return NULL;
    }
    if (PyWeakref_GetRef(weak, &key) < 0) {
        key = NULL;
    }
    Py_DECREF(weak);
    return key;
}

/* Enter a fresh Key (stolen); returns it, or the one that another thread entered first. */
static PyObject *
interned_add(PyObject *fresh)
{
    PyObject *value = ((KeyObject *)fresh)->value;
    PyObject *weak = PyWeakref_NewRef(fresh, NULL), *key = NULL;
    if (weak != NULL) {
        PyMutex_Lock(&intern_lock);
        key = interned_get(value);
        if (key == NULL && !PyErr_Occurred()
            && PyDict_SetItem(interned, value, weak) == 0) {
            key = Py_NewRef(fresh);
        }
        PyMutex_Unlock(&intern_lock);
        Py_DECREF(weak);
    }
    Py_DECREF(fresh);
    return key;
}

/* Take a dying Key out, unless its value has a new Key already. */
static void
interned_remove(PyObject *value)
{
    PyMutex_Lock(&intern_lock);
    PyObject *successor = interned_get(value), *weak = NULL;
    if (successor == NULL && PyDict_Pop(interned, value, &weak) < 0) {
        PyErr_Clear(); /* no memory: the dead reference stays until the next such Key */
    }
    PyMutex_Unlock(&intern_lock);
    Py_XDECREF(successor);
    Py_XDECREF(weak);
}

void
ftb_key_after_fork_child(void)
{
    intern_lock = (PyMutex){0};
}

static PyObject *
key_from_value(PyObject *value)
{
    struct ftb_object_key object_key;
    if (!PyUnicode_CheckExact(value) && !PyBytes_CheckExact(value)
        && !PyLong_CheckExact(value)) {
        return ftb_raise("UnsupportedKeyError", Py_BuildValue("(O)", value));
    }
    PyObject *known = interned_get(value);
    if (known != NULL || PyErr_Occurred()
        || ftb_object_key_of(value, &object_key) < 0) {
        return known;
    }
    KeyObject *self = PyObject_New(KeyObject, &ftb_key_type);
    if (self == NULL) {
        return NULL;
    }
    if (ftb_key_init(&self->key, &object_key.view) != FTB_OK) {
        PyObject_Free(self);
        return PyErr_NoMemory();
    }
    self->value = Py_NewRef(value);
    self->weakrefs = NULL;
    return interned_add((PyObject *)self);
}

static PyObject *
key_joined(PyObject *segments)
{
    PyObject *dot = PyUnicode_FromString(".");
    PyObject *joined = dot != NULL ? PyUnicode_Join(dot, segments) : NULL;
    Py_XDECREF(dot);
    PyObject *key = joined != NULL ? key_from_value(joined) : NULL;
    Py_XDECREF(joined);
    return key;
}

static PyObject *
key_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    (void)type;
    Py_ssize_t n = PyTuple_GET_SIZE(args);
    if (n == 0 || (kwargs != NULL && PyDict_GET_SIZE(kwargs) != 0)) {
        PyErr_SetString(
            PyExc_TypeError,
            "Key takes one str, bytes or int, or several str segments");
        return NULL;
    }
    PyObject *first = PyTuple_GET_ITEM(args, 0);
    if (n > 1) {
        return key_joined(args);
    }
    if (Py_IS_TYPE(first, &ftb_key_type)) {
        return Py_NewRef(first);
    }
    return key_from_value(first);
}

static void
key_dealloc(PyObject *object)
{
    KeyObject *self = (KeyObject *)object;
    PyObject *error = PyErr_GetRaisedException();
    PyObject_ClearWeakRefs(object);
    interned_remove(self->value);
    PyErr_SetRaisedException(error);
    ftb_key_fini(&self->key);
    Py_DECREF(self->value);
    PyObject_Free(self);
}

static PyObject *
key_repr(PyObject *self)
{
    return PyUnicode_FromFormat("Key(%R)", ((KeyObject *)self)->value);
}

static PyObject *
key_str(PyObject *self)
{
    return PyObject_Str(((KeyObject *)self)->value);
}

static Py_hash_t
key_hash(PyObject *self)
{
    return PyObject_Hash(((KeyObject *)self)->value);
}

/* A Key equals another of the same value, and that value itself: they are one topic. */
static PyObject *
key_richcompare(PyObject *self, PyObject *other, int op)
{
    PyObject *right =
        Py_IS_TYPE(other, &ftb_key_type) ? ((KeyObject *)other)->value : other;
    if (!PyUnicode_CheckExact(right) && !PyBytes_CheckExact(right)
        && !PyLong_CheckExact(right)) {
        Py_RETURN_NOTIMPLEMENTED;
    }
    PyObject *left = ((KeyObject *)self)->value;
    if (!Py_IS_TYPE(right, Py_TYPE(left))) { /* b"a" == "a" would warn under -bb */
        if (op == Py_EQ || op == Py_NE) {
            return PyBool_FromLong(op == Py_NE);
        }
        Py_RETURN_NOTIMPLEMENTED;
    }
    return PyObject_RichCompare(left, right, op);
}

static PyObject *
key_hash64(PyObject *self, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLongLong(((KeyObject *)self)->key.hash);
}

static PyObject *
key_value(PyObject *self, void *unused)
{
    (void)unused;
    return Py_NewRef(((KeyObject *)self)->value);
}

/* The parts of a str between its dots. Not str.split: the list it makes is freed wrongly
 * by 3.13t if the memory for its items cannot be had. */
static PyObject *
split_at_dots(PyObject *text)
{
    Py_ssize_t len = PyUnicode_GET_LENGTH(text), parts_n = 1;
    for (Py_ssize_t i = 0; i < len; i++) {
        parts_n += PyUnicode_READ_CHAR(text, i) == '.';
    }
    PyObject *parts = PyTuple_New(parts_n);
    Py_ssize_t start = 0;
    for (Py_ssize_t i = 0; i < parts_n && parts != NULL; i++) {
        Py_ssize_t dot = PyUnicode_FindChar(text, '.', start, len, 1);
        PyObject *part = PyUnicode_Substring(text, start, dot < 0 ? len : dot);
        if (part == NULL) {
            Py_CLEAR(parts);
            break;
        }
        PyTuple_SET_ITEM(parts, i, part);
        start = dot + 1;
    }
    return parts;
}

static PyObject *
key_segments(PyObject *self, void *unused)
{
    (void)unused;
    PyObject *value = ((KeyObject *)self)->value;
    return PyUnicode_CheckExact(value) ? split_at_dots(value) : PyTuple_Pack(1, value);
}

static PyObject *
key_reduce(PyObject *self, PyObject *unused)
{
    (void)unused;
    return Py_BuildValue("(O(O))", &ftb_key_type, ((KeyObject *)self)->value);
}

static PyGetSetDef key_getset[] = {
    {"hash64", key_hash64, NULL,
     "XXH3-64 of the key's bytes (UTF-8 for str, little-endian 64 bit for int), an "
     "int\n"
     "in 0..2**64-1. The same in every process and on every machine.",
     NULL},
    {"segments", key_segments, NULL, "The parts between the dots, a tuple of str.",
     NULL},
    {"value", key_value, NULL, "The str, bytes or int that the key was made from.",
     NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef key_methods[] = {
    {"__reduce__", key_reduce, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

PyTypeObject ftb_key_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "ftbus.Key",
    .tp_basicsize = sizeof(KeyObject),
    .tp_dealloc = key_dealloc,
    .tp_repr = key_repr,
    .tp_str = key_str,
    .tp_hash = key_hash,
    .tp_richcompare = key_richcompare,
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = PyDoc_STR(
        "Key(value, /)\nKey(*segments)\n--\n\n"
        "Make a compact key from a str, bytes or int, or from str segments.\n\n"
        "Key('player.moved') and the plain 'player.moved' name the same topic. A Key "
        "is\n"
        "interned, immutable, hashable and safe to share between threads: Key(x) is\n"
        "Key(x). Its hash64 is stable across processes.\n\n"
        "Raises UnsupportedKeyError for any other kind of value."),
    .tp_methods = key_methods,
    .tp_weaklistoffset = offsetof(KeyObject, weakrefs),
    .tp_getset = key_getset,
    .tp_new = key_new,
};

int
ftb_key_type_ready(PyObject *module)
{
    PyObject *enum_module = PyImport_ImportModule("enum");
    if (enum_module == NULL) {
        return -1;
    }
    enum_type = PyObject_GetAttrString(enum_module, "EnumType");
    Py_DECREF(enum_module);
    if (enum_type == NULL) {
        return -1;
    }
    if (interned == NULL && (interned = PyDict_New()) == NULL) {
        return -1;
    }
    return PyModule_AddType(module, &ftb_key_type);
}

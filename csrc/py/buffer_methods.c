/* What a Buffer does with its bytes: items, slices, comparison, hash, copying.
 *
 * Thread rule: each function is one use of the Buffer (buffer.c), so the bytes stay
 * valid under it whatever other threads release or freeze meanwhile. */
#include <Python.h>

#include "buffer.h"

/* Begin a use and read the length. The use, or -1 with BufferError set. */
static int
enter_sized(BufferObject *self, enum buffer_use use, Py_ssize_t *length)
{
    int entered = buffer_enter(self, use);
    if (entered >= 0) {
        *length = ftb_load_acquire(&self->length);
    }
    return entered;
}

static Py_ssize_t
buffer_length(PyObject *op)
{
    BufferObject *self = (BufferObject *)op;
    if (buffer_is_released(self)) {
        PyErr_SetString(PyExc_BufferError, "the Buffer is released");
        return -1;
    }
    return ftb_load_acquire(&self->length);
}

static PyObject *
buffer_item(PyObject *op, Py_ssize_t index)
{
    BufferObject *self = (BufferObject *)op;
    Py_ssize_t length;
    if (enter_sized(self, BUFFER_READ, &length) < 0) {
        return NULL;
    }
    long byte = index >= 0 && index < length ? self->data[index] : -1;
    buffer_leave(self, BUFFER_READ);
    if (byte < 0) {
        PyErr_SetString(PyExc_IndexError, "Buffer index out of range");
        return NULL;
    }
    return PyLong_FromLong(byte);
}

/* An index object within the current length, or -1 with an exception set. */
static Py_ssize_t
parse_index(BufferObject *self, PyObject *key)
{
    Py_ssize_t index = PyNumber_AsSsize_t(key, PyExc_IndexError);
    if (index == -1 && PyErr_Occurred()) {
        return -1;
    }
    Py_ssize_t length = buffer_length((PyObject *)self);
    if (length < 0) {
        return -1;
    }
    index += index < 0 ? length : 0;
    if (index < 0 || index >= length) {
        PyErr_SetString(PyExc_IndexError, "Buffer index out of range");
        return -1;
    }
    return index;
}

/* A slice's start and how many bytes it has. 0, or -1 with an exception set. Only step
 * 1 shares memory; other steps are for memoryview. */
static int
parse_slice(PyObject *key, Py_ssize_t length, Py_ssize_t *start, Py_ssize_t *n)
{
    Py_ssize_t stop, step;
    if (PySlice_Unpack(key, start, &stop, &step) < 0) {
        return -1;
    }
    if (step != 1) {
        PyErr_Format(
            PyExc_ValueError,
            "a Buffer slice has step 1, not %zd: use memoryview(buffer)", step);
        return -1;
    }
    *n = PySlice_AdjustIndices(length, start, &stop, step);
    return 0;
}

static PyObject *
buffer_subscript(PyObject *op, PyObject *key)
{
    BufferObject *self = (BufferObject *)op;
    if (!PySlice_Check(key)) {
        Py_ssize_t index = parse_index(self, key);
        return index < 0 ? NULL : buffer_item(op, index);
    }
    Py_ssize_t start, n;
    Py_ssize_t length = buffer_length(op);
    if (length < 0 || parse_slice(key, length, &start, &n) < 0) {
        return NULL;
    }
    if (buffer_enter(self, BUFFER_READ) < 0) {
        return NULL;
    }
    PyObject *slice = buffer_slice(self, start, n);
    buffer_leave(self, BUFFER_READ);
    return slice;
}

static int
assign_item(BufferObject *self, PyObject *key, PyObject *value)
{
    Py_ssize_t index = parse_index(self, key);
    if (index < 0) {
        return -1;
    }
    Py_ssize_t byte = PyNumber_AsSsize_t(value, PyExc_OverflowError);
    if (byte == -1 && PyErr_Occurred()) {
        return -1;
    }
    if (byte < 0 || byte > 255) {
        PyErr_Format(PyExc_ValueError, "byte %zd is not in 0..255", byte);
        return -1;
    }
    if (buffer_enter(self, BUFFER_WRITE) < 0) {
        return -1;
    }
    self->data[index] = (unsigned char)byte;
    buffer_leave(self, BUFFER_WRITE);
    return 0;
}

/* Copy a bytes-like object to data[start:]. It must have exactly n bytes, or, if n is
 * negative, fit into what there is. Returns its size, or -1 with an exception set. */
static Py_ssize_t
assign_bytes(BufferObject *self, Py_ssize_t start, Py_ssize_t n, PyObject *value)
{
    Py_buffer source;
    Py_ssize_t length;
    if (PyObject_GetBuffer(value, &source, PyBUF_SIMPLE) < 0) {
        return -1;
    }
    Py_ssize_t size = source.len;
    if (n >= 0 && size != n) {
        PyErr_Format(PyExc_ValueError, "%zd bytes do not fill a slice of %zd", size, n);
        size = -1;
    } else if (enter_sized(self, BUFFER_WRITE, &length) < 0) {
        size = -1;
    } else {
        if (start > length || size > length - start) {
            PyErr_Format(
                PyExc_ValueError, "%zd bytes at offset %zd do not fit into %zd", size,
                start, length);
            size = -1;
        } else {
            buffer_copy_bytes(self->data + start, source.buf, size);
        }
        buffer_leave(self, BUFFER_WRITE);
    }
    PyBuffer_Release(&source);
    return size;
}

static int
buffer_assign(PyObject *op, PyObject *key, PyObject *value)
{
    BufferObject *self = (BufferObject *)op;
    if (value == NULL) {
        PyErr_SetString(PyExc_TypeError, "bytes of a Buffer cannot be deleted");
        return -1;
    }
    if (!PySlice_Check(key)) {
        return assign_item(self, key, value);
    }
    Py_ssize_t start, n;
    Py_ssize_t length = buffer_length(op);
    if (length < 0 || parse_slice(key, length, &start, &n) < 0) {
        return -1;
    }
    return assign_bytes(self, start, n, value) < 0 ? -1 : 0;
}

PyDoc_STRVAR(
    copy_from_doc,
    "copy_from($self, data, offset=0, /)\n--\n\n"
    "Copy a bytes-like object into the Buffer and return how many bytes that was.\n"
    "\n"
    "Raises BufferError if the Buffer is frozen or released, ValueError if the bytes\n"
    "do not fit; nothing is copied then.");

static PyObject *
buffer_copy_from(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    Py_ssize_t offset = 0;
    if (nargs < 1 || nargs > 2) {
        PyErr_Format(
            PyExc_TypeError, "copy_from() takes 1 or 2 arguments (%zd given)", nargs);
        return NULL;
    }
    if (nargs == 2) {
        offset = PyNumber_AsSsize_t(args[1], PyExc_OverflowError);
        if (offset == -1 && PyErr_Occurred()) {
            return NULL;
        }
    }
    if (offset < 0) {
        PyErr_Format(PyExc_ValueError, "offset %zd is negative", offset);
        return NULL;
    }
    Py_ssize_t n = assign_bytes((BufferObject *)op, offset, -1, args[0]);
    return n < 0 ? NULL : PyLong_FromSsize_t(n);
}

/* The whole content as bytes. */
static PyObject *
to_bytes(BufferObject *self)
{
    Py_ssize_t length;
    if (enter_sized(self, BUFFER_READ, &length) < 0) {
        return NULL;
    }
    PyObject *bytes = PyBytes_FromStringAndSize((const char *)self->data, length);
    buffer_leave(self, BUFFER_READ);
    return bytes;
}

PyDoc_STRVAR(
    hex_doc, "hex($self, *args)\n--\n\n"
             "Return the bytes as hexadecimal digits; arguments as for bytes.hex().\n"
             "\n"
             "Raises BufferError if the Buffer is released.");

static PyObject *
buffer_hex(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    PyObject *bytes = to_bytes((BufferObject *)op);
    PyObject *method = bytes != NULL ? PyObject_GetAttrString(bytes, "hex") : NULL;
    PyObject *text = NULL;
    if (method != NULL) {
        text = PyObject_Vectorcall(method, args, (size_t)nargs, NULL);
    }
    Py_XDECREF(method);
    Py_XDECREF(bytes);
    return text;
}

PyDoc_STRVAR(
    reduce_doc, "__reduce__($self)\n--\n\n"
                "Pickle by value: the copy has its own memory.");

static PyObject *
buffer_reduce(PyObject *op, PyObject *Py_UNUSED(unused))
{
    BufferObject *self = (BufferObject *)op;
    PyObject *readonly = buffer_is_frozen(self) ? Py_True : Py_False;
    PyObject *bytes = to_bytes(self);
    if (bytes == NULL) {
        return NULL;
    }
    return Py_BuildValue("O(NO)", (PyObject *)&ftb_buffer_type, bytes, readonly);
}

static PyObject *
buffer_enter_with(PyObject *op, PyObject *Py_UNUSED(unused))
{
    return buffer_length(op) < 0 ? NULL : Py_NewRef(op);
}

static PyObject *
buffer_exit_with(
    PyObject *op, PyObject *const *Py_UNUSED(args), Py_ssize_t Py_UNUSED(nargs))
{
    return buffer_release(op, NULL);
}

PyObject *
buffer_richcompare(PyObject *op, PyObject *other, int comparison)
{
    BufferObject *self = (BufferObject *)op;
    Py_buffer view;
    Py_ssize_t length;
    if (!PyObject_CheckBuffer(other)) {
        Py_RETURN_NOTIMPLEMENTED;
    }
    if (enter_sized(self, BUFFER_READ, &length) < 0) {
        return NULL;
    }
    if (PyObject_GetBuffer(other, &view, PyBUF_SIMPLE) < 0) {
        buffer_leave(self, BUFFER_READ);
        if (ftb_buffer_check(other)) {
            return NULL; /* it is released */
        }
        PyErr_Clear(); /* not contiguous: memoryview compares those itself */
        Py_RETURN_NOTIMPLEMENTED;
    }
    Py_ssize_t shorter = length < view.len ? length : view.len;
    bool equality = comparison == Py_EQ || comparison == Py_NE;
    int order = 1;
    if (!equality || length == view.len) {
        order = memcmp(self->data, view.buf, (size_t)shorter);
    }
    if (order == 0) {
        order = length < view.len ? -1 : length > view.len;
    }
    PyBuffer_Release(&view);
    buffer_leave(self, BUFFER_READ);
    Py_RETURN_RICHCOMPARE(order, 0, comparison);
}

/* The hash of the same bytes, through a memoryview of them: the public way to it. */
Py_hash_t
buffer_hash(PyObject *op)
{
    BufferObject *self = (BufferObject *)op;
    Py_ssize_t length;
    Py_hash_t hash = ftb_load_acquire(&self->hash);
    if (hash != -1) {
        return hash;
    }
    if (!buffer_is_frozen(self)) {
        PyErr_SetString(
            PyExc_TypeError, "a writable Buffer has no hash: freeze it first");
        return -1;
    }
    if (enter_sized(self, BUFFER_READ, &length) < 0) {
        return -1;
    }
    PyObject *view = PyMemoryView_FromMemory((char *)self->data, length, PyBUF_READ);
    hash = view != NULL ? PyObject_Hash(view) : -1;
    Py_XDECREF(view);
    buffer_leave(self, BUFFER_READ);
    ftb_store_release(&self->hash, hash); /* every thread stores the same */
    return hash;
}

PyObject *
buffer_repr(PyObject *op)
{
    BufferObject *self = (BufferObject *)op;
    if (buffer_is_released(self)) {
        return PyUnicode_FromFormat("<Buffer released, %p>", (void *)self->block);
    }
    return PyUnicode_FromFormat(
        "<Buffer %zd bytes, %s, %p>", ftb_load_acquire(&self->length),
        buffer_is_frozen(self) ? "frozen" : "writable", (void *)self->block);
}

static PyObject *
get_nbytes(PyObject *op, void *Py_UNUSED(closure))
{
    Py_ssize_t length = buffer_length(op);
    return length < 0 ? NULL : PyLong_FromSsize_t(length);
}

static PyObject *
get_readonly(PyObject *op, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(buffer_is_frozen((BufferObject *)op));
}

static PyObject *
get_released(PyObject *op, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(buffer_is_released((BufferObject *)op));
}

static PyObject *
get_refcount(PyObject *op, void *Py_UNUSED(closure))
{
    BufferObject *self = (BufferObject *)op;
    if (buffer_enter(self, BUFFER_READ) < 0) {
        return NULL;
    }
    unsigned long references = ftb_block_refcount(self->block);
    buffer_leave(self, BUFFER_READ);
    return PyLong_FromUnsignedLong(references);
}

static PyObject *
get_address(PyObject *op, void *Py_UNUSED(closure))
{
    BufferObject *self = (BufferObject *)op;
    return buffer_length(op) < 0 ? NULL : PyLong_FromVoidPtr(self->block);
}

PyDoc_STRVAR(
    freeze_doc,
    "freeze($self, length=None, /)\n--\n\n"
    "Make the bytes read-only for good, shortened to length, and return the Buffer.\n"
    "\n"
    "Freezing again changes nothing. Raises BufferError if an export or a running\n"
    "method may still write, if it is a slice, or if it is released; ValueError if\n"
    "length is not in 0..len(buffer).");

PyDoc_STRVAR(
    release_doc,
    "release($self)\n--\n\n"
    "Give this Buffer's share of the memory up; any further use raises BufferError.\n"
    "\n"
    "Views and slices taken before keep the bytes. Releasing again does nothing.");

PyDoc_STRVAR(
    decode_doc,
    "decode($self, codec=None, /)\n--\n\n"
    "Return the event that the bytes are of; decoded once for all who hold this "
    "Buffer.\n"
    "\n"
    "Without an argument the codec is that of the bus which encoded the event, or the\n"
    "one named first. The value is shared, so change nothing in it; it goes with the\n"
    "Buffer or at release(). One thread decodes, others wait for it. A failure is not\n"
    "kept: who asks next tries again. A second codec's value is decoded each time.\n"
    "\n"
    "Raises CodecError as the codec does, BufferError if the Buffer is writable,\n"
    "released or of no known codec, UnknownCodecError for a name that none has,\n"
    "RecursionError from within its own decode().");

PyMethodDef buffer_methods[] = {
    {"decode", (PyCFunction)(void (*)(void))buffer_decode, METH_FASTCALL, decode_doc},
    {"freeze", (PyCFunction)(void (*)(void))buffer_freeze, METH_FASTCALL, freeze_doc},
    {"release", buffer_release, METH_NOARGS, release_doc},
    {"copy_from", (PyCFunction)(void (*)(void))buffer_copy_from, METH_FASTCALL,
     copy_from_doc},
    {"hex", (PyCFunction)(void (*)(void))buffer_hex, METH_FASTCALL, hex_doc},
    {"__reduce__", buffer_reduce, METH_NOARGS, reduce_doc},
    {"__enter__", buffer_enter_with, METH_NOARGS, NULL},
    {"__exit__", (PyCFunction)(void (*)(void))buffer_exit_with, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

PyGetSetDef buffer_getset[] = {
    {"nbytes", get_nbytes, NULL, PyDoc_STR("The number of bytes."), NULL},
    {"readonly", get_readonly, NULL, PyDoc_STR("Whether it is frozen."), NULL},
    {"released", get_released, NULL, PyDoc_STR("Whether release() was called."), NULL},
    {"codec", buffer_get_codec, NULL,
     PyDoc_STR("What decode() uses if it is not told, or None."), NULL},
    {"refcount", get_refcount, NULL,
     PyDoc_STR("How many Buffers, slices and native holders share the memory."), NULL},
    {"address", get_address, NULL,
     PyDoc_STR("The block's address: the same for Buffers that share memory."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PySequenceMethods buffer_as_sequence = {
    .sq_length = buffer_length,
    .sq_item = buffer_item,
};

PyMappingMethods buffer_as_mapping = {
    .mp_length = buffer_length,
    .mp_subscript = buffer_subscript,
    .mp_ass_subscript = buffer_assign,
};

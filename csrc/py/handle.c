/* Handles and the arena's table, for Python: how native code and Buffers meet.
 *
 * Thread rule: any thread that is attached to the interpreter may call everything. */
#include <Python.h>

#define FTB_ARENA_API_TABLE_ONLY
#include "buffer.h"
#include "errors.h"
#include "ftb_arena_api.h"

static ftb_arena_api_t api; /* written once, at the first import */

PyDoc_STRVAR(
    from_handle_doc,
    "buffer_from_handle($module, handle, readonly=True, pool=None, /)\n--\n\n"
    "Return a Buffer over the bytes that a handle stands for, without a copy.\n"
    "\n"
    "handle is an int from ftb_handle_new in C, or from handle_of(). The Buffer takes\n"
    "over the reference that the handle carries, so a handle is good for one call.\n"
    "readonly=False asks for a writable Buffer, which needs that nobody else holds "
    "the\n"
    "memory. With a pool, only its memory is accepted.\n"
    "\n"
    "Raises HandleError, and leaves the handle as it is, if it is no handle or was\n"
    "taken before, or if one of the two conditions does not hold; TypeError if it is\n"
    "no int. Thread-safe: of several threads with one handle, one gets the Buffer.");

static const char *
reason_of(int result)
{
    switch (result) {
    case FTB_HANDLE_FOREIGN:
        return "its memory is of another pool";
    case FTB_HANDLE_SHARED:
        return "others hold its memory too, so it cannot be writable";
    default:
        return "it was never given out, or it was taken before: a handle is good once";
    }
}

/* What the int carries: a result of ftb_handle_take, or -1 with TypeError set. Numbers
 * that no handle can be are as stale as 0. */
static int
take(PyObject *number, ftb_arena_t *arena, int unique, struct ftb_share *share)
{
    PyObject *index = PyNumber_Index(number);
    if (index == NULL) {
        return -1;
    }
    uint64_t handle = PyLong_AsUnsignedLongLong(index);
    Py_DECREF(index);
    if (handle == UINT64_MAX && PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_OverflowError)) {
            return -1;
        }
        PyErr_Clear();
        handle = 0;
    }
    return ftb_handle_take(handle, arena, unique, share);
}

/* 0, or -1 with TypeError set. None is any arena. */
static int
parse_pool(PyObject *pool, ftb_arena_t **arena)
{
    if (pool != Py_None && !Py_IS_TYPE(pool, &ftb_buffer_pool_type)) {
        PyErr_Format(PyExc_TypeError, "pool must be a BufferPool, not %T", pool);
        return -1;
    }
    *arena = pool != Py_None ? ((BufferPoolObject *)pool)->arena : NULL;
    return 0;
}

static PyObject *
buffer_from_handle(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs < 1 || nargs > 3) {
        PyErr_Format(
            PyExc_TypeError, "buffer_from_handle() takes 1 to 3 arguments (%zd given)",
            nargs);
        return NULL;
    }
    struct ftb_share share;
    ftb_arena_t *arena = NULL;
    int readonly = nargs >= 2 ? PyObject_IsTrue(args[1]) : 1;
    if (readonly < 0 || (nargs == 3 && parse_pool(args[2], &arena) < 0)) {
        return NULL;
    }
    int result = take(args[0], arena, !readonly, &share);
    if (result < 0) {
        return NULL;
    }
    if (result != FTB_HANDLE_OK) {
        return ftb_raise(
            "HandleError", Py_BuildValue("(Os)", args[0], reason_of(result)));
    }
    return ftb_buffer_wrap_range(
        share.block, (Py_ssize_t)share.start, (Py_ssize_t)share.length, readonly != 0);
}

PyDoc_STRVAR(
    handle_of_doc,
    "handle_of($module, buffer, /)\n--\n\n"
    "Return a new handle on a frozen Buffer's bytes, as an int for native code.\n"
    "\n"
    "The handle carries a reference of its own: the Buffer may go, and the memory\n"
    "stays until somebody takes the handle (ftb_handle_take in C, or\n"
    "buffer_from_handle) and releases what it got. A handle that nobody takes keeps\n"
    "its memory for good.\n"
    "\n"
    "Raises TypeError if it is no Buffer, BufferError if it is released or not frozen\n"
    "(to let native code write, pass ffi.from_buffer(buffer)), MemoryError if there "
    "is\n"
    "no memory. Thread-safe.");

static PyObject *
handle_of(PyObject *Py_UNUSED(module), PyObject *argument)
{
    if (!ftb_buffer_check(argument)) {
        PyErr_Format(PyExc_TypeError, "only a Buffer has handles, not %T", argument);
        return NULL;
    }
    BufferObject *self = (BufferObject *)argument;
    if (buffer_enter(self, BUFFER_READ) < 0) {
        return NULL;
    }
    uint64_t handle = 0;
    bool frozen = buffer_is_frozen(self);
    if (frozen) {
        handle = ftb_handle_new(
            ftb_block_retain(self->block),
            (uint64_t)(self->data - ftb_block_data(self->block)),
            (uint64_t)ftb_load_acquire(&self->length));
        if (handle == 0) {
            ftb_block_release(self->block);
        }
    }
    buffer_leave(self, BUFFER_READ);
    if (!frozen) {
        PyErr_SetString(
            PyExc_BufferError, "a writable Buffer has no handles: freeze it first");
        return NULL;
    }
    return handle != 0 ? PyLong_FromUnsignedLongLong(handle) : PyErr_NoMemory();
}

PyDoc_STRVAR(
    arena_address_doc,
    "arena_address($module, pool, /)\n--\n\n"
    "Return the address of a pool's ftb_arena_t, for native code that allocates "
    "there.\n"
    "\n"
    "Good as long as the pool is: whoever uses the address keeps the pool. Raises\n"
    "TypeError if it is no BufferPool.");

static PyObject *
arena_address(PyObject *Py_UNUSED(module), PyObject *pool)
{
    ftb_arena_t *arena = NULL;
    if (parse_pool(pool, &arena) < 0) {
        return NULL;
    }
    if (arena == NULL) {
        PyErr_SetString(PyExc_TypeError, "pool must be a BufferPool, not None");
        return NULL;
    }
    return PyLong_FromVoidPtr(arena);
}

static PyMethodDef functions[] = {
    {"buffer_from_handle", (PyCFunction)(void (*)(void))buffer_from_handle,
     METH_FASTCALL, from_handle_doc},
    {"handle_of", handle_of, METH_O, handle_of_doc},
    {"arena_address", arena_address, METH_O, arena_address_doc},
    {NULL, NULL, 0, NULL},
};

/* The table as a capsule for C, and its address for everybody else. */
static int
add_table(PyObject *module)
{
    PyObject *capsule = PyCapsule_New(&api, "ftbus._core._arena_api", NULL);
    if (capsule == NULL || PyModule_Add(module, "_arena_api", capsule) < 0) {
        return -1;
    }
    return PyModule_Add(module, "arena_api", PyLong_FromVoidPtr(&api));
}

int
ftb_handles_ready(PyObject *module)
{
    if (api.version == 0) {
        ftb__arena_api_fill(&api, ftb_default_arena());
    }
    return PyModule_AddFunctions(module, functions) < 0 ? -1 : add_table(module);
}

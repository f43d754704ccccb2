/* BufferPool: an arena as a Python object, the default pool, and copies into pools.
 *
 * Thread rule: a pool may be used from any number of threads; allocation is local to
 * the thread (csrc/arena). Buffers outlive their pool: the arena ends with the last. */
#include <Python.h>

#include "buffer.h"
#include "errors.h"
#include "ftb_block_layout.h"

static PyObject *default_pool; /* written once, at the first import */

static BufferPoolObject *
pool_or_default(BufferPoolObject *pool)
{
    return pool != NULL ? pool : (BufferPoolObject *)default_pool;
}

ftb_arena_t *
ftb_default_arena(void)
{
    return ((BufferPoolObject *)default_pool)->arena;
}

static uint64_t
pool_limit(BufferPoolObject *pool)
{
    struct ftb_arena_stats stats;
    ftb_arena_stats(pool->arena, &stats);
    return stats.limit_bytes;
}

static FTB_NOINLINE void
raise_no_block(BufferPoolObject *pool, Py_ssize_t size, int result)
{
    if (result == FTB_BLOCK_LIMIT) {
        ftb_raise(
            "ArenaLimitError",
            Py_BuildValue(
                "(OnK)", (PyObject *)pool, size, (unsigned long long)pool_limit(pool)));
    } else {
        PyErr_NoMemory();
    }
}

/* A block with one reference, or NULL with an exception set. size is not negative. */
static inline ftb_block_t *
pool_block(BufferPoolObject *pool, Py_ssize_t size)
{
    ftb_block_t *block;
    int result = ftb_block_try_new(pool->arena, (uint64_t)size, &block);
    if (FTB_UNLIKELY(result != FTB_BLOCK_OK)) {
        raise_no_block(pool, size, result);
        return NULL;
    }
    return block;
}

PyDoc_STRVAR(
    allocate_doc,
    "allocate($self, size, /)\n--\n\n"
    "Return a writable Buffer of size bytes, all zero.\n"
    "\n"
    "Raises ValueError if size is negative or above 2**39, ArenaLimitError at the\n"
    "pool's limit, MemoryError if the system has no memory.");

PyObject *
buffer_pool_zeroed(BufferPoolObject *pool, Py_ssize_t size)
{
    ftb_block_t *block = pool_block(pool_or_default(pool), size);
    if (block == NULL) {
        return NULL;
    }
    ftb__block_zero(block, (uint64_t)size);
    return ftb_buffer_wrap(block, false);
}

/* A size that is no small int: any index object. -1 with an exception set. */
static FTB_NOINLINE Py_ssize_t
parse_size(PyObject *argument)
{
    Py_ssize_t size = PyNumber_AsSsize_t(argument, NULL); /* clips what is too large */
    if (size < 0 || size > FTB_BLOCK_MAX_BYTES) {
        if (!PyErr_Occurred()) {
            PyErr_Format(
                PyExc_ValueError, "size %R is not in 0..%lld", argument,
                (long long)FTB_BLOCK_MAX_BYTES);
        }
        return -1;
    }
    return size;
}

static PyObject *
pool_allocate(PyObject *op, PyObject *argument)
{
    Py_ssize_t size = -1;
    if (FTB_LIKELY(
            PyLong_CheckExact(argument)
            && PyUnstable_Long_IsCompact((PyLongObject *)argument))) {
        size = PyUnstable_Long_CompactValue((PyLongObject *)argument);
    }
    if (FTB_UNLIKELY(size < 0)) {
        size = parse_size(argument);
        if (size < 0) {
            return NULL;
        }
    }
    return buffer_pool_zeroed((BufferPoolObject *)op, size);
}

PyObject *
buffer_pool_copy(BufferPoolObject *pool, PyObject *bytes_like, bool frozen)
{
    Py_buffer source;
    if (PyObject_GetBuffer(bytes_like, &source, PyBUF_SIMPLE) < 0) {
        return NULL;
    }
    PyObject *copy = NULL;
    ftb_block_t *block = pool_block(pool_or_default(pool), source.len);
    if (block != NULL) {
        buffer_copy_bytes(ftb__block_bytes(block), source.buf, source.len);
        copy = ftb_buffer_wrap(block, frozen);
    }
    PyBuffer_Release(&source);
    return copy;
}

PyObject *
ftb_buffer_from_object(PyObject *pool, PyObject *bytes_like)
{
    if (ftb_buffer_check(bytes_like) && buffer_is_frozen((BufferObject *)bytes_like)) {
        return Py_NewRef(bytes_like);
    }
    return buffer_pool_copy((BufferPoolObject *)pool, bytes_like, true);
}

PyDoc_STRVAR(
    from_bytes_doc,
    "from_bytes($self, data, /)\n--\n\n"
    "Return a frozen Buffer with a copy of a bytes-like object.\n"
    "\n"
    "Raises TypeError if data is not bytes-like, ArenaLimitError at the pool's limit,\n"
    "MemoryError if the system has no memory.");

static PyObject *
pool_from_bytes(PyObject *op, PyObject *data)
{
    return buffer_pool_copy((BufferPoolObject *)op, data, true);
}

/* One row of stats()["classes"]. */
static PyObject *
class_row(const struct ftb_arena_class_stats *stats)
{
    return Py_BuildValue(
        "{s:K,s:K,s:K,s:K,s:K}", "capacity_bytes",
        (unsigned long long)stats->capacity_bytes, "allocs",
        (unsigned long long)stats->allocs, "misses", (unsigned long long)stats->misses,
        "live", (unsigned long long)stats->live, "cached",
        (unsigned long long)stats->cached);
}

/* The classes that were ever used, smallest first. */
static PyObject *
class_rows(const struct ftb_arena_stats *stats)
{
    PyObject *rows = PyList_New(0);
    for (int i = 0; rows != NULL && i < FTB_ARENA_CLASSES; i++) {
        if (stats->classes[i].allocs == 0) {
            continue;
        }
        PyObject *row = class_row(&stats->classes[i]);
        if (row == NULL || PyList_Append(rows, row) < 0) {
            Py_CLEAR(rows);
        }
        Py_XDECREF(row);
    }
    return rows;
}

PyDoc_STRVAR(
    stats_doc,
    "stats($self)\n--\n\n"
    "Return a PoolStats: what the pool holds and how often it had to ask the system.");

static PyObject *
pool_stats(PyObject *op, PyObject *Py_UNUSED(unused))
{
    BufferPoolObject *self = (BufferPoolObject *)op;
    struct ftb_arena_stats stats;
    ftb_arena_stats(self->arena, &stats);
    PyObject *rows = class_rows(&stats);
    if (rows == NULL) {
        return NULL;
    }
    PyObject *figures = Py_BuildValue(
        "{s:O,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:N}", "name", self->name,
        "limit_bytes", (unsigned long long)stats.limit_bytes, "reserved_bytes",
        (unsigned long long)stats.reserved_bytes, "peak_bytes",
        (unsigned long long)stats.peak_bytes, "live",
        (unsigned long long)stats.live_blocks, "live_bytes",
        (unsigned long long)stats.live_bytes, "large_live",
        (unsigned long long)stats.large_live, "allocs",
        (unsigned long long)stats.allocs, "frees", (unsigned long long)stats.frees,
        "hits", (unsigned long long)stats.hits, "misses",
        (unsigned long long)stats.misses, "caches", (unsigned long long)stats.caches,
        "classes", rows);
    PyObject *buffers = figures != NULL ? PyImport_ImportModule("ftbus.buffers") : NULL;
    PyObject *make = NULL;
    PyObject *result = NULL;
    if (buffers != NULL) {
        make = PyObject_GetAttrString(buffers, "_pool_stats");
    }
    if (make != NULL) {
        result = PyObject_CallOneArg(make, figures);
    }
    Py_XDECREF(make);
    Py_XDECREF(buffers);
    Py_XDECREF(figures);
    return result;
}

PyDoc_STRVAR(
    trim_doc,
    "trim($self)\n--\n\n"
    "Give unused memory back to the system and return how many bytes that was.\n"
    "\n"
    "What other threads hold ready for themselves stays, up to 5 MiB for each.");

static PyObject *
pool_trim(PyObject *op, PyObject *Py_UNUSED(unused))
{
    PyThreadState *thread = PyEval_SaveThread();
    uint64_t bytes = ftb_arena_trim(((BufferPoolObject *)op)->arena);
    PyEval_RestoreThread(thread);
    return PyLong_FromUnsignedLongLong(bytes);
}

static PyObject *
pool_get_live(PyObject *op, void *Py_UNUSED(closure))
{
    struct ftb_arena_stats stats;
    ftb_arena_stats(((BufferPoolObject *)op)->arena, &stats);
    return PyLong_FromUnsignedLongLong(stats.live_blocks);
}

static PyObject *
pool_get_limit(PyObject *op, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLongLong(pool_limit((BufferPoolObject *)op));
}

static PyObject *
pool_get_name(PyObject *op, void *Py_UNUSED(closure))
{
    return Py_NewRef(((BufferPoolObject *)op)->name);
}

static PyObject *
pool_repr(PyObject *op)
{
    BufferPoolObject *self = (BufferPoolObject *)op;
    struct ftb_arena_stats stats;
    ftb_arena_stats(self->arena, &stats);
    return PyUnicode_FromFormat(
        "<BufferPool %R, %llu live, %llu bytes reserved>", self->name,
        (unsigned long long)stats.live_blocks,
        (unsigned long long)stats.reserved_bytes);
}

/* Takes over no reference. */
static PyObject *
pool_make(uint64_t limit_bytes, PyObject *name)
{
    BufferPoolObject *self = PyObject_New(BufferPoolObject, &ftb_buffer_pool_type);
    if (self == NULL) {
        return NULL;
    }
    self->name = Py_NewRef(name);
    self->weakrefs = NULL;
    self->arena = ftb_arena_new(limit_bytes);
    if (self->arena == NULL) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    return (PyObject *)self;
}

static PyObject *
pool_new(PyTypeObject *Py_UNUSED(type), PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"limit_bytes", "name", NULL};
    Py_ssize_t limit_bytes = 0;
    PyObject *name = NULL;
    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "|$nU:BufferPool", names, &limit_bytes, &name)) {
        return NULL;
    }
    if (limit_bytes < 0) {
        PyErr_Format(PyExc_ValueError, "limit_bytes %zd is negative", limit_bytes);
        return NULL;
    }
    name = name != NULL ? Py_NewRef(name) : PyUnicode_FromString("pool");
    if (name == NULL) {
        return NULL;
    }
    PyObject *pool = pool_make((uint64_t)limit_bytes, name);
    Py_DECREF(name);
    return pool;
}

static void
pool_dealloc(PyObject *op)
{
    BufferPoolObject *self = (BufferPoolObject *)op;
    if (self->weakrefs != NULL) {
        PyObject_ClearWeakRefs(op);
    }
    if (self->arena != NULL) {
        buffer_pool_report(self);
    }
    ftb_arena_free(self->arena);
    Py_DECREF(self->name);
    PyObject_Free(self);
}

PyDoc_STRVAR(
    pool_doc,
    "BufferPool(*, limit_bytes=0, name='pool')\n--\n\n"
    "Make Buffers from memory that is used again, without a lock in the usual case.\n"
    "\n"
    "limit_bytes bounds what the pool holds from the system, memory kept ready and 64\n"
    "bytes per Buffer included; 0 means no limit. Buffers may outlive their pool.\n"
    "\n"
    "Raises ValueError if limit_bytes is negative. Thread-safe.");

static PyMethodDef pool_methods[] = {
    {"allocate", pool_allocate, METH_O, allocate_doc},
    {"from_bytes", pool_from_bytes, METH_O, from_bytes_doc},
    {"stats", pool_stats, METH_NOARGS, stats_doc},
    {"trim", pool_trim, METH_NOARGS, trim_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef pool_getset[] = {
    {"live", pool_get_live, NULL,
     PyDoc_STR("How many Buffers' memory is not yet given back."), NULL},
    {"limit_bytes", pool_get_limit, NULL, PyDoc_STR("The limit; 0: none."), NULL},
    {"name", pool_get_name, NULL, PyDoc_STR("The name given at creation."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyTypeObject ftb_buffer_pool_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "ftbus.BufferPool",
    .tp_basicsize = sizeof(BufferPoolObject),
    .tp_dealloc = pool_dealloc,
    .tp_repr = pool_repr,
    .tp_weaklistoffset = offsetof(BufferPoolObject, weakrefs),
    .tp_methods = pool_methods,
    .tp_getset = pool_getset,
    .tp_new = pool_new,
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = pool_doc,
};

static PyMethodDef module_functions[] = {
    {"watch_buffers", ftb_watch_buffers, METH_O,
     PyDoc_STR("Watch one allocation in so many from now on; 0: none.")},
    {"watched_buffers", (PyCFunction)(void (*)(void))ftb_watched_buffers, METH_FASTCALL,
     PyDoc_STR(
         "What is known of the watched buffers that live: all, a pool's or a\n"
         "bus's, as (serial, size, thread, site, touches).")},
    {NULL, NULL, 0, NULL},
};

/* All threads use this one, so its reference count must not be written: where the
 * count is shared by design, an overflowing count makes an object immortal. */
static int
default_pool_make(void)
{
    PyObject *name = PyUnicode_FromString("default");
    if (name == NULL) {
        return -1;
    }
    default_pool = pool_make(0, name);
    Py_DECREF(name);
#ifdef Py_GIL_DISABLED
    if (default_pool != NULL) {
        Py_SET_REFCNT(default_pool, (Py_ssize_t)UINT32_MAX + 1);
    }
#endif
    return default_pool != NULL ? 0 : -1;
}

int
ftb_buffer_types_ready(PyObject *module)
{
    buffer_decode_init();
    if (PyType_Ready(&ftb_buffer_type) < 0 || PyType_Ready(&ftb_buffer_pool_type) < 0) {
        return -1;
    }
    if (default_pool == NULL && default_pool_make() < 0) {
        return -1;
    }
    if (PyModule_AddFunctions(module, module_functions) < 0
        || PyModule_AddObjectRef(module, "Buffer", (PyObject *)&ftb_buffer_type) < 0
        || PyModule_AddObjectRef(
               module, "BufferPool", (PyObject *)&ftb_buffer_pool_type)
               < 0) {
        return -1;
    }
    return PyModule_AddObjectRef(module, "default_pool", default_pool);
}

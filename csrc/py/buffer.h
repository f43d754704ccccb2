/* Buffer and BufferPool: the arena's blocks as Python objects.
 *
 * Both types are static, so immortal: making a Buffer writes no shared reference count.
 * Any thread may call everything here while it is attached to the interpreter. */
#ifndef FTB_PY_BUFFER_H
#define FTB_PY_BUFFER_H

#include <Python.h>

#include "ftb_arena.h"
#include "ftb_atomic.h"
#include "ftb_base.h"

#include <stdbool.h>

/* A range of a block. Holds one reference to the block until it is released. */
typedef struct {
    PyObject_HEAD
    ftb_block_t *block;  /* written at creation; not followed once released */
    unsigned char *data; /* the first byte; written at creation */
    PyObject *root;      /* strong, or NULL: whose writability this shares; likewise */
    uint32_t generation; /* the block's; written at creation */
    bool is_tracked;     /* by the collector; written as codec is */
    ftb_atomic(Py_ssize_t) length; /* written at creation and by the one freeze */
    ftb_atomic(uint64_t) state;    /* see buffer.c; written by any thread */
    ftb_atomic(Py_hash_t) hash;    /* -1 until known; any thread stores the same */
    PyObject *weakrefs;
    /* See buffer_decode.c. Written by the decoder, if not by who makes the Buffer. */
    ftb_atomic(PyObject *) codec;   /* strong, or NULL; written once */
    ftb_atomic(PyObject *) decoded; /* strong, or NULL; only if there is a codec */
    ftb_atomic(uint64_t) decoder;   /* the thread that is decoding, or 0 */
} BufferObject;

typedef struct {
    PyObject_HEAD
    ftb_arena_t *arena; /* written at creation, given up at dealloc */
    PyObject *name;     /* str; written at creation */
    PyObject *weakrefs;
} BufferPoolObject;

extern PyTypeObject ftb_buffer_type;
extern PyTypeObject ftb_buffer_pool_type;

/* Make the types ready and add Buffer, BufferPool and default_pool to the module. 0,
 * or -1 with an exception set. */
int ftb_buffer_types_ready(PyObject *module);

/* Add what handle.c has to the module, after the above. 0, or -1 with an exception. */
int ftb_handles_ready(PyObject *module);

static inline int
ftb_buffer_check(PyObject *object)
{
    return Py_IS_TYPE(object, &ftb_buffer_type);
}

/* A frozen Buffer with the bytes of a bytes-like object, copied once into a block of
 * the pool (NULL: the default pool). A frozen Buffer is returned itself. New reference,
 * or NULL with TypeError, ArenaLimitError or MemoryError set. */
PyObject *ftb_buffer_from_object(PyObject *pool, PyObject *bytes_like);

/* Another Buffer object over the same bytes, no copy: one for each thread keeps the
 * object's own reference count out of other threads' caches. The argument must be a
 * Buffer. New reference, or NULL with BufferError or MemoryError set. */
PyObject *ftb_buffer_share(PyObject *buffer);

/* Say which codec a frozen Buffer's bytes are of, for decode(), unless that is known. */
void ftb_buffer_set_codec(PyObject *buffer, PyObject *codec);

/* In the child of a fork: forget the threads that were decoding. */
void ftb_buffer_after_fork_child(void);

/* A Buffer over the first ftb_block_length(block) bytes. Steals one reference to the
 * block, also on failure. New reference, or NULL with MemoryError set. */
PyObject *ftb_buffer_wrap(ftb_block_t *block, bool frozen);

/* The same over [start, start + length), which must be within that. */
PyObject *ftb_buffer_wrap_range(
    ftb_block_t *block, Py_ssize_t start, Py_ssize_t length, bool frozen);

/* The arena behind ftbus.default_pool. Lives as long as the process. */
ftb_arena_t *ftb_default_arena(void);

/* A writable Buffer of that many zeros, made in the pool (NULL: the default pool). New
 * reference, or NULL with an exception set. */
PyObject *buffer_pool_zeroed(BufferPoolObject *pool, Py_ssize_t size);

/* A Buffer with a copy of the bytes, made in the pool (NULL: the default pool). New
 * reference, or NULL with an exception set. */
PyObject *buffer_pool_copy(BufferPoolObject *pool, PyObject *bytes_like, bool frozen);

/* Copy n bytes that may overlap, letting other threads run where it takes long. The
 * caller keeps both ends alive. */
void buffer_copy_bytes(unsigned char *to, const void *from, Py_ssize_t n);

/* Between these two the Buffer's bytes stay valid and, for BUFFER_WRITE, writable.
 * buffer_enter returns what was entered, or -1 with BufferError set; the same is passed
 * to buffer_leave. */
enum buffer_use {
    BUFFER_READ = 0,
    BUFFER_WRITE = 1,
    BUFFER_ANY = 2, /* for buffer_enter: write if the Buffer is writable, else read */
};

int buffer_enter(BufferObject *self, enum buffer_use use);

void buffer_leave(BufferObject *self, enum buffer_use use);

/* Whether the bytes can change no more. */
bool buffer_is_frozen(BufferObject *self);

/* buffer_methods.c: what the type's tables name. */
extern PyMethodDef buffer_methods[];
extern PyGetSetDef buffer_getset[];
extern PySequenceMethods buffer_as_sequence;
extern PyMappingMethods buffer_as_mapping;

PyObject *buffer_richcompare(PyObject *op, PyObject *other, int comparison);

Py_hash_t buffer_hash(PyObject *op);

PyObject *buffer_repr(PyObject *op);

/* leak.c: watch_buffers(period), watched_buffers([pool or bus]). */
PyObject *ftb_watch_buffers(PyObject *module, PyObject *period);

PyObject *
ftb_watched_buffers(PyObject *module, PyObject *const *args, Py_ssize_t nargs);

/* The list behind that; 0 for any. */
PyObject *ftb_watched_list(uint64_t arena_serial, uint64_t owner);

/* A pool ends: tell ftbus.buffers of its watched buffers that still live. */
void buffer_pool_report(BufferPoolObject *pool);

/* buffer_decode.c */
void buffer_decode_init(void);

PyObject *buffer_decode(PyObject *op, PyObject *const *args, Py_ssize_t nargs);

PyObject *buffer_get_codec(PyObject *op, void *closure);

/* Drop what was decoded; by the only thread that may still look at it. */
void buffer_forget(BufferObject *self);

int buffer_traverse(PyObject *op, visitproc visit, void *arg);

int buffer_clear(PyObject *op);

/* buffer.c, for the methods. */
PyObject *buffer_freeze(PyObject *op, PyObject *const *args, Py_ssize_t nargs);

PyObject *buffer_release(PyObject *op, PyObject *unused);

/* A Buffer over [start, start + length) of the entered parent's bytes. */
PyObject *buffer_slice(BufferObject *parent, Py_ssize_t start, Py_ssize_t length);

bool buffer_is_released(BufferObject *self);

#endif

/* The Buffer object: its life, its state word, the buffer protocol.
 *
 * Thread rule: one Buffer may be used by any number of threads at once. Its fields are
 * written at creation, except length, state and hash, which are atomic.
 *
 * The state word: three flags, the number of uses under way (exports and running
 * methods) and how many of these may write. Everything that touches the bytes is a use.
 * 1. A use begins only while RELEASED is clear, in the compare-and-swap that counts it.
 *    The Buffer's reference to the block is dropped by whoever makes the word say
 *    "released, no uses": release itself, or the last use's end. That happens once, as
 *    no use begins after it, so no use ever sees recycled bytes.
 * 2. A freeze claims the word (FREEZING) only while no use may write; from then on none
 *    can begin. It then shortens the length and sets FROZEN, in this order, so whoever
 *    sees FROZEN sees the final length and the final bytes.
 * 3. A slice of a writable Buffer shares the bytes, so it shares the writability: its
 *    writing uses are counted in the root's word too, and it is frozen when the root
 *    is. A slice of a frozen Buffer has no root and stands alone. */
#include <Python.h>

#include "buffer.h"
#include "buffer_freelist.h"
#include "ftb_leak.h"

#define RELEASED UINT64_C(1)
#define FREEZING UINT64_C(2)
#define FROZEN UINT64_C(4)
#define USE (UINT64_C(1) << 8)
#define WRITER (UINT64_C(1) << 36)
#define USES_MASK (WRITER - USE)

/* Copies of this size and above let other threads run, and a collection begin. */
#define LONG_COPY_BYTES (1 << 20)

static BufferObject *
root_of(BufferObject *self)
{
    return self->root != NULL ? (BufferObject *)self->root : self;
}

bool
buffer_is_frozen(BufferObject *self)
{
    return (ftb_load_acquire(&root_of(self)->state) & FROZEN) != 0;
}

bool
buffer_is_released(BufferObject *self)
{
    return (ftb_load_acquire(&self->state) & RELEASED) != 0;
}

/* Add to the word unless one of the flags is set; false if one is. */
static bool
state_add_unless(BufferObject *self, uint64_t add, uint64_t flags)
{
    uint64_t state = ftb_load_acquire(&self->state);
    do {
        if ((state & flags) != 0) {
            return false;
        }
    } while (!ftb_cas_acq_rel(&self->state, &state, state + add));
    return true;
}

static bool
enter_to_write(BufferObject *self)
{
    BufferObject *root = root_of(self);
    if (root == self) {
        return state_add_unless(self, USE + WRITER, RELEASED | FREEZING);
    }
    if (!state_add_unless(root, WRITER, FREEZING)) {
        return false;
    }
    if (!state_add_unless(self, USE, RELEASED)) {
        ftb_sub_acq_rel(&root->state, WRITER);
        return false;
    }
    return true;
}

int
buffer_enter(BufferObject *self, enum buffer_use use)
{
    int entered = -1;
    if (use != BUFFER_READ && enter_to_write(self)) {
        entered = BUFFER_WRITE;
    } else if (use != BUFFER_WRITE && state_add_unless(self, USE, RELEASED)) {
        entered = BUFFER_READ;
    }
    if (entered < 0) {
        bool released = buffer_is_released(self);
        PyErr_SetString(
            PyExc_BufferError,
            released ? "the Buffer is released" : "the Buffer is frozen");
        return -1;
    }
    if (ftb__block_gen(self->block) != self->generation) {
        buffer_leave(self, (enum buffer_use)entered);
        PyErr_SetString(
            PyExc_BufferError, "native code released the block of this Buffer");
        return -1;
    }
    if (ftb_leak_is_watched(self->block)) {
        ftb_leak_touch(self->block);
    }
    return entered;
}

static void
drop_if_last(BufferObject *self, uint64_t state)
{
    if ((state & (RELEASED | USES_MASK)) == RELEASED) {
        ftb_block_release(self->block);
        buffer_forget(self);
    }
}

void
buffer_leave(BufferObject *self, enum buffer_use use)
{
    BufferObject *root = root_of(self);
    uint64_t count = USE;
    if (use == BUFFER_WRITE) {
        if (root == self) {
            count += WRITER;
        } else {
            ftb_sub_acq_rel(&root->state, WRITER);
        }
    }
    drop_if_last(self, ftb_sub_acq_rel(&self->state, count) - count);
}

PyObject *
buffer_release(PyObject *op, PyObject *Py_UNUSED(unused))
{
    BufferObject *self = (BufferObject *)op;
    uint64_t before = ftb_or_seq_cst(&self->state, RELEASED);
    if ((before & RELEASED) == 0) {
        drop_if_last(self, before | RELEASED);
    }
    Py_RETURN_NONE;
}

/* Claim the word for the one freeze. 1: claimed, 0: frozen already, -1: exception. */
static int
freeze_claim(BufferObject *self)
{
    uint64_t state = ftb_load_acquire(&self->state);
    do {
        if ((state & RELEASED) != 0) {
            PyErr_SetString(PyExc_BufferError, "the Buffer is released");
            return -1;
        }
        if ((state & FREEZING) != 0) {
            return 0;
        }
        if (state >= WRITER) {
            PyErr_Format(
                PyExc_BufferError, "cannot freeze a Buffer that %llu exports may write",
                (unsigned long long)(state / WRITER));
            return -1;
        }
    } while (!ftb_cas_acq_rel(&self->state, &state, (state + USE) | FREEZING));
    return 1;
}

PyObject *
buffer_freeze(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    BufferObject *self = (BufferObject *)op;
    Py_ssize_t length = ftb_load_acquire(&self->length);
    Py_ssize_t wanted = length;
    if (nargs > 1) {
        PyErr_Format(
            PyExc_TypeError, "freeze() takes at most 1 argument (%zd given)", nargs);
        return NULL;
    }
    if (nargs == 1 && args[0] != Py_None) {
        wanted = PyNumber_AsSsize_t(args[0], PyExc_OverflowError);
        if (wanted == -1 && PyErr_Occurred()) {
            return NULL;
        }
    }
    if (wanted < 0 || wanted > length) {
        PyErr_Format(PyExc_ValueError, "length %zd is not in 0..%zd", wanted, length);
        return NULL;
    }
    if (self->root != NULL) {
        PyErr_SetString(
            PyExc_BufferError, "a slice is frozen with the Buffer it was taken from");
        return NULL;
    }
    int claimed = freeze_claim(self);
    if (claimed < 0) {
        return NULL;
    }
    if (claimed == 0) {
        if (wanted != length) {
            PyErr_SetString(PyExc_BufferError, "the Buffer is frozen");
            return NULL;
        }
        return Py_NewRef(op);
    }
    if (ftb_leak_is_watched(self->block)) {
        ftb_leak_touch(self->block);
    }
    ftb_store_release(&self->length, wanted); /* pairs with the loads of length */
    ftb_or_seq_cst(&self->state, FROZEN);
    buffer_leave(self, BUFFER_READ);
    return Py_NewRef(op);
}

/* Steals one reference to the block, also on failure. */
static PyObject *
buffer_make(
    ftb_block_t *block, unsigned char *data, Py_ssize_t length, bool frozen,
    PyObject *root)
{
    BufferObject *self = buffer_freelist_take();
    if (self == NULL) {
        ftb_block_release(block);
        return NULL;
    }
    self->block = block;
    self->data = data;
    self->root = Py_XNewRef(root);
    self->generation = ftb__block_gen(block);
    ftb_init(&self->length, length);
    ftb_init(&self->state, frozen ? FREEZING | FROZEN : 0);
    ftb_init(&self->hash, -1);
    self->weakrefs = NULL;
    ftb_init(&self->codec, NULL);
    ftb_init(&self->decoded, NULL);
    ftb_init(&self->decoder, 0);
    self->is_tracked = root != NULL;
    if (root != NULL) {
        PyObject_GC_Track(self);
    }
    return (PyObject *)self;
}

PyObject *
ftb_buffer_wrap_range(
    ftb_block_t *block, Py_ssize_t start, Py_ssize_t length, bool frozen)
{
    return buffer_make(block, ftb__block_bytes(block) + start, length, frozen, NULL);
}

PyObject *
ftb_buffer_wrap(ftb_block_t *block, bool frozen)
{
    return ftb_buffer_wrap_range(block, 0, (Py_ssize_t)block->len, frozen);
}

/* The bytes of a frozen Buffer change no more, so the slice needs no root. */
PyObject *
buffer_slice(BufferObject *parent, Py_ssize_t start, Py_ssize_t length)
{
    bool frozen = buffer_is_frozen(parent);
    PyObject *root = frozen ? NULL : (PyObject *)root_of(parent);
    return buffer_make(
        ftb_block_retain(parent->block), parent->data + start, length, frozen, root);
}

PyObject *
ftb_buffer_share(PyObject *op)
{
    BufferObject *self = (BufferObject *)op;
    if (buffer_enter(self, BUFFER_READ) < 0) {
        return NULL;
    }
    PyObject *shared = buffer_slice(self, 0, ftb_load_acquire(&self->length));
    buffer_leave(self, BUFFER_READ);
    return shared;
}

void
buffer_copy_bytes(unsigned char *to, const void *from, Py_ssize_t n)
{
    if (n < LONG_COPY_BYTES) {
        memmove(to, from, (size_t)n);
        return;
    }
    PyThreadState *thread = PyEval_SaveThread();
    memmove(to, from, (size_t)n);
    PyEval_RestoreThread(thread);
}

/* Exports keep this object alive, so at its end there are no uses. */
static void
buffer_dealloc(PyObject *op)
{
    BufferObject *self = (BufferObject *)op;
    if (FTB_UNLIKELY(self->is_tracked)) {
        PyObject_GC_UnTrack(op);
    }
    if (FTB_UNLIKELY(self->weakrefs != NULL)) {
        PyObject_ClearWeakRefs(op);
    }
    if (!buffer_is_released(self)) {
        ftb_block_release(self->block);
    }
    if (FTB_UNLIKELY(self->is_tracked)) {
        buffer_clear(op);
        Py_XDECREF(self->root);
    }
    buffer_freelist_give(self);
}

/* Who asks for the plainest view may not write through it. Every other view of a
 * writable Buffer may be written to, so it counts as a writer until it ends. */
static int
buffer_getbuffer(PyObject *op, Py_buffer *view, int flags)
{
    BufferObject *self = (BufferObject *)op;
    enum buffer_use use = flags == PyBUF_SIMPLE ? BUFFER_READ : BUFFER_ANY;
    if ((flags & PyBUF_WRITABLE) != 0) {
        use = BUFFER_WRITE;
    }
    view->obj = NULL;
    int entered = buffer_enter(self, use);
    if (entered < 0) {
        return -1;
    }
    Py_ssize_t length = ftb_load_acquire(&self->length);
    int readonly = entered == BUFFER_READ;
    if (PyBuffer_FillInfo(view, op, self->data, length, readonly, flags) < 0) {
        buffer_leave(self, (enum buffer_use)entered);
        return -1;
    }
    view->internal = readonly ? NULL : self;
    return 0;
}

static void
buffer_releasebuffer(PyObject *op, Py_buffer *view)
{
    enum buffer_use use = view->internal != NULL ? BUFFER_WRITE : BUFFER_READ;
    buffer_leave((BufferObject *)op, use);
}

static PyObject *
buffer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"data", "readonly", NULL};
    PyObject *data;
    int readonly = 1;
    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "O|p:Buffer", names, &data, &readonly)) {
        return NULL;
    }
    return buffer_pool_copy(NULL, data, readonly != 0);
}

static PyBufferProcs buffer_as_buffer = {
    .bf_getbuffer = buffer_getbuffer,
    .bf_releasebuffer = buffer_releasebuffer,
};

PyDoc_STRVAR(
    buffer_doc,
    "Buffer(data, readonly=True)\n--\n\n"
    "Hold bytes in pooled memory that all readers share without a copy.\n"
    "\n"
    "A pool's allocate() makes one that is writable until freeze(); this constructor\n"
    "copies a bytes-like object into the default pool. Slices share the bytes. The\n"
    "memory goes back to its pool when the last Buffer, slice and export is gone.\n"
    "\n"
    "Raises TypeError if data is not bytes-like, MemoryError if there is no memory.\n"
    "Thread-safe, except that writing the same bytes from two threads is up to them.");

PyTypeObject ftb_buffer_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "ftbus.Buffer",
    .tp_basicsize = sizeof(BufferObject),
    .tp_dealloc = buffer_dealloc,
    .tp_repr = buffer_repr,
    .tp_as_sequence = &buffer_as_sequence,
    .tp_as_mapping = &buffer_as_mapping,
    .tp_as_buffer = &buffer_as_buffer,
    .tp_hash = buffer_hash,
    .tp_richcompare = buffer_richcompare,
    .tp_weaklistoffset = offsetof(BufferObject, weakrefs),
    .tp_methods = buffer_methods,
    .tp_getset = buffer_getset,
    .tp_new = buffer_new,
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_traverse = buffer_traverse,
    .tp_clear = buffer_clear,
    .tp_doc = buffer_doc,
};

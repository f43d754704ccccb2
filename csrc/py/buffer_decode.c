/* What a Buffer's bytes mean: its codec, and the event they decode to, kept.
 *
 * Thread rule: any thread may decode. `decoder` names the thread that is decoding, so
 * that there is one at a time; others wait for what it finds, detached and without a
 * lock. It alone writes codec (once) and decoded; both are read under a use, and what
 * was decoded is dropped after the last use (buffer.c), so no reader can be late.
 *
 * A failure is not kept: it is raised where it happened, and the next caller, one that
 * waited included, decodes for itself. The bytes are the same, but memory, a signal or
 * what the codec looks up may not be. */
#include <Python.h>

#include "buffer.h"
#include "errors.h"
#include "ftb_park.h"

#define SLICE_NS 50000000u
#define IDENT_BITS 48
#define IDENT_MASK ((UINT64_C(1) << IDENT_BITS) - 1)

static struct ftb_waitset waiting; /* for whatever Buffer */
static uint64_t process_n;         /* forks behind us; written in a fork child only */

void
buffer_decode_init(void)
{
    ftb_waitset_init(&waiting);
}

/* Who was decoding in the parent is not here, and will not finish. */
void
ftb_buffer_after_fork_child(void)
{
    process_n++;
    ftb_waitset_init(&waiting);
}

/* This thread as a `decoder`; never 0. */
static uint64_t
decoder_self(void)
{
    return (process_n << IDENT_BITS) | (PyThread_get_thread_ident() & IDENT_MASK);
}

/* Become the decoder unless another thread of this process is. */
static bool
decoder_claim(BufferObject *self, uint64_t *holder)
{
    *holder = 0;
    do {
        if (*holder != 0 && *holder >> IDENT_BITS == process_n) {
            return false;
        }
    } while (!ftb_cas_acq_rel(&self->decoder, holder, decoder_self()));
    return true;
}

static void
decoder_leave(BufferObject *self)
{
    ftb_store_seq_cst(&self->decoder, 0); /* pairs with the load in decoder_wait */
    ftb_waitset_notify(&waiting, true);
}

/* Wait until that holder is done, or for a moment. -1 if a signal's handler raised. */
static int
decoder_wait(BufferObject *self, uint64_t holder)
{
    Py_BEGIN_ALLOW_THREADS uint32_t key = ftb_waitset_prepare(&waiting);
    if (ftb_load_seq_cst(&self->decoder) != holder) {
        ftb_waitset_cancel(&waiting);
    } else {
        enum ftb_result result =
            ftb_waitset_commit(&waiting, key, ftb_now_ns() + SLICE_NS);
        (void)result; /* whatever it says, the caller looks again */
    }
    Py_END_ALLOW_THREADS return PyErr_CheckSignals();
}

/* The codec is only ever given by who has claimed, or made, the Buffer. From now on the
 * collector must see what it refers to. */
static void
codec_set(BufferObject *self, PyObject *codec)
{
    ftb_store_release(&self->codec, Py_NewRef(codec)); /* pairs with buffer_codec */
    if (!self->is_tracked) {
        self->is_tracked = true;
        PyObject_GC_Track(self);
    }
}

static PyObject *
codec_of(BufferObject *self)
{
    return ftb_load_acquire(&self->codec);
}

void
ftb_buffer_set_codec(PyObject *op, PyObject *codec)
{
    BufferObject *self = (BufferObject *)op;
    uint64_t holder;
    if (codec_of(self) == NULL && decoder_claim(self, &holder)) {
        if (codec_of(self) == NULL) {
            codec_set(self, codec);
        }
        decoder_leave(self);
    }
}

PyObject *
buffer_get_codec(PyObject *op, void *Py_UNUSED(closure))
{
    PyObject *codec = codec_of((BufferObject *)op);
    return Py_NewRef(codec != NULL ? codec : Py_None);
}

void
buffer_forget(BufferObject *self)
{
    PyObject *decoded = ftb_load_acquire(&self->decoded);
    if (decoded != NULL) {
        PyObject *error = PyErr_GetRaisedException(); /* finalizers may run */
        ftb_store_release(&self->decoded, NULL);
        Py_DECREF(decoded);
        PyErr_SetRaisedException(error);
    }
}

int
buffer_traverse(PyObject *op, visitproc visit, void *arg)
{
    BufferObject *self = (BufferObject *)op;
    Py_VISIT(self->root);
    Py_VISIT(codec_of(self));
    Py_VISIT(ftb_load_acquire(&self->decoded));
    return 0;
}

/* A root leads to no other Buffer but by what was decoded, so that is enough. */
int
buffer_clear(PyObject *op)
{
    BufferObject *self = (BufferObject *)op;
    PyObject *codec = codec_of(self);
    buffer_forget(self);
    ftb_store_release(&self->codec, NULL);
    Py_XDECREF(codec);
    return 0;
}

/* The codec gets a Buffer of its own over the bytes: a value that keeps it, or is it,
 * refers to that one, and makes no cycle with the one that keeps the value. */
static PyObject *
decode_bytes(BufferObject *self, PyObject *codec)
{
    PyObject *bytes = buffer_slice(self, 0, ftb_load_acquire(&self->length));
    PyObject *method = bytes != NULL ? PyObject_GetAttrString(codec, "decode") : NULL;
    PyObject *value = method != NULL ? PyObject_CallOneArg(method, bytes) : NULL;
    Py_XDECREF(method);
    Py_XDECREF(bytes);
    return value;
}

/* As the decoder: find the value by that codec, the Buffer's own unless it has none, and
 * keep it. A codec that fails does not become its own. */
static PyObject *
decode_claimed(BufferObject *self, PyObject *codec)
{
    PyObject *value = ftb_load_acquire(&self->decoded);
    if (value != NULL) {
        return Py_NewRef(value); /* it came between our look and our claim */
    }
    value = decode_bytes(self, codec);
    if (value != NULL) {
        if (codec_of(self) == NULL) {
            codec_set(self, codec);
        }
        ftb_store_release(
            &self->decoded, Py_NewRef(value)); /* pairs with decode_with */
    }
    return value;
}

/* Whether the Buffer's own codec is another one; once it is, it stays so. */
static bool
is_of_another(BufferObject *self, PyObject *codec)
{
    PyObject *own = codec_of(self);
    return own != NULL && own != codec;
}

/* The value by that codec for a Buffer in use: the one that all share, if the codec is
 * the Buffer's own or becomes it. */
static PyObject *
decode_with(BufferObject *self, PyObject *codec)
{
    for (;;) {
        uint64_t holder;
        if (is_of_another(self, codec)) {
            return decode_bytes(self, codec);
        }
        PyObject *value = ftb_load_acquire(&self->decoded);
        if (value != NULL && !is_of_another(self, codec)) {
            return Py_NewRef(value);
        }
        if (decoder_claim(self, &holder)) {
            bool is_ours = !is_of_another(self, codec); /* none can come from now on */
            value = is_ours ? decode_claimed(self, codec) : NULL;
            decoder_leave(self);
            if (is_ours) {
                return value;
            }
            continue;
        }
        if (holder == decoder_self()) {
            PyErr_SetString(
                PyExc_RecursionError,
                "decode() of a Buffer from within its own decode(): use the bytes the "
                "codec was given");
            return NULL;
        }
        if (decoder_wait(self, holder) < 0) {
            return NULL;
        }
    }
}

/* The codec asked for: new reference, or NULL with an exception set. */
static PyObject *
codec_wanted(BufferObject *self, PyObject *argument)
{
    PyObject *own = codec_of(self);
    if (argument == NULL || argument == Py_None) {
        if (own == NULL) {
            PyErr_SetString(
                PyExc_BufferError,
                "no bus encoded this Buffer: name the codec, as in decode('json')");
        }
        return Py_XNewRef(own);
    }
    PyObject *codecs = PyImport_ImportModule("ftbus.codecs");
    PyObject *found =
        codecs != NULL ? PyObject_CallMethod(codecs, "get", "O", argument) : NULL;
    Py_XDECREF(codecs);
    return found;
}

PyObject *
buffer_decode(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    BufferObject *self = (BufferObject *)op;
    if (nargs > 1) {
        return PyErr_Format(
            PyExc_TypeError, "decode() takes at most 1 argument (%zd given)", nargs);
    }
    if (buffer_enter(self, BUFFER_READ) < 0) {
        return NULL;
    }
    PyObject *value = NULL;
    PyObject *codec = codec_wanted(self, nargs == 1 ? args[0] : NULL);
    if (codec == NULL) {
        goto done;
    }
    if (!buffer_is_frozen(self)) {
        PyErr_SetString(
            PyExc_BufferError, "a writable Buffer cannot be decoded: freeze it first");
        goto done;
    }
    value = decode_with(self, codec);
done:
    Py_XDECREF(codec);
    buffer_leave(self, BUFFER_READ);
    return value;
}

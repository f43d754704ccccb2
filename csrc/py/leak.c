/* Watched buffers: what Python was doing where one was allocated and used.
 *
 * Thread rule: any thread, also one that is not attached to the interpreter; all that can
 * be said of it then is that it runs native code. */
#include <Python.h>

#include "ftb_leak.h"

#include "buffer.h"
#include "bus.h"

#define FRAMES_MAX 12
#define TEXT_MAX 4000

struct text {
    char *bytes;
    size_t length;
};

/* Append "file:line in function" of a frame. */
static void
text_add_frame(struct text *text, PyFrameObject *frame)
{
    PyCodeObject *code = PyFrame_GetCode(frame);
    const char *file = PyUnicode_AsUTF8(code->co_filename);
    const char *name = PyUnicode_AsUTF8(code->co_qualname);
    if (file == NULL || name == NULL) {
        PyErr_Clear();
        file = file != NULL ? file : "?";
        name = "?";
    }
    int n = snprintf(
        text->bytes + text->length, TEXT_MAX - text->length, "%s%s:%d in %s",
        text->length != 0 ? "\n" : "", file, PyFrame_GetLineNumber(frame), name);
    if (n > 0) {
        text->length += (size_t)n;
        text->length = text->length < TEXT_MAX - 1 ? text->length : TEXT_MAX - 1;
    }
    Py_DECREF(code);
}

/* The frames of this thread, innermost first. */
static void
text_add_stack(struct text *text, PyThreadState *thread, int frames_max)
{
    PyFrameObject *frame = PyThreadState_GetFrame(thread);
    for (int i = 0; frame != NULL && i < frames_max; i++) {
        text_add_frame(text, frame);
        PyFrameObject *back = PyFrame_GetBack(frame);
        Py_DECREF(frame);
        frame = back;
    }
    Py_XDECREF(frame);
}

/* The thread's state if it is attached, else NULL. */
static PyThreadState *
thread_state(void)
{
    return PyThreadState_GetUnchecked();
}

static char *
leak_site(bool is_long, uint64_t *thread_id)
{
    struct text text = {ftb_alloc(TEXT_MAX), 0};
    *thread_id = PyThread_get_thread_ident();
    if (text.bytes == NULL) {
        return NULL;
    }
    PyThreadState *thread = thread_state();
    if (thread != NULL) {
        PyObject *error = PyErr_GetRaisedException(); /* a release may run in between */
        text_add_stack(&text, thread, is_long ? FRAMES_MAX : 1);
        PyErr_SetRaisedException(error);
    }
    if (text.length == 0) {
        (void)snprintf(text.bytes, TEXT_MAX, "native code");
        text.length = strlen(text.bytes);
    }
    char *exact = ftb_alloc(text.length + 1); /* many of these are kept */
    if (exact != NULL) {
        memcpy(exact, text.bytes, text.length);
    }
    ftb_free(text.bytes);
    return exact;
}

PyObject *
ftb_watch_buffers(PyObject *module, PyObject *argument)
{
    (void)module;
    unsigned long period = PyLong_AsUnsignedLong(argument);
    if (period == (unsigned long)-1 && PyErr_Occurred()) {
        return NULL;
    }
    if (period > FTB_LEAK_SAMPLE) {
        return PyErr_Format(
            PyExc_ValueError, "period %lu is not in 0..%u", period, FTB_LEAK_SAMPLE);
    }
    ftb_leak_set_period((uint32_t)period, leak_site);
    Py_RETURN_NONE;
}

static PyObject *
text_object(const char *text)
{
    return PyUnicode_DecodeUTF8(
        text != NULL ? text : "?", text != NULL ? (Py_ssize_t)strlen(text) : 1,
        "replace");
}

/* (serial, size, thread, site, touches) */
static PyObject *
leak_object(const struct ftb_leak *leak)
{
    PyObject *touches = PyList_New(0);
    for (uint32_t i = 0; touches != NULL && i < FTB_LEAK_TOUCHES; i++) {
        if (leak->touches[i] == NULL) {
            break;
        }
        PyObject *text = text_object(leak->touches[i]);
        if (text == NULL || PyList_Append(touches, text) < 0) {
            Py_CLEAR(touches);
        }
        Py_XDECREF(text);
    }
    PyObject *site = touches != NULL ? text_object(leak->site) : NULL;
    if (site == NULL) {
        Py_XDECREF(touches);
        return NULL;
    }
    return Py_BuildValue(
        "(KKKNN)", (unsigned long long)leak->serial,
        (unsigned long long)leak->size_bytes, (unsigned long long)leak->thread, site,
        touches);
}

PyObject *
ftb_watched_list(uint64_t arena_serial, uint64_t owner)
{
    struct ftb_leak *leaks;
    size_t n = ftb_leaks(arena_serial, owner, &leaks);
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list != NULL && i < n; i++) {
        PyObject *leak = leak_object(&leaks[i]);
        if (leak == NULL || PyList_Append(list, leak) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(leak);
    }
    ftb_leaks_free(leaks, n);
    return list;
}

/* watched_buffers([pool or bus]) */
PyObject *
ftb_watched_buffers(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    (void)module;
    uint64_t arena_serial = 0, owner = 0;
    if (nargs > 1) {
        return PyErr_Format(PyExc_TypeError, "watched_buffers() takes a pool or a bus");
    }
    if (nargs == 1 && Py_IS_TYPE(args[0], &ftb_buffer_pool_type)) {
        arena_serial = ftb_arena_serial(((BufferPoolObject *)args[0])->arena);
    } else if (nargs == 1 && PyObject_TypeCheck(args[0], &ftb_bus_type)) {
        owner = ((BusObject *)args[0])->core->serial;
    } else if (nargs == 1) {
        return PyErr_Format(
            PyExc_TypeError, "%R is neither a BufferPool nor a bus", args[0]);
    }
    return ftb_watched_list(arena_serial, owner);
}

void
buffer_pool_report(BufferPoolObject *pool)
{
    struct ftb_leak *leaks;
    uint64_t serial = ftb_arena_serial(pool->arena);
    size_t n = ftb_leaks(serial, 0, &leaks);
    ftb_leaks_free(leaks, n);
    if (n == 0 || Py_IsFinalizing()) {
        return;
    }
    PyObject *error = PyErr_GetRaisedException();
    PyObject *list = ftb_watched_list(serial, 0);
    PyObject *buffers = list != NULL ? PyImport_ImportModule("ftbus.buffers") : NULL;
    PyObject *done =
        buffers != NULL
            ? PyObject_CallMethod(buffers, "_report_pool", "OO", pool->name, list)
            : NULL;
    if (done == NULL) {
        PyErr_WriteUnraisable(NULL);
    }
    Py_XDECREF(done);
    Py_XDECREF(buffers);
    Py_XDECREF(list);
    PyErr_SetRaisedException(error);
}

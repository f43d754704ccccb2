/* Encoding an event: by the codec's encode, or in place by its encode_into.
 *
 * Thread rule: any thread. The one thing written is the bus's note of how much room
 * events took lately, and any value of that is good. */
#include <Python.h>

#include "buffer.h"
#include "emit.h"
#include "errors.h"
#include "ftb_leak.h"

#define ROOM_MIN 64

/* CodecError(codec, event, reason) from the exception that is set, or from none. Steals
 * reason, which may be NULL with an exception set. Returns NULL. */
static PyObject *
raise_codec_error(BusObject *bus, PyObject *event, PyObject *reason, PyObject *cause)
{
    if (reason != NULL) {
        ftb_raise("CodecError", Py_BuildValue("(OON)", bus->codec, event, reason));
    }
    PyObject *error = PyErr_GetRaisedException();
    if (error != NULL && cause != NULL) {
        PyException_SetCause(error, Py_NewRef(cause));
        PyException_SetContext(error, Py_NewRef(cause));
    }
    Py_XDECREF(cause);
    PyErr_SetRaisedException(error);
    return NULL;
}

/* Offer what the last events took; less and less if they take less. */
static void
room_note(BusObject *bus, uint64_t room, uint64_t size)
{
    uint64_t next = size > room ? size : room - (room - size + 15) / 16;
    next = next < ROOM_MIN ? ROOM_MIN : next;
    if (next != ftb_load_relaxed(&bus->room)) {
        ftb_store_relaxed(&bus->room, next); /* relaxed: a hint, as is the load */
    }
}

/* Make the bytes final; a codec that still holds on to them is told. Steals buffer. */
static PyObject *
freeze_encoded(BusObject *bus, PyObject *event, PyObject *buffer, PyObject *size)
{
    PyObject *frozen = buffer_freeze(buffer, &size, 1);
    Py_DECREF(buffer);
    if (frozen == NULL && PyErr_ExceptionMatches(PyExc_BufferError)) {
        PyObject *error = PyErr_GetRaisedException();
        PyObject *reason = PyUnicode_FromFormat(
            "encode_into() must leave its buffer as it got it: %S", error);
        return raise_codec_error(bus, event, reason, error);
    }
    return frozen;
}

/* What encode_into returned, as a number of bytes; -1 with CodecError set. */
static Py_ssize_t
parse_encoded_size(BusObject *bus, PyObject *event, PyObject *result)
{
    Py_ssize_t size = PyLong_CheckExact(result) ? PyLong_AsSsize_t(result) : -1;
    if (size < 0) {
        PyErr_Clear();
        PyObject *reason = PyUnicode_FromFormat(
            "encode_into() returned %R, not a number of bytes", result);
        raise_codec_error(bus, event, reason, NULL);
    }
    return size;
}

static PyObject *
encode_in_place(BusObject *bus, PyObject *event)
{
    Py_ssize_t size = 0, room = (Py_ssize_t)ftb_load_relaxed(&bus->room);
    room = room < ROOM_MIN ? ROOM_MIN : room;
    for (int i = 0; i <= BUS_GROWTHS_MAX; i++) {
        PyObject *args[2] = {event, buffer_pool_zeroed(NULL, room)};
        PyObject *result = args[1] != NULL
                               ? PyObject_Vectorcall(bus->encode_into, args, 2, NULL)
                               : NULL;
        size = result != NULL ? parse_encoded_size(bus, event, result) : -1;
        if (size >= 0 && size <= room) {
            room_note(bus, (uint64_t)room, (uint64_t)size);
            PyObject *encoded = freeze_encoded(bus, event, args[1], result);
            Py_DECREF(result);
            return encoded;
        }
        Py_XDECREF(result);
        Py_XDECREF(args[1]);
        if (size < 0) {
            return NULL;
        }
        room = size > 2 * room ? size : 2 * room;
    }
    PyObject *reason = PyUnicode_FromFormat(
        "encode_into() asked for more room %d times in a row, at last for %zd bytes",
        BUS_GROWTHS_MAX + 1, size);
    return raise_codec_error(bus, event, reason, NULL);
}

PyObject *
bus_encode_event(BusObject *bus, PyObject *event)
{
    if (bus->codec == NULL) { /* collected, and used by a finalizer */
        return bus_raise_closed(bus, "encode");
    }
    uint64_t owner = ftb_leak_set_owner(bus->core->serial);
    PyObject *encoded = NULL;
    if (bus->encode_into != NULL) {
        encoded = encode_in_place(bus, event);
    } else {
        PyObject *bytes = PyObject_CallOneArg(bus->encode, event);
        encoded = bytes != NULL ? ftb_buffer_from_object(NULL, bytes) : NULL;
        Py_XDECREF(bytes);
    }
    (void)ftb_leak_set_owner(owner);
    if (encoded != NULL) {
        ftb_buffer_set_codec(encoded, bus->codec);
    }
    return encoded;
}

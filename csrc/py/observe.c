/* Telling observers: only reached while there are some. */
#include "bus.h"
#include "context.h"

void
bus_observe(
    BusObject *bus, const char *what, PyObject *key, PyObject *handler, PyObject *event)
{
    PyObject *error = PyErr_GetRaisedException();
    PyObject *done = PyObject_CallMethod(
        (PyObject *)bus, "_observe", "sOOOO", what, key,
        handler != NULL ? handler : Py_None, event, error != NULL ? error : Py_None);
    if (done == NULL) {
        PyErr_WriteUnraisable((PyObject *)bus);
    }
    Py_XDECREF(done);
    PyErr_SetRaisedException(error);
}

void
bus_observe_dropped(BusObject *bus, const struct ftb_topic *topic, PyObject *payload)
{
    PyObject *key = topic != NULL ? topic->key_object : Py_None;
    bus_observe(bus, "dropped", key, NULL, context_event(payload));
}

PyObject *
bus_set_observed(PyObject *self, PyObject *is_observed)
{
    enum ftb_result result =
        ftb_bus_set_observed(((BusObject *)self)->core, PyObject_IsTrue(is_observed));
    ftb_reclaim();
    if (result != FTB_OK) {
        return PyErr_NoMemory();
    }
    Py_RETURN_NONE;
}

#include "errors.h"

PyObject *
ftb_error_type(const char *name)
{
    PyObject *module = PyImport_ImportModule("ftbus.errors");
    if (module == NULL) {
        return NULL;
    }
    PyObject *type = PyObject_GetAttrString(module, name);
    Py_DECREF(module);
    return type;
}

PyObject *
ftb_raise(const char *name, PyObject *arguments)
{
    if (arguments == NULL) {
        return NULL;
    }
    PyObject *type = ftb_error_type(name);
    PyObject *error = type != NULL ? PyObject_CallObject(type, arguments) : NULL;
    Py_DECREF(arguments);
    if (error != NULL) {
        PyErr_SetObject(type, error);
        Py_DECREF(error);
    }
    Py_XDECREF(type);
    return NULL;
}

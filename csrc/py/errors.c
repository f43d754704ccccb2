#include "errors.h"

/* What ftbus.errors defines: a copy, as the module's own names become None when the
 * interpreter exits, while finalizers may still use a bus. */
static PyObject *errors = NULL;

int
ftb_errors_ready(void)
{
    PyObject *module = PyImport_ImportModule("ftbus.errors");
    PyObject *dict = module != NULL ? PyModule_GetDict(module) : NULL;
    Py_XSETREF(errors, dict != NULL ? PyDict_Copy(dict) : NULL);
    Py_XDECREF(module);
    return errors != NULL ? 0 : -1;
}

PyObject *
ftb_error_type(const char *name)
{
    PyObject *type;
    if (PyDict_GetItemStringRef(errors, name, &type) == 0) {
        PyErr_Format(PyExc_SystemError, "no ftbus.errors.%s", name);
    }
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

#include "args.h"

static int
name_index(const struct args_spec *spec, PyObject *name)
{
    for (int i = 0; i < spec->names_n; i++) {
        if (PyUnicode_EqualToUTF8(name, spec->names[i])) {
            return i;
        }
    }
    return -1;
}

int
args_unpack(
    const struct args_spec *spec, PyObject *const *args, Py_ssize_t nargs,
    PyObject *kwnames, PyObject **out)
{
    if (nargs > spec->positional_n) {
        PyErr_Format(
            PyExc_TypeError, "%s() takes at most %d positional arguments, %zd given",
            spec->method, spec->positional_n, nargs);
        return -1;
    }
    for (int i = 0; i < spec->names_n; i++) {
        out[i] = i < nargs ? args[i] : NULL;
    }
    Py_ssize_t keywords_n = kwnames != NULL ? PyTuple_GET_SIZE(kwnames) : 0;
    for (Py_ssize_t i = 0; i < keywords_n; i++) {
        PyObject *name = PyTuple_GET_ITEM(kwnames, i);
        int ix = name_index(spec, name);
        if (ix < 0 || out[ix] != NULL) {
            PyErr_Format(
                PyExc_TypeError,
                ix < 0 ? "%s() got an unexpected keyword argument %R"
                       : "%s() got multiple values for argument %R",
                spec->method, name);
            return -1;
        }
        out[ix] = args[nargs + i];
    }
    for (int i = 0; i < spec->required_n; i++) {
        if (out[i] == NULL) {
            PyErr_Format(
                PyExc_TypeError, "%s() missing required argument '%s'", spec->method,
                spec->names[i]);
            return -1;
        }
    }
    return 0;
}

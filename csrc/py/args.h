/* Arguments of METH_FASTCALL | METH_KEYWORDS methods. */
#ifndef FTB_PY_ARGS_H
#define FTB_PY_ARGS_H

#include <Python.h>

/* What a method takes: names[0 .. positional_n) by position or name, the rest by name
 * only; the first required_n must be there. */
struct args_spec {
    const char *method;
    const char *const *names;
    int names_n;
    int positional_n;
    int required_n;
};

/* Put borrowed arguments into out[0 .. names_n), NULL where absent. Returns 0, or -1
 * with TypeError. */
int args_unpack(
    const struct args_spec *spec, PyObject *const *args, Py_ssize_t nargs,
    PyObject *kwnames, PyObject **out);

#endif

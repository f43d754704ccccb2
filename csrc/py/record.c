#include "record.h"

int
record_init(
    struct record *record, PyObject *type, const char *const *names, Py_ssize_t n)
{
    if (!PyType_Check(type)) {
        PyErr_Format(PyExc_TypeError, "%R is no class", type);
        return -1;
    }
    struct record found = {.type = (PyTypeObject *)type, .n = n};
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *slot = PyObject_GetAttrString(type, names[i]);
        if (slot == NULL) {
            return -1;
        }
        const PyMemberDef *member = PyObject_TypeCheck(slot, &PyMemberDescr_Type)
                                        ? ((PyMemberDescrObject *)slot)->d_member
                                        : NULL;
        if (member == NULL || member->type != Py_T_OBJECT_EX) {
            PyErr_Format(PyExc_TypeError, "%R has no slot %s", type, names[i]);
            Py_DECREF(slot);
            return -1;
        }
        found.offsets[i] = member->offset;
        Py_DECREF(slot);
    }
    Py_INCREF(found.type);
    Py_XDECREF(record->type);
    *record = found;
    return 0;
}

PyObject *
record_new(const struct record *record, PyObject **values)
{
    PyObject *instance = NULL;
    int is_whole = 1;
    for (Py_ssize_t i = 0; i < record->n; i++) {
        is_whole = is_whole && values[i] != NULL;
    }
    if (is_whole) {
        instance = record->type->tp_alloc(record->type, 0);
    }
    for (Py_ssize_t i = 0; i < record->n; i++) {
        if (instance != NULL) {
            PyObject **slot =
                (PyObject **)(void *)((char *)instance + record->offsets[i]);
            *slot = values[i]; /* nobody else has the instance yet */
        } else {
            Py_XDECREF(values[i]);
        }
    }
    return instance;
}

/* Instances of dataclasses with slots, made without their __init__.
 *
 * A frozen one stores each field through object.__setattr__: two microseconds for the row
 * of a key, of which a reading of the figures has hundreds. */
#ifndef FTB_PY_RECORD_H
#define FTB_PY_RECORD_H

#include <Python.h>

#define RECORD_FIELDS_MAX 16

struct record {
    PyTypeObject *type; /* one reference */
    Py_ssize_t n;
    Py_ssize_t offsets[RECORD_FIELDS_MAX]; /* of the fields in the order of `names` */
};

/* Learn where a class has these fields. 0, or -1 with TypeError if one is no slot. */
int record_init(
    struct record *record, PyObject *type, const char *const *names, Py_ssize_t n);

/* A new instance with these values, whose references it takes, also if it fails. It does
 * if one is NULL, with the exception that is set. */
PyObject *record_new(const struct record *record, PyObject **values);

#endif

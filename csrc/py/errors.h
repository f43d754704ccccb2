/* Exceptions of ours, made from C: the classes live in ftbus/errors.py. */
#ifndef FTB_PY_ERRORS_H
#define FTB_PY_ERRORS_H

#include <Python.h>

/* Import ftbus.errors; before all else here. 0 or -1. */
int ftb_errors_ready(void);

/* A new reference to ftbus.errors.<name>, or NULL with an exception set. */
PyObject *ftb_error_type(const char *name);

/* Raise ftbus.errors.<name>(*arguments); steals the tuple (NULL: an exception is set
 * already and stays). Always returns NULL. */
PyObject *ftb_raise(const char *name, PyObject *arguments);

#endif

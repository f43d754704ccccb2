/* Reading the figures of a bus (stats.c), as far as others need to know. */
#ifndef FTB_PY_STATS_H
#define FTB_PY_STATS_H

#include "bus.h"

extern PyTypeObject ftb_cut_type;

/* The body of _core.set_row_types(). */
PyObject *ftb_set_row_types(PyObject *module, PyObject *args);

/* subscription.c: the callable of a handler, or NULL if its weak target died. */
PyObject *ftb_handler_callable(struct ftb_handler *handler);

#endif

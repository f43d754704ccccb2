/* What module.c lists of gil.c. */
#ifndef FTB_PY_GIL_H
#define FTB_PY_GIL_H

#include <Python.h>

/* True if PYTHON_GIL=0 or -X gil=0 keeps the GIL off in this process for good; False
 * also where that cannot be asked, from Python 3.14 on. New reference. */
PyObject *ftb_gil_is_kept_off(PyObject *module, PyObject *unused);

#endif

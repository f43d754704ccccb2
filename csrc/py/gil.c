/* Whether this process was started so that no import turns the GIL on.
 *
 * Thread rule: any thread; the configuration is written before Python code runs. */
#include <Python.h>

#include "gil.h"

#if defined(Py_GIL_DISABLED) && PY_VERSION_HEX < 0x030E0000
/* Exported by every 3.13, though in no public header. Only this knows of -X gil, of
 * PYTHON_GIL as it was at the start, of -E, and of programs that embed Python. */
extern const PyConfig *_Py_GetConfig(void);

static int
is_kept_off(void)
{
    return _Py_GetConfig()->enable_gil == 0;
}
#else
static int
is_kept_off(void)
{
    return 0;
}
#endif

PyObject *
ftb_gil_is_kept_off(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    return PyBool_FromLong(is_kept_off());
}

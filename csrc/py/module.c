/* ftbus._core: tables only. */
#include <Python.h>

#include "buffer.h"
#include "bus.h"
#include "context.h"
#include "emit.h"
#include "errors.h"
#include "ftb_quiet.h"
#include "gil.h"
#include "key.h"
#include "stats.h"
#include "striped_map.h"

PyObject *ftb_pin_object(PyObject *module, PyObject *object);

PyObject *ftb_live_handlers(PyObject *module, PyObject *unused);

static PyObject *
after_fork_child(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    ftb_reclaim_after_fork_child();
    ftb_quiet_after_fork_child();
    ftb_key_after_fork_child();
    ftb_arena_after_fork_child();
    ftb_buffer_after_fork_child();
    Py_RETURN_NONE;
}

static PyObject *
reclaim(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    return PyLong_FromSize_t(map_drop_waiting() + ftb_reclaim());
}

static PyMethodDef module_methods[] = {
    {"after_fork_child", after_fork_child, METH_NOARGS,
     PyDoc_STR(
         "Make the core usable in a fork's child, where other threads are gone.")},
    {"gil_is_kept_off", ftb_gil_is_kept_off, METH_NOARGS,
     PyDoc_STR("Whether a 3.13t was started with PYTHON_GIL=0 or -X gil=0.")},
    {"live_handlers", ftb_live_handlers, METH_NOARGS,
     PyDoc_STR(
         "How many handlers exist, on all buses; the cancelled ones that an emit\n"
         "or a Subscription still holds included.")},
    {"pin_object", ftb_pin_object, METH_O,
     PyDoc_STR("Let an object of this module live until the process ends.")},
    {"reclaim", reclaim, METH_NOARGS,
     PyDoc_STR("Free what no emit can see any more; return how much is still held.")},
    {"set_row_types", ftb_set_row_types, METH_VARARGS,
     PyDoc_STR("Say what Bus._figures() makes its rows of.")},
    {NULL, NULL, 0, NULL},
};

static int
module_exec(PyObject *module)
{
    PyTypeObject *types[] = {&ftb_bus_type, &ftb_topic_type, &ftb_subscription_type};
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        if (PyModule_AddType(module, types[i]) < 0) {
            return -1;
        }
    }
    if (ftb_errors_ready() < 0 || ftb_emit_ready() < 0 || ftb_key_type_ready(module) < 0
        || ftb_claim_type_ready(module) < 0 || ftb_buffer_types_ready(module) < 0
        || ftb_handles_ready(module) < 0 || ftb_striped_map_type_ready(module) < 0
        || PyType_Ready(&ftb_context_event_type) < 0
        || PyType_Ready(&ftb_cut_type) < 0) {
        return -1;
    }
    if (PyModule_AddIntConstant(module, "ONCE", FTB_HANDLER_ONCE) < 0
        || PyModule_AddIntConstant(module, "WEAK", FTB_HANDLER_WEAK) < 0
        || PyModule_AddIntConstant(module, "ENCODED", FTB_HANDLER_ENCODED) < 0
        || PyModule_AddIntConstant(module, "GROWTHS_MAX", BUS_GROWTHS_MAX) < 0
        || PyModule_AddIntConstant(module, "DEPTH_MAX", FTB_DEPTH_MAX) < 0) {
        return -1;
    }
    return 0;
}

/* Static types belong to one interpreter, so a second gets a clean ImportError. */
static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#ifdef Py_GIL_DISABLED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "ftbus._core",
    .m_doc = PyDoc_STR("The C half of ftbus: map, emit, queue, buffers, counters."),
    .m_size = 0,
    .m_methods = module_methods,
    .m_slots = module_slots,
};

PyMODINIT_FUNC
PyInit__core(void)
{
    return PyModuleDef_Init(&module_def);
}

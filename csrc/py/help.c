/* For the Python side of the dispatcher: running queued work while a handler waits for it,
 * and counting what happens outside the workers. */
#include "bus.h"
#include "context.h"
#include "key.h"

PyObject *
bus_help_one(PyObject *self, PyObject *unused)
{
    (void)unused;
    BusObject *bus = (BusObject *)self;
    if (ftb_load_acquire(&bus->pool) == NULL || bus_executing(bus) == 0) {
        Py_RETURN_FALSE;
    }
    int ran = bus_help(bus);
    return ran < 0 ? NULL : PyBool_FromLong(ran);
}

PyObject *
bus_run_task_here(PyObject *self, PyObject *task)
{
    struct entered entered;
    if (context_enter_empty(&entered) < 0) {
        return NULL;
    }
    bus_run_task((BusObject *)self, task);
    context_exit(&entered);
    Py_RETURN_NONE;
}

PyObject *
bus_is_full(PyObject *self, PyObject *unused)
{
    (void)unused;
    BusObject *bus = (BusObject *)self;
    ftb_pool_t *pool = ftb_load_acquire(&bus->pool);
    return PyBool_FromLong(pool != NULL && ftb_pool_queued(pool) >= bus->queue_size);
}

PyObject *
bus_count_failed(PyObject *self, PyObject *key)
{
    struct ftb_topic *topic = bus_topic_of((BusObject *)self, key);
    struct ftb_thread *thread = topic != NULL ? bus_thread() : NULL;
    struct ftb_cell *cell =
        thread != NULL ? bus_cell((BusObject *)self, thread, topic) : NULL;
    if (cell == NULL) {
        return NULL;
    }
    ftb_count_local(&cell->failed, 1);
    Py_RETURN_NONE;
}

PyObject *
bus_check_key(PyObject *self, PyObject *key)
{
    (void)self;
    struct ftb_object_key unused;
    if (ftb_object_key_of(key, &unused) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

/* For the Python side of the dispatcher: running queued work while a handler waits for it,
 * and counting what happens outside the workers. */
#include "bus.h"
#include "context.h"
#include "emit.h"
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

/* Tally a failure of the handler that calls `target`, if it is subscribed still. */
static void
tally_failed(struct ftb_thread *thread, struct ftb_topic *topic, PyObject *target)
{
    struct ftb_snapshot *snapshot =
        thread->depth < FTB_DEPTH_MAX ? ftb_topic_hold(thread, topic) : NULL;
    if (snapshot == NULL) {
        return;
    }
    for (uint32_t i = 0; i < snapshot->n; i++) {
        struct ftb_handler *handler = ftb_snapshot_handlers(snapshot)[i];
        if (handler->func != target) {
            continue;
        }
        struct ftb_tally *tally = ftb_tally_local(handler, thread);
        if (tally != NULL) { /* a figure is lost without memory */
            ftb_count_local(&tally->failed, 1);
        }
    }
    snapshot_drop(thread, topic, snapshot);
}

PyObject *
bus_count_failed(PyObject *self, PyObject *args)
{
    PyObject *key, *target;
    if (!PyArg_ParseTuple(args, "OO:_count_failed", &key, &target)) {
        return NULL;
    }
    struct ftb_topic *topic = bus_topic_of((BusObject *)self, key);
    struct ftb_thread *thread = topic != NULL ? bus_thread() : NULL;
    struct ftb_cell *cell =
        thread != NULL ? bus_cell((BusObject *)self, thread, topic) : NULL;
    if (cell == NULL) {
        return NULL;
    }
    ftb_count_local(&cell->failed, 1);
    tally_failed(thread, topic, target);
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

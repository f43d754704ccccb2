/* Running the handlers of one event in all its generality: of any kind, timed, observed,
 * along a class's bases, after a failure. emit.c has the short way for the usual case. */
#include "emit.h"

#include "context.h"
#include "errors.h"

/* One call has ended, with a result or an exception. */
static int
handler_done(struct delivery *delivery, struct ftb_handler *handler, PyObject *result)
{
    int has_failed = result == NULL;
    delivery->stamp_ns = timing_called(
        delivery->thread, delivery->cell, handler, has_failed, delivery->stamp_ns);
    bus_observe_result(delivery->bus, handler, delivery->event, result);
    delivery->handled_n++;
    Py_XDECREF(result);
    return has_failed ? delivery_failed(delivery, handler) : 0;
}

int
snapshot_run_any(struct delivery *delivery, struct ftb_snapshot *snapshot, uint32_t i)
{
    for (; i < snapshot->n; i++) {
        struct ftb_handler *handler = ftb_snapshot_handlers(snapshot)[i];
        int skip = i > 0 && ftb_load_acquire(&handler->state) == FTB_HANDLER_CANCELLED;
        PyObject *result = NULL;
        if (!skip) {
            result = delivery_call_special(delivery, handler, &skip);
        }
        if (!skip && handler_done(delivery, handler, result) < 0) {
            return -1;
        }
    }
    return 0;
}

int
snapshot_run_rest(
    struct delivery *delivery, struct ftb_snapshot *snapshot, uint32_t i,
    int has_raised)
{
    /* Not a whole run, or not of the handlers there are now: tallied one by one. */
    for (uint32_t k = 0; k < i; k++) {
        struct ftb_handler *handler = ftb_snapshot_handlers(snapshot)[k];
        (void)timing_called(delivery->thread, delivery->cell, handler, 0, 0);
    }
    delivery->handled_n += i;
    if (has_raised) {
        if (handler_done(delivery, ftb_snapshot_handlers(snapshot)[i], NULL) < 0) {
            return -1;
        }
        i++;
    }
    return snapshot_run_any(delivery, snapshot, i);
}

static PyObject *
raise_too_deep(BusObject *bus, PyObject *key)
{
    return ftb_raise("EmitDepthError", Py_BuildValue("(OOi)", bus, key, FTB_DEPTH_MAX));
}

void
reclaim_replaced(void)
{
    PyObject *error = PyErr_GetRaisedException(); /* finalizers may run */
    ftb_reclaim();
    PyErr_SetRaisedException(error);
}

Py_ssize_t
topic_done(
    struct delivery *delivery, struct ftb_topic *topic,
    const struct ftb_snapshot *snapshot, const struct delivery *before, int stopped)
{
    struct ftb_cell *cell = delivery->cell;
    snapshot_drop(delivery->thread, topic, snapshot);
    uint64_t handled_n = delivery->handled_n - before->handled_n;
    ftb_count_local(&cell->handled, handled_n);
    ftb_count_local(&cell->failed, delivery->failed_n - before->failed_n);
    ftb_count_local(&cell->given, delivery->given_n - before->given_n);
    if (delivery->encoded != before->encoded && delivery->encoded != delivery->event) {
        ftb_count_local(&cell->encoded, 1);
    }
    return stopped < 0 ? -1 : (Py_ssize_t)handled_n;
}

/* Whether the snapshot's handlers can be called by snapshot_run_plain. */
static int
is_plain(const struct delivery *delivery, const struct ftb_snapshot *snapshot)
{
    return (snapshot->flags & ~FTB_SNAPSHOT_TIMINGS) == 0 && delivery->stamp_ns == 0;
}

/* One topic's handlers, bases not included, counted under that topic. */
static Py_ssize_t
run_topic(struct delivery *delivery, struct ftb_topic *topic, struct ftb_thread *thread)
{
    if (FTB_UNLIKELY(thread->depth >= FTB_DEPTH_MAX)) {
        raise_too_deep(delivery->bus, topic->key_object);
        return -1;
    }
    struct ftb_cell *cell = bus_cell(delivery->bus, thread, topic);
    struct ftb_snapshot *snapshot = cell != NULL ? ftb_topic_hold(thread, topic) : NULL;
    if (snapshot == NULL) {
        return cell != NULL ? 0 : -1;
    }
    delivery->thread = thread;
    delivery->cell = cell;
    struct delivery before = *delivery;
    int stopped = 0;
    if (FTB_LIKELY(is_plain(delivery, snapshot))) {
        PyObject *result;
        ftb_tally_sync(thread, cell, snapshot);
        uint32_t i;
        PyObject *event = delivery->event;
        if (FTB_LIKELY(snapshot_run_plain(topic, snapshot, event, &i, &result))) {
            delivery->handled_n += i;
            ftb_tally_run_local(cell);
        } else {
            stopped = snapshot_run_rest(delivery, snapshot, i, result == NULL);
        }
    } else {
        stopped = snapshot_run_any(delivery, snapshot, 0);
    }
    return topic_done(delivery, topic, snapshot, &before, stopped);
}

/* The rest of delivery_run_posted, as emit_rest. */
static FTB_NOINLINE void
posted_rest(
    struct delivery *delivery, struct ftb_topic *topic, struct ftb_snapshot *snapshot,
    uint32_t i, int has_raised)
{
    struct delivery before = *delivery;
    int stopped = snapshot_run_rest(delivery, snapshot, i, has_raised);
    if (topic_done(delivery, topic, snapshot, &before, stopped) < 0) {
        PyObject *error = PyErr_GetRaisedException();
        bus_report_failure(delivery->bus, error, topic->key_object, NULL);
    }
    delivery_fini(delivery);
}

int
delivery_run_posted(BusObject *bus, struct ftb_topic *topic, PyObject *event)
{
    struct ftb_thread *thread = ftb_thread_current();
    struct ftb_cell *cell =
        thread != NULL ? ftb_shard_cell_try_local(thread->shard, ftb_topic_id(topic))
                       : NULL;
    if (FTB_UNLIKELY(
            cell == NULL || thread->depth >= FTB_DEPTH_MAX || context_is_with(event))) {
        return 0;
    }
    struct ftb_snapshot *snapshot = ftb_topic_hold(thread, topic);
    if (FTB_UNLIKELY(snapshot == NULL)) {
        return 0;
    }
    if (FTB_UNLIKELY((snapshot->flags & ~FTB_SNAPSHOT_TIMINGS) != 0)) {
        ftb_hazard_drop(thread);
        return 0;
    }
    PyObject *result;
    uint32_t i;
    ftb_tally_sync(thread, cell, snapshot);
    if (FTB_LIKELY(snapshot_run_plain(topic, snapshot, event, &i, &result))) {
        ftb_hazard_drop(thread);
        ftb_count_local(&cell->handled, i);
        ftb_tally_run_local(cell);
    } else {
        struct delivery delivery = {
            .bus = bus, .event = event, .thread = thread, .cell = cell};
        posted_rest(&delivery, topic, snapshot, i, result == NULL);
    }
    ftb_count_local(&cell->delivered, 1);
    return 1;
}

Py_ssize_t
delivery_run_bases(struct delivery *delivery, PyObject *class)
{
    struct ftb_thread *thread = bus_thread();
    PyObject *mro = PyObject_GetAttrString(class, "__mro__");
    if (thread == NULL || mro == NULL || !PyTuple_Check(mro)) {
        Py_XDECREF(mro);
        return -1;
    }
    Py_ssize_t ran_n = 0;
    for (Py_ssize_t i = 1; i < PyTuple_GET_SIZE(mro); i++) { /* 0 is class itself */
        PyObject *base = PyTuple_GET_ITEM(mro, i);
        struct ftb_topic *topic;
        int found = base == (PyObject *)&PyBaseObject_Type
                        ? 0
                        : bus_topic_find(delivery->bus, base, &topic);
        Py_ssize_t n = found > 0 ? run_topic(delivery, topic, thread) : found;
        if (n < 0) {
            ran_n = -1;
            break;
        }
        ran_n += n;
    }
    Py_DECREF(mro);
    return ran_n;
}

Py_ssize_t
delivery_run(struct delivery *delivery, struct ftb_topic *topic)
{
    struct ftb_thread *thread = bus_thread();
    if (thread == NULL) {
        return -1;
    }
    Py_ssize_t n = run_topic(delivery, topic, thread);
    if (FTB_LIKELY(topic->entry.key.kind != FTB_KEY_CLASS) || n < 0) {
        return n;
    }
    Py_ssize_t more = delivery_run_bases(delivery, topic->key_object);
    return more < 0 ? -1 : n + more;
}

void
delivery_fini(struct delivery *delivery)
{
    Py_CLEAR(delivery->encoded);
    Py_CLEAR(delivery->unencodable);
    Py_CLEAR(delivery->errors);
}

/* One posted event whose handlers idle workers share: each runs some, whoever is last ends
 * it. csrc/core/ftb_fan.h says who may touch what. */
#include "context.h"
#include "emit.h"

/* What may be set in a snapshot whose handlers are shared out. */
#define FTB_FAN_FLAGS ((uint32_t)(FTB_SNAPSHOT_TIMINGS | FTB_SNAPSHOT_OBSERVED))

struct fan_work {
    BusObject *bus; /* its workers hold it */
    struct ftb_topic *topic;
    PyObject *payload; /* strong; the event, perhaps with its context */
    uint32_t n;
    int is_timed;
    struct ftb_handler *handlers[]; /* one reference each */
};

/* Written before the work is shared; then read only. */
static struct fan_work *
fan_work_copy(BusObject *bus, struct ftb_topic *topic, struct ftb_snapshot *snapshot)
{
    struct fan_work *work =
        PyMem_RawMalloc(sizeof *work + snapshot->n * sizeof work->handlers[0]);
    if (work == NULL) {
        return NULL; /* then it is not shared */
    }
    *work = (struct fan_work){.bus = bus, .topic = topic, .n = snapshot->n};
    for (uint32_t i = 0; i < work->n; i++) {
        work->handlers[i] = ftb_snapshot_handlers(snapshot)[i];
        ftb_handler_retain(work->handlers[i]);
    }
    return work;
}

struct fan_work *
fan_work_new(
    BusObject *bus, struct ftb_topic *topic, PyObject *payload, int is_timed,
    uint32_t *n)
{
    struct fan_work *work = NULL;
    struct ftb_thread *thread = ftb_thread_current();
    if (thread == NULL || thread->depth >= FTB_DEPTH_MAX) {
        return NULL;
    }
    struct ftb_snapshot *snapshot = ftb_topic_hold(thread, topic);
    if (snapshot == NULL) {
        return NULL;
    }
    uint32_t special = snapshot->flags & ~FTB_FAN_FLAGS;
    if (special == 0 && snapshot->n > 1 && snapshot->n <= FTB_FAN_MAX) {
        work = fan_work_copy(bus, topic, snapshot);
    }
    snapshot_drop(thread, topic, snapshot);
    if (work != NULL) {
        work->is_timed = is_timed;
        work->payload = payload;
        *n = work->n;
    }
    return work;
}

/* Call the handler unless it was cancelled since, under a hold for cancel(wait=True). */
static void
run_handler(
    struct fan_work *work, struct ftb_handler *handler, struct ftb_thread *thread,
    struct ftb_cell *cell)
{
    struct ftb_snapshot *snapshot = ftb_topic_hold(thread, work->topic);
    if (snapshot == NULL) {
        return; /* all are cancelled */
    }
    /* acquire: what the canceller did comes before what is skipped here. */
    if (ftb_load_acquire(&handler->state) != FTB_HANDLER_CANCELLED) {
        PyObject *event = work->payload, *result = NULL;
        struct entered entered;
        uint64_t start_ns = work->is_timed ? ftb_now_ns() : 0;
        if (context_enter(&event, &entered) == 0) {
            struct ftb_call call = {handler->func, handler->self};
            if (bus_is_observed(work->bus)) {
                bus_observe(
                    work->bus, "started", work->topic->key_object, handler->callable,
                    event);
            }
            result = call_handler(&call, event);
        }
        (void)timing_called(thread, cell, handler, result == NULL, start_ns);
        bus_observe_result(work->bus, handler, event, result);
        struct delivery delivery = {.bus = work->bus, .event = event};
        ftb_count_local(&cell->handled, 1);
        if (result == NULL) {
            ftb_count_local(&cell->failed, 1);
            (void)delivery_failed(&delivery, handler); /* reported: it has no caller */
        }
        Py_XDECREF(result);
        context_exit(&entered);
    }
    snapshot_drop(thread, work->topic, snapshot);
}

void
fan_work_run(struct fan_work *work, uint32_t ix)
{
    struct ftb_thread *thread = bus_thread();
    struct ftb_cell *cell =
        thread != NULL ? bus_cell(work->bus, thread, work->topic) : NULL;
    if (cell == NULL) {
        bus_report_failure(
            work->bus, PyErr_GetRaisedException(), work->topic->key_object,
            work->handlers[ix]->callable);
        return;
    }
    run_handler(work, work->handlers[ix], thread, cell);
}

void
fan_work_end(struct fan_work *work)
{
    bus_count_done(work->bus, work->topic, 0);
    Py_DECREF(work->payload);
    for (uint32_t i = 0; i < work->n; i++) {
        ftb_handler_release(work->handlers[i]);
    }
    PyMem_RawFree(work);
}

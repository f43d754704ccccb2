/* The workers: running what is queued, waiting, stopping. */
#include "bus.h"
#include "context.h"
#include "emit.h"
#include "errors.h"

#define SLICE_NS 50000000u
/* The most there can be: 32 MiB of which only what is used is touched. Two partitions fall
 * on one with a chance of 2**-20; then they wait for each other. */
#define STRANDS_N FTB_POOL_MAX_STRANDS

/* Events run while a handler waits nest on its stack; the rest of the depth is theirs. */
#define HELP_DEPTH_MAX (FTB_DEPTH_MAX / 2)

/* The batches this thread has open, innermost first; on its stack. */
struct executing {
    struct executing *outer;
    BusObject *bus;
    struct ftb_batch *batch;
    uint32_t worker_ix; /* FTB_NO_WORKER: help by a thread that waits */
};
static FTB_TLS struct executing *executing_top = NULL;

uint32_t
bus_executing(BusObject *bus)
{
    uint32_t n = 0;
    for (struct executing *e = executing_top; e != NULL; e = e->outer) {
        n += e->bus == bus ? ftb_pool_own_n(e->batch) : 0;
    }
    return n;
}

/* Events of this bus that cannot run before the handlers that this thread is in return:
 * those it executes itself, and those behind them in their partitions. */
static uint32_t
bus_held_up(BusObject *bus)
{
    uint32_t n = 0;
    for (struct executing *e = executing_top; e != NULL; e = e->outer) {
        n += e->bus == bus ? ftb_pool_own_n(e->batch) + ftb_pool_behind(e->batch) : 0;
    }
    return n;
}

uint32_t
bus_unstarted(BusObject *bus)
{
    uint32_t n = 0;
    for (struct executing *e = executing_top; e != NULL; e = e->outer) {
        n += e->bus == bus ? ftb_pool_unclaimed_n(e->batch) : 0;
    }
    return n;
}

void
bus_count_done(BusObject *bus, struct ftb_topic *topic, int was_dropped)
{
    struct ftb_thread *thread = bus_thread();
    struct ftb_cell *cell = thread != NULL ? bus_cell(bus, thread, topic) : NULL;
    if (cell == NULL) {
        PyErr_WriteUnraisable((PyObject *)bus); /* one event's count is lost, loudly */
        return;
    }
    ftb_count_local(was_dropped ? &cell->dropped : &cell->delivered, 1);
}

void
bus_count_partitioned(BusObject *bus, enum partition_step step)
{
    struct ftb_thread *thread = ftb_thread_current();
    struct ftb_cell *cell =
        thread != NULL ? ftb_shard_cell_local(thread->shard, bus->core->own_id) : NULL;
    if (cell != NULL) { /* a figure is lost without memory, no event */
        ftb_count_local(
            step == PARTITION_POSTED    ? &cell->posted
            : step == PARTITION_STARTED ? &cell->delivered
                                        : &cell->dropped,
            1);
    }
}

void
bus_drop_item(BusObject *bus, struct ftb_item *item)
{
    PyObject *payload = item->payload;
    bus_count_done(bus, item->target, 1);
    if ((item->stamp_ns & ITEM_HAS_PARTITION) != 0) {
        bus_count_partitioned(bus, PARTITION_DROPPED);
    }
    if (bus_is_observed(bus)) {
        bus_observe_dropped(bus, item->target, payload);
    }
    if (item->target == NULL) {
        PyObject *told = PyObject_CallMethod(payload, "dropped", NULL);
        if (told == NULL) {
            PyErr_WriteUnraisable(payload);
        }
        Py_XDECREF(told);
    }
    Py_DECREF(payload);
}

void
bus_run_task(BusObject *bus, PyObject *task)
{
    PyObject *result = PyObject_CallNoArgs(task);
    if (result == NULL) {
        PyObject *error = PyErr_GetRaisedException();
        bus_note_failure(bus, error, Py_None, task);
        PyObject *told = PyObject_CallMethod(task, "failed", "O", error);
        if (told == NULL) {
            PyErr_WriteUnraisable(task);
        }
        Py_XDECREF(told);
        bus_report_failure(bus, error, Py_None, task);
    }
    Py_XDECREF(result);
}

/* A posted event was taken out of the queue. Returns the time if it is timed, else 0. */
static uint64_t
item_started(struct executing *frame, struct ftb_item *item)
{
    BusObject *bus = frame->bus;
    struct ftb_thread *thread = ftb_thread_current();
    int has_partition = (item->stamp_ns & ITEM_HAS_PARTITION) != 0;
    uint64_t posted_ns = item->stamp_ns & ~ITEM_HAS_PARTITION;
    if (has_partition) {
        bus_count_partitioned(bus, PARTITION_STARTED);
    }
    if (FTB_LIKELY(posted_ns == 0) || thread == NULL) {
        return 0;
    }
    struct ftb_cell *cell = bus_cell(bus, thread, item->target);
    if (cell == NULL) {
        PyErr_Clear(); /* then it is not timed */
        return 0;
    }
    return timing_waited(bus, thread, cell, posted_ns, has_partition);
}

static void
count_unheard(BusObject *bus, struct ftb_topic *topic)
{
    struct ftb_thread *thread = ftb_thread_current(); /* there is one: it has run */
    struct ftb_cell *cell = bus_cell(bus, thread, topic);
    if (cell != NULL) {
        ftb_count_local(&cell->unheard, 1);
    }
    PyErr_Clear();
}

static void
run_event(BusObject *bus, struct ftb_topic *topic, PyObject *event, uint64_t start_ns)
{
    struct entered entered;
    int result = context_enter(&event, &entered);
    struct delivery delivery = {.bus = bus, .event = event, .stamp_ns = start_ns};
    Py_ssize_t ran_n = result < 0 ? -1 : delivery_run(&delivery, topic);
    if (ran_n == 0) {
        count_unheard(bus, topic);
    } else if (ran_n < 0) {
        bus_report_failure(bus, PyErr_GetRaisedException(), topic->key_object, NULL);
    }
    delivery_fini(&delivery);
    context_exit(&entered);
}

/* Share the event's handlers with idle workers and run those that they leave. Returns
 * whether it did: then the event is theirs as much as ours. */
static int
run_shared(struct executing *frame, struct ftb_item *item, uint64_t start_ns)
{
    ftb_pool_t *pool =
        ftb_load_relaxed(&frame->bus->pool); /* set before it has workers */
    uint32_t worker_ix = frame->worker_ix, n, ix;
    if (worker_ix == FTB_NO_WORKER || frame->batch->strand != NULL
        || !ftb_pool_wants_fan(pool, worker_ix)) {
        return 0;
    }
    struct fan_work *work =
        fan_work_new(frame->bus, item->target, item->payload, start_ns != 0, &n);
    if (work == NULL) {
        return 0;
    }
    ftb_pool_fan_open(pool, worker_ix, work, n);
    while (ftb_pool_fan_claim(pool, worker_ix, &ix)) {
        fan_work_run(work, ix);
        if (ftb_pool_fan_done(pool, worker_ix, NULL)) {
            fan_work_end(work);
            break;
        }
    }
    return 1;
}

/* A share of another worker's event. */
static void
run_share(struct executing *frame)
{
    ftb_pool_t *pool = ftb_load_relaxed(&frame->bus->pool); /* as above */
    struct fan_work *work = frame->batch->items[0].payload;
    fan_work_run(work, frame->batch->fan_ix);
    if (ftb_pool_fan_done(pool, frame->worker_ix, frame->batch)) {
        fan_work_end(work);
    }
}

/* Run the next item that nobody has claimed. Returns whether there was one. */
static int
run_next(struct executing *frame)
{
    uint32_t ix;
    if (!ftb_pool_claim(frame->batch, &ix)) {
        return 0;
    }
    if (frame->batch->fan != NULL) {
        run_share(frame);
        return 1;
    }
    struct ftb_item *item = &frame->batch->items[ix];
    BusObject *bus = frame->bus;
    if (FTB_UNLIKELY(ftb_load_acquire(&bus->core->is_closed))) {
        bus_drop_item(bus, item); /* its handlers are gone */
        return 1;
    }
    uint64_t start_ns = FTB_LIKELY(item->stamp_ns == 0) ? 0 : item_started(frame, item);
    if (item->target != NULL && run_shared(frame, item, start_ns)) {
        return 1;
    }
    if (FTB_LIKELY(
            item->target != NULL && start_ns == 0
            && delivery_run_posted(bus, item->target, item->payload))) {
        Py_DECREF((PyObject *)item->payload);
        return 1;
    }
    if (item->target != NULL) {
        run_event(bus, item->target, item->payload, start_ns);
    } else {
        bus_run_task(bus, item->payload);
    }
    bus_count_done(bus, item->target, 0);
    Py_DECREF((PyObject *)item->payload);
    return 1;
}

static void
run_batch(BusObject *bus, uint32_t worker_ix, struct ftb_batch *batch)
{
    struct executing frame = {executing_top, bus, batch, worker_ix};
    executing_top = &frame;
    while (run_next(&frame)) {
    }
    executing_top = frame.outer;
}

/* Run the next item of a batch that this thread has open further out. Those of a
 * partition are not for this: they start after the one that is running has ended. */
static int
help_own_batches(BusObject *bus)
{
    for (struct executing *e = executing_top; e != NULL; e = e->outer) {
        if (e->bus == bus && e->batch->strand == NULL && run_next(e)) {
            return 1;
        }
    }
    return 0;
}

/* Let no other worker take what this thread has not started. */
static void
keep_own_batches(BusObject *bus)
{
    for (struct executing *e = executing_top; e != NULL; e = e->outer) {
        if (e->bus == bus) {
            ftb_pool_keep(e->batch);
        }
    }
}

int
bus_help(BusObject *bus)
{
    struct ftb_batch batch;
    ftb_pool_t *pool = ftb_load_acquire(&bus->pool);
    struct ftb_thread *thread = bus_thread();
    if (thread == NULL) {
        return -1;
    }
    if (thread->depth > HELP_DEPTH_MAX) {
        return 0;
    }
    if (Py_EnterRecursiveCall(" while a handler waits for its own bus")) {
        return -1;
    }
    struct entered entered; /* what runs here does not see the waiting one's context */
    int ran = context_enter_empty(&entered);
    if (ran == 0) {
        ran = help_own_batches(bus);
    }
    if (ran == 0 && ftb_pool_take_one(pool, &batch) > 0) {
        ran = 1;
        run_batch(bus, FTB_NO_WORKER, &batch);
        ftb_pool_finish(pool, FTB_NO_WORKER, &batch);
    }
    context_exit(&entered);
    Py_LeaveRecursiveCall();
    return ran;
}

/* _start_pool(cache_of, node_of): bytes of one uint32_t per worker, or None for both. */
PyObject *
bus_start_pool(PyObject *self, PyObject *args)
{
    BusObject *bus = (BusObject *)self;
    const char *cache_of, *node_of;
    Py_ssize_t cache_bytes, node_bytes;
    if (!PyArg_ParseTuple(
            args, "z#z#:_start_pool", &cache_of, &cache_bytes, &node_of, &node_bytes)) {
        return NULL;
    }
    Py_ssize_t wanted_bytes = (Py_ssize_t)(bus->workers_n * sizeof(uint32_t));
    if ((cache_of != NULL && cache_bytes != wanted_bytes)
        || (node_of != NULL && node_bytes != wanted_bytes)) {
        return PyErr_Format(PyExc_ValueError, "_start_pool() takes one per worker");
    }
    if (ftb_load_acquire(&bus->pool) != NULL) {
        Py_RETURN_NONE; /* a finalizer that ran in between has posted */
    }
    struct ftb_pool_options options = {
        .workers_n = bus->workers_n,
        .queue_size = bus->queue_size,
        .strands_n = STRANDS_N,
        .spin_ns = bus->spin_ns,
        .linger_ns = bus->linger_ns,
        .cache_of = (const uint32_t *)(const void *)cache_of,
        .node_of = (const uint32_t *)(const void *)node_of,
    };
    ftb_pool_t *pool = ftb_pool_new(&options);
    if (pool == NULL) {
        return PyErr_NoMemory();
    }
    ftb_store_seq_cst(&bus->pool, pool);
    Py_RETURN_NONE;
}

/* _work(index, touches): the loop of one worker. */
PyObject *
bus_work(PyObject *self, PyObject *args)
{
    BusObject *bus = (BusObject *)self;
    ftb_pool_t *pool = ftb_load_acquire(&bus->pool);
    unsigned int worker_ix;
    int touches;
    if (!PyArg_ParseTuple(args, "Ip:_work", &worker_ix, &touches)) {
        return NULL;
    }
    if (pool == NULL || worker_ix >= bus->workers_n) {
        return PyErr_Format(PyExc_ValueError, "no worker %u", worker_ix);
    }
    if (touches) {
        ftb_pool_touch(pool, worker_ix);
    }
    struct ftb_batch batch;
    enum ftb_result result = FTB_OK;
    while (result != FTB_CLOSED) {
        while (ftb_pool_take(pool, worker_ix, &batch) > 0) {
            ftb_pool_offer(pool, worker_ix, &batch);
            run_batch(bus, worker_ix, &batch);
            ftb_pool_finish(pool, worker_ix, &batch);
            /* Also a point where the collector may stop this thread: handlers written
             * in C reach none of their own. */
            Py_BEGIN_ALLOW_THREADS ftb_pool_linger(pool, worker_ix);
            Py_END_ALLOW_THREADS
        }
        Py_BEGIN_ALLOW_THREADS result =
            ftb_pool_wait_work(pool, worker_ix, FTB_FOREVER);
        Py_END_ALLOW_THREADS
    }
    Py_RETURN_NONE;
}

int
bus_timeout_ns(PyObject *seconds, uint64_t *timeout_ns)
{
    *timeout_ns = FTB_FOREVER;
    if (seconds == NULL || seconds == Py_None) {
        return 0;
    }
    double value = PyFloat_AsDouble(seconds);
    if (!(value >= 0)) {
        PyErr_Clear(); /* -1.0: it may be no number */
        ftb_raise(
            "InvalidOptionError",
            Py_BuildValue("(sOs)", "timeout", seconds, "0 or more seconds"));
        return -1;
    }
    if (value < 1e9) {
        *timeout_ns = (uint64_t)(value * 1e9);
    }
    return 0;
}

PyObject *
bus_drain(PyObject *self, PyObject *timeout)
{
    BusObject *bus = (BusObject *)self;
    ftb_pool_t *pool = ftb_load_acquire(&bus->pool);
    uint64_t timeout_ns;
    if (bus_timeout_ns(timeout, &timeout_ns) < 0) {
        return NULL;
    }
    if (pool == NULL) {
        Py_RETURN_TRUE;
    }
    uint64_t deadline_ns = bus_deadline_ns(timeout_ns);
    for (;;) {
        enum ftb_result result;
        int helped = bus_executing(bus) > 0 ? bus_help(bus) : 0;
        if (helped < 0) {
            return NULL;
        }
        if (helped == 0 || bus_unstarted(bus) == 0) {
            /* Nothing may be taken out of what counts as own while it is left out: what
             * is left by now, at the end of the stack, stays here. */
            keep_own_batches(bus);
            uint32_t own_n = bus_held_up(bus); /* may have become more */
            uint64_t until_ns = helped > 0 ? 0 : ftb_now_ns() + SLICE_NS;
            until_ns = until_ns < deadline_ns ? until_ns : deadline_ns;
            Py_BEGIN_ALLOW_THREADS result =
                ftb_pool_wait_drained(pool, own_n, until_ns);
            Py_END_ALLOW_THREADS if (result != FTB_TIMEOUT)
            {
                return PyBool_FromLong(result == FTB_OK);
            }
        }
        if (PyErr_CheckSignals() < 0) {
            return NULL;
        }
        if (ftb_now_ns() >= deadline_ns) {
            Py_RETURN_FALSE;
        }
    }
}

PyObject *
bus_drop_queued(PyObject *self, PyObject *unused)
{
    (void)unused;
    BusObject *bus = (BusObject *)self;
    ftb_pool_t *pool = ftb_load_acquire(&bus->pool);
    struct ftb_item item;
    Py_ssize_t dropped_n = 0;
    while (pool != NULL && ftb_pool_evict(pool, &item)) {
        bus_drop_item(bus, &item);
        dropped_n++;
    }
    for (struct executing *e = executing_top; e != NULL; e = e->outer) {
        while (e->bus == bus && ftb_pool_evict_behind(pool, e->batch, &item)) {
            bus_drop_item(bus, &item);
            dropped_n++;
        }
    }
    return PyLong_FromSsize_t(dropped_n);
}

PyObject *
bus_close_pool(PyObject *self, PyObject *unused)
{
    (void)unused;
    ftb_pool_t *pool = ftb_load_acquire(&((BusObject *)self)->pool);
    if (pool != NULL) {
        ftb_pool_close(pool);
    }
    Py_RETURN_NONE;
}

PyObject *
bus_stop_pool(PyObject *self, PyObject *unused)
{
    (void)unused;
    ftb_pool_t *pool = ftb_load_acquire(&((BusObject *)self)->pool);
    if (pool != NULL) {
        ftb_pool_stop(pool);
    }
    Py_RETURN_NONE;
}

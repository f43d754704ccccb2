/* Reading the figures: sums over all threads, and what the pool says of itself.
 *
 * They are first copied into C memory, without calling Python; objects are made of the
 * copy. An exact reading copies while every other thread of the interpreter is stopped:
 * gc.get_referents() stops them to call tp_traverse, here that of an object made for
 * that. Counters are written by attached threads only, and no thread is stopped between
 * two that belong together, so the copy is what there was at one moment. It is made
 * twice: should some version of Python not stop the others, the two differ. */
#include "stats.h"

#include <string.h>

#include "errors.h"
#include "figures.h"
#include "record.h"

/* The object whose tp_traverse does the copying; the collector never meets it. */
typedef struct {
    PyObject_HEAD
    struct figures *figures;
} CutObject;

static int
cut_traverse(PyObject *self, visitproc visit, void *arg)
{
    (void)visit;
    (void)arg;
    struct figures *figures = ((CutObject *)self)->figures;
    if (figures != NULL && !figures->is_copied) {
        figures_copy(figures);
        if (figures->result == FTB_OK) {
            figures_compare(figures);
        }
    }
    return 0;
}

static void
cut_dealloc(PyObject *self)
{
    PyObject_GC_Del(self);
}

PyTypeObject ftb_cut_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "ftbus._core.Cut",
    .tp_basicsize = sizeof(CutObject),
    .tp_dealloc = cut_dealloc,
    .tp_flags =
        Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_traverse = cut_traverse,
};

/* Copy while everybody else is stopped. 0, or -1 with an exception. */
static int
figures_copy_stopped(struct figures *figures)
{
    CutObject *cut = PyObject_GC_New(CutObject, &ftb_cut_type);
    PyObject *gc = cut != NULL ? PyImport_ImportModule("gc") : NULL;
    PyObject *done = NULL;
    if (gc != NULL) {
        cut->figures = figures;
        done = PyObject_CallMethod(gc, "get_referents", "O", cut);
        cut->figures = NULL;
    }
    Py_XDECREF(gc);
    Py_XDECREF(cut);
    Py_XDECREF(done);
    return done != NULL ? 0 : -1;
}

#define EXACT_TRIES 100

/* One copy, with exact a consistent one. NULL with an exception. */
static struct figures *
figures_take(BusObject *bus, const struct figures_request *request)
{
    if (bus_thread() == NULL) {
        return NULL;
    }
    for (int tries = 0; tries < EXACT_TRIES; tries++) {
        struct figures *figures = figures_new(bus, request);
        if (figures == NULL) {
            PyErr_NoMemory();
            return NULL;
        }
        if (!request->is_exact) {
            figures_copy(figures);
        } else if (figures_copy_stopped(figures) < 0) {
            figures_free(figures);
            return NULL;
        }
        enum ftb_result result = figures->result;
        if (result == FTB_OK && (figures->is_still || !request->is_exact)) {
            return figures;
        }
        figures_free(figures);
        if (result == FTB_NOMEM) {
            PyErr_NoMemory();
            return NULL;
        }
    }
    ftb_raise("StatsUnstableError", Py_BuildValue("(Oi)", bus, EXACT_TRIES));
    return NULL;
}

/* What rows are made of; set once, by the import of ftbus.monitor. */
static struct record topic_record, times_record, histogram_record;
static PyObject *no_times, *no_histogram, *timings;

/* set_row_types(TopicStats, an empty Times, an empty Histogram, timings) */
PyObject *
ftb_set_row_types(PyObject *module, PyObject *args)
{
    (void)module;
    static const char *const topic_names[] = {
        "emitted", "posted", "delivered", "dropped", "rejected", "handled", "failed",
        "encoded", "shared", "unheard",   "key",     "handlers", "timing",  "times"};
    static const char *const times_names[] = {"emit", "wait", "handler", "encode"};
    static const char *const histogram_names[] = {
        "count", "sum_ns", "min_ns", "max_ns", "packed"};
    PyObject *topic_type, *times, *histogram, *names;
    if (!PyArg_ParseTuple(
            args, "OOOO!", &topic_type, &times, &histogram, &PyTuple_Type, &names)
        || record_init(&topic_record, topic_type, topic_names, 14) < 0
        || record_init(&times_record, (PyObject *)Py_TYPE(times), times_names, 4) < 0
        || record_init(
               &histogram_record, (PyObject *)Py_TYPE(histogram), histogram_names, 5)
               < 0) {
        return NULL;
    }
    Py_XSETREF(no_times, Py_NewRef(times));
    Py_XSETREF(no_histogram, Py_NewRef(histogram));
    Py_XSETREF(timings, Py_NewRef(names));
    Py_RETURN_NONE;
}

/* Buckets go as bytes: there may be a hundred in each of hundreds of histograms, and as
 * tuples they would have the collector run, which stops all threads. */
static PyObject *
histogram_object(const struct packed_histogram *packed)
{
    if (packed->n == 0) {
        return Py_NewRef(no_histogram);
    }
    Py_ssize_t size = (Py_ssize_t)(packed->n * 2 * sizeof(uint64_t));
    PyObject *buckets = PyBytes_FromStringAndSize(NULL, size);
    if (buckets == NULL) {
        return NULL;
    }
    char *to = PyBytes_AS_STRING(buckets);
    uint64_t n = 0;
    for (uint32_t i = 0; i < packed->n; i++, to += 2 * sizeof(uint64_t)) {
        const struct bucket_count *pair = &packed->pairs[i];
        uint64_t numbers[] = {ftb_histogram_highest(pair->bucket), pair->count};
        memcpy(to, numbers, sizeof numbers);
        n += pair->count;
    }
    PyObject *values[] = {
        PyLong_FromUnsignedLongLong(n), PyLong_FromUnsignedLongLong(packed->sum_ns),
        PyLong_FromUnsignedLongLong(packed->min_ns),
        PyLong_FromUnsignedLongLong(packed->max_ns), buckets};
    return record_new(&histogram_record, values);
}

static PyObject *
times_object(const struct packed_histogram *times)
{
    PyObject *values[FTB_TIMES_N];
    uint32_t n = 0;
    for (int i = 0; i < FTB_TIMES_N; i++) {
        n += times[i].n;
    }
    if (n == 0) {
        return Py_NewRef(no_times);
    }
    for (int i = 0; i < FTB_TIMES_N; i++) {
        values[i] = histogram_object(&times[i]);
    }
    return record_new(&times_record, values);
}

/* (key, callable, serial, calls, failed, time) */
static PyObject *
handler_object(const struct handler_row *row)
{
    PyObject *callable = ftb_handler_callable(row->handler);
    if (callable == NULL) {
        PyErr_Clear(); /* its weak target died */
        callable = Py_NewRef(Py_None);
    }
    return Py_BuildValue(
        "(ONKKKN)", row->handler->topic->key_object, callable,
        (unsigned long long)row->handler->serial, (unsigned long long)row->calls,
        (unsigned long long)row->failed, histogram_object(&row->time));
}

/* A TopicStats. */
static PyObject *
row_object(BusObject *bus, const struct topic_row *row)
{
    const struct ftb_totals *totals = &row->totals;
    uint64_t shared =
        totals->given > totals->encoded ? totals->given - totals->encoded : 0;
    enum ftb_timing timing =
        row->topic != NULL ? ftb_topic_timing(row->topic) : bus->core->timing;
    PyObject *key = row->topic != NULL ? row->topic->key_object : Py_None;
    PyObject *values[] = {
        PyLong_FromUnsignedLongLong(totals->emitted),
        PyLong_FromUnsignedLongLong(totals->posted),
        PyLong_FromUnsignedLongLong(totals->delivered),
        PyLong_FromUnsignedLongLong(totals->dropped),
        PyLong_FromUnsignedLongLong(totals->rejected),
        PyLong_FromUnsignedLongLong(totals->handled),
        PyLong_FromUnsignedLongLong(totals->failed),
        PyLong_FromUnsignedLongLong(totals->encoded),
        PyLong_FromUnsignedLongLong(shared),
        PyLong_FromUnsignedLongLong(totals->unheard),
        Py_NewRef(key),
        PyLong_FromSize_t(row->handlers_n),
        PySequence_GetItem(timings, (Py_ssize_t)timing),
        times_object(row->times)};
    return record_new(&topic_record, values);
}

/* Append an object (stolen, or NULL) to a list. 0 or -1. */
static int
list_add(PyObject *list, PyObject *object)
{
    int result = object != NULL ? PyList_Append(list, object) : -1;
    Py_XDECREF(object);
    return result;
}

/* ([row, ...], row of all, own row, [handler, ...]) */
static PyObject *
figures_object(const struct figures *figures)
{
    BusObject *bus = figures->bus;
    PyObject *rows = PyList_New(0), *handlers = PyList_New(0);
    int result = rows != NULL && handlers != NULL ? 0 : -1;
    for (size_t i = 0; result == 0 && i < figures->rows_n; i++) {
        result = list_add(rows, row_object(bus, &figures->rows[i]));
    }
    if (result == 0) {
        result = list_add(rows, row_object(bus, &figures->rest));
    }
    for (size_t i = 0; result == 0 && i < figures->handlers_n; i++) {
        result = list_add(handlers, handler_object(&figures->handlers[i]));
    }
    if (result < 0) {
        Py_XDECREF(rows);
        Py_XDECREF(handlers);
        return NULL;
    }
    return Py_BuildValue(
        "(NNNN)", rows, row_object(bus, &figures->total),
        row_object(bus, &figures->own), handlers);
}

/* Put the topics of keys into request->pinned. 0, or -1 with an exception. */
static int
request_pin(struct figures_request *request, BusObject *bus, PyObject *keys)
{
    Py_ssize_t n = PyTuple_GET_SIZE(keys);
    request->pinned = ftb_alloc(((size_t)n + 1) * sizeof(struct ftb_topic *));
    if (request->pinned == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        struct ftb_topic *topic;
        int found = bus_topic_find(bus, PyTuple_GET_ITEM(keys, i), &topic);
        if (found < 0) {
            return -1;
        }
        if (found) {
            request->pinned[request->pinned_n++] = topic;
        }
    }
    return 0;
}

/* _figures(exact, max_keys, keys, details) -> ([row, ...], row of all, own row,
 * [(key, callable, serial, calls, failed, time), ...]), where a row is a TopicStats. The
 * rows are those of `keys` and of the max_keys busiest
 * others; negative: all. The last one, with key None, counts events whose key nobody ever
 * named, tasks, and all that has no row. The own row counts look-ups and events with a
 * partition. Without details only counters are in the rows, and there are no handlers. */
PyObject *
bus_figures(PyObject *self, PyObject *args)
{
    BusObject *bus = (BusObject *)self;
    struct figures_request request = {0};
    Py_ssize_t max_keys;
    PyObject *keys;
    if (!PyArg_ParseTuple(
            args, "pnO!p", &request.is_exact, &max_keys, &PyTuple_Type, &keys,
            &request.has_details)) {
        return NULL;
    }
    request.max_keys = max_keys < 0 ? SIZE_MAX : (size_t)max_keys;
    struct figures *figures =
        request_pin(&request, bus, keys) == 0 ? figures_take(bus, &request) : NULL;
    ftb_free(request.pinned);
    if (figures == NULL) {
        return NULL;
    }
    PyObject *result = figures_object(figures);
    PyObject *error = PyErr_GetRaisedException(); /* finalizers may run */
    figures_free(figures);
    ftb_reclaim();
    PyErr_SetRaisedException(error);
    return result;
}

static PyObject *
worker_stats(ftb_pool_t *pool, uint32_t worker_ix)
{
    struct ftb_pool_worker_stats stats;
    ftb_pool_worker_stats(pool, worker_ix, &stats);
    return Py_BuildValue(
        "{sKsKsKsKsKsK}", "taken", stats.taken, "stolen", stats.stolen, "batches",
        stats.batches, "parks", stats.parks, "busy_ns", stats.busy_ns, "wakes",
        stats.wakes);
}

PyObject *
bus_pool_stats(PyObject *self, PyObject *unused)
{
    (void)unused;
    BusObject *bus = (BusObject *)self;
    ftb_pool_t *pool = ftb_load_acquire(&bus->pool);
    struct ftb_pool_stats stats = {0};
    PyObject *workers = PyList_New(0);
    if (pool != NULL) {
        ftb_pool_stats(pool, &stats);
    }
    for (uint32_t i = 0; workers != NULL && i < stats.workers_n; i++) {
        PyObject *worker = worker_stats(pool, i);
        if (worker == NULL || PyList_Append(workers, worker) < 0) {
            Py_CLEAR(workers);
        }
        Py_XDECREF(worker);
    }
    if (workers == NULL) {
        return NULL;
    }
    return Py_BuildValue(
        "{sNsIsIsIsIsI}", "workers", workers, "pending", stats.unfinished, "queued",
        stats.queued, "queued_max", stats.queued_max, "groups", stats.strands_n,
        "groups_busy", stats.strands_busy);
}

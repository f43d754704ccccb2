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

static int
histogram_pack(struct packed_histogram *packed, const struct ftb_histogram_sum *sum)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < FTB_HISTOGRAM_BUCKETS; i++) {
        n += sum->counts[i] != 0;
    }
    *packed = (struct packed_histogram){
        .n = n, .sum_ns = sum->sum_ns, .min_ns = sum->min_ns, .max_ns = sum->max_ns};
    if (n == 0) {
        return 0;
    }
    packed->pairs = ftb_alloc(n * sizeof *packed->pairs);
    if (packed->pairs == NULL) {
        packed->n = 0;
        return -1;
    }
    for (uint32_t i = 0, k = 0; k < n; i++) {
        if (sum->counts[i] != 0) {
            packed->pairs[k++] = (struct bucket_count){i, sum->counts[i]};
        }
    }
    return 0;
}

static int
times_pack(
    struct packed_histogram *packed, struct ftb_histogram_sum *scratch, uint32_t id)
{
    for (int i = 0; i < FTB_TIMES_N; i++) {
        ftb_histogram_sum_init(&scratch[i]);
    }
    if (id == FTB_NO_ID || !ftb_shard_times(id, scratch)) {
        return 0;
    }
    for (int i = 0; i < FTB_TIMES_N; i++) {
        if (histogram_pack(&packed[i], &scratch[i]) < 0) {
            return -1;
        }
    }
    return 0;
}

struct topic_list {
    struct ftb_topic **topics;
    size_t n, capacity;
};

static void
topic_list_add(struct ftb_entry *entry, void *context)
{
    struct topic_list *list = context;
    if (list->n < list->capacity) {
        list->topics[list->n] = (struct ftb_topic *)(void *)entry;
    }
    list->n++;
}

/* The handlers of a topic that this thread holds: references, and what they did. */
static int
rows_add_handlers(struct topic_row *row, struct ftb_histogram_sum *scratch)
{
    struct ftb_thread *thread = ftb_thread_current();
    struct ftb_snapshot *snapshot = thread != NULL && thread->depth < FTB_DEPTH_MAX
                                        ? ftb_topic_hold(thread, row->topic)
                                        : NULL;
    if (snapshot == NULL) {
        return 0;
    }
    int result = -1;
    row->handlers_n = snapshot->n;
    row->handlers = ftb_alloc(snapshot->n * sizeof *row->handlers);
    for (uint32_t i = 0; row->handlers != NULL && i < snapshot->n; i++) {
        struct handler_row *to = &row->handlers[i];
        struct ftb_tally_sum sum;
        to->handler = ftb_snapshot_handlers(snapshot)[i];
        ftb_handler_retain(to->handler);
        ftb_histogram_sum_init(scratch);
        ftb_tally_sum(to->handler, &sum, scratch);
        to->calls = sum.calls;
        to->failed = sum.failed;
        result = histogram_pack(&to->time, scratch);
        if (result < 0) {
            row->handlers_n = i + 1;
            break;
        }
    }
    if (row->handlers == NULL) {
        row->handlers_n = 0;
    }
    ftb_hazard_drop(thread); /* a replaced one is reclaimed afterwards */
    return result;
}

static void
figures_sum(struct figures *figures)
{
    for (size_t i = 0; i < figures->topics_n; i++) {
        struct topic_row *row = &figures->topics[i];
        memset(&row->totals, 0, sizeof row->totals);
        if (row->id != FTB_NO_ID) {
            ftb_shard_sum(row->id, &row->totals);
        }
    }
}

/* Copy everything. FTB_FULL: there are more topics than room; FTB_NOMEM. */
static enum ftb_result
figures_copy(struct figures *figures)
{
    struct ftb_bus *core = figures->bus->core;
    struct topic_list list = {figures->list, 0, figures->capacity};
    ftb_map_each(&core->topics, topic_list_add, &list);
    if (list.n > list.capacity) {
        return FTB_FULL;
    }
    figures->topics_n = list.n + FIGURES_ROWS_MORE;
    for (size_t i = 0; i < list.n; i++) {
        figures->topics[i].topic = list.topics[i];
        figures->topics[i].id = ftb_topic_id(list.topics[i]);
    }
    figures->topics[list.n].id = core->unheard_id;
    figures->topics[list.n + 1].id = core->own_id;
    figures_sum(figures);
    for (size_t i = 0; i < figures->topics_n; i++) {
        struct topic_row *row = &figures->topics[i];
        if (times_pack(row->times, figures->scratch, row->id) < 0
            || (row->topic != NULL && rows_add_handlers(row, figures->scratch) < 0)) {
            return FTB_NOMEM;
        }
    }
    return FTB_OK;
}

/* Whether no counter moved since figures_copy: all are monotone, so equal sums are equal
 * counters. */
static bool
figures_are_still(const struct figures *figures)
{
    for (size_t i = 0; i < figures->topics_n; i++) {
        const struct topic_row *row = &figures->topics[i];
        struct ftb_totals totals = {0};
        if (row->id != FTB_NO_ID) {
            ftb_shard_sum(row->id, &totals);
        }
        if (memcmp(&totals, &row->totals, sizeof totals) != 0) {
            return false;
        }
    }
    return true;
}

static struct figures *
figures_new(BusObject *bus)
{
    struct figures *figures = ftb_alloc(sizeof *figures);
    if (figures == NULL) {
        return NULL;
    }
    figures->bus = bus;
    figures->capacity = ftb_map_len(&bus->core->topics) + 8; /* some may come */
    figures->list = ftb_alloc(figures->capacity * sizeof(struct ftb_topic *));
    figures->topics =
        ftb_alloc((figures->capacity + FIGURES_ROWS_MORE) * sizeof *figures->topics);
    figures->scratch = ftb_alloc(FTB_TIMES_N * sizeof *figures->scratch);
    return figures;
}

/* Attached, and under no lock: the last reference to a handler may go. */
static void
figures_free(struct figures *figures)
{
    for (size_t i = 0; figures != NULL && i < figures->topics_n; i++) {
        struct topic_row *row = &figures->topics[i];
        for (int k = 0; k < FTB_TIMES_N; k++) {
            ftb_free(row->times[k].pairs);
        }
        for (uint32_t k = 0; k < row->handlers_n; k++) {
            ftb_free(row->handlers[k].time.pairs);
            ftb_handler_release(row->handlers[k].handler);
        }
        ftb_free(row->handlers);
    }
    if (figures != NULL) {
        ftb_free(figures->list);
        ftb_free(figures->topics);
        ftb_free(figures->scratch);
        ftb_free(figures);
    }
}

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
        figures->is_copied = true;
        figures->result = figures_copy(figures);
        figures->is_still = figures_are_still(figures);
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
figures_take(BusObject *bus, int exact)
{
    if (bus_thread() == NULL) {
        return NULL;
    }
    for (int tries = 0; tries < EXACT_TRIES; tries++) {
        struct figures *figures = figures_new(bus);
        if (figures == NULL || figures->list == NULL || figures->topics == NULL
            || figures->scratch == NULL) {
            figures_free(figures);
            PyErr_NoMemory();
            return NULL;
        }
        if (exact) {
            if (figures_copy_stopped(figures) < 0) {
                figures_free(figures);
                return NULL;
            }
        } else {
            figures->result = figures_copy(figures);
            figures->is_still = true;
        }
        if (figures->result == FTB_OK && figures->is_still) {
            return figures;
        }
        enum ftb_result result = figures->result;
        figures_free(figures);
        if (result == FTB_NOMEM) {
            PyErr_NoMemory();
            return NULL;
        }
    }
    ftb_raise("StatsUnstableError", Py_BuildValue("(Oi)", bus, EXACT_TRIES));
    return NULL;
}

static PyObject *
totals_dict(const struct ftb_totals *totals)
{
    PyObject *dict = PyDict_New();
#define ADD(name)                                                                      \
    if (dict != NULL) {                                                                \
        PyObject *value = PyLong_FromUnsignedLongLong(totals->name);                   \
        if (value == NULL || PyDict_SetItemString(dict, #name, value) < 0) {           \
            Py_CLEAR(dict);                                                            \
        }                                                                              \
        Py_XDECREF(value);                                                             \
    }
    FTB_COUNTERS(ADD)
#undef ADD
    return dict;
}

/* ({bucket: count}, sum, min, max), or None. */
static PyObject *
histogram_object(const struct packed_histogram *packed)
{
    if (packed->n == 0) {
        Py_RETURN_NONE;
    }
    PyObject *counts = PyDict_New();
    for (uint32_t i = 0; counts != NULL && i < packed->n; i++) {
        PyObject *bucket = PyLong_FromUnsignedLong(packed->pairs[i].bucket);
        PyObject *count = PyLong_FromUnsignedLongLong(packed->pairs[i].count);
        if (bucket == NULL || count == NULL
            || PyDict_SetItem(counts, bucket, count) < 0) {
            Py_CLEAR(counts);
        }
        Py_XDECREF(bucket);
        Py_XDECREF(count);
    }
    return counts == NULL ? NULL
                          : Py_BuildValue(
                                "(NKKK)", counts, (unsigned long long)packed->sum_ns,
                                (unsigned long long)packed->min_ns,
                                (unsigned long long)packed->max_ns);
}

/* (emit, wait, handler, encode) */
static PyObject *
times_object(const struct packed_histogram *times)
{
    PyObject *tuple = PyTuple_New(FTB_TIMES_N);
    for (int i = 0; tuple != NULL && i < FTB_TIMES_N; i++) {
        PyObject *one = histogram_object(&times[i]);
        if (one == NULL) {
            Py_CLEAR(tuple);
        } else {
            PyTuple_SET_ITEM(tuple, i, one);
        }
    }
    return tuple;
}

/* (callable, serial, calls, failed, time) */
static PyObject *
handler_object(const struct handler_row *row)
{
    PyObject *callable = ftb_handler_callable(row->handler);
    if (callable == NULL) {
        PyErr_Clear(); /* its weak target died */
        callable = Py_NewRef(Py_None);
    }
    return Py_BuildValue(
        "(NKKKN)", callable, (unsigned long long)row->handler->serial,
        (unsigned long long)row->calls, (unsigned long long)row->failed,
        histogram_object(&row->time));
}

/* (key, timing, counters, times, [handler, ...]) */
static PyObject *
row_object(BusObject *bus, const struct topic_row *row)
{
    PyObject *handlers = PyList_New(0);
    for (uint32_t i = 0; handlers != NULL && i < row->handlers_n; i++) {
        PyObject *handler = handler_object(&row->handlers[i]);
        if (handler == NULL || PyList_Append(handlers, handler) < 0) {
            Py_CLEAR(handlers);
        }
        Py_XDECREF(handler);
    }
    if (handlers == NULL) {
        return NULL;
    }
    int timing =
        row->topic != NULL ? (int)ftb_topic_timing(row->topic) : (int)bus->core->timing;
    PyObject *key = row->topic != NULL ? row->topic->key_object : Py_None;
    return Py_BuildValue(
        "(OiNNN)", key, timing, totals_dict(&row->totals), times_object(row->times),
        handlers);
}

/* _figures(exact) -> [(key, timing, counters, times, handlers), ...]; the last row but
 * one, with key None, counts events whose key nobody ever named, and tasks; the last one
 * look-ups (emitted: found, unheard: not) and events with a partition. */
PyObject *
bus_figures(PyObject *self, PyObject *exact)
{
    BusObject *bus = (BusObject *)self;
    struct figures *figures = figures_take(bus, PyObject_IsTrue(exact));
    if (figures == NULL) {
        return NULL;
    }
    PyObject *rows = PyList_New(0);
    for (size_t i = 0; rows != NULL && i < figures->topics_n; i++) {
        PyObject *row = row_object(bus, &figures->topics[i]);
        if (row == NULL || PyList_Append(rows, row) < 0) {
            Py_CLEAR(rows);
        }
        Py_XDECREF(row);
    }
    PyObject *error = PyErr_GetRaisedException(); /* finalizers may run */
    figures_free(figures);
    ftb_reclaim();
    PyErr_SetRaisedException(error);
    return rows;
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

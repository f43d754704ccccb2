/* Reading the counters: sums over all threads, and what the pool says of itself. */
#include "bus.h"

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

struct topic_list {
    struct ftb_topic **topics;
    size_t n, capacity;
};

static void
topic_list_add(struct ftb_entry *entry, void *context)
{
    struct topic_list *list = context;
    if (list->n < list->capacity) { /* topics added meanwhile may be missed */
        list->topics[list->n++] = (struct ftb_topic *)(void *)entry;
    }
}

static PyObject *
topic_row(struct ftb_topic *topic)
{
    struct ftb_thread *thread = bus_thread();
    if (thread == NULL) {
        return NULL;
    }
    uint64_t odd = ftb_section_enter(thread);
    struct ftb_snapshot *snapshot = ftb_load_seq_cst(&topic->snapshot); /* (2) */
    unsigned int handlers_n = snapshot != NULL ? snapshot->n : 0;
    ftb_section_leave(thread, odd);
    struct ftb_totals totals = {0};
    ftb_shard_sum(ftb_topic_id(topic), &totals);
    return Py_BuildValue(
        "(OIN)", (PyObject *)topic->key_object, handlers_n, totals_dict(&totals));
}

/* _topics() -> [(key, handlers, counters), ...]; the last row, with key None, counts
 * events whose key nobody ever named, and tasks. */
PyObject *
bus_topics(PyObject *self, PyObject *unused)
{
    (void)unused;
    struct ftb_bus *core = ((BusObject *)self)->core;
    struct topic_list list = {NULL, 0, ftb_map_len(&core->topics)};
    list.topics = ftb_alloc((list.capacity + 1) * sizeof(struct ftb_topic *));
    PyObject *rows = PyList_New(0);
    if (list.topics == NULL || rows == NULL) {
        ftb_free(list.topics);
        Py_XDECREF(rows);
        return PyErr_NoMemory();
    }
    ftb_map_each(&core->topics, topic_list_add, &list);
    for (size_t i = 0; i <= list.n && rows != NULL; i++) {
        struct ftb_totals unheard = {0};
        if (i == list.n) {
            ftb_shard_sum(core->unheard_id, &unheard);
        }
        PyObject *row =
            i < list.n ? topic_row(list.topics[i])
                       : Py_BuildValue("(OIN)", Py_None, 0u, totals_dict(&unheard));
        if (row == NULL || PyList_Append(rows, row) < 0) {
            Py_CLEAR(rows);
        }
        Py_XDECREF(row);
    }
    ftb_free(list.topics);
    return rows;
}

static PyObject *
worker_stats(ftb_pool_t *pool, uint32_t worker_ix)
{
    struct ftb_pool_worker_stats stats;
    ftb_pool_worker_stats(pool, worker_ix, &stats);
    return Py_BuildValue(
        "{sKsKsKsKsK}", "taken", stats.taken, "stolen", stats.stolen, "batches",
        stats.batches, "parks", stats.parks, "busy_ns", stats.busy_ns);
}

PyObject *
bus_pool_stats(PyObject *self, PyObject *unused)
{
    (void)unused;
    BusObject *bus = (BusObject *)self;
    ftb_pool_t *pool = ftb_load_acquire(&bus->pool);
    PyObject *workers = PyList_New(0);
    if (workers == NULL || pool == NULL) {
        return workers == NULL ? NULL
                               : Py_BuildValue(
                                     "{sNsIsIsIsK}", "workers", workers, "pending", 0u,
                                     "queued", 0u, "queued_max", 0u, "wakes", 0ull);
    }
    struct ftb_pool_stats stats;
    ftb_pool_stats(pool, &stats);
    for (uint32_t i = 0; i < stats.workers_n; i++) {
        PyObject *worker = worker_stats(pool, i);
        if (worker == NULL || PyList_Append(workers, worker) < 0) {
            Py_XDECREF(worker);
            Py_DECREF(workers);
            return NULL;
        }
        Py_DECREF(worker);
    }
    return Py_BuildValue(
        "{sNsIsIsIsK}", "workers", workers, "pending", stats.unfinished, "queued",
        stats.queued, "queued_max", stats.queued_max, "wakes", stats.wakes);
}

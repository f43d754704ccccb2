/* Queueing events: admission, partitions, and what happens when the queue is full. */
#include "post.h"
#include "args.h"
#include "bus.h"
#include "context.h"
#include "errors.h"
#include "key.h"

/* A waiting thread looks for signals this often, and for any space at all: that there is
 * room may depend on what it does next. */
#define SLICE_NS 1000000u

/* How long a handler may wait for space in its own bus's full queue when there is
 * nothing it could run meanwhile: then every event left may be behind itself. */
#define HANDLER_WAIT_NS 1000000000u

/* The pool, started on first use. NULL with an exception set. */
static ftb_pool_t *
pool_of(BusObject *bus)
{
    ftb_pool_t *pool = ftb_load_acquire(&bus->pool);
    if (FTB_LIKELY(pool != NULL)) {
        return pool;
    }
    PyObject *done = PyObject_CallMethod((PyObject *)bus, "_start", NULL);
    if (done == NULL) {
        return NULL;
    }
    Py_DECREF(done);
    return ftb_load_acquire(&bus->pool);
}

static enum ftb_result
try_partition(BusObject *bus, ftb_pool_t *pool, uint64_t hash, struct ftb_item *item)
{
    item->stamp_ns |= ITEM_HAS_PARTITION;
    enum ftb_result result = ftb_pool_try_post_strand(pool, hash, item);
    if (result == FTB_OK) {
        bus_count_partitioned(bus, PARTITION_POSTED);
    }
    return result;
}

static enum ftb_result
try_once(struct post *post)
{
    if (post->has_partition) {
        return try_partition(post->bus, post->pool, post->partition_hash, &post->item);
    }
    return post->is_urgent ? ftb_pool_try_post_urgent(post->pool, &post->item)
                           : ftb_pool_try_post(post->pool, &post->item);
}

static PyObject *
key_of(const struct post *post)
{
    return post->topic != NULL ? post->topic->key_object : Py_None;
}

/* The event was refused with an exception set or to be set: count it. */
static PyObject *
rejected(struct post *post)
{
    ftb_count_local(&post->cell->rejected, 1);
    return NULL;
}

static PyObject *
rejected_full(struct post *post)
{
    rejected(post);
    return ftb_raise(
        "QueueFullError",
        Py_BuildValue("(OOI)", post->bus, key_of(post), post->bus->queue_size));
}

/* Give up the oldest queued event in favour of this one. */
static int
evict_one(struct post *post)
{
    struct ftb_item item;
    if (!ftb_pool_evict(post->pool, &item)) {
        return 0;
    }
    bus_drop_item(post->bus, &item);
    return 1;
}

/* One round of waiting for space. 0: try again, -1: exception. */
static int
wait_round(struct post *post, uint64_t deadline_ns)
{
    if (bus_executing(post->bus) > 0) {
        int helped = bus_help(post->bus);
        if (helped != 0) {
            return helped < 0 ? -1 : 0;
        }
    }
    uint64_t slice_end = ftb_now_ns() + SLICE_NS;
    Py_BEGIN_ALLOW_THREADS
        /* Whatever it says, the next try finds out; any space will do then. */
        enum ftb_result result = ftb_pool_wait_space(
            post->pool, slice_end < deadline_ns ? slice_end : deadline_ns);
    (void)result;
    Py_END_ALLOW_THREADS return PyErr_CheckSignals();
}

static PyObject *
post_blocking(struct post *post)
{
    uint64_t timeout_ns = post->timeout_ns;
    if (bus_executing(post->bus) > 0 && timeout_ns > HANDLER_WAIT_NS) {
        timeout_ns = HANDLER_WAIT_NS;
    }
    uint64_t deadline_ns = bus_deadline_ns(timeout_ns);
    for (;;) {
        if (wait_round(post, deadline_ns) < 0) {
            return rejected(post);
        }
        switch (try_once(post)) {
        case FTB_OK:
            Py_RETURN_TRUE;
        case FTB_CLOSED:
            rejected(post);
            return bus_raise_closed(post->bus, "post");
        case FTB_NOMEM:
            rejected(post);
            return PyErr_NoMemory();
        default:
            if (ftb_now_ns() >= deadline_ns) {
                return rejected_full(post);
            }
        }
    }
}

static PyObject *
dropped_newest(struct post *post)
{
    ftb_count_local(&post->cell->dropped, 1);
    if (bus_is_observed(post->bus)) {
        bus_observe_dropped(post->bus, post->topic, post->item.payload);
    }
    Py_RETURN_FALSE;
}

static PyObject *
post_full(struct post *post)
{
    switch (post->bus->overflow) {
    case BUS_RAISE:
        return rejected_full(post);
    case BUS_DROP_OLDEST:
        while (evict_one(post)) {
            enum ftb_result result = try_once(post);
            if (result == FTB_OK) {
                Py_RETURN_TRUE;
            }
            if (result != FTB_FULL) {
                rejected(post);
                return result == FTB_CLOSED ? bus_raise_closed(post->bus, "post")
                                            : PyErr_NoMemory();
            }
        }
        /* All that is queued is behind a running event of its partition: nothing older
         * can be given up, so the newest goes. */
        return dropped_newest(post);
    case BUS_DROP_NEWEST:
        return dropped_newest(post);
    default:
        return post_blocking(post);
    }
}

/* What comes of an event that was counted as posted but not queued at the first try. */
static FTB_NOINLINE PyObject *
post_not_queued(struct post *post, enum ftb_result why)
{
    PyObject *result = NULL;
    switch (why) {
    case FTB_FULL:
        result = post_full(post);
        break;
    case FTB_CLOSED:
        rejected(post);
        bus_raise_closed(post->bus, "post");
        break;
    default:
        rejected(post);
        PyErr_NoMemory();
    }
    if (result != Py_True) {
        PyObject *error =
            PyErr_GetRaisedException(); /* the payload may have a __del__ */
        Py_DECREF((PyObject *)post->item.payload);
        PyErr_SetRaisedException(error);
    }
    return result;
}

PyObject *
post_run(struct post *post)
{
    ftb_count_local(&post->cell->posted, 1);
    enum ftb_result result = try_once(post);
    if (FTB_LIKELY(result == FTB_OK)) {
        Py_RETURN_TRUE;
    }
    return post_not_queued(post, result);
}

/* What decides where in the queue an event goes. */
static int
post_set_order(struct post *post, PyObject *partition, int is_urgent)
{
    post->is_urgent = is_urgent;
    if (partition != NULL && partition != Py_None) {
        struct ftb_object_key key;
        if (is_urgent) { /* it would overtake its own partition */
            ftb_raise(
                "InvalidOptionError",
                Py_BuildValue("(sOs)", "urgent", Py_True, "no partition with it"));
            return -1;
        }
        if (ftb_object_key_of(partition, &key) < 0) {
            return -1;
        }
        post->has_partition = 1;
        post->partition_hash = key.view.hash;
    } else if (post->bus->orders_by_key && post->topic != NULL && !is_urgent) {
        post->has_partition = 1;
        post->partition_hash = post->topic->entry.key.hash;
    }
    return 0;
}

int
post_init(
    struct post *post, BusObject *bus, struct ftb_topic *topic,
    const struct post_options *options)
{
    *post =
        (struct post){.bus = bus, .topic = topic, .timeout_ns = options->timeout_ns};
    post->item.target = topic;
    if (post_set_order(post, options->partition, options->is_urgent) < 0) {
        return -1;
    }
    struct ftb_thread *thread = bus_thread();
    if (thread == NULL) {
        return -1;
    }
    post->thread = thread;
    post->cell = bus_cell(bus, thread, topic);
    post->pool = post->cell != NULL ? pool_of(bus) : NULL;
    return post->pool != NULL ? 0 : -1;
}

PyObject *
bus_post_event(
    BusObject *bus, struct ftb_topic *topic, PyObject *event,
    const struct post_options *options)
{
    struct post post;
    if (post_init(&post, bus, topic, options) < 0) {
        if (post.cell != NULL) { /* closed, or without memory for the workers */
            ftb_count_local(&post.cell->posted, 1);
            rejected(&post);
        }
        return NULL;
    }
    post.item.stamp_ns = timing_start(bus, post.thread, topic);
    post.item.payload = context_payload(event, options->context);
    return post.item.payload != NULL ? post_run(&post) : NULL;
}

/* A post with no option but perhaps a partition, as most are: bus_post_event with all that
 * the others would need left out. */
static PyObject *
post_quick(
    BusObject *bus, struct ftb_topic *topic, PyObject *event, PyObject *partition)
{
    struct ftb_thread *thread = ftb_thread_current();
    struct ftb_cell *cell =
        thread != NULL ? ftb_shard_cell_local(thread->shard, ftb_topic_id(topic))
                       : NULL;
    ftb_pool_t *pool = ftb_load_acquire(&bus->pool);
    if (FTB_UNLIKELY(
            cell == NULL || pool == NULL || bus->orders_by_key
            || !context_is_absent())) {
        struct post_options options = {
            .partition = partition, .timeout_ns = FTB_FOREVER};
        if (context_snapshot(NULL, &options.context) < 0) {
            return NULL;
        }
        PyObject *queued = bus_post_event(bus, topic, event, &options);
        Py_XDECREF(options.context);
        return queued;
    }
    struct ftb_object_key key;
    int has_partition = partition != NULL && partition != Py_None;
    if (has_partition && ftb_object_key_of(partition, &key) < 0) {
        return NULL;
    }
    struct ftb_item item = {
        .target = topic,
        .payload = Py_NewRef(event),
        .stamp_ns = timing_start(bus, thread, topic),
    };
    ftb_count_local(&cell->posted, 1);
    enum ftb_result result;
    if (has_partition) {
        result = try_partition(bus, pool, key.view.hash, &item);
    } else {
        result = ftb_pool_try_post(pool, &item);
    }
    if (FTB_LIKELY(result == FTB_OK)) {
        Py_RETURN_TRUE;
    }
    struct post post = {
        .bus = bus,
        .pool = pool,
        .topic = topic,
        .thread = thread,
        .cell = cell,
        .item = item,
        .has_partition = has_partition,
        .partition_hash = has_partition ? key.view.hash : 0,
        .timeout_ns = FTB_FOREVER};
    return post_not_queued(&post, result);
}

/* Whether there are no keyword arguments, or one, the partition, which *partition is set
 * to. A look at the letters: comparing with a C string costs as much as all else here. */
static inline int
has_quick_options(PyObject *const *keywords, PyObject *kwnames, PyObject **partition)
{
    static const char text[] = "partition";
    *partition = NULL;
    if (kwnames == NULL) {
        return 1;
    }
    PyObject *name =
        PyTuple_GET_SIZE(kwnames) == 1 ? PyTuple_GET_ITEM(kwnames, 0) : NULL;
    if (name == NULL || !PyUnicode_IS_COMPACT_ASCII(name)
        || PyUnicode_GET_LENGTH(name) != (Py_ssize_t)sizeof text - 1
        || memcmp(PyUnicode_1BYTE_DATA(name), text, sizeof text - 1) != 0) {
        return 0;
    }
    *partition = keywords[0];
    return 1;
}

/* _submit(task, timeout): a task is called without arguments, or told dropped(). */
PyObject *
bus_submit(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    struct post_options options = {.timeout_ns = FTB_FOREVER};
    if (nargs != 2) {
        return PyErr_Format(PyExc_TypeError, "_submit() takes a task and a timeout");
    }
    if (bus_timeout_ns(args[1], &options.timeout_ns) < 0) {
        return NULL;
    }
    return bus_post_event((BusObject *)self, NULL, args[0], &options);
}

static const char *const post_names[] = {"key",     "event",  "partition",
                                         "timeout", "urgent", "context"};

static const struct args_spec bus_post_spec = {"post", post_names, 6, 2, 1};
static const struct args_spec topic_post_spec = {"post", post_names + 1, 5, 1, 0};

int
post_options_of(PyObject **arguments, struct post_options *options)
{
    options->partition = arguments[0];
    options->is_urgent = arguments[2] != NULL ? PyObject_IsTrue(arguments[2]) : 0;
    if (options->is_urgent < 0
        || bus_timeout_ns(arguments[1], &options->timeout_ns) < 0) {
        return -1;
    }
    return context_snapshot(arguments[3], &options->context);
}

/* arguments: event, then as above. */
static PyObject *
post_unpacked(BusObject *bus, struct ftb_topic *topic, PyObject **arguments)
{
    struct post_options options;
    if (topic == NULL || post_options_of(arguments + 1, &options) < 0) {
        return NULL;
    }
    PyObject *queued = bus_post_event(
        bus, topic, arguments[0] != NULL ? arguments[0] : Py_None, &options);
    Py_XDECREF(options.context);
    return queued;
}

PyObject *
topic_post(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    PyObject *out[5], *partition;
    TopicObject *topic = (TopicObject *)self;
    if (FTB_LIKELY(nargs == 1 && has_quick_options(args + 1, kwnames, &partition))) {
        return post_quick(topic->bus, topic->topic, args[0], partition);
    }
    if (args_unpack(&topic_post_spec, args, nargs, kwnames, out) < 0) {
        return NULL;
    }
    return post_unpacked(topic->bus, topic->topic, out);
}

PyObject *
bus_post(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    PyObject *out[6], *partition;
    if (FTB_LIKELY(nargs == 2 && has_quick_options(args + 2, kwnames, &partition))) {
        struct ftb_topic *topic = bus_topic_of((BusObject *)self, args[0]);
        return topic != NULL ? post_quick((BusObject *)self, topic, args[1], partition)
                             : NULL;
    }
    if (args_unpack(&bus_post_spec, args, nargs, kwnames, out) < 0) {
        return NULL;
    }
    if (bus_key_and_event(out[0], out[1], &out[0], &out[1]) < 0) {
        return NULL;
    }
    return post_unpacked(
        (BusObject *)self, bus_topic_of((BusObject *)self, out[0]), out + 1);
}

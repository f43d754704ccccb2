/* Queueing many events: in chunks where they have no order, else one by one. */
#include "args.h"
#include "bus.h"
#include "context.h"
#include "post.h"

static const char *const post_many_names[] = {"key",     "events", "partition",
                                              "timeout", "urgent", "context"};

static const struct args_spec bus_post_many_spec = {
    "post_many", post_many_names, 6, 2, 2};
static const struct args_spec topic_post_many_spec = {
    "post_many", post_many_names + 1, 5, 1, 1};

/* Post what `iterator` yields; a callable partition is asked for each event. */
static Py_ssize_t
post_each(
    BusObject *bus, struct ftb_topic *topic, PyObject *iterator,
    const struct post_options *options)
{
    Py_ssize_t queued_n = 0;
    PyObject *event, *partition = options->partition;
    struct post_options own_options = *options;
    int is_function = partition != NULL && PyCallable_Check(partition);
    while ((event = PyIter_Next(iterator)) != NULL) {
        PyObject *own =
            is_function ? PyObject_CallOneArg(partition, event) : Py_XNewRef(partition);
        own_options.partition = own;
        PyObject *queued = own == NULL && is_function
                               ? NULL
                               : bus_post_event(bus, topic, event, &own_options);
        Py_XDECREF(own);
        Py_DECREF(event);
        if (queued == NULL) {
            return -1;
        }
        queued_n += queued == Py_True;
    }
    return PyErr_Occurred() ? -1 : queued_n;
}

/* Offer items[0 .. n) in one go, and one by one, by the policy, what did not fit. */
static Py_ssize_t
post_chunk(struct post *post, struct ftb_item *items, uint32_t n)
{
    uint32_t accepted_n = 0;
    Py_ssize_t queued_n;
    enum ftb_result result = ftb_pool_try_post_many(post->pool, items, n, &accepted_n);
    (void)result; /* full or closed: the first that is left finds out */
    ftb_count_local(&post->cell->posted, accepted_n);
    queued_n = accepted_n;
    uint32_t i = accepted_n;
    for (; i < n; i++) {
        post->item = items[i];
        PyObject *queued = post_run(post);
        if (queued == NULL) {
            PyObject *error = PyErr_GetRaisedException();
            while (++i < n) {
                Py_DECREF((PyObject *)items[i].payload);
            }
            PyErr_SetRaisedException(error);
            return -1;
        }
        queued_n += queued == Py_True;
    }
    return queued_n;
}

/* The next event, as it is queued; NULL with or without an exception. */
static PyObject *
next_payload(PyObject *iterator, PyObject *context)
{
    PyObject *event = PyIter_Next(iterator);
    if (FTB_LIKELY(context == NULL || event == NULL)) {
        return event;
    }
    PyObject *payload = context_payload(event, context);
    Py_DECREF(event);
    return payload;
}

/* The fast way for events without an order: chunks with one accounting and one wake-up. */
static Py_ssize_t
post_chunks(
    BusObject *bus, struct ftb_topic *topic, PyObject *iterator,
    const struct post_options *options)
{
    struct post post;
    struct ftb_item items[FTB_BATCH_MAX];
    Py_ssize_t queued_n = 0;
    if (post_init(&post, bus, topic, options) < 0) {
        return -1;
    }
    for (;;) {
        uint32_t n = 0;
        PyObject *payload;
        while (n < FTB_BATCH_MAX
               && (payload = next_payload(iterator, options->context)) != NULL) {
            items[n++] = (struct ftb_item){
                .target = topic,
                .payload = payload,
                .stamp_ns = timing_start(bus, post.thread, topic),
            };
        }
        PyObject *error = PyErr_GetRaisedException(); /* the iterable's own */
        Py_ssize_t more = n > 0 ? post_chunk(&post, items, n) : 0;
        if (error != NULL) {
            PyErr_SetRaisedException(error);
            return -1;
        }
        if (more < 0 || n < FTB_BATCH_MAX) {
            return more < 0 ? -1 : queued_n + more;
        }
        queued_n += more;
    }
}

/* arguments: events, then as for post_unpacked. */
static PyObject *
post_many_unpacked(BusObject *bus, struct ftb_topic *topic, PyObject **arguments)
{
    struct post_options options;
    if (topic == NULL || post_options_of(arguments + 1, &options) < 0) {
        return NULL;
    }
    int has_order = (options.partition != NULL && options.partition != Py_None)
                    || options.is_urgent || bus->orders_by_key;
    PyObject *iterator = PyObject_GetIter(arguments[0]);
    Py_ssize_t queued_n = -1;
    if (iterator != NULL) {
        queued_n = has_order ? post_each(bus, topic, iterator, &options)
                             : post_chunks(bus, topic, iterator, &options);
        Py_DECREF(iterator);
    }
    Py_XDECREF(options.context);
    return queued_n < 0 ? NULL : PyLong_FromSsize_t(queued_n);
}

PyObject *
topic_post_many(
    PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    PyObject *out[5];
    TopicObject *topic = (TopicObject *)self;
    if (args_unpack(&topic_post_many_spec, args, nargs, kwnames, out) < 0) {
        return NULL;
    }
    return post_many_unpacked(topic->bus, topic->topic, out);
}

PyObject *
bus_post_many(
    PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    PyObject *out[6];
    if (args_unpack(&bus_post_many_spec, args, nargs, kwnames, out) < 0) {
        return NULL;
    }
    return post_many_unpacked(
        (BusObject *)self, bus_topic_of((BusObject *)self, out[0]), out + 1);
}

#include "emit.h"

#include "args.h"
#include "buffer.h"
#include "errors.h"
#include "key.h"

/* The hot path. Per emit: one section (an exchange and a store), one hazard slot, the
 * calls, and two counters of this thread's own. No reference count, lock or counter that
 * another thread uses is written: snapshot, handlers and topic are borrowed under the
 * hazard slot, see csrc/core/ftb_reclaim.c. */

/* What emit returns, usually one of CPython's immortal small ints; set once, by import. */
static PyObject *counts[64];

int
ftb_emit_ready(void)
{
    for (long i = 0; i < (long)(sizeof counts / sizeof counts[0]); i++) {
        if (counts[i] == NULL && (counts[i] = PyLong_FromLong(i)) == NULL) {
            return -1;
        }
    }
    return 0;
}

static inline PyObject *
count_object(uint32_t n)
{
    return FTB_LIKELY(n < sizeof counts / sizeof counts[0]) ? Py_NewRef(counts[n])
                                                            : PyLong_FromLong(n);
}

/* What emit returns: the count, or the one group of what the handlers raised. */
static PyObject *
delivery_result(struct delivery *delivery, PyObject *key, Py_ssize_t ran_n)
{
    if (FTB_LIKELY(ran_n >= 0 && delivery->errors == NULL)) {
        delivery_fini(delivery);
        return PyLong_FromSsize_t(ran_n);
    }
    if (ran_n >= 0) {
        ftb_raise(
            "HandlerErrors", Py_BuildValue("(OOn)", key, delivery->errors, ran_n));
    }
    delivery_fini(delivery);
    return NULL;
}

static struct delivery
delivery_of(BusObject *bus, PyObject *event)
{
    return (struct delivery){
        .bus = bus, .event = event, .collects = !bus->logs_errors, .has_caller = 1};
}

/* An event that no handler ran for; the topic is NULL if its key never got one. */
static FTB_NOINLINE PyObject *
emit_unheard(BusObject *bus, struct ftb_thread *thread, struct ftb_topic *topic)
{
    if (ftb_load_acquire(&bus->core->is_closed)) {
        return bus_raise_closed(bus, "emit");
    }
    struct ftb_cell *cell = bus_cell(bus, thread, topic);
    if (cell == NULL) {
        return NULL;
    }
    ftb_cell_emitted_apart_local(cell);
    ftb_count_local(&cell->unheard, 1);
    return PyLong_FromLong(0);
}

/* An emit in all its generality. */
static FTB_NOINLINE PyObject *
emit_any(BusObject *bus, struct ftb_topic *topic, PyObject *event)
{
    struct ftb_thread *thread = bus_thread();
    if (thread == NULL) {
        return NULL;
    }
    struct delivery delivery = delivery_of(bus, event);
    uint64_t start_ns = timing_start(bus, thread, topic);
    delivery.stamp_ns = start_ns;
    Py_ssize_t ran_n = delivery_run(&delivery, topic);
    if (ran_n == 0) {
        delivery_fini(&delivery);
        return emit_unheard(bus, thread, topic);
    }
    struct ftb_cell *cell = bus_cell(bus, thread, topic);
    if (cell != NULL) {
        ftb_cell_emitted_apart_local(cell);
        if (start_ns != 0) {
            timing_record(
                bus->core, thread, cell, FTB_TIME_EMIT, delivery.stamp_ns - start_ns);
        }
    }
    return delivery_result(&delivery, topic->key_object, ran_n);
}

/* The bus object of a topic that is in use, so that it need not be kept at hand. */
static inline BusObject *
bus_of(const struct ftb_topic *topic)
{
    return topic->bus->object;
}

/* A delivery that has done nothing yet. */
static const struct delivery untouched = {0};

/* The rest of emit_plain when a handler raised, or the snapshot was replaced. */
static FTB_NOINLINE PyObject *
emit_rest(
    struct ftb_thread *thread, struct ftb_topic *topic, struct ftb_cell *cell,
    struct ftb_snapshot *snapshot, PyObject *event, uint32_t i, int has_raised)
{
    struct delivery delivery = delivery_of(bus_of(topic), event);
    delivery.thread = thread;
    delivery.cell = cell;
    int stopped = snapshot_run_rest(&delivery, snapshot, i, has_raised);
    Py_ssize_t ran_n = topic_done(&delivery, topic, snapshot, &untouched, stopped);
    ftb_cell_emitted_apart_local(cell);
    return delivery_result(&delivery, topic->key_object, ran_n);
}

/* An emit whose steps are timed, of handlers that are not special. */
static FTB_NOINLINE PyObject *
emit_timed(
    struct ftb_thread *thread, struct ftb_topic *topic, struct ftb_cell *cell,
    struct ftb_snapshot *snapshot, PyObject *event)
{
    struct delivery delivery = delivery_of(bus_of(topic), event);
    delivery.thread = thread;
    delivery.cell = cell;
    uint64_t start_ns = ftb_now_ns();
    delivery.stamp_ns = start_ns;
    int stopped = snapshot_run_any(&delivery, snapshot, 0);
    uint64_t end_ns = delivery.stamp_ns;
    Py_ssize_t ran_n = topic_done(&delivery, topic, snapshot, &untouched, stopped);
    ftb_cell_emitted_apart_local(cell);
    timing_record(topic->bus, thread, cell, FTB_TIME_EMIT, end_ns - start_ns);
    return delivery_result(&delivery, topic->key_object, ran_n);
}

/* Run the handlers of a held snapshot, plain ones of the cell's version. */
static inline PyObject *
emit_plain(
    struct ftb_thread *thread, struct ftb_topic *topic, struct ftb_cell *cell,
    struct ftb_snapshot *snapshot, PyObject *event)
{
    PyObject *result;
    uint32_t i;
    if (FTB_UNLIKELY(!snapshot_run_plain(topic, snapshot, event, &i, &result))) {
        return emit_rest(thread, topic, cell, snapshot, event, i, result == NULL);
    }
    ftb_hazard_drop(thread);
    ftb_count_local(&cell->emitted, 1);
    ftb_count_local(&cell->handled, i);
    return count_object(i);
}

/* The snapshot has flags, or is not of the cell's version. */
static FTB_NOINLINE PyObject *
emit_flagged(
    struct ftb_thread *thread, struct ftb_topic *topic, struct ftb_cell *cell,
    struct ftb_snapshot *snapshot, PyObject *event)
{
    if ((snapshot->flags & ~FTB_SNAPSHOT_TIMINGS) != 0) {
        ftb_hazard_drop(thread);
        return emit_any(bus_of(topic), topic, event);
    }
    if (snapshot->flags == FTB_SNAPSHOT_TIMED
        || (snapshot->flags != 0 && timing_samples(bus_of(topic), thread))) {
        return emit_timed(thread, topic, cell, snapshot, event);
    }
    ftb_tally_sync(thread, cell, snapshot);
    return emit_plain(thread, topic, cell, snapshot, event);
}

/* The usual emit, on a bus that counts nothing of it. */
static PyObject *
emit_uncounted(struct ftb_thread *thread, struct ftb_topic *topic, PyObject *event)
{
    struct ftb_snapshot *snapshot = ftb_topic_hold(thread, topic);
    if (FTB_UNLIKELY(snapshot == NULL)) {
        return emit_any(bus_of(topic), topic, event);
    }
    PyObject *result = NULL;
    uint32_t i = 0;
    int has_flags = snapshot->flags != 0;
    if (FTB_LIKELY(!has_flags)) {
        if (FTB_LIKELY(snapshot_run_plain(topic, snapshot, event, &i, &result))) {
            ftb_hazard_drop(thread);
            return count_object(i);
        }
    }
    struct ftb_cell *cell = has_flags ? NULL : bus_cell(bus_of(topic), thread, NULL);
    if (cell == NULL) {
        ftb_hazard_drop(thread);
        return has_flags ? emit_any(bus_of(topic), topic, event) : NULL; /* no memory */
    }
    return emit_rest(thread, topic, cell, snapshot, event, i, result == NULL);
}

static inline PyObject *
emit_on_topic(struct ftb_thread *thread, struct ftb_topic *topic, PyObject *event);

/* A thread's first emit on a topic that has no counters there yet, or one too deep. */
static FTB_NOINLINE PyObject *
emit_first(struct ftb_thread *thread, struct ftb_topic *topic, PyObject *event)
{
    if (thread->depth >= FTB_DEPTH_MAX) {
        return emit_any(bus_of(topic), topic, event); /* raises */
    }
    if (topic->bus->is_uncounted) {
        return emit_uncounted(thread, topic, event);
    }
    return bus_cell(bus_of(topic), thread, topic) != NULL
               ? emit_on_topic(thread, topic, event)
               : NULL;
}

/* Whether the snapshot has no other flag than that its events are sampled, and this one is
 * not to be timed. */
static inline int
is_passed_over(
    struct ftb_thread *thread, const struct ftb_snapshot *snapshot, uint64_t version)
{
    return FTB_LIKELY(
        snapshot->version == (version | FTB_VERSION_FLAGGED)
        && snapshot->flags == FTB_SNAPSHOT_SAMPLED && --thread->sample_left > 0);
}

/* The usual emit, without a branch more than it needs: everything unusual goes to the
 * functions above. */
static inline PyObject *
emit_on_topic(struct ftb_thread *thread, struct ftb_topic *topic, PyObject *event)
{
    struct ftb_cell *cell =
        ftb_shard_cell_try_local(thread->shard, ftb_topic_id(topic));
    if (FTB_UNLIKELY(thread->depth >= FTB_DEPTH_MAX || cell == NULL)) {
        return emit_first(thread, topic, event);
    }
    FTB_ONE_REGISTER(cell);
    __builtin_prefetch(cell, 1); /* written last: with many topics it is far away */
    struct ftb_snapshot *snapshot = ftb_topic_hold(thread, topic);
    if (FTB_UNLIKELY(snapshot == NULL)) {
        return emit_any(bus_of(topic), topic, event);
    }
    /* relaxed: the owner's own */
    uint64_t version = ftb_load_relaxed(&cell->version);
    if (FTB_UNLIKELY(snapshot->version != version)
        && !is_passed_over(thread, snapshot, version)) {
        return emit_flagged(thread, topic, cell, snapshot, event);
    }
    return emit_plain(thread, topic, cell, snapshot, event);
}

/* An event whose exact class has no topic: its bases may have handlers. */
static PyObject *
emit_on_bases(BusObject *bus, PyObject *class, PyObject *event)
{
    struct ftb_thread *thread = bus_thread();
    if (thread == NULL) {
        return NULL;
    }
    struct delivery delivery = delivery_of(bus, event);
    Py_ssize_t ran_n = delivery_run_bases(&delivery, class);
    if (ran_n == 0) {
        delivery_fini(&delivery);
        return emit_unheard(bus, thread, NULL);
    }
    struct ftb_cell *cell = bus_cell(bus, thread, NULL);
    if (cell == NULL) {
        delivery_fini(&delivery);
        return NULL;
    }
    ftb_count_local(&cell->emitted, 1);
    return delivery_result(&delivery, class, ran_n);
}

static const char *const emit_names[] = {"key", "event"};
static const struct args_spec bus_emit_spec = {"emit", emit_names, 2, 2, 1};
static const struct args_spec topic_emit_spec = {"emit", emit_names + 1, 1, 1, 0};

PyObject *
topic_emit(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    TopicObject *topic = (TopicObject *)self;
    PyObject *event = nargs == 1 ? args[0] : NULL;
    if (FTB_UNLIKELY(event == NULL || kwnames != NULL)
        && args_unpack(&topic_emit_spec, args, nargs, kwnames, &event) < 0) {
        return NULL;
    }
    struct ftb_thread *thread = bus_thread();
    if (FTB_UNLIKELY(thread == NULL)) {
        return NULL;
    }
    return emit_on_topic(thread, topic->topic, event != NULL ? event : Py_None);
}

/* The topic of a key by this thread's front cache, or NULL. */
static inline struct ftb_topic *
front_find(BusObject *bus, struct ftb_thread *thread, PyObject *key)
{
    struct ftb_front *front = &thread->front[((uintptr_t)key >> 4) % FTB_FRONT_SLOTS];
    return front->key == key && front->bus_serial == bus->core->serial ? front->topic
                                                                       : NULL;
}

static void
front_fill(
    BusObject *bus, struct ftb_thread *thread, PyObject *key, struct ftb_topic *topic)
{
    if (ftb_is_immortal(key)) {
        thread->front[((uintptr_t)key >> 4) % FTB_FRONT_SLOTS] =
            (struct ftb_front){key, bus->core->serial, topic};
    }
}

/* A key was looked up in the map; not counted without memory. */
static void
count_lookup(BusObject *bus, struct ftb_thread *thread, int found)
{
    struct ftb_cell *cell = ftb_shard_cell_local(thread->shard, bus->core->own_id);
    if (cell != NULL) {
        ftb_count_local(found ? &cell->emitted : &cell->unheard, 1);
    }
}

/* bus.emit of a key that the front cache does not know. A frame of its own: emits may nest
 * deep on small stacks. */
static FTB_NOINLINE PyObject *
emit_looked_up(
    BusObject *bus, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    PyObject *pair[2], *key, *event;
    struct ftb_topic *topic = NULL;
    struct ftb_thread *thread = bus_thread();
    if (thread == NULL || args_unpack(&bus_emit_spec, args, nargs, kwnames, pair) < 0
        || bus_key_and_event(pair[0], pair[1], &key, &event) < 0) {
        return NULL;
    }
    int found = bus_topic_find(bus, key, &topic);
    if (found < 0) {
        return NULL;
    }
    count_lookup(bus, thread, found);
    if (found > 0) {
        front_fill(bus, thread, key, topic);
        return emit_on_topic(thread, topic, event);
    }
    if (PyType_Check(key)) {
        return emit_on_bases(bus, key, event);
    }
    return emit_unheard(bus, thread, NULL);
}

PyObject *
bus_emit(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    BusObject *bus = (BusObject *)self;
    struct ftb_thread *thread = bus_thread();
    if (FTB_UNLIKELY(thread == NULL)) {
        return NULL;
    }
    if (FTB_LIKELY(nargs == 2 && kwnames == NULL)) {
        struct ftb_topic *topic = front_find(bus, thread, args[0]);
        if (FTB_LIKELY(topic != NULL)) {
            return emit_on_topic(thread, topic, args[1]);
        }
    }
    return emit_looked_up(bus, args, nargs, kwnames);
}

/* Emit each event of an iterable; stops at the first that raises. */
static PyObject *
emit_each(BusObject *bus, struct ftb_topic *topic, PyObject *events)
{
    struct ftb_thread *thread = bus_thread();
    PyObject *iterator = thread != NULL ? PyObject_GetIter(events) : NULL;
    if (iterator == NULL) {
        return NULL;
    }
    Py_ssize_t total = 0;
    PyObject *event;
    while ((event = PyIter_Next(iterator)) != NULL) {
        PyObject *ran = emit_on_topic(thread, topic, event);
        Py_DECREF(event);
        if (ran == NULL) {
            break;
        }
        total += PyLong_AsSsize_t(ran);
        Py_DECREF(ran);
    }
    Py_DECREF(iterator);
    return PyErr_Occurred() ? NULL : PyLong_FromSsize_t(total);
}

PyObject *
bus_emit_many(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 2) {
        PyErr_Format(
            PyExc_TypeError,
            "emit_many() takes a key and an iterable of events, %zd given", nargs);
        return NULL;
    }
    struct ftb_topic *topic = bus_topic_of((BusObject *)self, args[0]);
    return topic == NULL ? NULL : emit_each((BusObject *)self, topic, args[1]);
}

PyObject *
topic_emit_many(PyObject *self, PyObject *events)
{
    TopicObject *topic = (TopicObject *)self;
    return emit_each(topic->bus, topic->topic, events);
}

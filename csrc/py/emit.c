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

/* Call the handlers of a held snapshot, none of them special. Returns how many returned;
 * fewer than n if the next one raised (*result is then NULL), or the snapshot was replaced
 * meanwhile, so that the next one may have been cancelled. */
static inline uint32_t
snapshot_run_plain(
    const struct ftb_snapshot *snapshot, PyObject *event, PyObject **result)
{
    uint32_t i = 0;
    while (FTB_LIKELY((*result = call_handler(&snapshot->calls[i], event)) != NULL)) {
        Py_DECREF(*result);
        if (++i == snapshot->n || FTB_UNLIKELY(is_replaced(snapshot))) {
            break;
        }
    }
    return i;
}

/* Call the handlers of a held snapshot from `i` on, whatever they are. Returns 0, or -1 to
 * stop with an exception. One that was cancelled meanwhile starts no more. */
static int
snapshot_run_any(struct delivery *delivery, struct ftb_snapshot *snapshot, uint32_t i)
{
    for (; i < snapshot->n; i++) {
        struct ftb_handler *handler = ftb_snapshot_handlers(snapshot)[i];
        int skip = i > 0 && ftb_load_acquire(&handler->state) == FTB_HANDLER_CANCELLED;
        PyObject *result = NULL;
        if (!skip) {
            result = delivery_call_special(delivery, handler, &skip);
        }
        if (skip) {
            continue;
        }
        delivery->handled_n++;
        if (result != NULL) {
            Py_DECREF(result);
        } else if (delivery_failed(delivery, handler) < 0) {
            return -1;
        }
    }
    return 0;
}

/* The handlers of a held snapshot after snapshot_run_plain stopped at `i`. */
static FTB_NOINLINE int
snapshot_run_rest(
    struct delivery *delivery, struct ftb_snapshot *snapshot, uint32_t i,
    int has_raised)
{
    delivery->handled_n += i;
    if (has_raised) {
        delivery->handled_n++;
        if (delivery_failed(delivery, ftb_snapshot_handlers(snapshot)[i]) < 0) {
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

/* Give the snapshot back and count what the delivery did with it. */
static Py_ssize_t
topic_done(
    struct delivery *delivery, struct ftb_thread *thread, struct ftb_cell *cell,
    const struct ftb_snapshot *snapshot, const struct delivery *before, int stopped)
{
    snapshot_drop(thread, snapshot);
    uint64_t handled_n = delivery->handled_n - before->handled_n;
    ftb_count_local(&cell->handled, handled_n);
    ftb_count_local(&cell->failed, delivery->failed_n - before->failed_n);
    if (delivery->encoded != before->encoded && delivery->encoded != delivery->event) {
        ftb_count_local(&cell->encoded, 1);
    }
    return stopped < 0 ? -1 : (Py_ssize_t)handled_n;
}

/* One topic's handlers, bases not included, counted under that topic. */
static Py_ssize_t
run_topic(struct delivery *delivery, struct ftb_topic *topic, struct ftb_thread *thread)
{
    if (FTB_UNLIKELY(thread->depth >= FTB_DEPTH_MAX)) {
        raise_too_deep(delivery->bus, topic->key_object);
        return -1;
    }
    struct ftb_cell *cell = bus_cell(thread, ftb_topic_id(topic));
    struct ftb_snapshot *snapshot = cell != NULL ? ftb_topic_hold(thread, topic) : NULL;
    if (snapshot == NULL) {
        return cell != NULL ? 0 : -1;
    }
    struct delivery before = *delivery;
    int stopped = 0;
    if (FTB_LIKELY(snapshot->flags == 0)) {
        PyObject *result;
        uint32_t i = snapshot_run_plain(snapshot, delivery->event, &result);
        if (FTB_LIKELY(i == snapshot->n)) {
            delivery->handled_n += i;
        } else {
            stopped = snapshot_run_rest(delivery, snapshot, i, result == NULL);
        }
    } else {
        stopped = snapshot_run_any(delivery, snapshot, 0);
    }
    return topic_done(delivery, thread, cell, snapshot, &before, stopped);
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

static FTB_NOINLINE PyObject *
emit_unheard(BusObject *bus, struct ftb_thread *thread, uint32_t id)
{
    if (ftb_load_acquire(&bus->core->is_closed)) {
        return bus_raise_closed(bus, "emit");
    }
    struct ftb_cell *cell = bus_cell(thread, id);
    if (cell == NULL) {
        return NULL;
    }
    ftb_count_local(&cell->emitted, 1);
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
    Py_ssize_t ran_n = delivery_run(&delivery, topic);
    if (ran_n == 0) {
        delivery_fini(&delivery);
        return emit_unheard(bus, thread, ftb_topic_id(topic));
    }
    struct ftb_cell *cell = bus_cell(thread, ftb_topic_id(topic));
    if (cell != NULL) {
        ftb_count_local(&cell->emitted, 1);
    }
    return delivery_result(&delivery, topic->key_object, ran_n);
}

/* The rest of emit_on_topic when a handler raised, or the snapshot was replaced. */
static FTB_NOINLINE PyObject *
emit_rest(
    BusObject *bus, struct ftb_thread *thread, struct ftb_cell *cell,
    struct ftb_snapshot *snapshot, PyObject *event, uint32_t i, int has_raised)
{
    struct delivery delivery = delivery_of(bus, event), before = delivery;
    PyObject *key = snapshot->topic->key_object; /* lives as long as the bus */
    int stopped = snapshot_run_rest(&delivery, snapshot, i, has_raised);
    Py_ssize_t ran_n = topic_done(&delivery, thread, cell, snapshot, &before, stopped);
    ftb_count_local(&cell->emitted, 1);
    return delivery_result(&delivery, key, ran_n);
}

/* The usual emit, without a branch more than it needs: everything unusual goes to the two
 * functions above. */
static inline PyObject *
emit_on_topic(
    BusObject *bus, struct ftb_thread *thread, struct ftb_topic *topic, PyObject *event)
{
    struct ftb_cell *cell = ftb_shard_cell_local(thread->shard, ftb_topic_id(topic));
    if (FTB_UNLIKELY(thread->depth >= FTB_DEPTH_MAX || cell == NULL)) {
        return emit_any(bus, topic, event); /* raises */
    }
    __builtin_prefetch(cell, 1); /* written last: with many topics it is far away */
    struct ftb_snapshot *snapshot = ftb_topic_hold(thread, topic);
    if (FTB_UNLIKELY(snapshot == NULL)) {
        return emit_any(bus, topic, event);
    }
    if (FTB_UNLIKELY(snapshot->flags != 0)) {
        ftb_hazard_drop(thread);
        return emit_any(bus, topic, event);
    }
    PyObject *result;
    uint32_t n = snapshot->n;
    uint32_t i = snapshot_run_plain(snapshot, event, &result);
    if (FTB_UNLIKELY(i != n)) {
        return emit_rest(bus, thread, cell, snapshot, event, i, result == NULL);
    }
    snapshot_drop(thread, snapshot);
    ftb_count_local(&cell->emitted, 1);
    ftb_count_local(&cell->handled, n);
    return count_object(n);
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
        return emit_unheard(bus, thread, bus->core->unheard_id);
    }
    struct ftb_cell *cell = bus_cell(thread, bus->core->unheard_id);
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
    return emit_on_topic(
        topic->bus, thread, topic->topic, event != NULL ? event : Py_None);
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

PyObject *
bus_emit(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    BusObject *bus = (BusObject *)self;
    struct ftb_thread *thread = bus_thread();
    if (FTB_UNLIKELY(thread == NULL)) {
        return NULL;
    }
    PyObject *pair[2], *key, *event;
    struct ftb_topic *topic = NULL;
    if (FTB_LIKELY(nargs == 2 && kwnames == NULL)) {
        topic = front_find(bus, thread, args[0]);
        if (FTB_LIKELY(topic != NULL)) {
            return emit_on_topic(bus, thread, topic, args[1]);
        }
    }
    if (args_unpack(&bus_emit_spec, args, nargs, kwnames, pair) < 0
        || bus_key_and_event(pair[0], pair[1], &key, &event) < 0) {
        return NULL;
    }
    int found = bus_topic_find(bus, key, &topic);
    if (found < 0) {
        return NULL;
    }
    if (found > 0) {
        front_fill(bus, thread, key, topic);
        return emit_on_topic(bus, thread, topic, event);
    }
    if (PyType_Check(key)) {
        return emit_on_bases(bus, key, event);
    }
    return emit_unheard(bus, thread, bus->core->unheard_id);
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
        PyObject *ran = emit_on_topic(bus, thread, topic, event);
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

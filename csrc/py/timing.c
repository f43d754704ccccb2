/* Which events are timed, and where their durations are kept.
 *
 * A clock costs more than all that an emit counts (22 ns here against 1 ns), so only some
 * events are timed: one in so many on average. Who decides is a countdown of the thread's
 * own, drawn anew each time, uniformly from 1 to twice the mean less one: a fixed step
 * would always meet the same one of events that come in a pattern. Durations are chained:
 * the end of one handler is the start of the next. */
#include "bus.h"
#include "errors.h"

int
timing_draw(struct ftb_thread *thread, uint32_t interval)
{
    /* xorshift32 (Marsaglia, 2003); never 0 once it is seeded. */
    uint32_t random = thread->sample_random;
    int is_first = random == 0;
    if (is_first) {
        random =
            (uint32_t)(((uintptr_t)thread >> 6) * UINT64_C(0x9E3779B97F4A7C15) >> 32)
            | 1;
    }
    random ^= random << 13;
    random ^= random >> 17;
    random ^= random << 5;
    thread->sample_random = random;
    uint64_t span = 2 * (uint64_t)interval - 1;
    thread->sample_left = (int32_t)(1 + ((uint64_t)random * span >> 32));
    return !is_first || interval == 1;
}

uint64_t
timing_start(BusObject *bus, struct ftb_thread *thread, const struct ftb_topic *topic)
{
    switch (topic != NULL ? ftb_topic_timing(topic) : bus->core->timing) {
    case FTB_TIMING_OFF:
        return 0;
    case FTB_TIMING_SAMPLED:
        return timing_samples(bus, thread) ? ftb_now_ns() : 0;
    default:
        return ftb_now_ns();
    }
}

void
timing_record(
    const struct ftb_bus *bus, struct ftb_thread *thread, struct ftb_cell *cell,
    enum ftb_time what, uint64_t ns)
{
    struct ftb_cell *all = ftb_shard_cell_local(thread->shard, bus->times_id);
    if (all != NULL && ftb_cell_record_local(all, what, ns)) {
        (void)ftb_cell_record_local(cell, what, ns);
    }
}

uint64_t
timing_waited(
    BusObject *bus, struct ftb_thread *thread, struct ftb_cell *cell,
    uint64_t posted_ns, int has_partition)
{
    uint64_t now_ns = ftb_now_ns();
    timing_record(bus->core, thread, cell, FTB_TIME_WAIT, now_ns - posted_ns);
    struct ftb_cell *own =
        has_partition ? ftb_shard_cell_local(thread->shard, bus->core->own_id) : NULL;
    if (own != NULL) {
        (void)ftb_cell_record_local(own, FTB_TIME_WAIT, now_ns - posted_ns);
    }
    return now_ns;
}

uint64_t
timing_called(
    struct ftb_thread *thread, struct ftb_cell *cell, struct ftb_handler *handler,
    int has_failed, uint64_t start_ns)
{
    struct ftb_tally *tally = ftb_tally_local(handler, thread);
    if (tally != NULL) {
        ftb_count_local(&tally->calls, 1);
        ftb_count_local(&tally->failed, has_failed);
    }
    if (FTB_LIKELY(start_ns == 0)) {
        return 0;
    }
    uint64_t now_ns = ftb_now_ns();
    const struct ftb_topic *topic = handler->topic;
    timing_record(topic->bus, thread, cell, FTB_TIME_HANDLER, now_ns - start_ns);
    if (tally != NULL && ftb_tally_record_local(tally, now_ns - start_ns)) {
        uint32_t id = ftb_topic_id(topic);
        ftb_shard_note_slow_local(thread->shard, id, now_ns - start_ns);
    }
    return now_ns;
}

PyObject *
bus_set_timing(PyObject *self, PyObject *args)
{
    PyObject *key;
    int timing;
    if (!PyArg_ParseTuple(args, "Oi:_set_timing", &key, &timing)) {
        return NULL;
    }
    struct ftb_topic *topic = bus_topic_of((BusObject *)self, key);
    if (topic == NULL) {
        return NULL;
    }
    enum ftb_result result = ftb_topic_set_timing(topic, (enum ftb_timing)timing);
    ftb_reclaim();
    if (result != FTB_OK) {
        return PyErr_NoMemory();
    }
    Py_RETURN_NONE;
}

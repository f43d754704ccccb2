/* Copying what a bus counts, with rows for its busiest keys only.
 *
 * One pass sums each topic's counters and keeps the totals of the busiest in a heap as
 * large as the rows that are asked for; whatever falls out of it, or never gets in, is
 * added to the row of the rest at once. A second pass over the topics without a row adds
 * up their times, and ranks their handlers in two such heaps. So every event that was
 * summed is in exactly one row, and nothing is allocated for a key without one. */
#include "figures.h"

#include <string.h>

#define NOT_TAKEN UINT32_MAX

static bool
ranks_below(const struct ranked *one, const struct ranked *other)
{
    return one->major != other->major ? one->major < other->major
                                      : one->minor < other->minor;
}

/* Offer one; returns the slot that it is to be kept in, instead of what is there if the
 * heap was full before, or NOT_TAKEN. */
static uint32_t
top_offer(struct top *top, uint64_t major, uint64_t minor)
{
    struct ranked *heap = top->heap, offered = {major, minor, top->n};
    uint32_t i;
    if (top->n < top->capacity) {
        for (i = top->n++; i > 0 && ranks_below(&offered, &heap[(i - 1) / 2]);) {
            heap[i] = heap[(i - 1) / 2];
            i = (i - 1) / 2;
        }
    } else if (top->n == 0 || !ranks_below(&heap[0], &offered)) {
        return NOT_TAKEN;
    } else {
        offered.slot = heap[0].slot;
        for (i = 0; 2 * (size_t)i + 1 < top->n;) {
            uint32_t child = 2 * i + 1;
            child += child + 1 < top->n && ranks_below(&heap[child + 1], &heap[child]);
            if (!ranks_below(&heap[child], &offered)) {
                break;
            }
            heap[i] = heap[child];
            i = child;
        }
    }
    heap[i] = offered;
    return offered.slot;
}

static bool
top_init(struct top *top, size_t capacity)
{
    top->heap = ftb_alloc((capacity + 1) * sizeof *top->heap);
    top->capacity = (uint32_t)capacity;
    return top->heap != NULL;
}

/* Where a topic is among the pinned ones, or the empty place where it would be. */
static size_t
pins_place(const struct pins *pins, const struct ftb_topic *topic)
{
    /* Fibonacci hashing (Knuth); topics are aligned to 64 bytes. */
    size_t i = ((uintptr_t)topic >> 6) * UINT64_C(0x9E3779B97F4A7C15) >> 32;
    for (i &= pins->mask; pins->slots[i] != NULL && pins->slots[i] != topic;) {
        i = (i + 1) & pins->mask;
    }
    return i;
}

void
figures_pin(struct figures *figures, struct ftb_topic *topic)
{
    struct pins *pins = &figures->pins;
    size_t place = pins_place(pins, topic);
    if (pins->slots[place] == NULL) {
        pins->slots[place] = topic;
        pins->rows[place] = (uint32_t)pins->n++;
    }
}

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

/* Pack what was recorded under an id, and in sums before. */
static int
times_pack(struct topic_row *row, struct ftb_histogram_sum *sums, uint32_t id)
{
    bool is_any = id != FTB_NO_ID && ftb_shard_times(id, sums);
    for (int i = 0; i < FTB_TIMES_N; i++) {
        bool is_empty = !is_any && sums[i].min_ns == UINT64_MAX;
        if (!is_empty && histogram_pack(&row->times[i], &sums[i]) < 0) {
            return -1;
        }
    }
    return 0;
}

static void
times_init(struct ftb_histogram_sum *sums)
{
    for (int i = 0; i < FTB_TIMES_N; i++) {
        ftb_histogram_sum_init(&sums[i]);
    }
}

/* The snapshot of a topic, held, or NULL. */
static struct ftb_snapshot *
handlers_hold(struct ftb_topic *topic)
{
    struct ftb_thread *thread = ftb_thread_current();
    return thread != NULL && thread->depth < FTB_DEPTH_MAX
               ? ftb_topic_hold(thread, topic)
               : NULL;
}

static bool
handlers_reserve(struct figures *figures, size_t n)
{
    if (figures->handlers_n + n <= figures->handlers_capacity) {
        return true;
    }
    size_t capacity = ftb_next_pow2(figures->handlers_n + n);
    struct handler_row *grown = ftb_alloc(capacity * sizeof *grown);
    if (grown == NULL) {
        return false;
    }
    if (figures->handlers_n > 0) {
        memcpy(grown, figures->handlers, figures->handlers_n * sizeof *grown);
    }
    ftb_free(figures->handlers);
    figures->handlers = grown;
    figures->handlers_capacity = capacity;
    return true;
}

/* Add the row of a handler of a snapshot that is held; there is room for it. */
static int
handlers_add(struct figures *figures, struct ftb_handler *handler)
{
    struct handler_row *row = &figures->handlers[figures->handlers_n++];
    struct ftb_histogram_sum *scratch = figures->scratch;
    struct ftb_tally_sum sum;
    row->handler = handler;
    ftb_handler_retain(handler);
    ftb_histogram_sum_init(scratch);
    ftb_tally_sum(handler, &sum, scratch);
    row->calls = sum.calls;
    row->failed = sum.failed;
    return histogram_pack(&row->time, scratch);
}

/* Rows for all handlers of a topic. */
static int
handlers_add_all(struct figures *figures, struct topic_row *row)
{
    struct ftb_snapshot *snapshot = handlers_hold(row->topic);
    if (snapshot == NULL) {
        return 0;
    }
    int result = handlers_reserve(figures, snapshot->n) ? 0 : -1;
    row->handlers_n = snapshot->n;
    for (uint32_t i = 0; result == 0 && i < snapshot->n; i++) {
        result = handlers_add(figures, ftb_snapshot_handlers(snapshot)[i]);
    }
    ftb_hazard_drop(ftb_thread_current()); /* a replaced one is reclaimed afterwards */
    return result;
}

/* Rank a handler among the slowest, and if it is not, or no more, among those that are
 * called most. */
static void
candidate_offer(struct figures *figures, struct candidate one)
{
    uint32_t slot = top_offer(&figures->slowest, one.longest_ns, one.calls);
    if (slot != NOT_TAKEN) {
        struct candidate fallen = figures->slow_ones[slot];
        figures->slow_ones[slot] = one;
        if (fallen.topic == NULL) {
            return;
        }
        one = fallen;
    }
    slot = top_offer(&figures->called, one.calls, one.longest_ns);
    if (slot != NOT_TAKEN) {
        figures->called_ones[slot] = one;
    }
}

static void
handlers_rank(struct figures *figures, struct ftb_topic *topic)
{
    struct ftb_snapshot *snapshot = handlers_hold(topic);
    if (snapshot == NULL) {
        return;
    }
    figures->rest.handlers_n += snapshot->n;
    for (uint32_t i = 0; figures->called.capacity > 0 && i < snapshot->n; i++) {
        struct ftb_handler *handler = ftb_snapshot_handlers(snapshot)[i];
        struct ftb_tally_sum sum;
        ftb_tally_sum(handler, &sum, NULL);
        candidate_offer(
            figures,
            (struct candidate){topic, handler->serial, sum.calls, sum.longest_ns});
    }
    ftb_hazard_drop(ftb_thread_current());
}

/* Rows for the handlers that were chosen and are still subscribed. */
static int
candidates_add(struct figures *figures, const struct candidate *ones, uint32_t n)
{
    int result = handlers_reserve(figures, n) ? 0 : -1;
    for (uint32_t k = 0; result == 0 && k < n; k++) {
        struct ftb_snapshot *snapshot = handlers_hold(ones[k].topic);
        for (uint32_t i = 0; snapshot != NULL && i < snapshot->n; i++) {
            struct ftb_handler *handler = ftb_snapshot_handlers(snapshot)[i];
            if (handler->serial == ones[k].serial) {
                result = handlers_add(figures, handler);
                break;
            }
        }
        if (snapshot != NULL) {
            ftb_hazard_drop(ftb_thread_current());
        }
    }
    return result;
}

static void
totals_add(struct ftb_totals *sum, const struct ftb_totals *totals)
{
#define ADD(name) sum->name += totals->name;
    FTB_COUNTERS(ADD)
#undef ADD
    /* What is shown is given - encoded of each row, or 0: so it stays when summed. */
    if (totals->given < totals->encoded) {
        sum->given += totals->encoded - totals->given;
    }
}

static struct ftb_totals
totals_of(uint32_t id)
{
    struct ftb_totals totals = {0};
    if (id != FTB_NO_ID) {
        ftb_shard_sum(id, &totals);
    }
    return totals;
}

/* Give a topic a row, or add it to the rest. */
static void
topic_place(struct figures *figures, struct ftb_topic *topic)
{
    struct ftb_totals totals = totals_of(ftb_topic_id(topic));
    size_t place = pins_place(&figures->pins, topic);
    size_t row_ix;
    if (figures->pins.slots[place] == topic) {
        row_ix = figures->pins.rows[place];
    } else {
        uint64_t traffic = totals.emitted + totals.posted + totals.handled;
        uint32_t slot = top_offer(&figures->busiest, traffic, 0);
        if (slot == NOT_TAKEN) {
            totals_add(&figures->rest.totals, &totals);
            figures->list[figures->rest_n++] = topic;
            return;
        }
        row_ix = figures->pins.n + slot;
    }
    struct topic_row *row = &figures->rows[row_ix];
    if (row->topic != NULL) {
        totals_add(&figures->rest.totals, &row->totals);
        figures->list[figures->rest_n++] = row->topic;
    }
    row->topic = topic;
    row->totals = totals;
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

/* The rows' times and handlers, and those of the rest. */
static enum ftb_result
copy_details(struct figures *figures)
{
    struct ftb_bus *core = figures->bus->core;
    for (size_t i = 0; i < figures->rows_n; i++) {
        struct topic_row *row = &figures->rows[i];
        times_init(figures->scratch);
        if (times_pack(row, figures->scratch, ftb_topic_id(row->topic)) < 0
            || handlers_add_all(figures, row) < 0) {
            return FTB_NOMEM;
        }
    }
    for (size_t i = 0; i < figures->rest_n; i++) {
        uint32_t id = ftb_topic_id(figures->list[i]);
        if (id != FTB_NO_ID) {
            (void)ftb_shard_times(id, figures->rest_times);
        }
        handlers_rank(figures, figures->list[i]);
    }
    times_init(figures->scratch);
    if (times_pack(&figures->own, figures->scratch, core->own_id) < 0
        || times_pack(&figures->rest, figures->rest_times, core->unheard_id) < 0
        || candidates_add(figures, figures->slow_ones, figures->slowest.n) < 0
        || candidates_add(figures, figures->called_ones, figures->called.n) < 0) {
        return FTB_NOMEM;
    }
    return FTB_OK;
}

static enum ftb_result
copy_all(struct figures *figures)
{
    struct ftb_bus *core = figures->bus->core;
    struct topic_list list = {figures->list, 0, figures->capacity};
    ftb_map_each(&core->topics, topic_list_add, &list);
    if (list.n > list.capacity) {
        return FTB_FULL;
    }
    figures->own.totals = totals_of(core->own_id);
    struct ftb_totals unheard = totals_of(core->unheard_id);
    totals_add(&figures->rest.totals, &unheard);
    times_init(figures->rest_times);
    for (size_t i = 0; i < list.n; i++) {
        topic_place(figures, list.topics[i]); /* which writes to list[0 .. i] only */
    }
    figures->rows_n = figures->pins.n + figures->busiest.n;
    return copy_details(figures);
}

/* All counters are monotone, so equal sums are equal counters. */
void
figures_compare(struct figures *figures)
{
    struct ftb_bus *core = figures->bus->core;
    struct ftb_totals now = {0}, then = figures->rest.totals;
    struct ftb_totals own = totals_of(core->own_id);
    struct ftb_totals one = totals_of(core->unheard_id);
    totals_add(&now, &one);
    for (size_t i = 0; i < figures->rest_n; i++) {
        one = totals_of(ftb_topic_id(figures->list[i]));
        totals_add(&now, &one);
    }
    for (size_t i = 0; i < figures->rows_n; i++) {
        one = totals_of(ftb_topic_id(figures->rows[i].topic));
        totals_add(&now, &one);
        totals_add(&then, &figures->rows[i].totals);
    }
    figures->is_still = memcmp(&now, &then, sizeof now) == 0
                        && memcmp(&own, &figures->own.totals, sizeof own) == 0;
}

void
figures_copy(struct figures *figures)
{
    figures->is_copied = true;
    figures->result = copy_all(figures);
}

struct figures *
figures_new(BusObject *bus, size_t max_keys, size_t pins_n)
{
    struct figures *figures = ftb_alloc(sizeof *figures);
    if (figures == NULL) {
        return NULL;
    }
    figures->bus = bus;
    figures->capacity = ftb_map_len(&bus->core->topics) + 8; /* some may come */
    /* Where all have rows no handler is left to rank. */
    size_t others_n = max_keys < figures->capacity ? max_keys : 0;
    size_t busiest_n = max_keys < figures->capacity ? max_keys : figures->capacity;
    size_t pins_size = ftb_next_pow2(2 * pins_n + 1);
    struct pins *pins = &figures->pins;
    pins->mask = pins_size - 1;
    pins->slots = ftb_alloc(pins_size * sizeof(struct ftb_topic *));
    pins->rows = ftb_alloc(pins_size * sizeof *pins->rows);
    figures->list = ftb_alloc(figures->capacity * sizeof(struct ftb_topic *));
    figures->rows = ftb_alloc((busiest_n + pins_n + 1) * sizeof *figures->rows);
    figures->slow_ones = ftb_alloc((others_n + 1) * sizeof *figures->slow_ones);
    figures->called_ones = ftb_alloc((others_n + 1) * sizeof *figures->called_ones);
    figures->scratch = ftb_alloc(FTB_TIMES_N * sizeof *figures->scratch);
    figures->rest_times = ftb_alloc(FTB_TIMES_N * sizeof *figures->rest_times);
    if (pins->slots == NULL || pins->rows == NULL || figures->list == NULL
        || figures->rows == NULL || figures->slow_ones == NULL
        || figures->called_ones == NULL || figures->scratch == NULL
        || figures->rest_times == NULL || !top_init(&figures->busiest, busiest_n)
        || !top_init(&figures->slowest, others_n / 2)
        || !top_init(&figures->called, others_n - others_n / 2)) {
        figures_free(figures);
        return NULL;
    }
    return figures;
}

static void
row_fini(struct topic_row *row)
{
    for (int i = 0; i < FTB_TIMES_N; i++) {
        ftb_free(row->times[i].pairs);
    }
}

void
figures_free(struct figures *figures)
{
    for (size_t i = 0; i < figures->rows_n; i++) {
        row_fini(&figures->rows[i]);
    }
    row_fini(&figures->rest);
    row_fini(&figures->own);
    for (size_t i = 0; i < figures->handlers_n; i++) {
        ftb_free(figures->handlers[i].time.pairs);
        ftb_handler_release(figures->handlers[i].handler);
    }
    ftb_free(figures->pins.slots);
    ftb_free(figures->pins.rows);
    ftb_free(figures->list);
    ftb_free(figures->rows);
    ftb_free(figures->handlers);
    ftb_free(figures->busiest.heap);
    ftb_free(figures->slowest.heap);
    ftb_free(figures->called.heap);
    ftb_free(figures->slow_ones);
    ftb_free(figures->called_ones);
    ftb_free(figures->scratch);
    ftb_free(figures->rest_times);
    ftb_free(figures);
}

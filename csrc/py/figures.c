/* Copying what a bus counts, with rows for its busiest keys only.
 *
 * One pass sums each topic's counters, in the order in which they lie in memory, and keeps
 * the totals of the busiest in a heap as large as the rows that are asked for; whatever
 * falls out of it, or never gets in, is added to the row of the rest at once. So every
 * event that was summed is in exactly one row, and of a key without one no more is touched
 * than its cells. The times of the rest are those of the bus less those of the rows. */
#include "figures.h"

#include <string.h>

static bool
ranks_below(const struct ranked *one, const struct ranked *other)
{
    return one->major != other->major ? one->major < other->major
                                      : one->minor < other->minor;
}

uint32_t
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
        return TOP_NOT_TAKEN;
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

bool
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

static void
pins_add(struct pins *pins, struct ftb_topic *topic)
{
    size_t place = pins_place(pins, topic);
    if (pins->slots[place] == NULL) {
        pins->slots[place] = topic;
        pins->rows[place] = (uint32_t)pins->n++;
    }
}

int
histogram_pack(struct packed_histogram *packed, struct ftb_histogram_sum *sum)
{
    uint32_t n = 0;
    for (uint64_t left = sum->octaves; left != 0; left &= left - 1) {
        uint32_t first = (uint32_t)__builtin_ctzll(left) * FTB_HISTOGRAM_SUBS;
        for (uint32_t i = first; i < first + FTB_HISTOGRAM_SUBS; i++) {
            n += sum->counts[i] != 0;
        }
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
    struct bucket_count *pair = packed->pairs;
    for (uint64_t left = sum->octaves; left != 0; left &= left - 1) {
        uint32_t first = (uint32_t)__builtin_ctzll(left) * FTB_HISTOGRAM_SUBS;
        for (uint32_t i = first; i < first + FTB_HISTOGRAM_SUBS; i++) {
            if (sum->counts[i] != 0) {
                *pair++ = (struct bucket_count){i, sum->counts[i]};
            }
        }
    }
    ftb_histogram_sum_fit(sum, packed->pairs[0].bucket, packed->pairs[n - 1].bucket);
    packed->min_ns = sum->min_ns;
    packed->max_ns = sum->max_ns;
    return 0;
}

static int
times_pack(struct topic_row *row, struct ftb_histogram_sum *sums)
{
    for (int i = 0; i < FTB_TIMES_N; i++) {
        if (histogram_pack(&row->times[i], &sums[i]) < 0) {
            return -1;
        }
    }
    return 0;
}

/* Set sums to what was recorded under an id. */
static void
times_read(struct ftb_histogram_sum *sums, uint32_t id)
{
    for (int i = 0; i < FTB_TIMES_N; i++) {
        ftb_histogram_sum_clear(&sums[i]);
    }
    if (id != FTB_NO_ID) {
        (void)ftb_shard_times(id, sums);
    }
}

static void
times_add(struct ftb_histogram_sum *sums, const struct ftb_histogram_sum *others)
{
    for (int i = 0; i < FTB_TIMES_N; i++) {
        ftb_histogram_sum_add(&sums[i], &others[i]);
    }
}

static struct ftb_histogram_sum *
times_new(void)
{
    struct ftb_histogram_sum *sums = ftb_alloc(FTB_TIMES_N * sizeof *sums);
    for (int i = 0; sums != NULL && i < FTB_TIMES_N; i++) {
        ftb_histogram_sum_init(&sums[i]);
    }
    return sums;
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
    ftb_shard_sum(id, &totals);
    return totals;
}

/* What one pass has of a topic. */
struct scanned {
    uint32_t ix;
    uint16_t slowest;
    const struct ftb_totals *totals;
};

/* Sum the counters of every topic, a page of cells at a time. */
static void
scan(
    struct figures *figures,
    void (*fn)(struct figures *figures, struct scanned topic, void *context),
    void *context)
{
    const struct ftb_topic_index *index = figures->index;
    struct ftb_totals totals[FTB_PAGE_CELLS];
    uint16_t slowest[FTB_PAGE_CELLS];
    uint32_t n;
    for (size_t first = 0; first < index->n; first += n) {
        const uint32_t *ids = index->ids + first;
        for (n = 1; n < FTB_PAGE_CELLS && first + n < index->n
                    && ids[n] / FTB_PAGE_CELLS == ids[0] / FTB_PAGE_CELLS;) {
            n++;
        }
        memset(totals, 0, n * sizeof totals[0]);
        memset(slowest, 0, n * sizeof slowest[0]);
        ftb_shard_sum_page(ids, n, totals, slowest);
        for (uint32_t i = 0; i < n; i++) {
            uint32_t ix = (uint32_t)first + i;
            fn(figures, (struct scanned){ix, slowest[i], &totals[i]}, context);
        }
    }
}

static void
topic_pass_over(struct figures *figures, struct scanned topic)
{
    totals_add(&figures->rest.totals, topic.totals);
    figures->rest_ixs[figures->rest_n++] = topic.ix;
    uint64_t handled = topic.totals->handled;
    notable_offer(&figures->slowest, topic.ix, topic.slowest, handled);
    notable_offer(&figures->called, topic.ix, handled, topic.slowest);
}

/* Give a topic a row, or add it to the rest. */
static void
topic_place(struct figures *figures, struct scanned found, void *unused)
{
    (void)unused;
    struct ftb_topic *topic = figures->index->topics[found.ix];
    size_t row_ix, place = pins_place(&figures->pins, topic);
    if (figures->pins.slots[place] == topic) {
        row_ix = figures->pins.rows[place];
    } else {
        const struct ftb_totals *totals = found.totals;
        uint64_t traffic = totals->emitted + totals->posted + totals->handled;
        uint32_t slot = top_offer(&figures->busiest, traffic, 0);
        if (slot == TOP_NOT_TAKEN) {
            topic_pass_over(figures, found);
            return;
        }
        row_ix = figures->pins.n + slot;
    }
    struct topic_row *row = &figures->rows[row_ix];
    if (row->topic != NULL) {
        topic_pass_over(figures, (struct scanned){row->ix, row->slowest, &row->totals});
    }
    row->topic = topic;
    row->ix = found.ix;
    row->slowest = found.slowest;
    row->totals = *found.totals;
}

/* The times of the rest, and of all. */
static int
copy_other_times(struct figures *figures)
{
    struct ftb_bus *core = figures->bus->core;
    if (figures->rest_n > 0 || !figures->has_details) {
        times_read(figures->whole, core->times_id);
        for (int i = 0; i < FTB_TIMES_N; i++) {
            ftb_histogram_sum_clear(&figures->scratch[i]);
            ftb_histogram_sum_split(
                &figures->whole[i], &figures->shown[i], &figures->scratch[i]);
        }
    } else { /* each was read by itself */
        times_read(figures->scratch, core->unheard_id);
        times_add(figures->whole, figures->shown);
        times_add(figures->whole, figures->scratch);
    }
    return times_pack(&figures->rest, figures->scratch) == 0
                   && times_pack(&figures->total, figures->whole) == 0
               ? 0
               : -1;
}

/* The rows' times and handlers, and those of the rest. */
static int
copy_details(struct figures *figures)
{
    size_t shown_n = 0;
    for (size_t i = 0; figures->has_details && i < figures->rows_n; i++) {
        struct topic_row *row = &figures->rows[i];
        times_read(figures->scratch, ftb_topic_id(row->topic));
        times_add(figures->shown, figures->scratch);
        if (times_pack(row, figures->scratch) < 0
            || figures_add_handlers(figures, row) < 0) {
            return -1;
        }
        shown_n += row->handlers_n;
    }
    /* relaxed: who subscribes just now may be missed */
    size_t subscribed_n = ftb_load_relaxed(&figures->bus->core->subscribed);
    figures->rest.handlers_n = subscribed_n > shown_n ? subscribed_n - shown_n : 0;
    if (copy_other_times(figures) < 0) {
        return -1;
    }
    times_read(figures->scratch, figures->bus->core->own_id);
    return times_pack(&figures->own, figures->scratch) == 0
                   && figures_add_notable(figures) == 0
               ? 0
               : -1;
}

static enum ftb_result
copy_all(struct figures *figures)
{
    struct ftb_bus *core = figures->bus->core;
    if (figures->is_exact && !ftb_topic_index_is_whole(figures->index, core)) {
        return FTB_FULL;
    }
    figures->own.totals = totals_of(core->own_id);
    struct ftb_totals unheard = totals_of(core->unheard_id);
    totals_add(&figures->rest.totals, &unheard);
    scan(figures, topic_place, NULL);
    figures->rows_n = figures->pins.n + figures->busiest.n;
    figures->total.totals = figures->rest.totals;
    for (size_t i = 0; i < figures->rows_n; i++) {
        totals_add(&figures->total.totals, &figures->rows[i].totals);
    }
    return copy_details(figures) == 0 ? FTB_OK : FTB_NOMEM;
}

static void
topic_sum(struct figures *figures, struct scanned topic, void *context)
{
    (void)figures;
    totals_add(context, topic.totals);
}

/* All counters are monotone, so equal sums are equal counters. */
void
figures_compare(struct figures *figures)
{
    struct ftb_bus *core = figures->bus->core;
    struct ftb_totals now = {0};
    struct ftb_totals own = totals_of(core->own_id);
    struct ftb_totals unheard = totals_of(core->unheard_id);
    totals_add(&now, &unheard);
    scan(figures, topic_sum, &now);
    figures->is_still = memcmp(&now, &figures->total.totals, sizeof now) == 0
                        && memcmp(&own, &figures->own.totals, sizeof own) == 0;
}

void
figures_copy(struct figures *figures)
{
    figures->is_copied = true;
    figures->result = copy_all(figures);
}

/* Whether there is memory for it all. */
static bool
figures_init(struct figures *figures, const struct figures_request *request)
{
    figures->index = ftb_topic_index_get(figures->bus->core);
    if (figures->index == NULL) {
        return false;
    }
    size_t topics_n = figures->index->n, max_keys = request->max_keys;
    size_t busiest_n = max_keys < topics_n ? max_keys : topics_n;
    /* Where all have rows no handler is left to rank. */
    size_t others_n = figures->has_details && max_keys < topics_n ? max_keys : 0;
    size_t pins_size = ftb_next_pow2(2 * request->pinned_n + 1);
    struct pins *pins = &figures->pins;
    pins->mask = pins_size - 1;
    pins->slots = ftb_alloc(pins_size * sizeof(struct ftb_topic *));
    pins->rows = ftb_alloc(pins_size * sizeof *pins->rows);
    figures->rest_ixs = ftb_alloc((topics_n + 1) * sizeof *figures->rest_ixs);
    figures->rows =
        ftb_alloc((busiest_n + request->pinned_n + 1) * sizeof *figures->rows);
    figures->scratch = times_new();
    figures->shown = times_new();
    figures->whole = times_new();
    return pins->slots != NULL && pins->rows != NULL && figures->rest_ixs != NULL
           && figures->rows != NULL && figures->scratch != NULL
           && figures->shown != NULL && figures->whole != NULL
           && top_init(&figures->busiest, busiest_n)
           && notable_init(&figures->slowest, others_n / 2)
           && notable_init(&figures->called, others_n - others_n / 2);
}

struct figures *
figures_new(BusObject *bus, const struct figures_request *request)
{
    struct figures *figures = ftb_alloc(sizeof *figures);
    if (figures == NULL) {
        return NULL;
    }
    figures->bus = bus;
    figures->is_exact = request->is_exact;
    figures->has_details = request->has_details;
    if (!figures_init(figures, request)) {
        figures_free(figures);
        return NULL;
    }
    for (size_t i = 0; i < request->pinned_n; i++) {
        pins_add(&figures->pins, request->pinned[i]);
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
    row_fini(&figures->total);
    row_fini(&figures->own);
    for (size_t i = 0; i < figures->handlers_n; i++) {
        ftb_free(figures->handlers[i].time.pairs);
        ftb_handler_release(figures->handlers[i].handler);
    }
    ftb_free(figures->pins.slots);
    ftb_free(figures->pins.rows);
    ftb_topic_index_give(figures->bus->core, figures->index);
    ftb_free(figures->rows);
    ftb_free(figures->busiest.heap);
    ftb_free(figures->rest_ixs);
    ftb_free(figures->handlers);
    notable_fini(&figures->slowest);
    notable_fini(&figures->called);
    ftb_free(figures->scratch);
    ftb_free(figures->shown);
    ftb_free(figures->whole);
    ftb_free(figures);
}

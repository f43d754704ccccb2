/* Which handlers get a row.
 *
 * All of a key that has one; of the other keys those with the longest calls and those that
 * are called most. There may be very many of these, so what a topic counts anyway says
 * where to look: no call of its handlers was longer than its longest (to within a bucket),
 * and together they were called as often as it says. What a topic counts outlives its
 * handlers, though: if those that were looked at do not fill the rows, all are. */
#include "figures.h"

#include <string.h>

/* So many topics are looked at for each handler that is to be found. */
#define TOPICS_PER_HANDLER 2

bool
notable_init(struct notable *notable, size_t handlers_n)
{
    size_t topics_n = TOPICS_PER_HANDLER * handlers_n;
    notable->topic_ixs = ftb_alloc((topics_n + 1) * sizeof *notable->topic_ixs);
    notable->ones = ftb_alloc((handlers_n + 1) * sizeof *notable->ones);
    return notable->topic_ixs != NULL && notable->ones != NULL
           && top_init(&notable->topics, topics_n)
           && top_init(&notable->handlers, handlers_n);
}

void
notable_fini(struct notable *notable)
{
    ftb_free(notable->topics.heap);
    ftb_free(notable->topic_ixs);
    ftb_free(notable->handlers.heap);
    ftb_free(notable->ones);
}

void
notable_offer(
    struct notable *notable, uint32_t topic_ix, uint64_t bound, uint64_t minor)
{
    uint32_t slot = top_offer(&notable->topics, bound, minor);
    if (slot != TOP_NOT_TAKEN) {
        notable->topic_ixs[slot] = topic_ix;
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
    ftb_histogram_sum_clear(scratch);
    ftb_tally_sum(handler, &sum, scratch);
    row->calls = sum.calls;
    row->failed = sum.failed;
    return histogram_pack(&row->time, scratch);
}

int
figures_add_handlers(struct figures *figures, struct topic_row *row)
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

static bool
is_among(const struct notable *notable, uint64_t serial)
{
    for (uint32_t i = 0; i < notable->handlers.n; i++) {
        if (notable->ones[i].serial == serial) {
            return true;
        }
    }
    return false;
}

/* Rank the handlers of a topic; those that are called most without the slowest. */
static void
handlers_rank(struct figures *figures, struct notable *notable, uint32_t topic_ix)
{
    struct ftb_topic *topic = figures->index->topics[topic_ix];
    struct ftb_snapshot *snapshot = handlers_hold(topic);
    if (snapshot == NULL) {
        return;
    }
    bool is_by_time = notable == &figures->slowest;
    for (uint32_t i = 0; i < snapshot->n; i++) {
        struct ftb_handler *handler = ftb_snapshot_handlers(snapshot)[i];
        if (!is_by_time && is_among(&figures->slowest, handler->serial)) {
            continue;
        }
        struct ftb_tally_sum sum;
        ftb_tally_sum(handler, &sum, NULL);
        uint32_t slot = is_by_time
                            ? top_offer(&notable->handlers, sum.longest_ns, sum.calls)
                            : top_offer(&notable->handlers, sum.calls, sum.longest_ns);
        if (slot != TOP_NOT_TAKEN) {
            notable->ones[slot] = (struct candidate){topic, handler->serial};
        }
    }
    ftb_hazard_drop(ftb_thread_current());
}

/* Whether the handlers that were found are those that were looked for. */
static bool
is_found(const struct figures *figures, const struct notable *notable)
{
    const struct top *found = &notable->handlers;
    if (notable->topics.n == figures->rest_n) {
        return true; /* all were looked at */
    }
    if (found->n < found->capacity) {
        return false;
    }
    if (notable == &figures->called) {
        return true;
    }
    uint64_t longest_ns = found->heap[0].major;
    uint64_t rank = longest_ns > 0 ? ftb_histogram_bucket(longest_ns) + 1 : 0;
    return rank >= notable->topics.heap[0].major; /* which no other topic exceeds */
}

static void
notable_rank(struct figures *figures, struct notable *notable)
{
    if (notable->handlers.capacity == 0) {
        return;
    }
    for (uint32_t i = 0; i < notable->topics.n; i++) {
        handlers_rank(figures, notable, notable->topic_ixs[i]);
    }
    if (!is_found(figures, notable)) {
        notable->handlers.n = 0;
        for (size_t i = 0; i < figures->rest_n; i++) {
            handlers_rank(figures, notable, figures->rest_ixs[i]);
        }
    }
}

/* Rows for the handlers that were chosen and are still subscribed. */
static int
candidates_add(struct figures *figures, const struct notable *notable)
{
    const struct candidate *ones = notable->ones;
    uint32_t n = notable->handlers.n;
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

int
figures_add_notable(struct figures *figures)
{
    notable_rank(figures, &figures->slowest);
    notable_rank(figures, &figures->called);
    return candidates_add(figures, &figures->slowest) == 0
                   && candidates_add(figures, &figures->called) == 0
               ? 0
               : -1;
}

/* The figures of a bus, copied into C memory: what stats.c makes objects of.
 *
 * Copying calls no Python, so that it can be done while every other thread is stopped.
 * Rows have memory in proportion to those that are asked for; of each other key there is
 * one number. */
#ifndef FTB_PY_FIGURES_H
#define FTB_PY_FIGURES_H

#include "bus.h"
#include "ftb_topic_index.h"

struct bucket_count {
    uint32_t bucket;
    uint64_t count;
};

/* A histogram's buckets that are not empty. */
struct packed_histogram {
    uint32_t n;
    uint64_t sum_ns, min_ns, max_ns;
    struct bucket_count *pairs;
};

struct handler_row {
    struct ftb_handler *handler; /* one reference */
    uint64_t calls, failed;
    struct packed_histogram time;
};

struct topic_row {
    struct ftb_topic *topic; /* NULL in a row that is of no topic */
    uint32_t ix;             /* in the index */
    uint16_t slowest;        /* as ftb_shard_sum_page has it */
    struct ftb_totals totals;
    struct packed_histogram times[FTB_TIMES_N];
    size_t handlers_n; /* subscribed, with a row or not */
};

/* What is ranked, by major and then by minor; `slot` is where it is kept. */
struct ranked {
    uint64_t major, minor;
    uint32_t slot;
};

/* The greatest of what was offered: a heap with the least of them on top. */
struct top {
    struct ranked *heap;
    uint32_t n, capacity;
};

#define TOP_NOT_TAKEN UINT32_MAX

/* Make room. False: no memory. */
bool top_init(struct top *top, size_t capacity);

/* Offer one; returns the slot that it is to be kept in, instead of what is there if the
 * heap was full before, or TOP_NOT_TAKEN. */
uint32_t top_offer(struct top *top, uint64_t major, uint64_t minor);

/* A handler that may get a row. Not held: it is looked up again by its serial. */
struct candidate {
    struct ftb_topic *topic;
    uint64_t serial;
};

/* Handlers of topics without a row that get one all the same, by one measure. They are
 * looked for in the topics that are greatest by a bound of it. */
struct notable {
    struct top topics;
    uint32_t *topic_ixs; /* in the index, by slot */
    struct top handlers;
    struct candidate *ones; /* by slot */
};

/* Topics that have a row in any case, by a hash of their address. */
struct pins {
    struct ftb_topic **slots;
    uint32_t *rows; /* the number of each one's row */
    size_t mask;    /* slots - 1 */
    size_t n;
};

/* What is asked for. */
struct figures_request {
    size_t max_keys; /* rows besides those of pinned topics; SIZE_MAX: all */
    struct ftb_topic **pinned;
    size_t pinned_n;
    int is_exact;
    int has_details; /* else rows have counters only, and handlers none */
};

struct figures {
    BusObject *bus;
    int is_exact, has_details;
    struct pins pins;
    struct ftb_topic_index *index;
    struct topic_row *rows; /* of the pinned topics, then of the busiest */
    size_t rows_n;
    struct top busiest; /* slots: rows after the pinned */
    uint32_t *rest_ixs; /* the topics that have no row, by their place in the index */
    size_t rest_n;
    struct topic_row rest; /* the sum of what has no row, and of keys without a topic */
    struct topic_row total; /* the sum of all rows */
    struct topic_row own;   /* look-ups (emitted: found, unheard: not) and partitions */
    struct handler_row *handlers;
    size_t handlers_n, handlers_capacity;
    struct notable slowest; /* by their longest call; the bound is topic_row.slowest */
    struct notable called;  /* by calls; the topics are those with the most */
    struct ftb_histogram_sum *scratch, *shown, *whole; /* FTB_TIMES_N each */
    bool is_copied;
    bool is_still;
    enum ftb_result result;
};

/* Make room for the rows. NULL: no memory. */
struct figures *figures_new(BusObject *bus, const struct figures_request *request);

/* Copy everything once; sets result: FTB_FULL if an exact copy lacks a topic that came
 * just now, or FTB_NOMEM. Calls no Python. */
void figures_copy(struct figures *figures);

/* After a copy that went well, set is_still: whether no counter has moved since. */
void figures_compare(struct figures *figures);

/* Attached, and under no lock: the last reference to a handler may go. */
void figures_free(struct figures *figures);

/* Pack what a sum holds. 0, or -1 without memory. */
int histogram_pack(struct packed_histogram *packed, struct ftb_histogram_sum *sum);

/* figures_handlers.c: make room for notable handlers. False: no memory. */
bool notable_init(struct notable *notable, size_t handlers_n);

/* A topic without a row may have some. */
void notable_offer(
    struct notable *notable, uint32_t topic_ix, uint64_t bound, uint64_t minor);

void notable_fini(struct notable *notable);

/* Rows for all handlers of a topic that has a row. 0, or -1 without memory. */
int figures_add_handlers(struct figures *figures, struct topic_row *row);

/* Rows for the notable handlers of the others. 0, or -1 without memory. */
int figures_add_notable(struct figures *figures);

#endif

/* The figures of a bus, copied into C memory: what stats.c makes objects of.
 *
 * Copying calls no Python, so that it can be done while every other thread is stopped,
 * and its memory is in proportion to the rows that are asked for, not to the keys. */
#ifndef FTB_PY_FIGURES_H
#define FTB_PY_FIGURES_H

#include "bus.h"

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

/* A handler that may get a row. Not held: it is looked up again by its serial. */
struct candidate {
    struct ftb_topic *topic;
    uint64_t serial, calls, longest_ns;
};

/* Topics that have a row in any case, by a hash of their address. */
struct pins {
    struct ftb_topic **slots;
    uint32_t *rows; /* the number of each one's row */
    size_t mask;    /* slots - 1 */
    size_t n;
};

struct figures {
    BusObject *bus;
    struct pins pins;
    struct ftb_topic **list; /* all topics, then the rest_n that have no row */
    size_t capacity, rest_n;
    struct topic_row *rows; /* of the pinned topics, then of the busiest */
    size_t rows_n;
    struct topic_row rest; /* the sum of what has no row, and of keys without a topic */
    struct topic_row own;  /* look-ups (emitted: found, unheard: not) and partitions */
    struct handler_row *handlers;
    size_t handlers_n, handlers_capacity;
    struct top busiest;         /* slots: rows after the pinned */
    struct top slowest, called; /* slots: the arrays below */
    struct candidate *slow_ones, *called_ones;
    struct ftb_histogram_sum *scratch, *rest_times; /* FTB_TIMES_N each */
    bool is_copied;
    bool is_still;
    enum ftb_result result;
};

/* Make room for the rows of max_keys keys besides the pinned ones; topics may be pinned
 * then, up to pins_n of them. NULL: no memory. */
struct figures *figures_new(BusObject *bus, size_t max_keys, size_t pins_n);

/* Let a topic have a row whatever its traffic. */
void figures_pin(struct figures *figures, struct ftb_topic *topic);

/* Copy everything once; sets result: FTB_FULL if there are more topics than there is room
 * for, or FTB_NOMEM. Calls no Python. */
void figures_copy(struct figures *figures);

/* After a copy that went well, set is_still: whether no counter has moved since. */
void figures_compare(struct figures *figures);

/* Attached, and under no lock: the last reference to a handler may go. */
void figures_free(struct figures *figures);

#endif

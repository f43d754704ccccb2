/* The figures of a bus, copied into memory of their own (stats.c). */
#ifndef FTB_PY_STATS_H
#define FTB_PY_STATS_H

#include "bus.h"
#include "errors.h"

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
    struct ftb_topic *topic; /* NULL in the last rows */
    uint32_t id;
    struct ftb_totals totals;
    struct packed_histogram times[FTB_TIMES_N];
    uint32_t handlers_n;
    struct handler_row *handlers;
};

/* After those of the topics: the events of keys without one, and the bus's own. */
#define FIGURES_ROWS_MORE 2

struct figures {
    BusObject *bus;
    size_t capacity; /* topics there is room for */
    struct ftb_topic **list;
    struct topic_row *topics;
    size_t topics_n; /* rows that are filled */
    struct ftb_histogram_sum *scratch;
    bool is_copied;
    enum ftb_result result;
    bool is_still; /* no counter moved during the copy */
};

extern PyTypeObject ftb_cut_type;

/* subscription.c: the callable of a handler, or NULL if its weak target died. */
PyObject *ftb_handler_callable(struct ftb_handler *handler);

#endif

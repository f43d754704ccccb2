/* What post.c and post_many.c share: one event on its way into the queue. */
#ifndef FTB_PY_POST_H
#define FTB_PY_POST_H

#include "bus.h"

struct post {
    BusObject *bus;
    ftb_pool_t *pool;
    struct ftb_topic *topic; /* NULL: `item` is a task */
    struct ftb_thread *thread;
    struct ftb_cell *cell;
    struct ftb_item item; /* owns payload until it is queued */
    int has_partition;
    int is_urgent;
    uint64_t partition_hash;
    uint64_t timeout_ns;
};

/* Everything but the payload. 0; or -1 with an exception, and post->cell set if the event
 * is to be counted as rejected. */
int post_init(
    struct post *post, BusObject *bus, struct ftb_topic *topic,
    const struct post_options *options);

/* Queue post->item and count it; owns the payload reference either way. New reference to
 * True (queued) or False (dropped by policy), or NULL. */
PyObject *post_run(struct post *post);

/* arguments: partition, timeout, urgent, context; NULL where absent. 0, and the caller
 * drops options->context, or -1. */
int post_options_of(PyObject **arguments, struct post_options *options);

#endif

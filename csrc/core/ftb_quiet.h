/* Waiting until a cancelled handler runs nowhere, and who waits for whom.
 *
 * A handler may wait in this way for another one. Two that wait for each other would do so
 * for ever: such a wait is refused as it begins. */
#ifndef FTB_QUIET_H
#define FTB_QUIET_H

#include "ftb_topic.h"

/* A wait of this thread, on its stack. Guarded by the lock in ftb_quiet.c. */
struct ftb_quiet_wait {
    struct ftb_quiet_wait *next;
    struct ftb_handler *handler; /* that it waits for */
    struct ftb_thread
        *thread; /* NULL: it runs no handler, so that nobody waits for it */
    /* The hazard slots in use when the wait began. They stay as they are until it ends:
     * what a signal handler emits meanwhile takes the ones after them. */
    uint32_t depth;
    bool is_reached; /* by the search */
};

/* Before a wait for a cancelled handler. False: it would never end, as what it waits for
 * waits for what this thread is running. Takes a lock if this thread runs a handler. */
FTB_MUST_USE bool
ftb_quiet_begin(struct ftb_quiet_wait *wait, struct ftb_handler *handler);

/* After it, if it began. */
void ftb_quiet_end(struct ftb_quiet_wait *wait);

/* Wait until no other thread is inside an emit that may run this cancelled handler.
 * FTB_TIMEOUT at the deadline. Blocks: the caller is detached. */
FTB_MUST_USE enum ftb_result
ftb_handler_wait_quiet(struct ftb_handler *handler, uint64_t deadline_ns);

/* In a fork's child: the waits of other threads are gone. */
void ftb_quiet_after_fork_child(void);

#endif

/* Sections that a writer waits for, one by one.
 *
 * ftb_reclaim waits until no section is open that was open when it began, and gives up if
 * one takes too long. Where writers are frequent and threads outnumber cores, some reader
 * is preempted inside a section at almost any time, and that would rarely succeed. So a
 * writer may note the sections that are open, and whoever looks later sees whether these
 * are closed; those opened since saw what the writer had unlinked already.
 *
 * Thread rule: any thread may note and ask, outside sections. The argument is that of
 * ftb_reclaim.c, points 1 to 3 and 5; the model is models/grace.cpp. */
#ifndef FTB_GRACE_H
#define FTB_GRACE_H

#include "ftb_reclaim.h"

/* A section that was open. Thread records are never freed, so it may be kept. */
struct ftb_blocker {
    struct ftb_thread *thread;
    uint64_t seq;
};

/* (7) Note the thread's section. False if it has none open: then it does not block. What
 * the caller unlinked before (by seq_cst) must wait for the section to close. */
static inline bool
ftb_blocker_note(struct ftb_blocker *blocker, struct ftb_thread *thread)
{
    blocker->thread = thread;
    blocker->seq = ftb_load_seq_cst(&thread->seq);
    return (blocker->seq & 1) != 0;
}

/* True once the section is closed. What its thread did inside happened before. Acquire
 * is enough, unlike in (7): any later value of seq says it. */
static inline bool
ftb_blocker_is_gone(const struct ftb_blocker *blocker)
{
    return ftb_load_acquire(&blocker->thread->seq) != blocker->seq;
}

#endif

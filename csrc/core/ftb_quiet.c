/* Which waits would never end.
 *
 * A thread that waits for a handler waits for every other thread with a snapshot of it in
 * a slot, and gives none of its own slots back before its wait has ended. So threads that
 * wait for each other in a circle do so for ever, and nothing but a circle is refused.
 *
 * None is missed: who waits took the slots that count before its wait began, and takes
 * none of them later. A circle is complete as its last wait begins; the others are in the
 * list by then, with slots that this lock makes visible. No snapshot goes away under the
 * search, since the slots that it looks at hold it. */
#include "ftb_quiet.h"

#include <time.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct ftb_quiet_wait *waits = NULL;

static bool
snapshot_contains(const void *object, void *context)
{
    struct ftb_snapshot *snapshot = (struct ftb_snapshot *)(uintptr_t)object;
    struct ftb_handler *handler = context;
    uint32_t i = ftb_snapshot_topic(snapshot) == handler->topic ? 0 : snapshot->n;
    while (i < snapshot->n && ftb_snapshot_handlers(snapshot)[i] != handler) {
        i++;
    }
    return i < snapshot->n;
}

/* Whether `wait` waits for the thread of `other` to give one of these slots back. */
static bool
waits_for_locked(const struct ftb_quiet_wait *wait, const struct ftb_quiet_wait *other)
{
    bool is_held = false;
    for (uint32_t i = 0; i < other->depth && !is_held; i++) {
        /* relaxed: this lock has made it visible, and it stays */
        uintptr_t object = ftb_load_relaxed(&other->thread->hazard[i]);
        is_held = snapshot_contains((const void *)object, wait->handler);
    }
    return is_held && wait->thread != other->thread;
}

static bool
closes_circle_locked(struct ftb_quiet_wait *newest)
{
    bool has_grown = true;
    for (struct ftb_quiet_wait *w = waits; w != NULL; w = w->next) {
        w->is_reached = w == newest;
    }
    while (has_grown) {
        has_grown = false;
        for (struct ftb_quiet_wait *a = waits; a != NULL; a = a->next) {
            if (a->is_reached && a != newest && waits_for_locked(a, newest)) {
                return true;
            }
            for (struct ftb_quiet_wait *b = a->is_reached ? waits : NULL; b != NULL;
                 b = b->next) {
                if (!b->is_reached && waits_for_locked(a, b)) {
                    b->is_reached = has_grown = true;
                }
            }
        }
    }
    return false;
}

static void
remove_locked(const struct ftb_quiet_wait *wait)
{
    struct ftb_quiet_wait **link = &waits;
    while (*link != NULL && *link != wait) {
        link = &(*link)->next;
    }
    if (*link != NULL) { /* a fork in a signal handler has forgotten it */
        *link = wait->next;
    }
}

bool
ftb_quiet_begin(struct ftb_quiet_wait *wait, struct ftb_handler *handler)
{
    struct ftb_thread *thread = ftb_thread_local;
    *wait = (struct ftb_quiet_wait){.handler = handler};
    if (thread == NULL || thread->depth == 0) {
        return true;
    }
    wait->thread = thread;
    wait->depth = thread->depth;
    pthread_mutex_lock(&lock);
    wait->next = waits;
    waits = wait;
    bool is_circle = closes_circle_locked(wait);
    if (is_circle) {
        remove_locked(wait);
    }
    pthread_mutex_unlock(&lock);
    return !is_circle;
}

void
ftb_quiet_end(struct ftb_quiet_wait *wait)
{
    if (wait->thread != NULL) {
        pthread_mutex_lock(&lock);
        remove_locked(wait);
        pthread_mutex_unlock(&lock);
    }
}

enum ftb_result
ftb_handler_wait_quiet(struct ftb_handler *handler, uint64_t deadline_ns)
{
    long pause_ns = 20000;
    while (ftb_hazard_find(snapshot_contains, handler)) {
        if (ftb_now_ns() >= deadline_ns) {
            return FTB_TIMEOUT;
        }
        struct timespec pause = {0, pause_ns};
        nanosleep(&pause, NULL);
        if (pause_ns < 1000000) {
            pause_ns *= 2; /* a handler that runs long is not worth a busy wait */
        }
    }
    return FTB_OK;
}

void
ftb_quiet_after_fork_child(void)
{
    pthread_mutex_init(&lock, NULL);
    waits = NULL;
}

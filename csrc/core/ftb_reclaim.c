#include "ftb_reclaim.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "ftb_shard.h"
#include "ftb_turn.h"

/* Sequence section around the look-up, one hazard slot across the use. The family is
 * PEBR (Kang and Jung, PLDI 2020): epochs while short, hazard pointers while long.
 *
 *   reader                                   writer
 *   (1) seq := odd            seq_cst        (6) link := new           seq_cst exchange
 *   (2) p := link             seq_cst            ftb_retire(old)
 *   (3) hazard := p           release        (7) read seq              seq_cst
 *   (4) seq := even           release            odd: wait for a change, or keep all
 *       ... use p ...                        (8) read the hazards      acquire
 *   (5) hazard := NULL        release            not found: free(old)
 *
 * Claim: (8) does not miss a reader that got `old` at (2).
 * 1. (1), (2), (6), (7) are seq_cst, so they stand in one total order S.
 * 2. If (7) comes before (1) in S, then (6) < (7) < (1) < (2): the reader gets `new`,
 *    or something newer. It never had `old`.
 * 3. If (1) comes before (7) in S, (7) reads that odd value or a later one. Odd: the
 *    writer waits until it reads a different, hence later, value (or gives up and keeps
 *    everything). A later value is the store (4) of that section or a store after it in
 *    modification order; every store to seq is a release by the one owner, so in each
 *    case (3) happens before the writer's scan (8), which sees p or what the owner put
 *    there later.
 * 4. If (8) sees NULL, or what a later section put there, then (5) happened before it:
 *    each store to a slot is a release, by one owner or by owners who handed the record
 *    on (release, acquire of in_use), and (8) is an acquire. So all that the reader did
 *    with `old` happens before the free.
 * 5. A thread that registers during the scan pushed its record (seq_cst) either before
 *    the scan read the list head (seq_cst): it is scanned; or after: then (6) < head
 *    read < push < (1) < (2), and it never had `old`.
 * 6. One reclaimer at a time (the turn's lock), so each retired object is judged once, by
 *    the thread that took it off the list; what it keeps goes to `kept`.
 * 7. Who finds another thread at it goes away, and nothing waits for a later call because
 *    of that: a scan follows that sees what it retired and which slots it gave back
 *    (ftb_turn.h). What is left because a section did not close waits for the next call.
 *
 * A section contains no call that can block, so an odd seq means tens of nanoseconds
 * unless the thread was preempted; then the batch is kept for the next attempt. */

FTB_TLS struct ftb_thread *ftb_thread_local = NULL;

static struct ftb_threads threads = {NULL};
/* Pushed to by ftb_retire, emptied by the reclaimer. */
static _Atomic(struct ftb_retired *) retired = NULL;
/* To scan. Asked for by who retired something or gave a slot back. */
static struct ftb_turn turn = {FTB_TURN_FREE, PTHREAD_MUTEX_INITIALIZER};
/* Guarded by the turn's lock. */
static struct ftb_retired *kept = NULL;
static pthread_once_t exit_hook_once = PTHREAD_ONCE_INIT;
static pthread_key_t exit_hook;
static bool has_exit_hook = false; /* written once, under exit_hook_once */

static void
thread_exit(void *value)
{
    struct ftb_thread *thread = value;
    ftb_thread_local = NULL;
    ftb__thread_disown(thread);
}

/* A fork waits for the reclaimer, so that its child finds the kept list whole. */
static void
lock_for_fork(void)
{
    ftb_mutex_lock(&turn.lock);
}

static void
unlock_after_fork(void)
{
    ftb_mutex_unlock(&turn.lock);
}

/* Who had the turn may be gone; the thread that forked had not, as it runs no round. */
static void
unlock_in_child(void)
{
    ftb_store_relaxed(&turn.state, FTB_TURN_FREE); /* relaxed: one thread is left */
    unlock_after_fork();
}

static void
exit_hook_init(void)
{
    has_exit_hook = pthread_key_create(&exit_hook, thread_exit) == 0;
    pthread_atfork(lock_for_fork, unlock_after_fork, unlock_in_child);
}

static struct ftb_thread *
thread_reuse(void)
{
    struct ftb_thread *thread = ftb__threads_first(&threads);
    while (thread != NULL && !ftb__thread_try_own(thread)) {
        thread = ftb_load_relaxed(&thread->next);
    }
    return thread;
}

static struct ftb_thread *
thread_new(void)
{
    struct ftb_thread *thread = ftb_alloc_line(sizeof *thread);
    if (thread == NULL) {
        return NULL;
    }
    thread->shard = ftb_shard_new();
    if (thread->shard == NULL) {
        ftb_free(thread);
        return NULL;
    }
    ftb_store_relaxed(&thread->in_use, 1); /* relaxed: the push publishes it */
    ftb__threads_push(&threads, thread);
    return thread;
}

struct ftb_thread *
ftb_thread_register(void)
{
    pthread_once(&exit_hook_once, exit_hook_init);
    if (!has_exit_hook) {
        return NULL; /* the process has used up its keys */
    }
    struct ftb_thread *thread = thread_reuse();
    if (thread == NULL) {
        thread = thread_new();
    }
    if (thread != NULL && pthread_setspecific(exit_hook, thread) != 0) {
        ftb__thread_disown(thread);
        thread = NULL;
    }
    ftb_thread_local = thread;
    return thread;
}

void
ftb_thread_each(void (*fn)(struct ftb_thread *thread, void *context), void *context)
{
    struct ftb_thread *thread = ftb__threads_first(&threads);
    for (; thread != NULL; thread = ftb_load_relaxed(&thread->next)) {
        fn(thread, context);
    }
}

void
ftb_retire(
    struct ftb_retired *self, const void *object, void (*free_fn)(struct ftb_retired *))
{
    self->object = object;
    self->free_fn = free_fn;
    ftb__retired_push(&retired, self);
}

struct hazard_set {
    const void **objects;
    size_t n, capacity;
};

static bool
hazard_set_add(const void *object, void *context)
{
    struct hazard_set *set = context;
    if (set->n == set->capacity) {
        size_t capacity = set->capacity == 0 ? 32 : set->capacity * 2;
        const void **grown = ftb_alloc(capacity * sizeof *grown);
        if (grown == NULL) {
            return false;
        }
        if (set->n > 0) {
            memcpy(grown, set->objects, set->n * sizeof *grown);
        }
        ftb_free(set->objects);
        set->objects = grown;
        set->capacity = capacity;
    }
    set->objects[set->n++] = object;
    return true;
}

static int
compare_pointers(const void *a, const void *b)
{
    uintptr_t x = (uintptr_t)*(const void *const *)a;
    uintptr_t y = (uintptr_t)*(const void *const *)b;
    return (x > y) - (x < y);
}

/* Every pointer in a slot. Returns false without memory. */
static bool
hazard_set_fill(struct hazard_set *set)
{
    struct ftb_thread *thread = ftb__threads_first(&threads);
    for (; thread != NULL; thread = ftb_load_relaxed(&thread->next)) {
        if (!ftb__hazards_each(thread, hazard_set_add, set)) {
            return false;
        }
    }
    if (set->n > 1) {
        qsort(set->objects, set->n, sizeof(void *), compare_pointers);
    }
    return true;
}

/* Split the kept list into what is protected (stays) and what is free (added to the
 * list). */
static void
kept_split_locked(const struct hazard_set *set, struct ftb_retired **free_list)
{
    struct ftb_retired *held = NULL, *next;
    for (struct ftb_retired *r = kept; r != NULL; r = next) {
        next = r->next;
        bool is_held =
            set->n > 0
            && bsearch(
                   &r->object, set->objects, set->n, sizeof(void *), compare_pointers)
                   != NULL;
        struct ftb_retired **list = is_held ? &held : free_list;
        r->next = *list;
        *list = r;
    }
    kept = held;
}

static void
kept_append_locked(struct ftb_retired *list)
{
    while (list != NULL) {
        struct ftb_retired *next = list->next;
        list->next = kept;
        kept = list;
        list = next;
    }
}

struct scans {
    struct ftb_retired *free_list; /* what nobody can see */
    size_t left_n;                 /* by the last scan */
};

static void
scan_locked(void *context)
{
    struct scans *scans = context;
    struct hazard_set set = {NULL, 0, 0};
    kept_append_locked(ftb__retired_take(&retired));
    if (kept != NULL && ftb__sections_closed(&threads) && hazard_set_fill(&set)) {
        kept_split_locked(&set, &scans->free_list);
    }
    ftb_free(set.objects);
    scans->left_n = 0;
    for (struct ftb_retired *r = kept; r != NULL; r = r->next) {
        ++scans->left_n;
    }
}

size_t
ftb_reclaim(void)
{
    struct scans scans = {NULL, 0};
    if (!ftb_turn_run(&turn, scan_locked, &scans)) {
        return 1; /* point 7: who is at it does it for us; a waiter does not count on
                   * that, but reclaims when it has waited */
    }
    /* Without the turn: free_fn may run finalizers, which take their time, and reclaim. */
    while (scans.free_list != NULL) {
        struct ftb_retired *next = scans.free_list->next;
        scans.free_list->free_fn(scans.free_list);
        scans.free_list = next;
    }
    return scans.left_n;
}

struct hazard_match {
    bool (*match)(const void *object, void *context);
    void *context;
};

static bool
is_no_match(const void *object, void *context)
{
    struct hazard_match *wanted = context;
    return !wanted->match(object, wanted->context);
}

bool
ftb_hazard_find(bool (*match)(const void *object, void *context), void *context)
{
    /* Under this lock nothing in a slot can be freed: a reclaimer that judged an
     * object free saw no slot with it, and a retired object enters no new slot. Its
     * bytes are visible: (3) is a release after the acquire of (2). */
    struct hazard_match wanted = {match, context};
    ftb_mutex_lock(&turn.lock);
    bool is_found = !ftb__sections_closed(&threads);
    struct ftb_thread *thread = ftb__threads_first(&threads);
    for (; thread != NULL && !is_found; thread = ftb_load_relaxed(&thread->next)) {
        is_found = thread != ftb_thread_local
                   && !ftb__hazards_each(thread, is_no_match, &wanted);
    }
    ftb_mutex_unlock(&turn.lock);
    return is_found;
}

static void
thread_forget(struct ftb_thread *thread, void *unused)
{
    (void)unused;
    if (thread == ftb_thread_local) {
        return;
    }
    uint64_t seq =
        ftb_load_relaxed(&thread->seq); /* relaxed, all: one thread is left */
    ftb_store_relaxed(&thread->seq, seq + (seq & 1));
    for (uint32_t i = 0; i < FTB_DEPTH_MAX; i++) {
        ftb_store_relaxed(&thread->hazard[i], (uintptr_t)0);
    }
    memset(thread->front, 0, sizeof thread->front); /* one may be half written */
    thread->depth = 0;
    ftb_store_relaxed(&thread->in_use, 0);
}

void
ftb_reclaim_after_fork_child(void)
{
    ftb_thread_each(thread_forget, NULL);
}

#include "ftb_reclaim.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "ftb_shard.h"

/* Sequence section around the look-up, one hazard slot across the use. The family is
 * PEBR (Kang and Jung, PLDI 2020): epochs while short, hazard pointers while long.
 *
 *   reader                                   writer
 *   (1) seq := odd            seq_cst        (6) link := new           seq_cst exchange
 *   (2) p := link             seq_cst            ftb_retire(old)
 *   (3) hazard := p           relaxed        (7) read seq              seq_cst
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
 * 4. If (8) sees NULL, or a later section's pointer, then (5) happened before it
 *    (release store, acquire load; a later (3) is sequenced after (5) and published by
 *    its own (4)): all the reader did with `old` happens before the free.
 * 5. A thread that registers during the scan pushed its record (seq_cst) either before
 *    the scan read the list head (seq_cst): it is scanned; or after: then (6) < head
 *    read < push < (1) < (2), and it never had `old`.
 * 6. One reclaimer at a time (reclaim_lock, try only), so each retired object is judged
 *    once, by the thread that took it off the list; what it keeps goes to `kept`.
 *
 * A section contains no call that can block, so an odd seq means tens of nanoseconds
 * unless the thread was preempted; then the batch is kept for the next attempt. */

enum { SECTION_SPINS = 2000 };

FTB_TLS struct ftb_thread *ftb_thread_local = NULL;

/* Pushed to by ftb_thread_register, never popped. */
static _Atomic(struct ftb_thread *) threads = NULL;
/* Pushed to by ftb_retire, emptied by the reclaimer. */
static _Atomic(struct ftb_retired *) retired = NULL;
/* Guarded by reclaim_lock. */
static struct ftb_retired *kept = NULL;
static pthread_mutex_t reclaim_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t exit_hook_once = PTHREAD_ONCE_INIT;
static pthread_key_t exit_hook;

static void
thread_exit(void *value)
{
    struct ftb_thread *thread = value;
    ftb_thread_local = NULL;
    /* Release: the next owner's acquire CAS sees seq and depth as we left them. */
    ftb_store_release(&thread->in_use, 0);
}

static void
exit_hook_init(void)
{
    pthread_key_create(&exit_hook, thread_exit);
}

static struct ftb_thread *
thread_reuse(void)
{
    struct ftb_thread *thread = ftb_load_seq_cst(&threads);
    for (; thread != NULL; thread = ftb_load_acquire(&thread->next)) {
        uint32_t is_free = 0;
        if (ftb_load_relaxed(&thread->in_use) == 0 /* relaxed: the CAS decides */
            && ftb_cas_acq_rel(&thread->in_use, &is_free, 1)) {
            return thread;
        }
    }
    return NULL;
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
    struct ftb_thread *head = ftb_load_acquire(&threads);
    do {
        ftb_store_relaxed(&thread->next, head); /* relaxed: likewise */
    } while (!ftb_cas_seq_cst(&threads, &head, thread)); /* point 5 */
    return thread;
}

struct ftb_thread *
ftb_thread_register(void)
{
    pthread_once(&exit_hook_once, exit_hook_init);
    struct ftb_thread *thread = thread_reuse();
    if (thread == NULL) {
        thread = thread_new();
    }
    if (thread != NULL) {
        pthread_setspecific(exit_hook, thread);
        ftb_thread_local = thread;
    }
    return thread;
}

void
ftb_thread_each(void (*fn)(struct ftb_thread *thread, void *context), void *context)
{
    struct ftb_thread *thread = ftb_load_seq_cst(&threads);
    for (; thread != NULL; thread = ftb_load_acquire(&thread->next)) {
        fn(thread, context);
    }
}

void
ftb_retire(
    struct ftb_retired *self, const void *object, void (*free_fn)(struct ftb_retired *))
{
    self->object = object;
    self->free_fn = free_fn;
    struct ftb_retired *head = ftb_load_relaxed(&retired); /* relaxed: the CAS checks */
    do {
        self->next = head;
    } while (!ftb_cas_release(&retired, &head, self)); /* pairs with retired_take */
}

static struct ftb_retired *
retired_take(void)
{
    if (ftb_load_acquire(&retired) == NULL) {
        return NULL;
    }
    /* acq_rel: acquires what ftb_retire released. */
    return ftb_exchange_acq_rel(&retired, (struct ftb_retired *)NULL);
}

/* (7): true once every section that was open is closed. */
static bool
sections_closed(void)
{
    struct ftb_thread *thread = ftb_load_seq_cst(&threads);
    for (; thread != NULL; thread = ftb_load_acquire(&thread->next)) {
        uint64_t seen = ftb_load_seq_cst(&thread->seq);
        if ((seen & 1) == 0) {
            continue;
        }
        int spins = 0;
        while (ftb_load_seq_cst(&thread->seq) == seen) {
            if (++spins == SECTION_SPINS) {
                return false;
            }
            if (spins % 64 == 0) {
                sched_yield(); /* its owner may need this very core */
            }
        }
    }
    return true;
}

struct hazard_set {
    const void **objects;
    size_t n, capacity;
};

static bool
hazard_set_add(struct hazard_set *set, const void *object)
{
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

/* (8): every pointer in a slot. Returns false without memory. */
static bool
hazard_set_fill(struct hazard_set *set)
{
    struct ftb_thread *thread = ftb_load_seq_cst(&threads);
    for (; thread != NULL; thread = ftb_load_acquire(&thread->next)) {
        uint32_t peak = ftb_load_acquire(&thread->depth_peak);
        for (uint32_t i = 0; i < peak; i++) {
            const void *object = ftb_load_acquire(&thread->hazard[i]);
            if (object != NULL && !hazard_set_add(set, object)) {
                return false;
            }
        }
    }
    return true;
}

static int
compare_pointers(const void *a, const void *b)
{
    uintptr_t x = (uintptr_t) * (const void *const *)a;
    uintptr_t y = (uintptr_t) * (const void *const *)b;
    return (x > y) - (x < y);
}

/* Split the kept list into what is protected (stays) and what is free (returned). */
static struct ftb_retired *
kept_split_locked(const struct hazard_set *set)
{
    struct ftb_retired *free_list = NULL, *held = NULL, *next;
    for (struct ftb_retired *r = kept; r != NULL; r = next) {
        next = r->next;
        bool is_held = set->n > 0
                       && bsearch(&r->object, set->objects, set->n, sizeof(void *),
                                  compare_pointers) != NULL;
        struct ftb_retired **list = is_held ? &held : &free_list;
        r->next = *list;
        *list = r;
    }
    kept = held;
    return free_list;
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

size_t
ftb_reclaim(void)
{
    if (pthread_mutex_trylock(&reclaim_lock) != 0) {
        return 1; /* somebody is at it; what we retired is theirs or the next one's */
    }
    kept_append_locked(retired_take());
    struct ftb_retired *free_list = NULL;
    struct hazard_set set = {NULL, 0, 0};
    if (kept != NULL && sections_closed() && hazard_set_fill(&set)) {
        if (set.n > 1) {
            qsort(set.objects, set.n, sizeof(void *), compare_pointers);
        }
        free_list = kept_split_locked(&set);
    }
    size_t left_n = 0;
    for (struct ftb_retired *r = kept; r != NULL; r = r->next) {
        left_n++;
    }
    pthread_mutex_unlock(&reclaim_lock);
    ftb_free(set.objects);
    while (free_list != NULL) { /* unlocked: free_fn may run finalizers */
        struct ftb_retired *next = free_list->next;
        free_list->free_fn(free_list);
        free_list = next;
    }
    return left_n;
}

size_t
ftb_hazard_find(
    bool (*match)(const void *object, void *context),
    void *context,
    struct ftb_hazard_seen *slots,
    size_t slots_n)
{
    /* Under reclaim_lock nothing in a slot can be freed: a reclaimer that judged an
     * object free saw no slot with it, and a retired object enters no new slot. */
    size_t found_n = 0;
    pthread_mutex_lock(&reclaim_lock);
    if (!sections_closed()) {
        pthread_mutex_unlock(&reclaim_lock);
        return SIZE_MAX;
    }
    struct ftb_thread *thread = ftb_load_seq_cst(&threads);
    for (; thread != NULL; thread = ftb_load_acquire(&thread->next)) {
        if (thread == ftb_thread_local) {
            continue;
        }
        uint32_t peak = ftb_load_acquire(&thread->depth_peak);
        for (uint32_t i = 0; i < peak; i++) {
            const void *object = ftb_load_acquire(&thread->hazard[i]);
            if (object != NULL && match(object, context)) {
                if (found_n < slots_n) {
                    slots[found_n] = (struct ftb_hazard_seen){thread, object, i};
                }
                found_n++;
            }
        }
    }
    pthread_mutex_unlock(&reclaim_lock);
    return found_n;
}

static void
thread_forget(struct ftb_thread *thread, void *unused)
{
    (void)unused;
    if (thread == ftb_thread_local) {
        return;
    }
    uint64_t seq = ftb_load_relaxed(&thread->seq); /* relaxed: one thread is left */
    ftb_store_seq_cst(&thread->seq, seq + (seq & 1));
    for (uint32_t i = 0; i < FTB_DEPTH_MAX; i++) {
        ftb_store_release(&thread->hazard[i], (const void *)NULL);
    }
    thread->depth = 0;
    ftb_store_release(&thread->in_use, 0);
}

void
ftb_reclaim_after_fork_child(void)
{
    pthread_mutex_init(&reclaim_lock, NULL);
    ftb_thread_each(thread_forget, NULL);
}

/* When the reference to an unlinked value is dropped.
 *
 *   reader                                  writer
 *   (1) open section         seq_cst        (6) unlink the value      seq_cst
 *   (2) value := entry.value seq_cst        (7) read every seq        seq_cst
 *       take a reference                        odd: wait until it differs
 *   (4) close section        release        (8) drop the map's reference
 *
 * By points 1 to 3 and 5 of ftb_reclaim.c, a reader that got the value at (2) has closed
 * that section before (8), so the count was not zero when the reader raised it. No hazard
 * slot is needed: the reference takes its place.
 *
 * The wait at (7) is short unless a reader lost its core inside its section. Then the
 * writer notes which sections it waits for and goes on; whoever drops something next
 * looks whether they are closed. Sections opened since do not matter, so this ends soon
 * even when there are more threads than cores and some reader is always preempted.
 *
 * (7) costs a cache miss for each thread that is busy in sections, so values whose end
 * nobody can notice wait in a small batch of the thread's own. All others are dropped
 * before the method returns: what they hold may be a file or a socket. */
#include <pthread.h>
#include <sched.h>

#include "ftb_grace.h"
#include "striped_map.h"

enum {
    BATCH_ITEMS = 32,
    SILENT_BYTES_MAX = 512, /* a batch of longer ones would be noticed as memory */
    SECTION_SPINS = 100,    /* a section lasts tens of nanoseconds, so does a turn */
};

struct unlinked {
    PyObject *value;
    struct map_entry *entry; /* NULL: the key has another value now */
};

/* Unlinked and not yet dropped. */
struct batch {
    struct batch *next; /* guarded by waiting_lock, as the blockers on the list are */
    struct ftb_blocker *blockers;
    uint32_t blockers_n, blockers_capacity;
    uint32_t items_n;
    struct unlinked items[];
};

/* Values of no consequence; full, it is scanned for and dropped. Its thread's own. */
static FTB_TLS struct batch *silent_local = NULL;

static pthread_once_t hooks_once = PTHREAD_ONCE_INIT;
static pthread_key_t exit_hook;
static bool has_exit_hook = false; /* written once, under hooks_once */

/* This thread is dropping batches of the list. A finalizer that it runs there, and that
 * uses a map, must leave the next batch to it: as many could lie on top of each other on
 * the stack as the list is long, and that is as long as what was unlinked while a reader
 * lost its core. */
static FTB_TLS bool is_dropping_local = false;

/* Batches whose sections are noted, the oldest first. A leaf lock. */
static pthread_mutex_t waiting_lock = PTHREAD_MUTEX_INITIALIZER;
static struct batch *waiting_first = NULL;
static struct batch **waiting_end = &waiting_first;
/* Written under waiting_lock; read by anyone. */
static ftb_atomic(size_t) waiting_n = 0;

static struct batch *
batch_new(size_t items_n)
{
    return ftb_alloc(sizeof(struct batch) + items_n * sizeof(struct unlinked));
}

static void
unlinked_drop(const struct unlinked *item)
{
    map_entry_free(item->entry);
    Py_DECREF(item->value);
}

static void
batch_drop(struct batch *batch)
{
    for (uint32_t i = 0; i < batch->items_n; i++) {
        unlinked_drop(&batch->items[i]);
    }
    batch->items_n = 0;
}

static bool
blocker_outlasts_spin(const struct ftb_blocker *blocker)
{
    for (int spins = 0; spins < SECTION_SPINS; spins++) {
        if (ftb_blocker_is_gone(blocker)) {
            return false;
        }
        ftb_relax();
    }
    return true;
}

/* Wait as long as it takes; the yields let the section's owner have a core. */
static void
blocker_wait(const struct ftb_blocker *blocker)
{
    while (!ftb_blocker_is_gone(blocker)) {
        sched_yield();
    }
}

static void
blocker_add(struct batch *batch, const struct ftb_blocker *blocker)
{
    if (batch->blockers_n == batch->blockers_capacity) {
        uint32_t capacity = batch->blockers_capacity * 2 + 4;
        struct ftb_blocker *grown = ftb_alloc(capacity * sizeof *grown);
        if (grown == NULL) {
            blocker_wait(blocker);
            return;
        }
        if (batch->blockers_n > 0) {
            memcpy(grown, batch->blockers, batch->blockers_n * sizeof *grown);
        }
        ftb_free(batch->blockers);
        batch->blockers = grown;
        batch->blockers_capacity = capacity;
    }
    batch->blockers[batch->blockers_n++] = *blocker;
}

struct scan {
    struct batch *batch; /* gets the blockers; NULL: made when there is one */
    size_t items_n;      /* the room in a batch that is made */
    bool waits;          /* for each blocker, instead */
};

static void
note_section(struct ftb_thread *thread, void *context)
{
    struct scan *scan = context;
    struct ftb_blocker blocker;
    if (!ftb_blocker_note(&blocker, thread)
        || !blocker_outlasts_spin(&blocker)) { /* (7) */
        return;
    }
    if (scan->batch == NULL && !scan->waits) {
        scan->batch = batch_new(scan->items_n);
        scan->waits = scan->batch == NULL;
    }
    if (scan->waits) {
        blocker_wait(&blocker);
    } else {
        blocker_add(scan->batch, &blocker);
    }
}

void
map_wait_for_readers(void)
{
    struct scan scan = {NULL, 0, true};
    ftb_thread_each(note_section, &scan);
}

/* The oldest batch, if its sections are closed, taken off the list; else NULL. */
static struct batch *
waiting_take_locked(void)
{
    struct batch *batch = waiting_first;
    if (batch == NULL) {
        return NULL;
    }
    while (batch->blockers_n > 0
           && ftb_blocker_is_gone(&batch->blockers[batch->blockers_n - 1])) {
        batch->blockers_n--;
    }
    if (batch->blockers_n > 0) {
        return NULL;
    }
    waiting_first = batch->next;
    if (waiting_first == NULL) {
        waiting_end = &waiting_first;
    }
    ftb_store_relaxed(&waiting_n, ftb_load_relaxed(&waiting_n) - 1); /* locked */
    return batch;
}

size_t
map_drop_waiting(void)
{
    struct batch *batch = NULL;
    while (ftb_load_relaxed(&waiting_n) > 0 /* relaxed: what is missed has time */
           && !is_dropping_local && pthread_mutex_trylock(&waiting_lock) == 0) {
        batch = waiting_take_locked();
        pthread_mutex_unlock(&waiting_lock);
        if (batch == NULL) {
            break;
        }
        is_dropping_local = true;
        batch_drop(batch); /* unlocked: finalizers may run */
        is_dropping_local = false;
        ftb_free(batch->blockers);
        ftb_free(batch);
    }
    return ftb_load_relaxed(&waiting_n); /* relaxed: a count to look at */
}

static void thread_exit(void *value);

static void
lock_for_fork(void)
{
    pthread_mutex_lock(&waiting_lock);
}

static void
unlock_after_fork(void)
{
    pthread_mutex_unlock(&waiting_lock);
}

/* A fork waits until the list is whole, so that its child can use it. */
static void
hooks_init(void)
{
    has_exit_hook = pthread_key_create(&exit_hook, thread_exit) == 0;
    pthread_atfork(lock_for_fork, unlock_after_fork, unlock_after_fork);
}

static void
waiting_add(struct batch *batch)
{
    pthread_once(&hooks_once, hooks_init);
    pthread_mutex_lock(&waiting_lock);
    batch->next = NULL;
    *waiting_end = batch;
    waiting_end = &batch->next;
    ftb_store_relaxed(&waiting_n, ftb_load_relaxed(&waiting_n) + 1); /* locked */
    pthread_mutex_unlock(&waiting_lock);
}

/* Without Python, so nothing is dropped here: whoever looks next does that. */
static void
thread_exit(void *value)
{
    struct scan scan = {value, 0, false};
    silent_local = NULL;
    if (scan.batch->items_n == 0) {
        ftb_free(scan.batch);
        return;
    }
    ftb_thread_each(note_section, &scan);
    waiting_add(scan.batch);
}

/* This thread's batch, made on first use. NULL: no memory, or no keys left. */
static FTB_NOINLINE struct batch *
silent_new_local(void)
{
    pthread_once(&hooks_once, hooks_init);
    struct batch *batch = has_exit_hook ? batch_new(BATCH_ITEMS) : NULL;
    if (batch != NULL && pthread_setspecific(exit_hook, batch) != 0) {
        ftb_free(batch);
        batch = NULL;
    }
    silent_local = batch;
    return batch;
}

static FTB_NOINLINE void
silent_flush_local(void)
{
    struct scan scan = {silent_local, 0, false};
    ftb_thread_each(note_section, &scan);
    if (scan.batch->blockers_n == 0) {
        batch_drop(scan.batch); /* no user code runs, so it is still this thread's */
        return;
    }
    silent_local = NULL;
    pthread_setspecific(exit_hook, NULL); /* of NULL: does not fail */
    waiting_add(scan.batch);
}

static void
drop_silently(const struct unlinked *item)
{
    struct batch *batch = silent_local != NULL ? silent_local : silent_new_local();
    if (FTB_UNLIKELY(batch == NULL)) {
        map_wait_for_readers();
        unlinked_drop(item);
        return;
    }
    batch->items[batch->items_n++] = *item;
    if (FTB_UNLIKELY(batch->items_n == BATCH_ITEMS)) {
        silent_flush_local();
    }
}

/* True if nobody can tell when the object goes: no weak references, no finalizer, no
 * references of its own, little memory. */
static bool
is_silent(PyObject *value)
{
    if (ftb_is_immortal(value)) {
        return true;
    }
    if (PyLong_CheckExact(value)) {
        return PyUnstable_Long_IsCompact((PyLongObject *)value);
    }
    if (PyUnicode_CheckExact(value)) {
        return PyUnicode_GET_LENGTH(value) <= SILENT_BYTES_MAX;
    }
    if (PyBytes_CheckExact(value)) {
        return PyBytes_GET_SIZE(value) <= SILENT_BYTES_MAX;
    }
    return PyFloat_CheckExact(value);
}

/* NULL if the caller may drop what it unlinked; else a batch that has to wait, for it. */
static struct batch *
batch_if_blocked(void)
{
    struct scan scan = {NULL, 1, false};
    ftb_thread_each(note_section, &scan);
    map_drop_waiting();
    return scan.batch;
}

static FTB_NOINLINE void
drop_later(struct batch *batch, const struct unlinked *item)
{
    batch->items[0] = *item;
    batch->items_n = 1;
    waiting_add(batch);
}

void
map_drop(PyObject *value, struct map_entry *entry)
{
    struct unlinked item = {value, entry};
    if (is_silent(value)) {
        if (entry != NULL || !ftb_is_immortal(value)) {
            drop_silently(&item);
        }
        return;
    }
    struct batch *batch = batch_if_blocked();
    if (FTB_LIKELY(batch == NULL)) {
        unlinked_drop(&item);
    } else {
        drop_later(batch, &item);
    }
}

PyObject *
map_drop_entry(PyObject *value, struct map_entry *entry)
{
    struct unlinked item = {value, entry};
    if (is_silent(value)) {
        Py_INCREF(value);
        drop_silently(&item);
        return value;
    }
    struct batch *batch = batch_if_blocked();
    if (FTB_LIKELY(batch == NULL)) {
        map_entry_free(entry);
    } else {
        Py_INCREF(value);
        drop_later(batch, &item);
    }
    return value;
}

/* When the reference to an unlinked value is dropped.
 *
 *   reader                                  writer
 *   (1) open section         seq_cst        (6) unlink the value    seq_cst
 *   (2) value := entry.value seq_cst        (7) read every seq      seq_cst
 *       take a reference                        odd: wait for a change, or retire
 *   (4) close section        release            drop the map's reference
 *
 * By points 1 to 3 and 5 of ftb_reclaim.c, a reader that got the value at (2) has closed
 * that section before the writer drops the map's reference, so the count was not zero
 * when the reader raised it. No hazard slot is needed: the reference takes its place.
 *
 * (7) costs the writer a cache miss for each thread that is busy in sections, so values
 * whose end nobody can notice wait in a small batch of the thread's own. All others are
 * dropped before the method returns: what they hold may be a file or a socket. */
#include <pthread.h>

#include "striped_map.h"

enum {
    LIMBO_ITEMS = 32,
    SILENT_BYTES_MAX = 512, /* a batch of longer ones would be noticed as memory */
    FEW_THREADS = 16,       /* (7) asks so many threads for every value dropped */
    MANY_THREADS_SKIP = 15, /* with more, and busy ones, for every 16th */
};

struct unlinked {
    PyObject *value;
    struct map_entry *entry; /* NULL: the key has another value now */
};

/* Unlinked and not yet dropped. Its thread's own, until it is retired as a whole. */
struct limbo {
    struct ftb_retired retired;
    uint32_t items_n;
    struct unlinked items[LIMBO_ITEMS];
};

static FTB_TLS struct limbo *limbo_local = NULL;
/* What this thread's last scan saw, and how many values it may pass over before the next
 * one. */
static FTB_TLS uint64_t seen_sum_local = 0;
static FTB_TLS uint32_t skip_local = 0;

static pthread_once_t exit_hook_once = PTHREAD_ONCE_INIT;
static pthread_key_t exit_hook;
static bool has_exit_hook = false; /* written once, under exit_hook_once */

/* Limbos that wait for ftb_reclaim with values that somebody may miss. Written by any
 * thread, rarely. */
static ftb_atomic(size_t) waiting_n = 0;

struct scan {
    uint64_t sum; /* of the sections counted, this thread's own not */
    uint32_t threads_n;
    bool is_closed;
};

static void
note_section(struct ftb_thread *thread, void *context)
{
    struct scan *scan = context;
    if (thread != ftb_thread_local) {
        scan->is_closed = scan->is_closed && ftb__section_is_closed(thread);
        scan->sum += ftb_load_relaxed(&thread->seq); /* relaxed: a rough count */
    }
    scan->threads_n++;
}

/* (7): true if every section that was open is closed. */
static bool
sections_closed(void)
{
    struct scan scan = {0, 0, true};
    ftb_thread_each(note_section, &scan);
    bool are_busy = scan.sum != seen_sum_local;
    seen_sum_local = scan.sum;
    skip_local = are_busy && scan.threads_n > FEW_THREADS ? MANY_THREADS_SKIP : 0;
    return scan.is_closed;
}

void
map_wait_for_readers(void)
{
    while (!sections_closed()) { /* yields: a reader has lost its core inside a section */
    }
}

static void
unlinked_drop(const struct unlinked *item)
{
    map_entry_free(item->entry);
    Py_DECREF(item->value);
}

static void
limbo_drop(struct limbo *limbo)
{
    for (uint32_t i = 0; i < limbo->items_n; i++) {
        unlinked_drop(&limbo->items[i]);
    }
    limbo->items_n = 0;
}

static void
silent_limbo_free(struct ftb_retired *retired)
{
    limbo_drop((struct limbo *)(void *)retired);
    ftb_free(retired);
}

static void
awaited_limbo_free(struct ftb_retired *retired)
{
    ftb_sub_relaxed(&waiting_n, 1); /* relaxed: only asks for a reclaim, some time */
    silent_limbo_free(retired);
}

static void
thread_exit(void *value)
{
    struct limbo *limbo = value;
    limbo_local = NULL;
    ftb_retire(&limbo->retired, limbo, silent_limbo_free);
}

static void
exit_hook_init(void)
{
    has_exit_hook = pthread_key_create(&exit_hook, thread_exit) == 0;
}

/* Make the limbo, or NULL, this thread's own. */
static void
limbo_set_local(struct limbo *limbo)
{
    limbo_local = limbo;
    pthread_setspecific(exit_hook, limbo); /* of NULL, or again: does not fail */
}

/* This thread's limbo, made on first use. NULL: no memory, or no keys left. */
static FTB_NOINLINE struct limbo *
limbo_new_local(void)
{
    pthread_once(&exit_hook_once, exit_hook_init);
    struct limbo *limbo = has_exit_hook ? ftb_alloc(sizeof *limbo) : NULL;
    if (limbo != NULL && pthread_setspecific(exit_hook, limbo) != 0) {
        ftb_free(limbo);
        limbo = NULL;
    }
    limbo_local = limbo;
    return limbo;
}

static void
drop_after_wait(const struct unlinked *item)
{
    map_wait_for_readers();
    unlinked_drop(item);
}

/* Drop what waits here; no user code runs. */
static FTB_NOINLINE void
limbo_flush_local(void)
{
    struct limbo *limbo = limbo_local;
    if (sections_closed()) {
        limbo_drop(limbo);
        return;
    }
    limbo_set_local(NULL);
    ftb_retire(&limbo->retired, limbo, silent_limbo_free);
}

static void
drop_silently(const struct unlinked *item)
{
    struct limbo *limbo = limbo_local != NULL ? limbo_local : limbo_new_local();
    if (FTB_UNLIKELY(limbo == NULL)) {
        drop_after_wait(item);
        return;
    }
    limbo->items[limbo->items_n++] = *item;
    if (FTB_UNLIKELY(limbo->items_n == LIMBO_ITEMS)) {
        limbo_flush_local();
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

/* True if the caller may drop what it unlinked; else it is given to limbo_retire. */
static bool
is_droppable(void)
{
    if (FTB_UNLIKELY(skip_local > 0)) {
        skip_local--;
        return false;
    }
    bool is_closed = sections_closed();
    if (is_closed && FTB_UNLIKELY(ftb_load_relaxed(&waiting_n) > 0)) { /* see above */
        ftb_reclaim();
    }
    return is_closed;
}

static FTB_NOINLINE void
limbo_retire(const struct unlinked *item)
{
    struct limbo *limbo = ftb_alloc(offsetof(struct limbo, items) + sizeof *item);
    if (limbo == NULL) {
        drop_after_wait(item);
        return;
    }
    limbo->items[0] = *item;
    limbo->items_n = 1;
    ftb_add_relaxed(&waiting_n, 1); /* relaxed: likewise */
    ftb_retire(&limbo->retired, limbo, awaited_limbo_free);
}

void
map_drop(PyObject *value, struct map_entry *entry)
{
    struct unlinked item = {value, entry};
    if (is_silent(value)) {
        if (entry != NULL || !ftb_is_immortal(value)) {
            drop_silently(&item);
        }
    } else if (FTB_LIKELY(is_droppable())) {
        unlinked_drop(&item);
    } else {
        limbo_retire(&item);
    }
}

PyObject *
map_drop_entry(PyObject *value, struct map_entry *entry)
{
    struct unlinked item = {value, entry};
    if (is_silent(value)) {
        Py_INCREF(value);
        drop_silently(&item);
    } else if (FTB_LIKELY(is_droppable())) {
        map_entry_free(entry);
    } else {
        Py_INCREF(value);
        limbo_retire(&item);
    }
    return value;
}

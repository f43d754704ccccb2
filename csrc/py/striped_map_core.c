/* The operations of a StripedMap on one key, and their linearization points.
 *
 * read: the load of the entry's value, or of the slot where no entry is found.
 * write, swap: the compare-and-swap of the value, while it is not NULL.
 * add: the store of the slot. remove: the value's exchange for NULL.
 *
 * A thread inside a section may hold an entry that was removed, or whose whole table was
 * detached, after it was found. It then sees NULL (removed: a miss, which was true when
 * the slot was cleared, after this thread's call began), or it reads and swaps a value
 * that nobody else will find any more (detached by clear: its call takes effect before
 * the clear, which waits for this section to close before it drops the value). */
#include "striped_map.h"

static struct ftb_thread *
map_thread(void)
{
    struct ftb_thread *thread = ftb_thread_current();
    if (FTB_UNLIKELY(thread == NULL)) {
        PyErr_NoMemory();
    }
    return thread;
}

struct map_entry *
map_entry_new(const struct ftb_keyview *view, PyObject *key, PyObject *value)
{
    struct map_entry *entry = ftb_slab_take();
    if (entry == NULL || ftb_key_init(&entry->entry.key, view) != FTB_OK) {
        ftb_slab_give(entry);
        PyErr_NoMemory();
        return NULL;
    }
    entry->key = Py_NewRef(key);
    ftb_init(&entry->value, Py_NewRef(value));
    return entry;
}

void
map_entry_free(struct map_entry *entry)
{
    if (entry != NULL) {
        ftb_key_fini(&entry->entry.key);
        ftb_slab_give(entry);
    }
}

PyObject *
map_raise_missing(PyObject *key)
{
    /* Made here: PyErr_SetObject would raise a key that is an exception itself. */
    PyObject *error = PyObject_CallOneArg(PyExc_KeyError, key);
    if (error != NULL) {
        PyErr_SetObject(PyExc_KeyError, error);
        Py_DECREF(error);
    }
    return NULL;
}

int
map_read(StripedMapObject *self, PyObject *key, PyObject **value)
{
    struct ftb_object_key object_key;
    struct ftb_thread *thread = map_thread();
    if (thread == NULL || map_key(key, &object_key) < 0) {
        return -1;
    }
    uint64_t odd = ftb_section_enter(thread); /* (1) */
    struct map_entry *entry = map_find(self, &object_key.view);
    PyObject *found = entry != NULL ? ftb_load_seq_cst(&entry->value) : NULL; /* (2) */
    Py_XINCREF(found);              /* no user code, and nothing that blocks */
    ftb_section_leave(thread, odd); /* (4) */
    *value = found;
    return found != NULL;
}

int
map_has(StripedMapObject *self, PyObject *key)
{
    struct ftb_object_key object_key;
    struct ftb_thread *thread = map_thread();
    if (thread == NULL || map_key(key, &object_key) < 0) {
        return -1;
    }
    uint64_t odd = ftb_section_enter(thread);
    struct map_entry *entry = map_find(self, &object_key.view);
    bool has_value = entry != NULL && ftb_load_seq_cst(&entry->value) != NULL;
    ftb_section_leave(thread, odd);
    return has_value;
}

/* Put `value` (stolen if so) in the place of whatever the key has, which is returned;
 * NULL if it has nothing. */
static PyObject *
value_exchange(
    StripedMapObject *self, struct ftb_thread *thread, const struct ftb_keyview *view,
    PyObject *value)
{
    PyObject *old = NULL;
    uint64_t odd = ftb_section_enter(thread);
    struct map_entry *entry = map_find(self, view);
    if (entry != NULL) {
        old = ftb_load_seq_cst(&entry->value);
        while (old != NULL && !ftb_cas_seq_cst(&entry->value, &old, value)) { /* (6) */
        }
    }
    ftb_section_leave(thread, odd);
    return old;
}

/* True if the table of a locked stripe is not the one it was: reclaim the old one. */
static bool
has_rehashed(struct ftb_stripe *stripe, const struct ftb_table *table)
{
    return ftb_load_relaxed(&stripe->table) != table; /* relaxed: locked */
}

/* 1 added (the entry is the map's), 0 the key is there, -1 no memory: no exception. */
static int
entry_add(
    StripedMapObject *self, const struct ftb_keyview *view, struct map_entry *entry)
{
    int added = 0;
    struct ftb_stripe *stripe = ftb_map_lock(&self->map, view->hash);
    struct ftb_table *table = ftb_load_relaxed(&stripe->table); /* relaxed: locked */
    if (map_find(self, view) == NULL) {
        added = ftb_map_add_locked(stripe, &entry->entry) == FTB_OK ? 1 : -1;
    }
    bool rehashed = has_rehashed(stripe, table);
    ftb_map_unlock(stripe);
    if (rehashed) {
        ftb_reclaim();
    }
    return added;
}

static int
view_add(
    StripedMapObject *self, const struct ftb_keyview *view, PyObject *key,
    PyObject *value)
{
    map_drop_waiting();
    struct map_entry *entry = map_entry_new(view, key, value);
    if (entry == NULL) {
        return -1;
    }
    int added = entry_add(self, view, entry);
    if (FTB_UNLIKELY(added <= 0)) {
        map_entry_free(entry);
        Py_DECREF(key);
        Py_DECREF(value);
        if (added < 0) {
            PyErr_NoMemory();
        }
    }
    return added;
}

int
map_add(StripedMapObject *self, PyObject *key, PyObject *value)
{
    struct ftb_object_key object_key;
    if (map_thread() == NULL || map_key(key, &object_key) < 0) {
        return -1;
    }
    return view_add(self, &object_key.view, key, value);
}

int
map_write(StripedMapObject *self, PyObject *key, PyObject *value)
{
    struct ftb_object_key object_key;
    struct ftb_thread *thread = map_thread();
    if (thread == NULL || map_key(key, &object_key) < 0) {
        return -1;
    }
    int added = 0;
    while (added == 0) { /* others may add and remove the key in between */
        PyObject *old =
            value_exchange(self, thread, &object_key.view, Py_NewRef(value));
        if (old != NULL) {
            map_drop(old, NULL);
            return 0;
        }
        Py_DECREF(value);
        added = view_add(self, &object_key.view, key, value);
    }
    return added < 0 ? -1 : 0;
}

int
map_swap(StripedMapObject *self, PyObject *key, PyObject *expected, PyObject *value)
{
    struct ftb_object_key object_key;
    struct ftb_thread *thread = map_thread();
    if (thread == NULL || map_key(key, &object_key) < 0) {
        return -1;
    }
    bool is_swapped = false;
    PyObject *found = expected;
    Py_INCREF(value);
    uint64_t odd = ftb_section_enter(thread);
    struct map_entry *entry = map_find(self, &object_key.view);
    if (entry != NULL) {
        is_swapped = ftb_cas_seq_cst(&entry->value, &found, value); /* (6) */
    }
    ftb_section_leave(thread, odd);
    if (is_swapped) {
        map_drop(expected, NULL);
    } else {
        Py_DECREF(value);
    }
    return is_swapped;
}

/* Unlock the stripe of an entry taken out, and give up what the map had of it. */
static PyObject *
entry_removed_unlock(
    struct ftb_stripe *stripe, const struct ftb_table *table, struct map_entry *entry,
    PyObject **key)
{
    PyObject *value = ftb_exchange_seq_cst(&entry->value, (PyObject *)NULL); /* (6) */
    ftb_map_trim_locked(stripe, entry->entry.key.hash);
    bool rehashed = has_rehashed(stripe, table);
    ftb_map_unlock(stripe);
    if (rehashed) {
        ftb_reclaim();
    }
    *key = entry->key;
    return map_drop_entry(value, entry);
}

int
map_remove(StripedMapObject *self, PyObject *key, PyObject **value)
{
    struct ftb_object_key object_key;
    if (map_thread() == NULL || map_key(key, &object_key) < 0) {
        return -1;
    }
    struct ftb_stripe *stripe = ftb_map_lock(&self->map, object_key.view.hash);
    struct ftb_table *table = ftb_load_relaxed(&stripe->table); /* relaxed: locked */
    struct ftb_entry *entry = ftb_map_remove_locked(stripe, &object_key.view);
    if (entry == NULL) {
        ftb_map_unlock(stripe);
        return 0;
    }
    PyObject *stored_key;
    *value = entry_removed_unlock(
        stripe, table, (struct map_entry *)(void *)entry, &stored_key);
    Py_DECREF(stored_key);
    return 1;
}

int
map_remove_any(StripedMapObject *self, PyObject **key, PyObject **value)
{
    struct ftb_stripe *stripe;
    if (map_thread() == NULL) {
        return -1;
    }
    struct ftb_entry *entry = ftb_map_any(&self->map, &self->any_hint, &stripe);
    if (entry == NULL) {
        return 0;
    }
    struct ftb_table *table = ftb_load_relaxed(&stripe->table); /* relaxed: locked */
    struct ftb_keyview view = ftb_key_view(&entry->key);
    ftb_map_remove_locked(stripe, &view);
    *value =
        entry_removed_unlock(stripe, table, (struct map_entry *)(void *)entry, key);
    return 1;
}

static void
entry_drop(struct ftb_entry *found, void *unused)
{
    (void)unused;
    struct map_entry *entry = (struct map_entry *)(void *)found;
    PyObject *key = entry->key;
    PyObject *value = ftb_load_acquire(&entry->value);
    map_entry_free(entry);
    Py_DECREF(key);
    Py_DECREF(value);
}

int
map_remove_all(StripedMapObject *self)
{
    for (uint32_t s = 0; s < self->map.stripes_n; s++) {
        struct ftb_stripe *stripe = &self->map.stripes[s];
        pthread_mutex_lock(&stripe->lock);
        bool is_empty = stripe->entries_n == 0;
        struct ftb_table *table = is_empty ? NULL : ftb_map_detach_locked(stripe);
        pthread_mutex_unlock(&stripe->lock);
        if (table == NULL && !is_empty) {
            PyErr_NoMemory();
            return -1;
        }
        if (table != NULL) {
            map_wait_for_readers();
            ftb_table_each(table, entry_drop, NULL);
            ftb_table_retire(table);
        }
    }
    map_drop_waiting();
    ftb_reclaim();
    return 0;
}

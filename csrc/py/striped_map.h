/* StripedMap: compact keys to any object, for many threads.
 *
 * Readers and the replacement of a value take no lock: a value is one atomic word of its
 * entry, which becomes NULL, for good, when the entry is removed. Adding and
 * removing entries takes the stripe's lock. A reader takes its reference inside a
 * reclamation section; a writer that unlinked a value drops it after a grace period
 * (striped_map_drop.c, docs/adr/0004). No Python code runs under a lock or inside a
 * section. Any thread may call everything here while attached to the interpreter. */
#ifndef FTB_PY_STRIPED_MAP_H
#define FTB_PY_STRIPED_MAP_H

#include <Python.h>

#include "ftb_map.h"
#include "ftb_map_walk.h"
#include "ftb_slab.h"
#include "key.h"

/* One cell of ftb_slab. */
struct map_entry {
    struct ftb_entry entry;
    /* The map's reference; NULL from the removal on. Swapped by anyone inside a section;
     * made NULL under the stripe's lock. */
    ftb_atomic(PyObject *) value;
    PyObject *key; /* strong; guarded by the stripe's lock, then the remover's */
};

_Static_assert(sizeof(struct map_entry) <= FTB_SLAB_CELL_BYTES, "an entry is one cell");

typedef struct {
    PyObject_HEAD
    PyObject *weakrefs;
    ftb_atomic(uint64_t) any_hint; /* see ftb_map_any; written by popitem */
    /* Threads that share the object write its reference count, and all read `map`. */
    char apart[FTB_LINE];
    struct ftb_map map; /* written at creation; stripes is NULL if that failed */
} StripedMapObject;

extern PyTypeObject ftb_striped_map_type;
extern PyTypeObject ftb_striped_map_iter_type;

/* Add the type to the module. 0, or -1 with an exception set. */
int ftb_striped_map_type_ready(PyObject *module);

/* The view of a key object, borrowed from it. 0, or -1 with UnsupportedKeyError set. The
 * usual kinds of keys, here in place, have the views that ftb_object_key_of gives them. */
static inline int
map_key(PyObject *object, struct ftb_object_key *key)
{
    if (FTB_LIKELY(
            PyUnicode_CheckExact(object) && PyUnicode_IS_COMPACT_ASCII(object))) {
        size_t len_bytes = (size_t)PyUnicode_GET_LENGTH(object);
        if (FTB_LIKELY(len_bytes <= FTB_KEY_MAX_BYTES)) {
            const void *data = PyUnicode_DATA(object);
            ftb_keyview_init(&key->view, FTB_KEY_STR, data, (uint32_t)len_bytes);
            return 0;
        }
    } else if (
        PyLong_CheckExact(object)
        && PyUnstable_Long_IsCompact((PyLongObject *)object)) {
        int64_t value = PyUnstable_Long_CompactValue((PyLongObject *)object);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
        value = (int64_t)__builtin_bswap64((uint64_t)value);
#endif
        memcpy(key->scratch, &value, sizeof value);
        ftb_keyview_init(&key->view, FTB_KEY_INT, key->scratch, sizeof value);
        return 0;
    } else if (PyBytes_CheckExact(object)) {
        size_t len_bytes = (size_t)PyBytes_GET_SIZE(object);
        if (FTB_LIKELY(len_bytes <= FTB_KEY_MAX_BYTES)) {
            const void *data = PyBytes_AS_STRING(object);
            ftb_keyview_init(&key->view, FTB_KEY_BYTES, data, (uint32_t)len_bytes);
            return 0;
        }
    }
    return ftb_object_key_of(object, key);
}

/* The entry of a key, or NULL. Inside a section, or with the stripe locked. */
static inline struct map_entry *
map_find(StripedMapObject *self, const struct ftb_keyview *view)
{
    return (struct map_entry *)(void *)ftb_map_find(&self->map, view);
}

/* 1 and a new reference in *value, 0 if the key is not there, -1 with an exception. */
int map_read(StripedMapObject *self, PyObject *key, PyObject **value);

/* 1 if the key is there, 0 if not, -1 with an exception. Takes no reference. */
int map_has(StripedMapObject *self, PyObject *key);

/* Give the key a value, which it may have already. 0, or -1 with an exception. */
int map_write(StripedMapObject *self, PyObject *key, PyObject *value);

/* Give the key a value if it has none. 1: done; 0: it has one; -1: exception. */
int map_add(StripedMapObject *self, PyObject *key, PyObject *value);

/* Give the key a value if it has `expected`, which the caller holds. 1 done, 0 not, -1. */
int
map_swap(StripedMapObject *self, PyObject *key, PyObject *expected, PyObject *value);

/* Remove a key. 1 and the caller's reference in *value, 0 if it is not there, -1. */
int map_remove(StripedMapObject *self, PyObject *key, PyObject **value);

/* Remove some key. 1 and the caller's references, 0 if there is none, -1. */
int map_remove_any(StripedMapObject *self, PyObject **key, PyObject **value);

/* Remove what is there. 0, or -1 with MemoryError set and some of it left. */
int map_remove_all(StripedMapObject *self);

/* Raise KeyError(key); returns NULL. */
PyObject *map_raise_missing(PyObject *key);

/* An entry with references of its own, not yet in a map; NULL with MemoryError set. */
struct map_entry *
map_entry_new(const struct ftb_keyview *view, PyObject *key, PyObject *value);

/* Free the memory of an entry; its references are the caller's. */
void map_entry_free(struct map_entry *entry);

/* Drop what the caller has just unlinked by seq_cst stores, as soon as no reader can be
 * about to take a reference: the map's reference to a value, and the memory of an entry
 * (NULL: none). */
void map_drop(PyObject *value, struct map_entry *entry);

/* The same, but the reference to the value becomes the caller's. Returns the value. */
PyObject *map_drop_entry(PyObject *value, struct map_entry *entry);

/* Drop what waited for readers and need not any more. Returns how many batches still do;
 * costs a load where there are none, the usual case. */
size_t map_drop_waiting(void);

/* Return when no reader can be about to take a reference to what was unlinked before. */
void map_wait_for_readers(void);

/* striped_map_methods.c */
extern PyMethodDef striped_map_methods[];

/* striped_map_iter.c: what an iterator yields. */
enum map_iter_kind { MAP_ITER_KEYS, MAP_ITER_VALUES, MAP_ITER_ITEMS };

PyObject *map_iter_new(StripedMapObject *map, enum map_iter_kind kind);

#endif

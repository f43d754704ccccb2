/* Iteration: a chunk of strong references at a time, taken under a stripe's lock, given
 * out without it.
 *
 * What the chunk holds was in the map when the chunk was taken. An iterator may be shared
 * by threads: its critical section guards all fields, and each item goes to one of them. */
#include "striped_map.h"

enum { CHUNK_ITEMS = 64 };

struct map_item {
    PyObject *key;
    PyObject *value; /* NULL in an iterator of keys */
};

typedef struct {
    PyObject_HEAD
    StripedMapObject *map; /* strong; NULL at the end */
    enum map_iter_kind kind;
    struct ftb_walk walk;
    size_t next_ix, items_n, capacity;
    struct map_item *items;
} MapIterObject;

struct filling {
    MapIterObject *iter;
    struct ftb_thread *thread;
};

/* Under the stripe's lock; the value may be swapped all the same, hence the section. */
static void
item_take(struct ftb_entry *found, void *context)
{
    struct filling *filling = context;
    struct map_entry *entry = (struct map_entry *)(void *)found;
    struct map_item *item = &filling->iter->items[filling->iter->items_n++];
    item->key = Py_NewRef(entry->key);
    item->value = NULL;
    if (filling->iter->kind != MAP_ITER_KEYS) {
        uint64_t odd = ftb_section_enter(filling->thread);
        item->value = Py_NewRef(ftb_load_seq_cst(&entry->value));
        ftb_section_leave(filling->thread, odd);
    }
}

/* Room for so many items in an empty chunk. 0, or -1 with MemoryError set. */
static int
items_reserve(MapIterObject *self, size_t capacity)
{
    struct map_item *items = ftb_alloc(capacity * sizeof *items);
    if (items == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    ftb_free(self->items);
    self->items = items;
    self->capacity = capacity;
    return 0;
}

/* The next chunk, which stays empty at the end. 0, or -1 with an exception. */
static int
items_fill(MapIterObject *self)
{
    struct filling filling = {self, ftb_thread_current()};
    size_t room_needed = CHUNK_ITEMS;
    if (filling.thread == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    self->next_ix = self->items_n = 0;
    do {
        if (room_needed > self->capacity && items_reserve(self, room_needed) < 0) {
            return -1;
        }
        ftb_map_walk(
            &self->map->map, &self->walk, self->capacity, &room_needed, item_take,
            &filling);
    } while (self->items_n == 0 && room_needed > 0);
    return 0;
}

/* 1 and the item's references, 0 at the end (the map's reference in *map), -1. */
static int
item_next_locked(MapIterObject *self, struct map_item *item, PyObject **map)
{
    if (self->map == NULL) {
        return 0;
    }
    if (self->next_ix == self->items_n && items_fill(self) < 0) {
        return -1;
    }
    if (self->next_ix == self->items_n) {
        *map = (PyObject *)self->map;
        self->map = NULL;
        return 0;
    }
    *item = self->items[self->next_ix++];
    return 1;
}

static PyObject *
item_object(const struct map_item *item, enum map_iter_kind kind)
{
    if (kind == MAP_ITER_KEYS) {
        return item->key;
    }
    if (kind == MAP_ITER_VALUES) {
        Py_DECREF(item->key);
        return item->value;
    }
    PyObject *pair = PyTuple_New(2);
    if (pair == NULL) {
        Py_DECREF(item->key);
        Py_DECREF(item->value);
        return NULL;
    }
    PyTuple_SET_ITEM(pair, 0, item->key);
    PyTuple_SET_ITEM(pair, 1, item->value);
    return pair;
}

static PyObject *
map_iter_next(PyObject *op)
{
    MapIterObject *self = (MapIterObject *)op;
    struct map_item item;
    PyObject *map = NULL;
    int found;
    Py_BEGIN_CRITICAL_SECTION(self);
    found = item_next_locked(self, &item, &map);
    Py_END_CRITICAL_SECTION();
    Py_XDECREF(map);
    return found == 1 ? item_object(&item, self->kind) : NULL;
}

static int
map_iter_traverse(PyObject *op, visitproc visit, void *arg)
{
    MapIterObject *self = (MapIterObject *)op;
    Py_VISIT((PyObject *)self->map);
    for (size_t i = self->next_ix; i < self->items_n; i++) {
        Py_VISIT(self->items[i].key);
        Py_VISIT(self->items[i].value);
    }
    return 0;
}

static int
map_iter_clear(PyObject *op)
{
    MapIterObject *self = (MapIterObject *)op;
    while (self->next_ix < self->items_n) {
        struct map_item item = self->items[self->next_ix++];
        Py_DECREF(item.key);
        Py_XDECREF(item.value);
    }
    Py_CLEAR(self->map);
    return 0;
}

static void
map_iter_dealloc(PyObject *op)
{
    PyObject_GC_UnTrack(op);
    map_iter_clear(op);
    ftb_free(((MapIterObject *)op)->items);
    PyObject_GC_Del(op);
}

PyObject *
map_iter_new(StripedMapObject *map, enum map_iter_kind kind)
{
    map_drop_waiting();
    MapIterObject *self = PyObject_GC_New(MapIterObject, &ftb_striped_map_iter_type);
    if (self == NULL) {
        return NULL;
    }
    self->map = (StripedMapObject *)Py_NewRef(map);
    self->kind = kind;
    self->walk = (struct ftb_walk){0, 0};
    self->next_ix = self->items_n = self->capacity = 0;
    self->items = NULL;
    PyObject_GC_Track(self);
    return (PyObject *)self;
}

PyTypeObject ftb_striped_map_iter_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "ftbus._core.StripedMapIterator",
    .tp_basicsize = sizeof(MapIterObject),
    .tp_dealloc = map_iter_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_traverse = map_iter_traverse,
    .tp_clear = map_iter_clear,
    .tp_iter = PyObject_SelfIter,
    .tp_iternext = map_iter_next,
};

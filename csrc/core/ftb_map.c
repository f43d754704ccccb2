#include "ftb_map.h"

/* Linear probing, load at most 0.6 (removed slots included), one array of words per
 * stripe. Argument:
 * 1. A slot goes 0 -> entry -> 1, and 1 -> entry in the same table only under the lock.
 *    A reader that probes past slot i saw an entry with another key or 1 there; a
 *    key's entry is never moved within a table, so it cannot be skipped by a move.
 *    A slot goes 1 -> 0, under the lock, only while the slot after it is 0: then no key
 *    is beyond it, and a key added later fills it first or starts beyond it.
 * 2. An entry is complete before the seq_cst store of its slot, whose reader loads it
 *    seq_cst (hence acquire): the key's bytes are visible.
 * 3. A reader that holds an old table may miss a key added to its successor. Its load
 *    of `table` then came before the add, which is where its look-up takes effect.
 * 4. Table, slot and entry are read inside a section, and unlinked by seq_cst stores
 *    before they are retired: (2) and (6) of ftb_reclaim.c. */

enum { SLOT_EMPTY = 0, SLOT_REMOVED = 1, TABLE_MIN_SLOTS = 8, TRIM_MIN_SLOTS = 64 };

#define TAG_MASK ((uintptr_t)FTB_ENTRY_ALIGN - 1)

/* Six bits of the hash that choose neither the slot (the low 32) nor the stripe (the high
 * ones): in a big table the keys of neighbouring slots still differ in them. */
static inline uintptr_t
tag_of(uint64_t hash)
{
    return (uintptr_t)(hash >> 40) & TAG_MASK;
}

static inline uintptr_t
slot_of(const struct ftb_entry *entry)
{
    return (uintptr_t)entry | tag_of(entry->key.hash);
}

static inline struct ftb_entry *
slot_entry(uintptr_t slot)
{
    return (struct ftb_entry *)(slot & ~TAG_MASK);
}

static struct ftb_table *
table_new(uint32_t slots_n)
{
    struct ftb_table *table =
        ftb_alloc_line(sizeof *table + (size_t)slots_n * sizeof table->slots[0]);
    if (table != NULL) {
        table->mask = slots_n - 1;
    }
    return table;
}

static void
table_free(struct ftb_retired *retired)
{
    ftb_free(retired); /* first member */
}

enum ftb_result
ftb_map_init(struct ftb_map *map, uint32_t stripes_n)
{
    map->stripes_n = (uint32_t)ftb_next_pow2(stripes_n < 2 ? 2 : stripes_n);
    map->shift = 64 - (uint32_t)__builtin_ctz(map->stripes_n);
    map->stripes = ftb_alloc_line(map->stripes_n * sizeof *map->stripes);
    if (map->stripes == NULL) {
        return FTB_NOMEM;
    }
    for (uint32_t i = 0; i < map->stripes_n; i++) {
        struct ftb_table *table = table_new(TABLE_MIN_SLOTS);
        if (table == NULL) {
            map->stripes_n = i;
            ftb_map_fini(map);
            return FTB_NOMEM;
        }
        ftb_init(&map->stripes[i].table, table);
        pthread_mutex_init(&map->stripes[i].lock, NULL);
    }
    return FTB_OK;
}

void
ftb_map_fini(struct ftb_map *map)
{
    for (uint32_t i = 0; i < map->stripes_n; i++) {
        ftb_free(ftb_load_relaxed(&map->stripes[i].table)); /* relaxed: ours alone */
        pthread_mutex_destroy(&map->stripes[i].lock);
    }
    ftb_free(map->stripes);
    map->stripes = NULL;
    map->stripes_n = 0;
}

static inline struct ftb_stripe *
map_stripe(const struct ftb_map *map, uint64_t hash)
{
    return &map->stripes[hash >> map->shift];
}

struct ftb_stripe *
ftb_map_lock(struct ftb_map *map, uint64_t hash)
{
    struct ftb_stripe *stripe = map_stripe(map, hash);
    pthread_mutex_lock(&stripe->lock);
    return stripe;
}

void
ftb_map_unlock(struct ftb_stripe *stripe)
{
    pthread_mutex_unlock(&stripe->lock);
}

/* The entry of a key in a table, or NULL; *slot_ix says where. */
static inline struct ftb_entry *
table_find(struct ftb_table *table, const struct ftb_keyview *view, uint32_t *slot_ix)
{
    uintptr_t tag = tag_of(view->hash);
    for (uint32_t i = (uint32_t)view->hash & table->mask;; i = (i + 1) & table->mask) {
        uintptr_t slot = ftb_load_seq_cst(&table->slots[i]);
        if (slot == SLOT_EMPTY) {
            return NULL;
        }
        struct ftb_entry *entry = slot_entry(slot); /* NULL where one was removed */
        if ((slot & TAG_MASK) == tag && entry != NULL
            && ftb_key_equals(&entry->key, view)) {
            *slot_ix = i;
            return entry;
        }
    }
}

struct ftb_entry *
ftb_map_find(const struct ftb_map *map, const struct ftb_keyview *view)
{
    uint32_t slot_ix;
    struct ftb_table *table = ftb_load_seq_cst(&map_stripe(map, view->hash)->table);
    return table_find(table, view, &slot_ix);
}

/* Put an entry into the first slot that holds none; true if that was a removed one. */
static bool
table_put(struct ftb_table *table, struct ftb_entry *entry)
{
    uint32_t i = (uint32_t)entry->key.hash & table->mask;
    while (ftb_load_relaxed(&table->slots[i]) > SLOT_REMOVED) { /* relaxed: locked */
        i = (i + 1) & table->mask;
    }
    bool was_removed = ftb_load_relaxed(&table->slots[i]) == SLOT_REMOVED;
    ftb_store_seq_cst(&table->slots[i], slot_of(entry));
    return was_removed;
}

/* Replace the table by one at load <= 0.5 with one entry more, without the removed slots:
 * at least a tenth of the new slots must be used up before the next rehash. */
static enum ftb_result
stripe_rehash_locked(struct ftb_stripe *stripe)
{
    uint32_t slots_n = (uint32_t)ftb_next_pow2(2 * ((uint64_t)stripe->entries_n + 1));
    struct ftb_table *fresh =
        table_new(slots_n < TABLE_MIN_SLOTS ? TABLE_MIN_SLOTS : slots_n);
    if (fresh == NULL) {
        return FTB_NOMEM;
    }
    struct ftb_table *old = ftb_load_relaxed(&stripe->table); /* relaxed: locked */
    for (uint32_t i = 0; i <= old->mask; i++) {
        uintptr_t slot = ftb_load_relaxed(&old->slots[i]);
        if (slot > SLOT_REMOVED) {
            table_put(fresh, slot_entry(slot));
        }
    }
    stripe->removed_n = 0;
    ftb_store_seq_cst(&stripe->table, fresh);
    ftb_retire(&old->retired, old, table_free);
    return FTB_OK;
}

enum ftb_result
ftb_map_add_locked(struct ftb_stripe *stripe, struct ftb_entry *entry)
{
    ftb_assert(((uintptr_t)entry & TAG_MASK) == 0);
    struct ftb_table *table = ftb_load_relaxed(&stripe->table); /* relaxed: locked */
    uint64_t used = (uint64_t)stripe->entries_n + stripe->removed_n + 1;
    if (used * 10 > ((uint64_t)table->mask + 1) * 6) {
        enum ftb_result result = stripe_rehash_locked(stripe);
        if (result != FTB_OK) {
            return result;
        }
        table = ftb_load_relaxed(&stripe->table);
    }
    if (table_put(table, entry)) {
        stripe->removed_n--;
    }
    stripe->entries_n++;
    return FTB_OK;
}

struct ftb_entry *
ftb_map_remove_locked(struct ftb_stripe *stripe, const struct ftb_keyview *view)
{
    struct ftb_table *table = ftb_load_relaxed(&stripe->table); /* relaxed: locked */
    uint32_t slot_ix;
    struct ftb_entry *entry = table_find(table, view, &slot_ix);
    if (entry != NULL) {
        ftb_store_seq_cst(&table->slots[slot_ix], (uintptr_t)SLOT_REMOVED);
        stripe->entries_n--;
        stripe->removed_n++;
    }
    return entry;
}

/* Make the removed slots at the end of a hash's probe never used again. */
static void
removed_clear_locked(struct ftb_stripe *stripe, struct ftb_table *table, uint64_t hash)
{
    uint32_t i = (uint32_t)hash & table->mask;
    while (ftb_load_relaxed(&table->slots[i]) != SLOT_EMPTY) { /* relaxed: locked */
        i = (i + 1) & table->mask;
    }
    for (i = (i - 1) & table->mask; /* the slot after i is empty */
         ftb_load_relaxed(&table->slots[i]) == SLOT_REMOVED;
         i = (i - 1) & table->mask) {
        ftb_store_seq_cst(&table->slots[i], (uintptr_t)SLOT_EMPTY);
        stripe->removed_n--;
    }
}

void
ftb_map_trim_locked(struct ftb_stripe *stripe, uint64_t hash)
{
    struct ftb_table *table = ftb_load_relaxed(&stripe->table); /* relaxed: locked */
    uint64_t slots_n = (uint64_t)table->mask + 1;
    removed_clear_locked(stripe, table, hash);
    if (slots_n > TRIM_MIN_SLOTS && (uint64_t)stripe->entries_n * 8 < slots_n) {
        enum ftb_result unchanged_without_memory = stripe_rehash_locked(stripe);
        (void)unchanged_without_memory;
    }
}

struct ftb_table *
ftb_map_detach_locked(struct ftb_stripe *stripe)
{
    struct ftb_table *fresh = table_new(TABLE_MIN_SLOTS);
    if (fresh == NULL) {
        return NULL;
    }
    struct ftb_table *old = ftb_load_relaxed(&stripe->table); /* relaxed: locked */
    ftb_store_seq_cst(&stripe->table, fresh);
    stripe->entries_n = stripe->removed_n = 0;
    return old;
}

void
ftb_table_each(
    struct ftb_table *table, void (*fn)(struct ftb_entry *entry, void *context),
    void *context)
{
    for (uint32_t i = 0; i <= table->mask; i++) {
        /* relaxed: what is detached (under the lock) nobody writes to any more */
        uintptr_t slot = ftb_load_relaxed(&table->slots[i]);
        if (slot > SLOT_REMOVED) {
            fn(slot_entry(slot), context);
        }
    }
}

void
ftb_table_retire(struct ftb_table *table)
{
    ftb_retire(&table->retired, table, table_free);
}

void
ftb_map_dismantle(struct ftb_map *map, void (*fn)(struct ftb_entry *entry))
{
    for (uint32_t s = 0; s < map->stripes_n; s++) {
        /* relaxed, both: ours alone */
        struct ftb_table *table = ftb_load_relaxed(&map->stripes[s].table);
        for (uint32_t i = 0; i <= table->mask; i++) {
            uintptr_t slot = ftb_load_relaxed(&table->slots[i]);
            if (slot > SLOT_REMOVED) {
                fn(slot_entry(slot));
            }
        }
    }
}

void
ftb_map_each(
    struct ftb_map *map, void (*fn)(struct ftb_entry *entry, void *context),
    void *context)
{
    for (uint32_t s = 0; s < map->stripes_n; s++) {
        struct ftb_stripe *stripe = &map->stripes[s];
        pthread_mutex_lock(&stripe->lock);
        struct ftb_table *table = ftb_load_relaxed(&stripe->table); /* locked */
        for (uint32_t i = 0; i <= table->mask; i++) {
            uintptr_t slot = ftb_load_relaxed(&table->slots[i]);
            if (slot > SLOT_REMOVED) {
                fn(slot_entry(slot), context);
            }
        }
        pthread_mutex_unlock(&stripe->lock);
    }
}

size_t
ftb_map_len(struct ftb_map *map)
{
    size_t len = 0;
    for (uint32_t s = 0; s < map->stripes_n; s++) {
        pthread_mutex_lock(&map->stripes[s].lock);
        len += map->stripes[s].entries_n;
        pthread_mutex_unlock(&map->stripes[s].lock);
    }
    return len;
}

static bool
stripe_is_valid_locked(const struct ftb_map *map, struct ftb_stripe *stripe)
{
    struct ftb_table *table = ftb_load_relaxed(&stripe->table);
    uint32_t entries_n = 0, removed_n = 0;
    for (uint32_t i = 0; i <= table->mask; i++) {
        uintptr_t slot = ftb_load_relaxed(&table->slots[i]);
        if (slot <= SLOT_REMOVED) {
            removed_n += slot == SLOT_REMOVED;
            continue;
        }
        entries_n++;
        struct ftb_keyview view = ftb_key_view(&slot_entry(slot)->key);
        uint32_t found_ix = UINT32_MAX;
        if (map_stripe(map, view.hash) != stripe
            || table_find(table, &view, &found_ix) == NULL || found_ix != i) {
            return false;
        }
    }
    return entries_n == stripe->entries_n && removed_n == stripe->removed_n;
}

bool
ftb_map_is_valid(struct ftb_map *map)
{
    bool is_valid = true;
    for (uint32_t s = 0; s < map->stripes_n; s++) {
        pthread_mutex_lock(&map->stripes[s].lock);
        is_valid = is_valid && stripe_is_valid_locked(map, &map->stripes[s]);
        pthread_mutex_unlock(&map->stripes[s].lock);
    }
    return is_valid;
}

static void
stripe_recount(struct ftb_stripe *stripe)
{
    /* relaxed, both: one thread is left */
    struct ftb_table *table = ftb_load_relaxed(&stripe->table);
    stripe->entries_n = stripe->removed_n = 0;
    for (uint32_t i = 0; i <= table->mask; i++) {
        uintptr_t slot = ftb_load_relaxed(&table->slots[i]);
        stripe->entries_n += slot > SLOT_REMOVED;
        stripe->removed_n += slot == SLOT_REMOVED;
    }
}

void
ftb_map_after_fork_child(struct ftb_map *map)
{
    for (uint32_t s = 0; s < map->stripes_n; s++) {
        pthread_mutex_init(&map->stripes[s].lock, NULL);
        stripe_recount(&map->stripes[s]);
    }
}

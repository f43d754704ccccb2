/* The striped map: writers lock one stripe, readers lock nothing and write nothing.
 *
 * It maps compact keys to entries that embed their key. A reader looks up inside a
 * reclamation section (ftb_reclaim.h) and may use what it found until the section ends,
 * or longer if it knows that the entry lives longer. Writers hold the stripe's lock and
 * run no user code under it. */
#ifndef FTB_MAP_H
#define FTB_MAP_H

#include <pthread.h>

#include "ftb_atomic.h"
#include "ftb_key.h"
#include "ftb_reclaim.h"

/* Entries are aligned so that six low bits of their address are free for a hash tag,
 * which spares a look into the entry for most slots that hold another key. */
#define FTB_ENTRY_ALIGN 64

/* The first member of whatever a map holds; at an address aligned to FTB_ENTRY_ALIGN. */
struct ftb_entry {
    struct ftb_key key;
};

/* An open-addressing table; a grown one replaces it whole. */
struct ftb_table {
    struct ftb_retired retired;
    uint32_t mask; /* slots - 1 */
    /* 0: never used; 1: removed; else entry address | tag. Guarded by the stripe's lock
     * for writing; read inside sections. */
    ftb_atomic(uintptr_t) slots[];
};

struct ftb_stripe {
    FTB_ALIGNED ftb_atomic(struct ftb_table *) table; /* written under `lock` */
    pthread_mutex_t lock;
    uint32_t entries_n; /* guarded by `lock` */
    uint32_t removed_n; /* guarded by `lock`: slots that hold 1 */
};

struct ftb_map {
    struct ftb_stripe *stripes;
    uint32_t stripes_n; /* a power of two */
    uint32_t shift;     /* a stripe is chosen by the high bits, a slot by the low */
};

/* Make an empty map with the next power of two of stripes. */
FTB_MUST_USE enum ftb_result ftb_map_init(struct ftb_map *map, uint32_t stripes_n);

/* Free the tables; nobody may read any more. The entries stay their owner's. */
void ftb_map_fini(struct ftb_map *map);

/* Lock the stripe of a hash, or all of what follows would race. */
struct ftb_stripe *ftb_map_lock(struct ftb_map *map, uint64_t hash);

void ftb_map_unlock(struct ftb_stripe *stripe);

/* The entry of a key, or NULL. Inside a section, or with the stripe locked. */
struct ftb_entry *
ftb_map_find(const struct ftb_map *map, const struct ftb_keyview *view);

/* Add an entry whose key is not in the map. FTB_NOMEM: nothing changed. */
FTB_MUST_USE enum ftb_result
ftb_map_add_locked(struct ftb_stripe *stripe, struct ftb_entry *entry);

/* Take a key's entry out and return it, or NULL. The caller retires it. */
struct ftb_entry *
ftb_map_remove_locked(struct ftb_stripe *stripe, const struct ftb_keyview *view);

/* After a removal under that hash: clear removed slots that no probe has to pass, so that
 * keys which come and go cause no rehash; and rehash a stripe of more than 64 slots that
 * is less than an eighth full, so that memory and walks stay in proportion to what there
 * is. Without memory for that it stays as it is. */
void ftb_map_trim_locked(struct ftb_stripe *stripe, uint64_t hash);

/* Empty the stripe: put a fresh table in the place of its own, which is returned for
 * ftb_table_each and ftb_table_retire. NULL: no memory, nothing changed. */
FTB_MUST_USE struct ftb_table *ftb_map_detach_locked(struct ftb_stripe *stripe);

/* Call fn for each entry of a detached table, without any lock: fn may retire them. */
void ftb_table_each(
    struct ftb_table *table, void (*fn)(struct ftb_entry *entry, void *context),
    void *context);

void ftb_table_retire(struct ftb_table *table);

/* Call fn for each entry, a stripe at a time under its lock: fn must be short and call
 * no user code. Entries added or removed meanwhile may be seen or not. */
void ftb_map_each(
    struct ftb_map *map, void (*fn)(struct ftb_entry *entry, void *context),
    void *context);

/* Call fn for each entry without any lock, before ftb_map_fini: nobody else may use the
 * map any more, so fn may free the entries and run user code. */
void ftb_map_dismantle(struct ftb_map *map, void (*fn)(struct ftb_entry *entry));

/* Number of entries; exact when nobody writes. */
size_t ftb_map_len(struct ftb_map *map);

/* True if every entry is found under its own key and the counts add up. */
bool ftb_map_is_valid(struct ftb_map *map);

/* In a fork's child: make the locks new, and the counts right, whoever was at them. A
 * table is whole at every moment. */
void ftb_map_after_fork_child(struct ftb_map *map);

#endif

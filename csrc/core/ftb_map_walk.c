#include "ftb_map_walk.h"

/* The order of a walk within a stripe is that of the bit-reversed hashes. A table of
 * 2**k slots puts a key's home slot at the low k bits of its hash, which are the high k
 * bits of the reversed hash: a home slot's keys are one interval of the order, whatever
 * the size of the table, and the intervals of a bigger table divide those of a smaller.
 * So "everything below `from` was visited" stays true through any rehash, and a walk
 * that goes on in another table visits nothing twice and leaves nothing out. (Redis's
 * SCAN goes in the same order; it remembers the slot only, and repeats keys when a table
 * shrinks.) Keys of equal hash are visited in one step, as nothing tells them apart. */

enum {
    SLOT_REMOVED = 1,
    /* So many home slots at most are looked at under one lock: a table that has just
     * been emptied is large and holds nothing. */
    STEP_HOMES = 512,
};

static inline uint64_t
reverse_bits(uint64_t v)
{
    v = ((v >> 1) & 0x5555555555555555u) | ((v & 0x5555555555555555u) << 1);
    v = ((v >> 2) & 0x3333333333333333u) | ((v & 0x3333333333333333u) << 2);
    v = ((v >> 4) & 0x0F0F0F0F0F0F0F0Fu) | ((v & 0x0F0F0F0F0F0F0F0Fu) << 4);
    return __builtin_bswap64(v);
}

static inline struct ftb_entry *
slot_entry(uintptr_t slot)
{
    return (struct ftb_entry *)(slot & ~((uintptr_t)FTB_ENTRY_ALIGN - 1));
}

struct visit {
    struct ftb_table *table;
    uint64_t from;
    void (*fn)(struct ftb_entry *entry, void *context);
    void *context;
};

/* Call fn, unless it is NULL, for the home slot's entries not yet visited. Returns how
 * many they are. Linear probing put them before the next slot that was never used. */
static size_t
home_visit_locked(const struct visit *visit, uint32_t home)
{
    struct ftb_table *table = visit->table;
    size_t n = 0;
    for (uint32_t i = home;; i = (i + 1) & table->mask) {
        uintptr_t slot = ftb_load_relaxed(&table->slots[i]); /* relaxed: locked */
        if (slot == 0) {
            return n;
        }
        struct ftb_entry *entry = slot > SLOT_REMOVED ? slot_entry(slot) : NULL;
        if (entry != NULL && ((uint32_t)entry->key.hash & table->mask) == home
            && reverse_bits(entry->key.hash) >= visit->from) {
            n++;
            if (visit->fn != NULL) {
                visit->fn(entry, visit->context);
            }
        }
    }
}

/* One step in the walk's stripe. */
static size_t
stripe_walk_locked(
    struct ftb_walk *walk, struct visit *visit, size_t room, size_t *room_needed)
{
    int bits = __builtin_popcount(visit->table->mask);
    uint64_t width = (uint64_t)1 << (64 - bits); /* a home slot's interval */
    size_t visited_n = 0;
    for (int homes = 0; homes < STEP_HOMES; homes++) {
        uint32_t home = (uint32_t)reverse_bits(walk->from) & visit->table->mask;
        struct visit count = {visit->table, walk->from, NULL, NULL};
        size_t n = home_visit_locked(&count, home);
        if (n > room - visited_n) {
            *room_needed = n;
            break;
        }
        visit->from = walk->from;
        visited_n += n > 0 ? home_visit_locked(visit, home) : 0;
        walk->from = (walk->from & ~(width - 1)) + width;
        if (walk->from == 0) { /* past the last interval */
            walk->stripe_ix++;
            break;
        }
    }
    return visited_n;
}

size_t
ftb_map_walk(
    struct ftb_map *map, struct ftb_walk *walk, size_t room, size_t *room_needed,
    void (*fn)(struct ftb_entry *entry, void *context), void *context)
{
    size_t visited_n = 0;
    *room_needed = 0;
    while (visited_n == 0 && *room_needed == 0 && !ftb_walk_is_done(map, walk)) {
        struct ftb_stripe *stripe = &map->stripes[walk->stripe_ix];
        pthread_mutex_lock(&stripe->lock);
        struct visit visit = {ftb_load_relaxed(&stripe->table), 0, fn, context};
        visited_n = stripe_walk_locked(walk, &visit, room, room_needed);
        pthread_mutex_unlock(&stripe->lock);
    }
    return visited_n;
}

/* The first entry at or after *slot_ix, which is moved past it; NULL if there is none. */
static struct ftb_entry *
stripe_any_locked(struct ftb_stripe *stripe, uint32_t *slot_ix)
{
    struct ftb_table *table = ftb_load_relaxed(&stripe->table); /* relaxed: locked */
    for (uint32_t n = 0; stripe->entries_n > 0 && n <= table->mask; n++) {
        uint32_t i = (*slot_ix + n) & table->mask;
        uintptr_t slot = ftb_load_relaxed(&table->slots[i]);
        if (slot > SLOT_REMOVED) {
            *slot_ix = i + 1;
            return slot_entry(slot);
        }
    }
    return NULL;
}

struct ftb_entry *
ftb_map_any(
    struct ftb_map *map, ftb_atomic(uint64_t) * hint, struct ftb_stripe **stripe)
{
    uint64_t at = ftb_load_relaxed(hint); /* relaxed: any place will do */
    uint32_t stripe_ix = (uint32_t)(at >> 32), slot_ix = (uint32_t)at;
    for (uint32_t n = 0; n < map->stripes_n; n++) {
        uint32_t s = (stripe_ix + n) & (map->stripes_n - 1);
        *stripe = &map->stripes[s];
        pthread_mutex_lock(&(*stripe)->lock);
        struct ftb_entry *entry = stripe_any_locked(*stripe, &slot_ix);
        if (entry != NULL) {
            ftb_store_relaxed(hint, (uint64_t)s << 32 | slot_ix); /* likewise */
            return entry;
        }
        pthread_mutex_unlock(&(*stripe)->lock);
    }
    return NULL;
}

size_t
ftb_map_bytes(struct ftb_map *map)
{
    size_t bytes = map->stripes_n * sizeof *map->stripes;
    for (uint32_t s = 0; s < map->stripes_n; s++) {
        struct ftb_stripe *stripe = &map->stripes[s];
        pthread_mutex_lock(&stripe->lock);
        struct ftb_table *table = ftb_load_relaxed(&stripe->table); /* locked */
        bytes += sizeof *table + ((size_t)table->mask + 1) * sizeof table->slots[0];
        pthread_mutex_unlock(&stripe->lock);
    }
    return bytes;
}

/* Walking a striped map a few entries at a time while others write.
 *
 * A walk visits every key that is in the map from its beginning to its end exactly once,
 * and one that comes or goes meanwhile at most once; it needs no memory in proportion to
 * the map and holds no lock between steps. Any thread; a walk belongs to one of them at
 * a time. */
#ifndef FTB_MAP_WALK_H
#define FTB_MAP_WALK_H

#include "ftb_map.h"

/* Where a walk stands; zeroed, it stands at the beginning. */
struct ftb_walk {
    uint64_t from; /* the least reversed hash not yet visited in the stripe */
    uint32_t stripe_ix;
};

static inline bool
ftb_walk_is_done(const struct ftb_map *map, const struct ftb_walk *walk)
{
    return walk->stripe_ix >= map->stripes_n;
}

/* Call fn for the next entries, at most `room` of them, under their stripe's lock: fn is
 * short and calls no user code. Returns how many. If that is 0 and the walk is not done,
 * `room` is less than what has to be visited at once: *room_needed. */
size_t ftb_map_walk(
    struct ftb_map *map, struct ftb_walk *walk, size_t room, size_t *room_needed,
    void (*fn)(struct ftb_entry *entry, void *context), void *context);

/* Some entry of the map, its stripe locked, or NULL and nothing locked if there is none.
 * The search begins at *hint, which it moves on: taking all entries out this way looks
 * at each slot only about once. */
struct ftb_entry *ftb_map_any(
    struct ftb_map *map, ftb_atomic(uint64_t) * hint, struct ftb_stripe **stripe);

/* What the stripes and their tables take in memory, without the entries. */
size_t ftb_map_bytes(struct ftb_map *map);

#endif

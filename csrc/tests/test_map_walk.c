/* ftb_map_walk.h, and what ftb_map.h has for maps that shrink: trim and detach.
 *
 * The tests must fail if the walk goes in the order of slots, if it forgets within a slot
 * how far it was, or if trim clears a removed slot that keys lie beyond. */
#include "check.h"
#include "keys.h"

#include <string.h>

#include "ftb_map_walk.h"

enum { STAY = 400, COME_AND_GO = 4000, ROOM = 7 };

static uint64_t seed;

struct item {
    FTB_ALIGNED_TO(FTB_ENTRY_ALIGN) struct ftb_entry entry;
    uint64_t number;
    struct ftb_retired retired;
};

static void
item_free(struct ftb_retired *retired)
{
    ftb_free((char *)retired - offsetof(struct item, retired));
}

static struct ftb_keyview
view_of(const uint64_t *number)
{
    return keyview_of(FTB_KEY_INT, number, sizeof *number);
}

static void
item_add(struct ftb_map *map, uint64_t number, uint64_t hash)
{
    struct item *item = ftb_alloc_line(sizeof *item);
    CHECK(item != NULL);
    item->number = number;
    struct ftb_keyview view = view_of(&item->number);
    view.hash = hash != 0 ? hash : view.hash;
    CHECK(ftb_key_init(&item->entry.key, &view) == FTB_OK);
    struct ftb_stripe *stripe = ftb_map_lock(map, view.hash);
    CHECK(ftb_map_add_locked(stripe, &item->entry) == FTB_OK);
    ftb_map_unlock(stripe);
}

static void
item_remove_hashed(struct ftb_map *map, uint64_t number, uint64_t hash)
{
    struct ftb_keyview view = view_of(&number);
    view.hash = hash != 0 ? hash : view.hash;
    struct ftb_stripe *stripe = ftb_map_lock(map, view.hash);
    struct item *item = (struct item *)(void *)ftb_map_remove_locked(stripe, &view);
    CHECK(item != NULL);
    ftb_map_trim_locked(stripe, view.hash);
    ftb_map_unlock(stripe);
    ftb_retire(&item->retired, item, item_free);
}

static void
item_remove(struct ftb_map *map, uint64_t number)
{
    item_remove_hashed(map, number, 0);
}

static void
entry_free(struct ftb_entry *entry)
{
    ftb_free(entry);
}

static void
map_end(struct ftb_map *map)
{
    CHECK(ftb_map_is_valid(map));
    ftb_map_dismantle(map, entry_free);
    ftb_map_fini(map);
    ftb_reclaim();
}

/* How often each number was visited. */
struct counts {
    uint8_t times[STAY + COME_AND_GO];
    size_t n, most;
};

static void
count(struct ftb_entry *entry, void *context)
{
    struct counts *counts = context;
    uint64_t number = ((struct item *)(void *)entry)->number;
    CHECK(++counts->times[number] == 1);
    counts->n++;
}

static void
walk_on(struct ftb_map *map, struct ftb_walk *walk, struct counts *counts, size_t room)
{
    size_t before = counts->n, needed;
    size_t n = ftb_map_walk(map, walk, room, &needed, count, counts);
    CHECK(n <= room && counts->n == before + n);
    if (n == 0 && needed > 0) {
        CHECK(needed > room);
        n = ftb_map_walk(map, walk, needed, &needed, count, counts);
        CHECK(n > 0);
    }
}

static void
check_stay(const struct counts *counts)
{
    for (int i = 0; i < STAY; i++) {
        CHECK(counts->times[i] == 1);
    }
}

static void
test_walk_visits_each_once(void)
{
    struct ftb_map map;
    struct counts counts = {{0}, 0, 0};
    struct ftb_walk walk = {0, 0};
    CHECK(ftb_map_init(&map, 4) == FTB_OK);
    walk_on(&map, &walk, &counts, ROOM);
    CHECK(counts.n == 0 && ftb_walk_is_done(&map, &walk));
    for (uint64_t i = 0; i < STAY; i++) {
        item_add(&map, i, 0);
    }
    walk = (struct ftb_walk){0, 0};
    while (!ftb_walk_is_done(&map, &walk)) {
        walk_on(&map, &walk, &counts, ROOM);
    }
    check_stay(&counts);
    map_end(&map);
}

static void
test_equal_hashes_come_in_one_step(void)
{
    struct ftb_map map;
    struct counts counts = {{0}, 0, 0};
    struct ftb_walk walk = {0, 0};
    CHECK(ftb_map_init(&map, 4) == FTB_OK);
    for (uint64_t i = 0; i < 50; i++) {
        item_add(&map, i, UINT64_C(0x8000000000000005));
    }
    size_t needed;
    while (ftb_map_walk(&map, &walk, ROOM, &needed, count, &counts) == 0
           && needed == 0) {
        CHECK(!ftb_walk_is_done(&map, &walk));
    }
    CHECK(needed == 50);
    CHECK(ftb_map_walk(&map, &walk, needed, &needed, count, &counts) == 50);
    ftb_map_dismantle(&map, entry_free); /* its hashes are none of these keys */
    ftb_map_fini(&map);
    ftb_reclaim();
}

/* Between two steps of a walk, other keys come and go, and with them the tables. */
static void
test_walk_through_rehashes(void)
{
    uint64_t random = seed;
    long laps = scaled(200);
    for (long lap = 0; lap < laps; lap++) {
        struct ftb_map map;
        struct counts counts = {{0}, 0, 0};
        struct ftb_walk walk = {0, 0};
        bool is_there[COME_AND_GO] = {false};
        CHECK(ftb_map_init(&map, 2) == FTB_OK);
        for (uint64_t i = 0; i < STAY; i++) {
            item_add(&map, i, 0);
        }
        while (!ftb_walk_is_done(&map, &walk)) {
            bool adds = next_random(&random) % 2 == 0;
            uint64_t from = next_random(&random) % COME_AND_GO;
            uint64_t n = next_random(&random) % (COME_AND_GO / 4);
            for (uint64_t i = from; i < from + n && i < COME_AND_GO; i++) {
                if (adds && !is_there[i]) {
                    /* one that was visited and comes again would be counted twice */
                    is_there[i] = counts.times[STAY + i] == 0;
                    if (is_there[i]) {
                        item_add(&map, STAY + i, 0);
                    }
                } else if (!adds && is_there[i]) {
                    is_there[i] = false;
                    item_remove(&map, STAY + i);
                }
            }
            for (uint64_t i = next_random(&random) % 30; i > 0; i--) {
                walk_on(&map, &walk, &counts, 1 + next_random(&random) % ROOM);
            }
        }
        check_stay(&counts);
        map_end(&map);
    }
}

static void
test_any_takes_all_out(void)
{
    struct ftb_map map;
    ftb_atomic(uint64_t) hint;
    ftb_init(&hint, 0);
    CHECK(ftb_map_init(&map, 4) == FTB_OK);
    for (uint64_t i = 0; i < COME_AND_GO; i++) {
        item_add(&map, i, 0);
    }
    size_t full = ftb_map_bytes(&map);
    for (uint64_t n = COME_AND_GO; n > 0; n--) {
        struct ftb_stripe *stripe;
        struct ftb_entry *entry = ftb_map_any(&map, &hint, &stripe);
        CHECK(entry != NULL);
        uint64_t number = ((struct item *)(void *)entry)->number;
        ftb_map_unlock(stripe);
        item_remove(&map, number);
        CHECK(ftb_map_len(&map) == n - 1);
    }
    struct ftb_stripe *stripe;
    CHECK(ftb_map_any(&map, &hint, &stripe) == NULL);
    CHECK(ftb_map_bytes(&map) < full / 4);
    map_end(&map);
}

static void
test_keys_that_come_and_go_cause_no_rehash(void)
{
    struct ftb_map map;
    CHECK(ftb_map_init(&map, 2) == FTB_OK);
    struct ftb_table *tables[] = {
        ftb_load_acquire(&map.stripes[0].table),
        ftb_load_acquire(&map.stripes[1].table)};
    for (uint64_t i = 0; i < COME_AND_GO; i++) {
        item_add(&map, i, 0);
        item_remove(&map, i);
    }
    CHECK(ftb_load_acquire(&map.stripes[0].table) == tables[0]);
    CHECK(ftb_load_acquire(&map.stripes[1].table) == tables[1]);
    map_end(&map);
}

static void
free_detached(struct ftb_entry *entry, void *context)
{
    ++*(size_t *)context;
    ftb_free(entry);
}

static void
test_detach_empties_a_stripe(void)
{
    struct ftb_map map;
    size_t freed_n = 0;
    CHECK(ftb_map_init(&map, 2) == FTB_OK);
    for (uint64_t i = 0; i < STAY; i++) {
        item_add(&map, i, 0);
    }
    ftb_fault_alloc(0);
    CHECK(ftb_map_detach_locked(&map.stripes[0]) == NULL);
    ftb_fault_alloc(-1);
    CHECK(ftb_map_len(&map) == STAY);
    for (int s = 0; s < 2; s++) {
        pthread_mutex_lock(&map.stripes[s].lock);
        struct ftb_table *table = ftb_map_detach_locked(&map.stripes[s]);
        pthread_mutex_unlock(&map.stripes[s].lock);
        CHECK(table != NULL);
        ftb_table_each(table, free_detached, &freed_n);
        ftb_table_retire(table);
    }
    CHECK(freed_n == STAY && ftb_map_len(&map) == 0);
    item_add(&map, 1, 0);
    map_end(&map);
}

/* Few home slots, so that what comes and goes lies between a key and its home. */
static uint64_t
crowded_hash(uint64_t number)
{
    return (number + 1) << 40 | number % 3;
}

struct crowd {
    struct ftb_map map;
    ftb_atomic(int) writers_n;
};

static void
come_and_go(struct crowd *crowd, int ix)
{
    uint64_t random = seed + (uint64_t)ix;
    bool is_there[64] = {false};
    long rounds = scaled(200000);
    for (long i = 0; i < rounds; i++) {
        uint64_t k = next_random(&random) % 64;
        uint64_t number = STAY + 64 * (uint64_t)ix + k;
        is_there[k] = !is_there[k];
        if (is_there[k]) {
            item_add(&crowd->map, number, crowded_hash(number));
        } else {
            item_remove_hashed(&crowd->map, number, crowded_hash(number));
        }
        if (i % 64 == 0) {
            ftb_reclaim();
        }
    }
    ftb_sub_acq_rel(&crowd->writers_n, 1);
}

static void
find_those_that_stay(struct crowd *crowd)
{
    struct ftb_thread *thread = ftb_thread_current();
    while (ftb_load_acquire(&crowd->writers_n) > 0) {
        for (uint64_t number = 0; number < 20; number++) {
            struct ftb_keyview view = view_of(&number);
            view.hash = crowded_hash(number);
            uint64_t odd = ftb_section_enter(thread);
            struct ftb_entry *entry = ftb_map_find(&crowd->map, &view);
            bool is_found = entry != NULL && ftb_key_equals(&entry->key, &view);
            ftb_section_leave(thread, odd);
            CHECK(is_found);
        }
    }
}

static void
write_or_find(int ix, void *context)
{
    if (ix < 2) {
        come_and_go(context, ix);
    } else {
        find_those_that_stay(context);
    }
}

static void
test_keys_that_stay_are_found_while_slots_are_cleared(void)
{
    struct crowd crowd;
    CHECK(ftb_map_init(&crowd.map, 2) == FTB_OK);
    ftb_init(&crowd.writers_n, 2);
    for (uint64_t number = 0; number < 20; number++) {
        item_add(&crowd.map, number, crowded_hash(number));
    }
    run_threads(4, write_or_find, &crowd);
    map_end(&crowd.map);
}

int
main(void)
{
    set_watchdog(120);
    seed = run_seed();
    RUN(test_walk_visits_each_once);
    RUN(test_equal_hashes_come_in_one_step);
    RUN(test_walk_through_rehashes);
    RUN(test_any_takes_all_out);
    RUN(test_keys_that_come_and_go_cause_no_rehash);
    RUN(test_detach_empties_a_stripe);
    RUN(test_keys_that_stay_are_found_while_slots_are_cleared);
    return 0;
}

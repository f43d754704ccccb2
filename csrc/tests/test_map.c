/* ftb_map.h: the striped map against a model, and under readers that take no lock. */
#include "check.h"
#include "keys.h"

#include <string.h>

#include "ftb_map.h"

#define GOOD 0x600DF00D600DF00Du

struct item {
    struct ftb_entry entry;
    uint64_t number, magic;
    struct ftb_retired retired;
    struct item *next_freed;
};

static uint64_t seed;
static _Atomic(struct item *) graveyard;
static _Atomic(uint64_t) made_n, freed_n;

/* A key and its view: short or long by its number, so that both kinds meet. */
struct name {
    char text[48];
    struct ftb_keyview view;
};

static const struct ftb_keyview *
name_of(struct name *name, uint64_t number)
{
    int len = snprintf(
        name->text, sizeof name->text,
        number % 3 == 0 ? "a.key.that.does.not.fit.in.place.%llu" : "k%llu",
        (unsigned long long)number);
    name->view = keyview_of(FTB_KEY_STR, name->text, (uint32_t)len);
    return &name->view;
}

/* The same, but many keys share a home slot and some the whole hash: long probe chains,
 * which wrap around the end of the table. */
static const struct ftb_keyview *
colliding_name_of(struct name *name, uint64_t number)
{
    name_of(name, number);
    name->view.hash = (number % 7) << 40 | 0xFFFFFFFEu;
    return &name->view;
}

static struct item *
item_new(const struct ftb_keyview *view, uint64_t number)
{
    struct item *item = ftb_alloc_line(sizeof *item);
    CHECK(item != NULL && ftb_key_init(&item->entry.key, view) == FTB_OK);
    item->number = number;
    item->magic = GOOD;
    ftb_add_relaxed(&made_n, 1);
    return item;
}

static void
item_check(const struct item *item, uint64_t number)
{
    CHECK(item->magic == GOOD && item->number == number);
}

static void
item_destroy(struct item *item)
{
    CHECK(item->magic == GOOD);
    ftb_key_fini(&item->entry.key);
    ftb_add_relaxed(&freed_n, 1);
    ftb_free(item);
}

/* Poisoned and kept apart, so that a reader that still looks at it finds the poison. */
static void
item_poison(struct ftb_retired *retired)
{
    struct item *item = (struct item *)(uintptr_t)retired->object;
    CHECK(item->magic == GOOD);
    ftb_key_fini(&item->entry.key);
    memset(&item->entry, 0xDD, sizeof item->entry);
    item->magic = item->number = 0xDDDDDDDDDDDDDDDDu;
    ftb_add_relaxed(&freed_n, 1);
    struct item *head = ftb_load_relaxed(&graveyard);
    do {
        item->next_freed = head;
    } while (!ftb_cas_release(&graveyard, &head, item));
}

static void
bury(void)
{
    struct item *item = ftb_exchange_acq_rel(&graveyard, (struct item *)NULL);
    while (item != NULL) {
        struct item *next = item->next_freed;
        ftb_free(item);
        item = next;
    }
}

static void
entry_destroy(struct ftb_entry *entry)
{
    item_destroy((struct item *)(void *)entry);
}

static struct item *
find(struct ftb_map *map, const struct ftb_keyview *view)
{
    return (struct item *)(void *)ftb_map_find(map, view);
}

static enum ftb_result
add(struct ftb_map *map, struct item *item)
{
    struct ftb_stripe *stripe = ftb_map_lock(map, item->entry.key.hash);
    enum ftb_result result = ftb_map_add_locked(stripe, &item->entry);
    ftb_map_unlock(stripe);
    return result;
}

static struct item *
take_out(struct ftb_map *map, const struct ftb_keyview *view)
{
    struct ftb_stripe *stripe = ftb_map_lock(map, view->hash);
    struct ftb_entry *entry = ftb_map_remove_locked(stripe, view);
    if (view->len_bytes % 2 == 0) { /* and the others stay as removed slots */
        ftb_map_trim_locked(stripe, view->hash);
    }
    ftb_map_unlock(stripe);
    return (struct item *)(void *)entry;
}

static void
retire_out(struct ftb_map *map, const struct ftb_keyview *view)
{
    struct item *item = take_out(map, view);
    CHECK(item != NULL);
    ftb_retire(&item->retired, item, item_poison);
}

static void
map_end(struct ftb_map *map)
{
    CHECK(ftb_map_is_valid(map));
    ftb_map_dismantle(map, entry_destroy);
    ftb_map_fini(map);
    CHECK(ftb_reclaim() == 0);
    bury();
    CHECK(ftb_load_acquire(&made_n) == ftb_load_acquire(&freed_n));
}

typedef const struct ftb_keyview *(*naming_fn)(struct name *name, uint64_t number);

/* Random adds, removals and look-ups against an array of flags. */
static void
against_model(naming_fn naming, uint32_t stripes_n, uint64_t keys_n, long ops)
{
    struct ftb_map map;
    struct name name;
    uint64_t random = seed;
    size_t len = 0;
    bool *is_in = calloc(keys_n, sizeof *is_in);
    CHECK(is_in != NULL && ftb_map_init(&map, stripes_n) == FTB_OK);
    for (long n = 0; n < ops; n++) {
        uint64_t number = next_random(&random) % keys_n;
        const struct ftb_keyview *view = naming(&name, number);
        struct item *item = find(&map, view);
        CHECK((item != NULL) == is_in[number]);
        if (item != NULL) {
            item_check(item, number);
        }
        if (next_random(&random) % 2 == 0) {
            continue;
        }
        if (is_in[number]) {
            CHECK(take_out(&map, view) == item);
            item_destroy(item);
            len--;
        } else {
            CHECK(take_out(&map, view) == NULL);
            CHECK(add(&map, item_new(view, number)) == FTB_OK);
            len++;
        }
        is_in[number] = !is_in[number];
        if (n % 1024 == 0) {
            CHECK(ftb_map_is_valid(&map) && ftb_map_len(&map) == len);
            ftb_reclaim();
        }
    }
    CHECK(ftb_map_len(&map) == len);
    map_end(&map);
    free(is_in);
}

static void
test_random_operations(void)
{
    against_model(name_of, 1, 16, scaled(100000));
    against_model(name_of, 16, 3000, scaled(400000));
}

static void
test_random_operations_with_collisions(void)
{
    against_model(colliding_name_of, 2, 40, scaled(300000));
}

/* Readers against writers */

enum { FOREVER_N = 40, SOMETIMES_N = 60, BURST_N = 3000 };

struct race {
    struct ftb_map map;
    naming_fn naming;
    ftb_atomic(uint32_t) writers_left;
    uint64_t burst_n;
    long rounds;
};

/* Bug hunted: a key that is never removed is not found, because a neighbour's removal cut
 * its chain or a new table was published before it was full; or a look-up returns an
 * entry that has been freed (its table or slot retired too early). */
static void
read_body(struct race *race, uint64_t random)
{
    struct ftb_thread *thread = ftb_thread_current();
    struct name name;
    while (ftb_load_acquire(&race->writers_left) > 0) {
        uint64_t number = next_random(&random) % (FOREVER_N + SOMETIMES_N);
        const struct ftb_keyview *view = race->naming(&name, number);
        uint64_t odd = ftb_section_enter(thread);
        struct item *item = find(&race->map, view);
        if (item != NULL) {
            item_check(item, number);
        } else {
            CHECK(number >= FOREVER_N);
        }
        ftb_section_leave(thread, odd);
    }
}

static void
write_body(struct race *race, int ix, uint64_t random)
{
    struct name name;
    for (long n = 0; n < race->rounds; n++) {
        /* Each writer has numbers of its own: no two add the same key. */
        uint64_t number =
            FOREVER_N + next_random(&random) % (SOMETIMES_N / 2) * 2 + (uint64_t)ix % 2;
        const struct ftb_keyview *view = race->naming(&name, number);
        uint64_t odd = ftb_section_enter(ftb_thread_current());
        bool is_in = find(&race->map, view) != NULL; /* only this thread changes it */
        ftb_section_leave(ftb_thread_current(), odd);
        if (is_in) {
            retire_out(&race->map, view);
        } else {
            CHECK(add(&race->map, item_new(view, number)) == FTB_OK);
        }
        if (n % 16 == 0) {
            ftb_reclaim();
        }
    }
}

/* Grow every table to many times its size, and let it shrink again. */
static void
burst_body(struct race *race)
{
    struct name name;
    for (long n = 0; n < race->rounds; n += 2 * (long)race->burst_n) {
        for (uint64_t i = 0; i < race->burst_n; i++) {
            const struct ftb_keyview *view = race->naming(&name, 1000000 + i);
            CHECK(add(&race->map, item_new(view, 1000000 + i)) == FTB_OK);
        }
        for (uint64_t i = 0; i < race->burst_n; i++) {
            retire_out(&race->map, race->naming(&name, 1000000 + i));
        }
        ftb_reclaim();
    }
}

static void
race_body(int ix, void *context)
{
    struct race *race = context;
    uint64_t random = seed + (uint64_t)ix * 1009;
    if (ix >= 3) {
        read_body(race, random);
        return;
    }
    if (ix == 2) {
        burst_body(race);
    } else {
        write_body(race, ix, random);
    }
    ftb_sub_acq_rel(&race->writers_left, 1);
}

static void
race_run(naming_fn naming, uint64_t burst_n, long rounds)
{
    struct race race = {
        .naming = naming, .writers_left = 3, .burst_n = burst_n, .rounds = rounds};
    struct name name;
    CHECK(ftb_map_init(&race.map, 2) == FTB_OK);
    for (uint64_t number = 0; number < FOREVER_N; number++) {
        CHECK(add(&race.map, item_new(naming(&name, number), number)) == FTB_OK);
    }
    run_threads(6, race_body, &race);
    map_end(&race.map);
}

static void
test_readers_against_writers(void)
{
    race_run(name_of, BURST_N, scaled(120000));
}

static void
test_readers_in_long_chains(void)
{
    race_run(colliding_name_of, 40, scaled(70000));
}

/* Bug hunted: removed slots are never cleaned out, so that look-ups get slower and tables
 * longer with every topic that came and went. */
static void
test_churn_does_not_degrade(void)
{
    struct ftb_map map;
    struct name name;
    CHECK(ftb_map_init(&map, 2) == FTB_OK);
    enum { LIVE_N = 20 };
    uint64_t rounds = (uint64_t)scaled(500000);
    for (uint64_t n = 0; n < rounds + LIVE_N; n++) {
        CHECK(add(&map, item_new(name_of(&name, n), n)) == FTB_OK);
        if (n >= LIVE_N) {
            item_destroy(take_out(&map, name_of(&name, n - LIVE_N)));
        }
        if (n % 256 == 0) {
            CHECK(ftb_reclaim() == 0);
        }
    }
    for (uint32_t s = 0; s < map.stripes_n; s++) {
        uint32_t slots_n = ftb_load_acquire(&map.stripes[s].table)->mask + 1;
        CHECK(slots_n <= 4 * LIVE_N);
        CHECK(
            (map.stripes[s].entries_n + map.stripes[s].removed_n) * 10 <= slots_n * 6);
    }
    map_end(&map);
}

static void
count_entry(struct ftb_entry *entry, void *context)
{
    item_check((struct item *)(void *)entry, ((struct item *)(void *)entry)->number);
    ++*(uint64_t *)context;
}

/* How many slots a look-up passes, and how many of those carry the wanted tag by chance. */
static void
count_probes(
    struct ftb_map *map, const struct ftb_keyview *view, uint64_t *passed_n,
    uint64_t *same_tag_n)
{
    struct ftb_table *table =
        ftb_load_acquire(&map->stripes[view->hash >> map->shift].table);
    uintptr_t found = 0;
    uint32_t home = (uint32_t)view->hash & table->mask, i = home;
    do {
        found = ftb_load_acquire(&table->slots[i]);
        i = (i + 1) & table->mask;
    } while ((found & ~(uintptr_t)63) != (uintptr_t)ftb_map_find(map, view));
    for (uint32_t k = home; k != ((i - 1) & table->mask); k = (k + 1) & table->mask) {
        uintptr_t slot = ftb_load_acquire(&table->slots[k]);
        *passed_n += 1;
        *same_tag_n += (slot & 63) == (found & 63);
    }
}

/* Bug hunted: chains that grow with the table (the stripe, the slot and the tag are taken
 * from the same bits of the hash). */
static void
test_a_million_keys(void)
{
    struct ftb_map map;
    struct name name;
    uint64_t keys_n = (uint64_t)scaled(1000000), seen_n = 0, passed_n = 0, same_n = 0;
    CHECK(ftb_map_init(&map, 64) == FTB_OK);
    for (uint64_t n = 0; n < keys_n; n++) {
        CHECK(add(&map, item_new(name_of(&name, n), n)) == FTB_OK);
    }
    ftb_reclaim();
    CHECK(ftb_map_len(&map) == keys_n);
    for (uint64_t n = 0; n < keys_n; n++) {
        struct item *item = find(&map, name_of(&name, n));
        CHECK(item != NULL);
        item_check(item, n);
        count_probes(&map, &name.view, &passed_n, &same_n);
        if (n % 4 == 0) {
            CHECK(find(&map, name_of(&name, n + keys_n)) == NULL);
        }
    }
    CHECK(passed_n < keys_n);           /* load 0.6 promises 0.75 on average at most */
    CHECK(same_n * 16 < passed_n + 16); /* one in 64 is chance */
    ftb_map_each(&map, count_entry, &seen_n);
    CHECK(seen_n == keys_n);
    map_end(&map);
}

/* Bug hunted: a failed allocation leaves an entry half added, a count wrong, or memory
 * that nobody owns (LeakSanitizer). */
static void
test_without_memory(void)
{
    struct ftb_map map;
    struct name name;
    long fail_at = 0;
    enum ftb_result result;
    do {
        ftb_fault_alloc(fail_at++);
        result = ftb_map_init(&map, 4);
    } while (result == FTB_NOMEM);
    ftb_fault_alloc(-1);
    CHECK(result == FTB_OK && fail_at == 1 + 4 + 1); /* stripes, tables, success */
    uint64_t refused_n = 0;
    for (uint64_t n = 0; n < 2000; n++) {
        struct item *item = item_new(name_of(&name, n), n);
        size_t len = ftb_map_len(&map);
        ftb_fault_alloc(0);
        result = add(&map, item);
        ftb_fault_alloc(-1);
        if (result == FTB_NOMEM) {
            refused_n++;
            CHECK(ftb_map_len(&map) == len && find(&map, &name.view) == NULL);
            CHECK(ftb_map_is_valid(&map));
            CHECK(add(&map, item) == FTB_OK);
        }
        CHECK(find(&map, &name.view) == item);
    }
    CHECK(refused_n >= 4 * 5); /* every growth of every stripe */
    map_end(&map);
}

/* In a fork's child the locks are new and the counts are those of the tables. */
static void
test_after_fork_child(void)
{
    struct ftb_map map;
    struct name name;
    CHECK(ftb_map_init(&map, 4) == FTB_OK);
    for (uint64_t n = 0; n < 100; n++) {
        CHECK(add(&map, item_new(name_of(&name, n), n)) == FTB_OK);
    }
    for (uint64_t n = 0; n < 10; n++) {
        item_destroy(take_out(&map, name_of(&name, n)));
    }
    struct ftb_stripe *stripe = ftb_map_lock(&map, name.view.hash);
    stripe->entries_n += 1; /* as if its holder were between the slot and the count */
    stripe->removed_n = 0;
    CHECK(pthread_mutex_trylock(&stripe->lock) != 0);
#ifndef __SANITIZE_THREAD__ /* it would report the lock that is never unlocked */
    ftb_map_after_fork_child(&map);
#else
    ftb_map_unlock(stripe);
    ftb_map_after_fork_child(&map);
#endif
    CHECK(ftb_map_is_valid(&map) && ftb_map_len(&map) == 90);
    map_end(&map);
}

int
main(void)
{
    set_watchdog(240);
    seed = run_seed();
    RUN(test_random_operations);
    RUN(test_random_operations_with_collisions);
    RUN(test_readers_against_writers);
    RUN(test_readers_in_long_chains);
    RUN(test_churn_does_not_degrade);
    RUN(test_a_million_keys);
    RUN(test_without_memory);
    RUN(test_after_fork_child);
    return 0;
}

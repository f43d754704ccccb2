/* Two readers walk over the topics at once, and each meets a newcomer that the other passed
 * too early. The map's walk is replaced by one that stops in between. */
#include "fakes.h"

static void hooked_each(
    struct ftb_map *map, void (*visit)(struct ftb_entry *entry, void *context),
    void *context);

/* The core's own functions have these names, too. */
#define ftb_topic_index_get race_index_get
#define ftb_topic_index_give race_index_give
#define ftb_topic_index_is_whole race_index_is_whole
#include "ftb_topic_index.h"

#define ftb_map_each hooked_each
#include "../core/ftb_topic_index.c"
#undef ftb_map_each

static struct {
    bool is_first_walk;
    struct ftb_bus *bus;
    struct ftb_topic *own; /* made by the other reader before it walks */
    struct ftb_topic_index *fresh;
} other;

static uint32_t
stripe_of(const char *name)
{
    struct ftb_bus *scratch = bus_new();
    uint32_t stripe = 0;
    (void)topic_of(scratch, name);
    while (scratch->topics.stripes[stripe].entries_n == 0) {
        stripe++;
    }
    bus_end(scratch);
    return stripe;
}

static struct ftb_topic *
topic_in(struct ftb_bus *bus, uint32_t stripe, const char *prefix)
{
    for (int i = 0;; i++) {
        char name[24];
        snprintf(name, sizeof name, "%s%d", prefix, i);
        if (stripe_of(name) == stripe) {
            return topic_of(bus, name);
        }
    }
}

static void
hooked_each(
    struct ftb_map *map, void (*visit)(struct ftb_entry *entry, void *context),
    void *context)
{
    bool stops = other.is_first_walk;
    other.is_first_walk = false;
    for (uint32_t stripe = 0; stripe < map->stripes_n; stripe++) {
        if (stops && stripe == 1) {
            other.own = topic_in(other.bus, 0, "own");
            other.fresh = index_make(other.bus);
            (void)topic_in(other.bus, map->stripes_n - 1, "theirs");
        }
        ftb_table_each(map->stripes[stripe].table, visit, context);
    }
}

/* Bug hunted: a reader that is given an index without a topic that it made itself. */
static void
test_a_reader_sees_what_was_there_before_it(void)
{
    struct ftb_bus *bus = bus_new();
    (void)topic_of(bus, "first");
    other.bus = bus;
    other.is_first_walk = true;
    struct ftb_topic_index *kept = ftb_topic_index_get(bus);
    CHECK(kept != NULL && kept->n == other.fresh->n);
    struct ftb_topic_index *index = index_choose(bus, other.fresh);
    bool has_own = false;
    for (size_t i = 0; i < index->n; i++) {
        has_own = has_own || index->topics[i] == other.own;
    }
    CHECK(has_own);
    ftb_topic_index_give(bus, index);
    ftb_topic_index_give(bus, kept);
    index = ftb_topic_index_get(bus); /* neither was whole */
    CHECK(index->n == 3);
    ftb_topic_index_give(bus, index);
    bus_end(bus);
}

int
main(void)
{
    fakes_begin();
    RUN(test_a_reader_sees_what_was_there_before_it);
    return 0;
}

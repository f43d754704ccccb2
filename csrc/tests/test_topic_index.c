/* ftb_topic_index.h: all topics, once each, in order; kept while none comes. */
#include "fakes.h"
#include "ftb_topic_index.h"

static struct ftb_topic *
topic_numbered(struct ftb_bus *bus, long number)
{
    char name[24];
    snprintf(name, sizeof name, "%ld", number);
    return topic_of(bus, name);
}

static bool
has_topic(const struct ftb_topic_index *index, const struct ftb_topic *topic)
{
    for (size_t i = 0; i < index->n; i++) {
        if (index->topics[i] == topic) {
            return true;
        }
    }
    return false;
}

static void
check_order(const struct ftb_topic_index *index)
{
    for (size_t i = 0; i < index->n; i++) {
        CHECK(index->ids[i] == ftb_topic_id(index->topics[i]));
        CHECK(i == 0 || index->ids[i - 1] < index->ids[i]);
    }
}

/* Bug hunted: a topic that is left out, twice in it or under another's id; an index that
 * is made anew for nothing, or kept when it is too short, or freed while it is read. */
static void
test_index_follows_the_topics(void)
{
    struct ftb_bus *bus = bus_new();
    struct ftb_topic_index *last = ftb_topic_index_get(bus);
    CHECK(last != NULL && last->n == 0 && ftb_topic_index_is_whole(last, bus));
    for (long n = 1; n <= 300; n++) {
        struct ftb_topic *topic = topic_numbered(bus, n);
        CHECK(!ftb_topic_index_is_whole(last, bus) && !has_topic(last, topic));
        struct ftb_topic_index *index = ftb_topic_index_get(bus);
        CHECK(index != NULL && index != last && index->n == (size_t)n);
        CHECK(ftb_topic_index_is_whole(index, bus) && has_topic(index, topic));
        check_order(index);
        CHECK(last->n == (size_t)n - 1); /* still there for who holds it */
        ftb_topic_index_give(bus, last);
        last = ftb_topic_index_get(bus);
        CHECK(last == index);
        ftb_topic_index_give(bus, index);
    }
    ftb_topic_index_give(bus, last);
    ftb_topic_index_give(bus, NULL);
    bus_end(bus);
}

/* Bug hunted: memory that is lost, or an index without its arrays. */
static void
test_without_memory_there_is_none(void)
{
    struct ftb_bus *bus = bus_new();
    topic_numbered(bus, 1);
    for (long fail_at = 0; fail_at < 3; fail_at++) {
        ftb_fault_alloc(fail_at);
        CHECK(ftb_topic_index_get(bus) == NULL);
        ftb_fault_alloc(-1);
    }
    struct ftb_topic_index *index = ftb_topic_index_get(bus);
    CHECK(index != NULL && index->n == 1);
    ftb_topic_index_give(bus, index);
    bus_end(bus);
}

enum { MAKERS_N = 2, READERS_N = 2 };

struct coming {
    struct ftb_bus *bus;
    ftb_atomic(uint64_t) made[MAKERS_N]; /* so many of each maker's are there */
    ftb_atomic(uint32_t) makers_left;
    long rounds;
};

/* Bug hunted: topics that come during a walk take the places of older ones. */
static void
coming_body(int ix, void *context)
{
    struct coming *coming = context;
    if (ix < MAKERS_N) {
        for (long n = 0; n < coming->rounds; n++) {
            topic_numbered(coming->bus, n * MAKERS_N + ix);
            ftb_store_release(&coming->made[ix], (uint64_t)n + 1);
        }
        ftb_sub_acq_rel(&coming->makers_left, 1);
        return;
    }
    size_t before = 0;
    while (ftb_load_acquire(&coming->makers_left) > 0) {
        size_t least = 0;
        for (int i = 0; i < MAKERS_N; i++) {
            least += ftb_load_acquire(&coming->made[i]);
        }
        struct ftb_topic_index *index = ftb_topic_index_get(coming->bus);
        CHECK(index != NULL && index->n >= least && index->n >= before);
        check_order(index);
        before = index->n;
        ftb_topic_index_give(coming->bus, index);
    }
}

static void
test_index_while_topics_come(void)
{
    struct coming coming = {
        .bus = bus_new(), .makers_left = MAKERS_N, .rounds = scaled(10000)};
    run_threads(MAKERS_N + READERS_N, coming_body, &coming);
    struct ftb_topic_index *index = ftb_topic_index_get(coming.bus);
    CHECK(index != NULL && index->n == (size_t)coming.rounds * MAKERS_N);
    ftb_topic_index_give(coming.bus, index);
    bus_end(coming.bus);
}

/* Bug hunted: a subscription that is counted twice, or not taken back. */
static void
test_subscriptions_are_counted(void)
{
    enum { MOST = 5 };
    struct ftb_bus *bus = bus_new();
    struct fake fakes[MOST];
    struct ftb_handler *handlers[MOST];
    for (int i = 0; i < MOST; i++) {
        fake_init(&fakes[i]);
        handlers[i] = subscribe(topic_numbered(bus, i % 2), &fakes[i], 0, 0);
        CHECK(ftb_load_acquire(&bus->subscribed) == (uint64_t)i + 1);
    }
    CHECK(cancel(handlers[0]) == 1 && cancel(handlers[0]) == 0);
    CHECK(ftb_load_acquire(&bus->subscribed) == MOST - 1);
    CHECK(ftb_bus_set_observed(bus, true) == FTB_OK);
    CHECK(ftb_load_acquire(&bus->subscribed) == MOST - 1);
    ftb_bus_clear(bus);
    CHECK(ftb_load_acquire(&bus->subscribed) == 0);
    for (int i = 0; i < MOST; i++) {
        ftb_handler_release(handlers[i]);
    }
    bus_end(bus);
}

int
main(void)
{
    fakes_begin();
    RUN(test_index_follows_the_topics);
    RUN(test_without_memory_there_is_none);
    RUN(test_index_while_topics_come);
    RUN(test_subscriptions_are_counted);
    return 0;
}

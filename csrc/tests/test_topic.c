/* ftb_topic.h and ftb_snapshot.h: who runs, in which order, and who is released when. */
#include "fakes.h"
#include "ftb_quiet.h"
#include "keys.h"

/* Order */

/* Bug hunted: a late handler of equal priority overtakes, a removal moves the others. */
static void
test_priority_then_age(void)
{
    enum { MOST = 40 };
    struct ftb_bus *bus = bus_new();
    struct ftb_topic *topic = topic_of(bus, "ordered");
    struct fake fakes[MOST];
    struct ftb_handler *model[MOST]; /* in the order expected */
    uint32_t n = 0;
    uint64_t random = seed;
    for (long round = scaled(20000); round > 0; round--) {
        if (n < MOST && next_random(&random) % 2 == 0) {
            struct fake *fake = fakes;
            for (uint32_t i = 0; i < n; i++) { /* one that is free */
                fake = fake == model[i]->func ? (i = UINT32_MAX, fake + 1) : fake;
            }
            fake_init(fake);
            int priority = (int)(next_random(&random) % 5) - 2;
            struct ftb_handler *handler = subscribe(topic, fake, priority, 0);
            uint32_t at = 0;
            while (at < n && model[at]->priority >= priority) {
                at++;
            }
            memmove(model + at + 1, model + at, (n - at) * sizeof *model);
            model[at] = handler;
            n++;
        } else if (n > 0) {
            uint32_t at = (uint32_t)(next_random(&random) % n);
            CHECK(cancel(model[at]) == 1);
            CHECK(cancel(model[at]) == 0);
            ftb_handler_release(model[at]);
            CHECK(ftb_load_acquire(&live_n) == --n);
            memmove(model + at, model + at + 1, (n - at) * sizeof *model);
        }
        struct ftb_snapshot *snapshot = ftb_load_acquire(&topic->snapshot);
        CHECK((snapshot == NULL) == (n == 0));
        CHECK(snapshot == NULL || snapshot->n == n);
        for (uint32_t i = 0; i < n; i++) {
            CHECK(ftb_snapshot_handlers(snapshot)[i] == model[i]);
            CHECK(snapshot->calls[i].func == model[i]->func);
        }
    }
    ftb_bus_clear(bus);
    while (n > 0) {
        CHECK(ftb_load_acquire(&model[--n]->state) == FTB_HANDLER_CANCELLED);
        ftb_handler_release(model[n]);
    }
    bus_end(bus);
}

static void
test_remove_without_match_publishes_nothing(void)
{
    struct ftb_bus *bus = bus_new();
    struct ftb_topic *topic = topic_of(bus, "still");
    struct fake fake;
    size_t removed_n;
    fake_init(&fake);
    CHECK(ftb_topic_remove(topic, NULL, NULL, &removed_n) == FTB_OK && removed_n == 0);
    struct ftb_handler *handler = subscribe(topic, &fake, 0, 0);
    struct ftb_snapshot *before = ftb_load_acquire(&topic->snapshot);
    ftb_fault_alloc(0);
    CHECK(ftb_topic_remove(topic, is_this, &fake, &removed_n) == FTB_OK);
    ftb_fault_alloc(-1);
    CHECK(removed_n == 0 && ftb_load_acquire(&topic->snapshot) == before);
    CHECK(emit(topic) == 1 && cancel(handler) == 1 && emit(topic) == 0);
    ftb_handler_release(handler);
    bus_end(bus);
}

/* wait_quiet */

static void
hold_body(int ix, void *context)
{
    struct race *race = context;
    struct ftb_thread *thread = ftb_thread_current();
    if (ix == 0) {
        ftb_topic_hold(thread, race->topic);
        pthread_barrier_wait(&race->step); /* 1: an emit is inside */
        pthread_barrier_wait(&race->step); /* 2 */
        ftb_hazard_drop(thread);
        pthread_barrier_wait(&race->step); /* 3: it is over */
        return;
    }
    pthread_barrier_wait(&race->step); /* 1 */
    struct ftb_handler *handler = race->handlers[0];
    cancel(handler);
    ftb_topic_hold(thread, race->topic); /* NULL by now: takes no slot */
    CHECK(ftb_handler_wait_quiet(handler, 0) == FTB_TIMEOUT);
    CHECK(ftb_handler_wait_quiet(handler, ftb_now_ns() + 3000000) == FTB_TIMEOUT);
    /* Nobody runs the other one, though its topic is the same. */
    CHECK(ftb_handler_wait_quiet(race->handlers[1], 0) == FTB_OK);
    pthread_barrier_wait(&race->step); /* 2 */
    pthread_barrier_wait(&race->step); /* 3 */
    CHECK(ftb_handler_wait_quiet(handler, 0) == FTB_OK);
}

static void
test_wait_quiet_waits_for_others(void)
{
    struct race race = {.bus = bus_new()};
    race.topic = topic_of(race.bus, "quiet");
    fake_init(&race.fakes[0]);
    fake_init(&race.fakes[1]);
    race.handlers[1] = subscribe(race.topic, &race.fakes[1], 0, 0);
    cancel(race.handlers[1]);
    race.handlers[0] = subscribe(race.topic, &race.fakes[0], 0, 0);
    pthread_barrier_init(&race.step, NULL, 2);
    run_threads(2, hold_body, &race);
    pthread_barrier_destroy(&race.step);
    /* A handler that cancels itself and waits must not wait for itself. */
    struct fake fake;
    fake_init(&fake);
    struct ftb_handler *own = subscribe(race.topic, &fake, 0, 0);
    CHECK(ftb_topic_hold(ftb_thread_current(), race.topic) != NULL);
    cancel(own);
    CHECK(ftb_handler_wait_quiet(own, 0) == FTB_OK);
    ftb_hazard_drop(ftb_thread_current());
    ftb_handler_release(own);
    ftb_handler_release(race.handlers[0]);
    ftb_handler_release(race.handlers[1]);
    bus_end(race.bus);
}

/* Bug hunted: the core goes with the bus object while a handler still needs it, or stays
 * when the last handler goes. */
static void
test_last_handler_frees_the_bus(void)
{
    struct ftb_bus *bus = bus_new();
    struct ftb_topic *topic = topic_of(bus, "outlives");
    struct fake fake;
    fake_init(&fake);
    struct ftb_handler *handler = subscribe(topic, &fake, 0, 0);
    uint64_t released_n = ftb_load_acquire(&keys_released_n);
    ftb_bus_clear(bus);
    CHECK(ftb_reclaim() == 0);
    ftb_bus_release(bus);
    CHECK(ftb_load_acquire(&keys_released_n) == released_n);
    CHECK(handler->topic == topic && ftb_load_acquire(&fake.released_n) == 0);
    ftb_handler_release(handler);
    CHECK(ftb_load_acquire(&fake.released_n) == 1);
    CHECK(ftb_load_acquire(&keys_released_n) == released_n + 1);
}

/* Without memory */

/* Bug hunted: a cancel that fails half way: handlers marked that stay and run, or a
 * subscription that is published though the caller was told it is not. */
static void
test_failed_changes_change_nothing(void)
{
    struct ftb_bus *bus = bus_new();
    struct ftb_topic *topic = topic_of(bus, "oom");
    struct fake fakes[3];
    struct ftb_handler *handlers[3];
    size_t removed_n;
    for (int i = 0; i < 2; i++) {
        fake_init(&fakes[i]);
        handlers[i] = subscribe(topic, &fakes[i], 0, i == 1 ? FTB_HANDLER_ONCE : 0);
    }
    struct ftb_snapshot *before = ftb_load_acquire(&topic->snapshot);
    for (long fail_at = 0;; fail_at++) {
        ftb_fault_alloc(fail_at);
        enum ftb_result result = ftb_topic_remove(topic, NULL, NULL, &removed_n);
        ftb_fault_alloc(-1);
        if (result == FTB_OK) {
            CHECK(fail_at == 1 && removed_n == 2);
            break;
        }
        CHECK(result == FTB_NOMEM && removed_n == 0);
        CHECK(ftb_load_acquire(&topic->snapshot) == before);
        for (int i = 0; i < 2; i++) {
            CHECK(ftb_load_acquire(&handlers[i]->state) == FTB_HANDLER_ACTIVE);
        }
    }
    CHECK(emit(topic) == 0);
    fake_init(&fakes[2]);
    handlers[2] = ftb_handler_new(topic);
    handlers[2]->func = &fakes[2];
    ftb_add_relaxed(&live_n, 1);
    ftb_fault_alloc(0);
    CHECK(ftb_topic_add(topic, handlers[2]) == FTB_NOMEM);
    ftb_fault_alloc(-1);
    CHECK(ftb_load_acquire(&topic->snapshot) == NULL);
    CHECK(ftb_load_acquire(&handlers[2]->refs) == 1);
    CHECK(ftb_topic_add(topic, handlers[2]) == FTB_OK && emit(topic) == 1);
    /* Closing needs no memory. */
    ftb_fault_alloc(0);
    ftb_bus_clear(bus);
    ftb_fault_alloc(-1);
    for (int i = 0; i < 3; i++) {
        CHECK(ftb_load_acquire(&handlers[i]->state) == FTB_HANDLER_CANCELLED);
        ftb_handler_release(handlers[i]);
    }
    bus_end(bus);
}

/* A bus, a topic with a long key, a handler: false if any allocation failed. */
static bool
small_life(void)
{
    static const char name[] = "a key that is far too long to be kept in place";
    struct ftb_bus *bus = ftb_bus_new(2);
    if (bus == NULL) {
        return false;
    }
    struct ftb_keyview view = keyview_of(FTB_KEY_STR, name, sizeof name);
    struct ftb_topic *topic = NULL;
    bool is_new = true;
    struct fake fake;
    fake_init(&fake);
    struct ftb_handler *handler = NULL;
    if (ftb_bus_topic(bus, &view, &good_key, &topic, &is_new) == FTB_OK) {
        CHECK(is_new);
        handler = ftb_handler_new(topic);
    } else {
        CHECK(!is_new && ftb_map_len(&bus->topics) == 0);
    }
    bool is_done = false;
    if (handler != NULL) {
        ftb_add_relaxed(&live_n, 1);
        handler->func = &fake;
        is_done = ftb_topic_add(topic, handler) == FTB_OK;
        ftb_handler_release(handler);
    }
    ftb_bus_clear(bus);
    ftb_reclaim();
    CHECK(ftb_load_acquire(&live_n) == 0);
    CHECK(handler == NULL || ftb_load_acquire(&fake.released_n) == 1);
    CHECK(ftb_load_acquire(&bus->refs) == 1);
    ftb_bus_release(bus);
    return is_done;
}

static void
test_every_allocation_may_fail(void)
{
    uint64_t before = ftb_load_acquire(&keys_released_n);
    long fail_at = 0;
    CHECK(small_life()); /* the id stack and this thread's record are made */
    do {
        ftb_fault_alloc(fail_at++);
    } while (!small_life());
    ftb_fault_alloc(-1);
    CHECK(fail_at >= 8); /* bus, stripes, 2 tables, topic, key, handler, snapshot */
    CHECK(ftb_load_acquire(&keys_released_n) > before);
}

/* In a fork's child: `previous` links are mended from the chain of `next`. */
static void
test_after_fork_child(void)
{
    struct ftb_bus *bus = bus_new();
    struct ftb_topic *topic = topic_of(bus, "forked");
    struct fake fakes[3];
    struct ftb_handler *handlers[3];
    for (int i = 0; i < 3; i++) {
        fake_init(&fakes[i]);
        handlers[i] = subscribe(topic, &fakes[i], 0, 0);
    }
    bus->handlers->previous = handlers[0]; /* as if one were half linked */
    ftb_bus_after_fork_child(bus);
    for (int i = 2; i >= 0; i--) {
        CHECK(bus->handlers == handlers[i]);
        cancel(handlers[i]);
        ftb_handler_release(handlers[i]);
    }
    bus_end(bus);
}

int
main(void)
{
    fakes_begin();
    RUN(test_priority_then_age);
    RUN(test_remove_without_match_publishes_nothing);
    RUN(test_wait_quiet_waits_for_others);
    RUN(test_last_handler_frees_the_bus);
    RUN(test_failed_changes_change_nothing);
    RUN(test_every_allocation_may_fail);
    RUN(test_after_fork_child);
    return 0;
}

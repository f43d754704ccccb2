/* ftb_topic.h and ftb_snapshot.h: who runs, in which order, and who is released when.
 *
 * A handler's `func` is a `struct fake` that counts; emits here do what csrc/py/emit.c
 * does with a snapshot, without Python. */
#include "check.h"

#include <string.h>

#include "ftb_shard.h"
#include "ftb_topic.h"

#define GOOD 0x600DF00D600DF00Du

struct fake {
    uint64_t magic;
    ftb_atomic(uint32_t) runs_n, running_n, released_n, removed_n;
    ftb_atomic(uint64_t) gone_at; /* the clock when its removal returned; 0: not yet */
    bool reenters;                /* its finalizer uses the bus */
};

static uint64_t seed;
static _Atomic(uint64_t) live_n;           /* handlers not released */
static _Atomic(uint64_t) keys_released_n;
static _Atomic(uint64_t) clock_now = 1;

static void
fake_release(struct ftb_handler *handler)
{
    struct fake *fake = handler->func;
    CHECK(fake->magic == GOOD);
    CHECK(ftb_load_acquire(&fake->running_n) == 0);
    ftb_sub_relaxed(&live_n, 1);
    if (fake->reenters) { /* as a __del__ may: no lock may be held around this */
        size_t removed_n;
        bool is_new;
        struct ftb_topic *topic;
        struct ftb_keyview view = ftb_keyview_of(FTB_KEY_STR, "reentered", 9);
        CHECK(ftb_topic_remove(handler->topic, NULL, NULL, &removed_n) == FTB_OK);
        CHECK(ftb_bus_topic(handler->topic->bus, &view, NULL, &topic, &is_new) == FTB_OK);
        ftb_reclaim();
    }
    /* acq_rel, and last: whoever sees it may free the fake. */
    CHECK(ftb_add_acq_rel(&fake->released_n, 1) == 0);
}

static void
key_release(struct ftb_topic *topic)
{
    CHECK(*(uint64_t *)topic->key_object == GOOD);
    ftb_add_relaxed(&keys_released_n, 1);
}

static void
fake_init(struct fake *fake)
{
    *fake = (struct fake){.magic = GOOD};
}

/* Subscribe a fake; the caller releases what comes back. NULL: the bus is closed. */
static struct ftb_handler *
subscribe(struct ftb_topic *topic, struct fake *fake, int priority, uint32_t flags)
{
    struct ftb_handler *handler = ftb_handler_new(topic);
    CHECK(handler != NULL);
    ftb_add_relaxed(&live_n, 1);
    handler->func = fake;
    handler->priority = priority;
    handler->flags = flags;
    enum ftb_result result = ftb_topic_add(topic, handler);
    if (result == FTB_CLOSED) {
        ftb_handler_release(handler);
        return NULL;
    }
    CHECK(result == FTB_OK);
    return handler;
}

static bool
is_this(const struct ftb_handler *handler, void *context)
{
    return handler == context;
}

static size_t
cancel(struct ftb_handler *handler)
{
    size_t removed_n;
    CHECK(ftb_topic_remove(handler->topic, is_this, handler, &removed_n) == FTB_OK);
    struct fake *fake = handler->func;
    ftb_add_relaxed(&fake->removed_n, (uint32_t)removed_n);
    uint64_t none = 0;
    ftb_cas_seq_cst(&fake->gone_at, &none, ftb_add_seq_cst(&clock_now, 1));
    ftb_reclaim();
    return removed_n;
}

static struct ftb_snapshot *
hold(struct ftb_thread *thread, struct ftb_topic *topic)
{
    uint64_t odd = ftb_section_enter(thread);
    struct ftb_snapshot *snapshot = ftb_load_seq_cst(&topic->snapshot); /* (2) */
    if (snapshot != NULL) {
        ftb_hazard_hold(thread, snapshot);
    }
    ftb_section_leave(thread, odd);
    return snapshot;
}

/* One emit. Returns how many handlers ran. */
static uint32_t
emit(struct ftb_topic *topic)
{
    struct ftb_thread *thread = ftb_thread_current();
    uint64_t began = ftb_load_seq_cst(&clock_now);
    struct ftb_snapshot *snapshot = hold(thread, topic);
    uint32_t ran_n = 0;
    for (uint32_t i = 0; snapshot != NULL && i < snapshot->n; i++) {
        struct ftb_handler *handler = ftb_snapshot_handlers(snapshot)[i];
        struct fake *fake = snapshot->calls[i].func;
        CHECK(handler->func == fake && fake->magic == GOOD);
        CHECK(ftb_load_acquire(&fake->released_n) == 0);
        uint64_t gone_at = ftb_load_seq_cst(&fake->gone_at);
        CHECK(gone_at == 0 || gone_at >= began); /* no start in a later emit */
        uint32_t active = FTB_HANDLER_ACTIVE;
        if (ftb_load_acquire(&handler->state) == FTB_HANDLER_CANCELLED
            || ((handler->flags & FTB_HANDLER_ONCE)
                && !ftb_cas_acq_rel(&handler->state, &active, FTB_HANDLER_SPENT))) {
            continue;
        }
        ftb_add_acq_rel(&fake->running_n, 1);
        ftb_add_relaxed(&fake->runs_n, 1);
        if (handler->flags & FTB_HANDLER_ONCE) {
            size_t removed_n;
            CHECK(ftb_topic_remove(topic, is_this, handler, &removed_n) == FTB_OK);
            CHECK(removed_n == 0); /* it was spent, not active */
        }
        ftb_sub_acq_rel(&fake->running_n, 1);
        ran_n++;
    }
    if (snapshot != NULL) {
        ftb_hazard_drop(thread);
        if (ftb_load_relaxed(&topic->snapshot) != snapshot) {
            ftb_reclaim();
        }
    }
    return ran_n;
}

static uint64_t good_key = GOOD;

static struct ftb_topic *
topic_of(struct ftb_bus *bus, const char *name)
{
    struct ftb_topic *topic;
    bool is_new;
    struct ftb_keyview view
        = ftb_keyview_of(FTB_KEY_STR, name, (uint32_t)strlen(name));
    CHECK(ftb_bus_topic(bus, &view, &good_key, &topic, &is_new) == FTB_OK);
    return topic;
}

static struct ftb_bus *
bus_new(void)
{
    struct ftb_bus *bus = ftb_bus_new(4);
    CHECK(bus != NULL);
    return bus;
}

/* Close and let go; every handler must be gone by then. */
static void
bus_end(struct ftb_bus *bus)
{
    ftb_bus_clear(bus);
    CHECK(ftb_reclaim() == 0);
    CHECK(ftb_load_acquire(&live_n) == 0);
    CHECK(bus->handlers == NULL);
    CHECK(ftb_load_acquire(&bus->refs) == 1);
    CHECK(ftb_map_is_valid(&bus->topics));
    ftb_bus_release(bus);
}

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

/* Races */

enum { RACERS_N = 6, ONCES_N = 12 };

struct race {
    struct ftb_bus *bus;
    struct ftb_topic *topic;
    struct fake fakes[ONCES_N];
    struct ftb_handler *handlers[ONCES_N];
    pthread_barrier_t step;
    ftb_atomic(uint32_t) stop;
    long rounds;
};

/* Bug hunted: a once-handler that two emits run, that runs and is reported as cancelled
 * too, or that neither runs nor is cancelled; its references dropped twice or never. */
static void
once_body(int ix, void *context)
{
    struct race *race = context;
    uint64_t random = seed + (uint64_t)ix * 271;
    for (long n = 0; n < race->rounds; n++) {
        if (ix == 0) {
            for (int k = 0; k < ONCES_N; k++) {
                fake_init(&race->fakes[k]);
                race->handlers[k] = subscribe(race->topic, &race->fakes[k],
                                              (int)(next_random(&random) % 3),
                                              FTB_HANDLER_ONCE);
            }
        }
        pthread_barrier_wait(&race->step);
        if (ix % 2 == 0) {
            emit(race->topic);
        } else {
            cancel(race->handlers[next_random(&random) % ONCES_N]);
        }
        pthread_barrier_wait(&race->step);
        if (ix == 0) {
            for (int k = 0; k < ONCES_N; k++) {
                CHECK(ftb_load_acquire(&race->fakes[k].runs_n)
                          + ftb_load_acquire(&race->fakes[k].removed_n)
                      == 1);
                CHECK(ftb_load_acquire(&race->fakes[k].released_n) == 0);
                ftb_handler_release(race->handlers[k]);
            }
            CHECK(ftb_reclaim() == 0);
            CHECK(ftb_load_acquire(&race->topic->snapshot) == NULL);
            CHECK(ftb_load_acquire(&live_n) == 0);
        }
    }
}

static void
test_once_is_claimed_exactly_once(void)
{
    struct race race = {.bus = bus_new(), .rounds = scaled(20000)};
    race.topic = topic_of(race.bus, "once");
    pthread_barrier_init(&race.step, NULL, RACERS_N);
    run_threads(RACERS_N, once_body, &race);
    pthread_barrier_destroy(&race.step);
    bus_end(race.bus);
}

/* Bug hunted: a handler that starts in an emit that began after its cancel had returned,
 * that is released while it runs, or twice; a finalizer that meets a lock it needs. */
static void
churn_body(int ix, void *context)
{
    struct race *race = context;
    uint64_t random = seed + (uint64_t)ix * 709;
    for (long n = 0; n < race->rounds; n++) {
        char name[2] = {(char)('a' + next_random(&random) % 3), 0};
        struct ftb_topic *topic = topic_of(race->bus, name);
        if (ix % 2 == 0) {
            emit(topic);
            continue;
        }
        struct fake *fake = malloc(sizeof *fake);
        CHECK(fake != NULL);
        fake_init(fake);
        fake->reenters = next_random(&random) % 16 == 0;
        struct ftb_handler *handler
            = subscribe(topic, fake, (int)(next_random(&random) % 3),
                        next_random(&random) % 4 == 0 ? FTB_HANDLER_ONCE : 0);
        emit(topic);
        if (next_random(&random) % 8 != 0) {
            cancel(handler);
        } else {
            size_t removed_n; /* everybody's, this one's too */
            CHECK(ftb_topic_remove(topic, NULL, NULL, &removed_n) == FTB_OK);
        }
        while (ftb_handler_wait_quiet(handler, 0) != FTB_OK) {
            sched_yield();
        }
        CHECK(ftb_load_acquire(&fake->running_n) == 0);
        uint32_t runs_n = ftb_load_acquire(&fake->runs_n);
        sched_yield();
        CHECK(ftb_load_acquire(&fake->runs_n) == runs_n); /* quiet stays quiet */
        /* The old snapshots may still hold it, though no emit does. */
        ftb_handler_release(handler);
        while (ftb_load_acquire(&fake->released_n) == 0) {
            ftb_reclaim();
            sched_yield();
        }
        free(fake);
    }
}

static void
test_subscribing_under_emits(void)
{
    struct race race = {.bus = bus_new(), .rounds = scaled(60000)};
    run_threads(RACERS_N, churn_body, &race);
    bus_end(race.bus);
}

/* wait_quiet */

static void
hold_body(int ix, void *context)
{
    struct race *race = context;
    struct ftb_thread *thread = ftb_thread_current();
    if (ix == 0) {
        hold(thread, race->topic);
        pthread_barrier_wait(&race->step); /* 1: an emit is inside */
        pthread_barrier_wait(&race->step); /* 2 */
        ftb_hazard_drop(thread);
        pthread_barrier_wait(&race->step); /* 3: it is over */
        return;
    }
    pthread_barrier_wait(&race->step); /* 1 */
    struct ftb_handler *handler = race->handlers[0];
    cancel(handler);
    hold(thread, race->topic); /* NULL by now: takes no slot */
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
    CHECK(hold(ftb_thread_current(), race.topic) != NULL);
    cancel(own);
    CHECK(ftb_handler_wait_quiet(own, 0) == FTB_OK);
    ftb_hazard_drop(ftb_thread_current());
    ftb_handler_release(own);
    ftb_handler_release(race.handlers[0]);
    ftb_handler_release(race.handlers[1]);
    bus_end(race.bus);
}

/* Bug hunted: cancel(wait=True) that never returns because at any moment some emit is
 * inside some older snapshot of the topic, though not one with this handler. */
static void
busy_body(int ix, void *context)
{
    struct race *race = context;
    struct ftb_thread *thread = ftb_thread_current();
    struct fake fake;
    if (ix == 0) {
        for (long n = 0; n < race->rounds; n++) {
            fake_init(&fake);
            struct ftb_handler *handler = subscribe(race->topic, &fake, 0, 0);
            cancel(handler);
            CHECK(ftb_handler_wait_quiet(handler, ftb_now_ns() + 10000000000u)
                  == FTB_OK);
            ftb_handler_release(handler);
            while (ftb_load_acquire(&fake.released_n) == 0) {
                ftb_reclaim();
                sched_yield();
            }
        }
        ftb_store_release(&race->stop, 1);
        return;
    }
    while (ftb_load_acquire(&race->stop) == 0) {
        /* Emit inside a snapshot that is replaced at once: of five threads some are
         * always in an older one. */
        fake_init(&fake);
        struct ftb_handler *handler = subscribe(race->topic, &fake, 1, 0);
        CHECK(hold(thread, race->topic) != NULL);
        cancel(handler);
        struct timespec pause = {0, 100000};
        nanosleep(&pause, NULL);
        ftb_hazard_drop(thread);
        ftb_handler_release(handler);
        while (ftb_load_acquire(&fake.released_n) == 0) {
            ftb_reclaim();
            sched_yield();
        }
    }
}

static void
test_wait_quiet_is_not_starved(void)
{
    struct race race = {.bus = bus_new(), .rounds = scaled(10000)};
    race.topic = topic_of(race.bus, "busy");
    run_threads(5, busy_body, &race);
    bus_end(race.bus);
}

/* Closing */

/* Bug hunted: a handler that is added to a closed bus and so never released. */
static void
close_body(int ix, void *context)
{
    struct race *race = context;
    for (long n = 0; n < race->rounds; n++) {
        pthread_barrier_wait(&race->step); /* ix 0 has made a bus */
        struct fake fakes[8];
        struct ftb_handler *handlers[8];
        int added_n = 0;
        for (int k = 0; k < 8 && ix > 0; k++) {
            char name[2] = {(char)('a' + k % 4), 0};
            fake_init(&fakes[k]);
            handlers[added_n] = subscribe(topic_of(race->bus, name), &fakes[k], k, 0);
            added_n += handlers[added_n] != NULL;
        }
        if (ix == 0) {
            ftb_bus_clear(race->bus);
        }
        pthread_barrier_wait(&race->step);
        while (added_n > 0) {
            CHECK(ftb_load_acquire(&handlers[--added_n]->state)
                  == FTB_HANDLER_CANCELLED);
            ftb_handler_release(handlers[added_n]);
        }
        pthread_barrier_wait(&race->step);
        if (ix == 0) {
            for (int k = 0; k < 4; k++) {
                char name[2] = {(char)('a' + k), 0};
                CHECK(ftb_load_acquire(&topic_of(race->bus, name)->snapshot) == NULL);
            }
            bus_end(race->bus);
            race->bus = bus_new();
        }
        pthread_barrier_wait(&race->step); /* the fakes live until here */
    }
}

static void
test_clear_misses_no_handler(void)
{
    struct race race = {.bus = bus_new(), .rounds = scaled(4000)};
    pthread_barrier_init(&race.step, NULL, 4);
    run_threads(4, close_body, &race);
    pthread_barrier_destroy(&race.step);
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

/* Interning */

struct intern {
    struct ftb_bus *bus;
    _Atomic(struct ftb_topic *) topics[64];
    _Atomic(uint32_t) made_n[64];
    long rounds;
};

/* Bug hunted: two topics for one key, two topics with one id. */
static void
intern_body(int ix, void *context)
{
    struct intern *intern = context;
    uint64_t random = seed + (uint64_t)ix * 31;
    for (int n = 0; n < 200; n++) {
        uint64_t k = next_random(&random) % 64;
        struct ftb_keyview view = ftb_keyview_of(FTB_KEY_INT, &k, 8);
        struct ftb_topic *topic, *none = NULL;
        bool is_new;
        CHECK(ftb_bus_topic(intern->bus, &view, &good_key, &topic, &is_new) == FTB_OK);
        ftb_add_relaxed(&intern->made_n[k], is_new ? 1 : 0);
        if (!ftb_cas_acq_rel(&intern->topics[k], &none, topic)) {
            CHECK(none == topic);
        }
        CHECK(*(uint64_t *)topic->key_object == GOOD);
    }
}

static void
test_topics_are_interned(void)
{
    for (long n = scaled(300); n > 0; n--) {
        struct intern intern = {.bus = bus_new()};
        bool is_taken[100000] = {false};
        uint64_t released_n = ftb_load_acquire(&keys_released_n), topics_n = 0;
        run_threads(4, intern_body, &intern);
        for (int k = 0; k < 64; k++) {
            struct ftb_topic *topic = ftb_load_acquire(&intern.topics[k]);
            CHECK(ftb_load_acquire(&intern.made_n[k]) == (topic != NULL));
            if (topic != NULL) {
                CHECK(topic->id < sizeof is_taken && !is_taken[topic->id]);
                is_taken[topic->id] = true;
                topics_n++;
            }
        }
        CHECK(ftb_map_len(&intern.bus->topics) == topics_n);
        bus_end(intern.bus);
        CHECK(ftb_load_acquire(&keys_released_n) - released_n == topics_n);
    }
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
    struct ftb_keyview view = ftb_keyview_of(FTB_KEY_STR, name, sizeof name);
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
    set_watchdog(240);
    seed = run_seed();
    ftb_handler_release_fn = fake_release;
    ftb_topic_release_fn = key_release;
    RUN(test_priority_then_age);
    RUN(test_remove_without_match_publishes_nothing);
    RUN(test_once_is_claimed_exactly_once);
    RUN(test_subscribing_under_emits);
    RUN(test_wait_quiet_waits_for_others);
    RUN(test_wait_quiet_is_not_starved);
    RUN(test_clear_misses_no_handler);
    RUN(test_last_handler_frees_the_bus);
    RUN(test_topics_are_interned);
    RUN(test_failed_changes_change_nothing);
    RUN(test_every_allocation_may_fail);
    RUN(test_after_fork_child);
    return 0;
}

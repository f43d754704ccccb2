/* ftb_topic.h under threads that emit, subscribe, cancel, wait and close. */
#include "fakes.h"
#include "ftb_quiet.h"
#include "keys.h"

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
                race->handlers[k] = subscribe(
                    race->topic, &race->fakes[k], (int)(next_random(&random) % 3),
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
                CHECK(
                    ftb_load_acquire(&race->fakes[k].runs_n)
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
        struct ftb_handler *handler = subscribe(
            topic, fake, (int)(next_random(&random) % 3),
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
            CHECK(
                ftb_handler_wait_quiet(handler, ftb_now_ns() + 10000000000u) == FTB_OK);
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
        CHECK(ftb_topic_hold(thread, race->topic) != NULL);
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
            CHECK(
                ftb_load_acquire(&handlers[--added_n]->state) == FTB_HANDLER_CANCELLED);
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
        struct ftb_keyview view = keyview_of(FTB_KEY_INT, &k, 8);
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
                CHECK(
                    ftb_topic_id(topic) < sizeof is_taken
                    && !is_taken[ftb_topic_id(topic)]);
                is_taken[ftb_topic_id(topic)] = true;
                topics_n++;
            }
        }
        CHECK(ftb_map_len(&intern.bus->topics) == topics_n);
        bus_end(intern.bus);
        CHECK(ftb_load_acquire(&keys_released_n) - released_n == topics_n);
    }
}

/* Bug hunted: the last of several references that threads drop at one time frees what
 * another of them has just used. Nothing but the counts orders them: the barrier after the
 * drops is another one than before, or ThreadSanitizer would see a late sleeper in the one
 * as ordered by those who have reached the other. */
struct last {
    struct race race;
    pthread_barrier_t dropped;
};

static void
last_body(int ix, void *context)
{
    struct last *last = context;
    struct race *race = &last->race;
    for (long n = 0; n < race->rounds; n++) {
        if (ix == 0) {
            race->bus = bus_new();
            race->handlers[0] = ftb_handler_new(topic_of(race->bus, "last"));
            CHECK(race->handlers[0] != NULL);
            race->handlers[0]->func = &race->fakes[0];
            fake_init(&race->fakes[0]);
            ftb_add_relaxed(&live_n, 1);
            ftb_handler_retain(race->handlers[0]); /* thread 1's */
            ftb_bus_retain(race->bus);             /* thread 2's */
        }
        pthread_barrier_wait(&race->step);
        if (ix < 2) {
            CHECK(race->handlers[0]->topic->bus == race->bus);
            ftb_handler_release(race->handlers[0]);
        } else {
            CHECK(race->bus->serial > 0);
            ftb_bus_release(race->bus);
        }
        pthread_barrier_wait(&last->dropped);
        CHECK(ftb_load_acquire(&race->fakes[0].released_n) == 1);
        pthread_barrier_wait(&last->dropped);
    }
}

static void
test_the_last_of_several_frees(void)
{
    uint64_t released_n = ftb_load_acquire(&keys_released_n);
    struct last last = {.race = {.rounds = scaled(20000)}};
    pthread_barrier_init(&last.race.step, NULL, 4);
    pthread_barrier_init(&last.dropped, NULL, 4);
    run_threads(4, last_body, &last);
    pthread_barrier_destroy(&last.race.step);
    pthread_barrier_destroy(&last.dropped);
    CHECK(ftb_load_acquire(&live_n) == 0);
    CHECK(
        ftb_load_acquire(&keys_released_n) - released_n == (uint64_t)last.race.rounds);
}

int
main(void)
{
    fakes_begin();
    RUN(test_once_is_claimed_exactly_once);
    RUN(test_subscribing_under_emits);
    RUN(test_wait_quiet_is_not_starved);
    RUN(test_clear_misses_no_handler);
    RUN(test_topics_are_interned);
    RUN(test_the_last_of_several_frees);
    return 0;
}

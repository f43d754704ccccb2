/* Fake handlers that count, for the tests of ftb_topic.h.
 *
 * A handler's `func` is a `struct fake`; emits here do what csrc/py/emit.c does with a
 * snapshot, without Python. */
#ifndef FTB_TESTS_FAKES_H
#define FTB_TESTS_FAKES_H

#include "check.h"
#include "keys.h"

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
static _Atomic(uint64_t) live_n; /* handlers not released */
static _Atomic(uint64_t) keys_released_n;
static _Atomic(uint64_t) clock_now = 1;

static inline void
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
        struct ftb_keyview view = keyview_of(FTB_KEY_STR, "reentered", 9);
        CHECK(ftb_topic_remove(handler->topic, NULL, NULL, &removed_n) == FTB_OK);
        CHECK(
            ftb_bus_topic(handler->topic->bus, &view, NULL, &topic, &is_new) == FTB_OK);
        ftb_reclaim();
    }
    /* acq_rel, and last: whoever sees it may free the fake. */
    CHECK(ftb_add_acq_rel(&fake->released_n, 1) == 0);
}

static inline void
key_release(struct ftb_topic *topic)
{
    CHECK(*(uint64_t *)topic->key_object == GOOD);
    ftb_add_relaxed(&keys_released_n, 1);
}

static inline void
fake_init(struct fake *fake)
{
    *fake = (struct fake){.magic = GOOD};
}

/* Subscribe a fake; the caller releases what comes back. NULL: the bus is closed. */
static inline struct ftb_handler *
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

static inline bool
is_this(const struct ftb_handler *handler, void *context)
{
    return handler == context;
}

static inline size_t
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

/* One emit. Returns how many handlers ran. */
static inline uint32_t
emit(struct ftb_topic *topic)
{
    struct ftb_thread *thread = ftb_thread_current();
    uint64_t began = ftb_load_seq_cst(&clock_now);
    struct ftb_snapshot *snapshot = ftb_topic_hold(thread, topic);
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

static inline struct ftb_topic *
topic_of(struct ftb_bus *bus, const char *name)
{
    struct ftb_topic *topic;
    bool is_new;
    struct ftb_keyview view = keyview_of(FTB_KEY_STR, name, (uint32_t)strlen(name));
    CHECK(ftb_bus_topic(bus, &view, &good_key, &topic, &is_new) == FTB_OK);
    return topic;
}

static inline struct ftb_bus *
bus_new(void)
{
    struct ftb_bus *bus = ftb_bus_new(4);
    CHECK(bus != NULL);
    return bus;
}

/* Close and let go; every handler must be gone by then. */
static inline void
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

/* The seed, and the fakes' functions in their places. */
static inline void
fakes_begin(void)
{
    set_watchdog(240);
    seed = run_seed();
    ftb_handler_release_fn = fake_release;
    ftb_topic_release_fn = key_release;
}

#endif

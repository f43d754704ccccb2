/* ftb_park.h and ftb_idle.h: no wake-up is lost, deadlines hold.
 *
 * The ping-pong must fail under ThreadSanitizer if a note is left or taken relaxed, the
 * waitset's test must hang (watchdog) if the epoch stands still. */
#include "check.h"

#include <sched.h>

#include "ftb_idle.h"
#include "ftb_park.h"

static uint64_t seed;

#define MS UINT64_C(1000000)

static void
test_a_note_left_before_is_found(void)
{
    struct ftb_parker parker;
    ftb_parker_init(&parker);
    CHECK(!ftb_parker_has_note_local(&parker) && !ftb_parker_take_note_local(&parker));
    CHECK(!ftb_parker_unpark(&parker)); /* nobody slept: no system call */
    CHECK(!ftb_parker_unpark(&parker)); /* two notes are one */
    CHECK(ftb_parker_has_note_local(&parker));
    CHECK(ftb_parker_wait(&parker, FTB_FOREVER) == FTB_OK);
    CHECK(ftb_parker_wait(&parker, ftb_now_ns()) == FTB_TIMEOUT);
    CHECK(!ftb_parker_unpark(&parker) && ftb_parker_take_note_local(&parker));
    CHECK(!ftb_parker_take_note_local(&parker));
    ftb_parker_fini(&parker);
}

static void
test_deadlines_are_monotonic_and_met(void)
{
    struct ftb_parker parker;
    struct ftb_waitset waitset;
    ftb_parker_init(&parker);
    ftb_waitset_init(&waitset);
    uint64_t start_ns = ftb_now_ns();
    CHECK(ftb_parker_wait(&parker, start_ns + 20 * MS) == FTB_TIMEOUT);
    CHECK(ftb_now_ns() >= start_ns + 20 * MS);
    uint32_t key = ftb_waitset_prepare(&waitset);
    start_ns = ftb_now_ns();
    CHECK(ftb_waitset_commit(&waitset, key, start_ns + 20 * MS) == FTB_TIMEOUT);
    CHECK(ftb_now_ns() >= start_ns + 20 * MS);
    CHECK(ftb_load_relaxed(&waitset.word) == 0); /* nobody waits any more */
    ftb_waitset_fini(&waitset);
    ftb_parker_fini(&parker);
}

static void
test_waitset_keys(void)
{
    struct ftb_waitset waitset;
    ftb_waitset_init(&waitset);
    ftb_waitset_notify(&waitset, true); /* no waiter: nothing happens */
    CHECK(ftb_load_relaxed(&waitset.word) == 0);
    uint32_t key = ftb_waitset_prepare(&waitset);
    ftb_waitset_notify(&waitset, false);
    CHECK(ftb_waitset_commit(&waitset, key, FTB_FOREVER) == FTB_OK);
    key = ftb_waitset_prepare(&waitset);
    ftb_waitset_cancel(&waitset);
    CHECK((uint32_t)ftb_load_relaxed(&waitset.word) == 0);
    /* One notification ends every wait whose key is older. */
    uint32_t first = ftb_waitset_prepare(&waitset);
    uint32_t second = ftb_waitset_prepare(&waitset);
    ftb_waitset_notify(&waitset, false);
    CHECK(ftb_waitset_commit(&waitset, first, FTB_FOREVER) == FTB_OK);
    CHECK(ftb_waitset_commit(&waitset, second, FTB_FOREVER) == FTB_OK);
    ftb_waitset_fini(&waitset);
}

static void
test_idle_bits(void)
{
    static struct ftb_idle idle;
    ftb_idle_init(&idle, 200);
    CHECK(ftb_idle_claim(&idle, 0) == -1 && ftb_idle_find(&idle) == -1);
    CHECK(!ftb_idle_has_any(&idle) && !ftb_idle_clear(&idle, 199));
    ftb_idle_set(&idle, 199);
    ftb_idle_set(&idle, 70);
    ftb_idle_set(&idle, 64);
    CHECK(ftb_idle_has_any(&idle) && ftb_idle_find(&idle) == 64);
    CHECK(ftb_idle_claim(&idle, 70) == 70);
    CHECK(ftb_idle_claim(&idle, 70) == 64); /* the preferred one is not idle any more */
    CHECK(ftb_idle_claim(&idle, 3) == 199);
    CHECK(ftb_idle_claim(&idle, 199) == -1);
    ftb_idle_set(&idle, 5);
    CHECK(ftb_idle_clear(&idle, 5) && !ftb_idle_clear(&idle, 5));
}

struct ping_pong {
    struct ftb_parker parkers[2];
    long rounds_n;
    /* Handed over by the parkers alone, so ThreadSanitizer checks their ordering too. */
    long turn;
    ftb_atomic(long) syscalls_n;
};

static void
ping_pong_body(int ix, void *context)
{
    struct ping_pong *game = context;
    uint64_t random = seed + (uint64_t)ix;
    long syscalls_n = 0;
    for (long round = 0; round < game->rounds_n; round++) {
        if (ix == 1 || round > 0) {
            while (ftb_parker_wait(&game->parkers[ix], FTB_FOREVER) != FTB_OK) {
            }
        }
        CHECK(game->turn == 2 * round + ix);
        game->turn++;
        for (uint64_t i = next_random(&random) % 64; i > 0; i--) {
            ftb_relax(); /* sometimes the other sleeps by now, sometimes not */
        }
        syscalls_n += ftb_parker_unpark(&game->parkers[1 - ix]);
    }
    ftb_add_relaxed(&game->syscalls_n, syscalls_n);
}

static void
test_ping_pong_loses_nothing(void)
{
    struct ping_pong game = {.rounds_n = scaled(150000)};
    ftb_parker_init(&game.parkers[0]);
    ftb_parker_init(&game.parkers[1]);
    run_threads(2, ping_pong_body, &game);
    CHECK(game.turn == 2 * game.rounds_n);
    printf(
        "      %ld hand-overs, %ld wakes\n", game.turn,
        ftb_load_relaxed(&game.syscalls_n));
    ftb_parker_fini(&game.parkers[0]);
    ftb_parker_fini(&game.parkers[1]);
}

/* A semaphore made of a counter and a waitset: the shape in which the pool uses it. */
struct tickets {
    struct ftb_waitset waitset;
    ftb_atomic(long) tickets_n;
    long rounds_n;
    bool with_deadlines;
    ftb_atomic(long) taken_n;
};

static bool
ticket_try_take(struct tickets *tickets)
{
    long seen = ftb_load_seq_cst(&tickets->tickets_n);
    while (seen > 0) {
        if (ftb_cas_seq_cst(&tickets->tickets_n, &seen, seen - 1)) {
            return true;
        }
    }
    return false;
}

static void
ticket_take(struct tickets *tickets, uint64_t *random)
{
    while (!ticket_try_take(tickets)) {
        uint32_t key = ftb_waitset_prepare(&tickets->waitset);
        if (ftb_load_seq_cst(&tickets->tickets_n) > 0) {
            ftb_waitset_cancel(&tickets->waitset);
            continue;
        }
        uint64_t deadline_ns = FTB_FOREVER;
        if (tickets->with_deadlines && next_random(random) % 2 == 0) {
            deadline_ns = ftb_now_ns() + next_random(random) % 20000;
        }
        (void)ftb_waitset_commit(&tickets->waitset, key, deadline_ns);
        if (ftb_load_seq_cst(&tickets->tickets_n) > 0) {
            ftb_waitset_notify(&tickets->waitset, false);
        }
    }
}

static void
tickets_body(int ix, void *context)
{
    struct tickets *tickets = context;
    uint64_t random = seed + 10 + (uint64_t)ix;
    for (long i = 0; i < tickets->rounds_n; i++) {
        if (ix % 2 == 0) {
            ftb_add_seq_cst(&tickets->tickets_n, 1);
            ftb_waitset_notify(&tickets->waitset, false);
            if (next_random(&random) % 4 == 0) {
                sched_yield();
            }
        } else {
            ticket_take(tickets, &random);
            ftb_add_relaxed(&tickets->taken_n, 1);
        }
    }
}

static void
tickets_run(bool with_deadlines, long rounds_n)
{
    struct tickets tickets = {.rounds_n = rounds_n, .with_deadlines = with_deadlines};
    ftb_waitset_init(&tickets.waitset);
    run_threads(6, tickets_body, &tickets);
    CHECK(ftb_load_relaxed(&tickets.taken_n) == 3 * rounds_n);
    CHECK(ftb_load_relaxed(&tickets.tickets_n) == 0);
    CHECK((uint32_t)ftb_load_relaxed(&tickets.waitset.word) == 0);
    ftb_waitset_fini(&tickets.waitset);
}

static void
test_waitset_loses_nothing(void)
{
    tickets_run(false, scaled(60000));
}

static void
test_waitset_loses_nothing_to_deadlines(void)
{
    tickets_run(true, scaled(40000));
}

int
main(void)
{
    seed = run_seed();
    set_watchdog(120);
    RUN(test_a_note_left_before_is_found);
    RUN(test_deadlines_are_monotonic_and_met);
    RUN(test_waitset_keys);
    RUN(test_idle_bits);
    RUN(test_ping_pong_loses_nothing);
    RUN(test_waitset_loses_nothing);
    RUN(test_waitset_loses_nothing_to_deadlines);
    return 0;
}

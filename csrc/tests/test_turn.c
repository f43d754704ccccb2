/* ftb_turn.h: no request is forgotten, whatever whoever has the turn is about.
 *
 * Whoever asks and whoever has the turn take turns at the places where a request could be
 * lost, so no luck is needed. What comes of them in any order is left to models/reclaim_asked.cpp
 * and test_reclaim_threads. */
#include "check.h"

#include "ftb_turn.h"

static struct desk {
    struct ftb_turn turn;
    struct baton baton;
    int rounds_n;    /* guarded by the lock of the turn */
    uint64_t wanted; /* written before a request, read by rounds: ordered by the turn */
    uint64_t served; /* guarded by the lock of the turn */
} desk = {.turn.lock = PTHREAD_MUTEX_INITIALIZER};

static void
desk_clear(void)
{
    ftb_init(&desk.turn.state, FTB_TURN_FREE);
    ftb_init(&desk.baton.turn, 0);
    desk.rounds_n = 0;
    desk.wanted = desk.served = 0;
}

static void
plain_round(void *unused)
{
    (void)unused;
    CHECK(pthread_mutex_trylock(&desk.turn.lock) != 0);
    desk.rounds_n++;
    desk.served = desk.wanted;
}

static void
test_a_request_is_one_round(void)
{
    desk_clear();
    for (int i = 1; i <= 3; i++) {
        desk.wanted = (uint64_t)i;
        CHECK(ftb_turn_run(&desk.turn, plain_round, NULL));
        CHECK(desk.rounds_n == i && desk.served == desk.wanted);
    }
}

/* A round that asks for one more, as often as *context says. */
static void
asking_round(void *context)
{
    int *more_n = context;
    desk.rounds_n++;
    if ((*more_n)-- > 0) {
        CHECK(!ftb_turn_run(&desk.turn, plain_round, NULL));
    }
}

static void
test_a_request_during_a_round_is_one_more(void)
{
    for (int more_n = 0; more_n < FTB_TURN_ROUNDS_MAX; more_n++) {
        int left_n = more_n;
        desk_clear();
        CHECK(ftb_turn_run(&desk.turn, asking_round, &left_n));
        CHECK(desk.rounds_n == more_n + 1);
        CHECK(ftb_load_relaxed(&desk.turn.state) == FTB_TURN_FREE);
    }
}

static void
round_until_asked(void *unused)
{
    if (desk.rounds_n > 0) {
        plain_round(unused);
        return;
    }
    desk.rounds_n++;
    baton_pass(&desk.baton, 1);
    baton_await(&desk.baton, 2);
}

static void
ask_during_the_first_round(int ix, void *unused)
{
    (void)unused;
    if (ix == 0) {
        CHECK(ftb_turn_run(&desk.turn, round_until_asked, NULL));
        CHECK(desk.rounds_n == 2 && desk.served == 7);
    } else {
        baton_await(&desk.baton, 1);
        desk.wanted = 7;
        CHECK(!ftb_turn_run(&desk.turn, plain_round, NULL));
        baton_pass(&desk.baton, 2);
    }
}

/* Under ThreadSanitizer the round must fail if it does not acquire the request. */
static void
test_a_round_sees_what_came_before_the_request(void)
{
    desk_clear();
    run_threads(2, ask_during_the_first_round, NULL);
}

/* Wait until another thread, which then waits for the lock, has asked. */
static void
await_request(void)
{
    while (ftb_load_relaxed(&desk.turn.state) != FTB_TURN_ASKED) { /* relaxed: a wait */
        sched_yield();
    }
}

static void
round_until_the_last(void *unused)
{
    (void)unused;
    if (++desk.rounds_n < FTB_TURN_ROUNDS_MAX) {
        CHECK(!ftb_turn_run(&desk.turn, plain_round, NULL));
    } else {
        baton_pass(&desk.baton, 1);
        await_request();
    }
}

static void
ask_during_the_last_round(int ix, void *unused)
{
    (void)unused;
    if (ix == 0) {
        CHECK(ftb_turn_run(&desk.turn, round_until_the_last, NULL));
    } else {
        baton_await(&desk.baton, 1);
        desk.wanted = 9;
        CHECK(ftb_turn_run(&desk.turn, plain_round, NULL));
        CHECK(desk.rounds_n == FTB_TURN_ROUNDS_MAX + 1 && desk.served == 9);
    }
}

static void
test_who_asks_during_the_last_round_has_the_turn(void)
{
    desk_clear();
    run_threads(2, ask_during_the_last_round, NULL);
}

static void
ask_while_the_lock_is_held(int ix, void *unused)
{
    (void)unused;
    if (ix == 0) {
        baton_await(&desk.baton, 1);
        CHECK(ftb_turn_run(&desk.turn, plain_round, NULL));
        CHECK(desk.rounds_n == 1);
    } else {
        ftb_mutex_lock(&desk.turn.lock);
        baton_pass(&desk.baton, 1);
        await_request();
        ftb_mutex_unlock(&desk.turn.lock);
    }
}

static void
test_who_has_the_turn_waits_for_the_lock(void)
{
    desk_clear();
    run_threads(2, ask_while_the_lock_is_held, NULL);
}

int
main(void)
{
    set_watchdog(60);
    RUN(test_a_request_is_one_round);
    RUN(test_a_request_during_a_round_is_one_more);
    RUN(test_a_round_sees_what_came_before_the_request);
    RUN(test_who_asks_during_the_last_round_has_the_turn);
    RUN(test_who_has_the_turn_waits_for_the_lock);
    return 0;
}

/* ftb_tally.h: the calls of each handler are those that were made, whoever comes and goes.
 *
 * Emits here do what csrc/py/emit.c does: count a whole run in the cell, everything else
 * one by one. */
#include "fakes.h"

#include "ftb_tally.h"

enum { STEADY_N = 3 };

static struct ftb_cell *
cell_of(struct ftb_thread *thread, struct ftb_topic *topic)
{
    struct ftb_cell *cell = ftb_shard_cell_local(thread->shard, ftb_topic_id(topic));
    CHECK(cell != NULL);
    return cell;
}

static void
tally_one(struct ftb_thread *thread, struct ftb_handler *handler)
{
    struct ftb_tally *tally = ftb_tally_local(handler, thread);
    CHECK(tally != NULL);
    ftb_count_local(&tally->calls, 1);
}

/* One emit; `inner` runs in the middle of it. */
static void
emit_counted(struct ftb_topic *topic, void (*inner)(void *context), void *context)
{
    struct ftb_thread *thread = ftb_thread_current();
    struct ftb_cell *cell = cell_of(thread, topic);
    struct ftb_snapshot *snapshot = ftb_topic_hold(thread, topic);
    if (snapshot == NULL) {
        ftb_cell_emitted_apart_local(cell);
        return;
    }
    bool is_plain = snapshot->flags == 0;
    if (is_plain) {
        ftb_tally_sync(thread, cell, snapshot);
    }
    if (inner != NULL) {
        inner(context);
    }
    for (uint32_t i = 0; i < snapshot->n; i++) {
        struct fake *fake = ftb_snapshot_handlers(snapshot)[i]->func;
        ftb_add_relaxed(&fake->runs_n, 1);
    }
    if (is_plain && ftb_load_relaxed(&topic->snapshot) == snapshot) {
        ftb_count_local(&cell->emitted, 1);
    } else {
        for (uint32_t i = 0; i < snapshot->n; i++) {
            tally_one(thread, ftb_snapshot_handlers(snapshot)[i]);
        }
        ftb_cell_emitted_apart_local(cell);
    }
    ftb_hazard_drop(thread);
    ftb_reclaim();
}

static uint64_t
calls_of(struct ftb_handler *handler)
{
    struct ftb_tally_sum sum;
    struct ftb_histogram_sum time;
    ftb_histogram_sum_init(&time);
    ftb_tally_sum(handler, &sum, &time);
    return sum.calls;
}

static void
check_calls(struct ftb_handler *handler)
{
    struct fake *fake = handler->func;
    CHECK(calls_of(handler) == ftb_load_acquire(&fake->runs_n));
}

/* Bug hunted: runs that go to a handler that came later, that are counted twice, or not. */
static void
test_runs_go_to_the_handlers_that_ran(void)
{
    struct ftb_bus *bus = bus_new();
    struct ftb_topic *topic = topic_of(bus, "runs");
    struct fake fakes[4];
    struct ftb_handler *handlers[4];
    emit_counted(topic, NULL, NULL); /* before there is any */
    for (int i = 0; i < 4; i++) {
        fake_init(&fakes[i]);
        handlers[i] = subscribe(topic, &fakes[i], i, i == 2 ? FTB_HANDLER_WEAK : 0);
        for (int n = 0; n <= i; n++) {
            emit_counted(topic, NULL, NULL);
            for (int k = 0; k <= i; k++) {
                check_calls(handlers[k]);
            }
        }
    }
    for (int i = 3; i >= 0; i--) { /* 2 is special: its going makes runs plain again */
        cancel(handlers[i]);
        emit_counted(topic, NULL, NULL);
        ftb_tally_run_local(cell_of(ftb_thread_current(), topic));
        for (int k = 0; k < i; k++) {
            if (i <= 2) { /* such a run is one of the cell's version */
                ftb_add_relaxed(&fakes[k].runs_n, 1);
            }
        }
        if (i > 2) { /* there was no version yet: take it back */
            struct ftb_cell *cell = cell_of(ftb_thread_current(), topic);
            struct ftb_ledger *ledger = ftb_cell_ledger_local(cell);
            ftb_count_local(&ledger->mark, 1);
        }
        for (int k = 0; k < i; k++) {
            check_calls(handlers[k]);
        }
    }
    for (int i = 0; i < 4; i++) {
        ftb_handler_release(handlers[i]);
    }
    bus_end(bus);
}

struct churn {
    struct ftb_topic *topic;
    struct ftb_handler *steady[STEADY_N];
    struct fake fakes[STEADY_N];
    ftb_atomic(uint32_t) left;
    long rounds;
};

static void
come_and_go(void *context)
{
    struct churn *churn = context;
    struct fake *fake = ftb_alloc(sizeof *fake);
    CHECK(fake != NULL);
    fake_init(fake);
    struct ftb_handler *handler = subscribe(churn->topic, fake, 1, 0);
    emit_counted(churn->topic, NULL, NULL);
    cancel(handler);
    ftb_handler_release(handler);
    while (ftb_load_acquire(&fake->released_n) == 0) { /* an emit may hold it */
        ftb_reclaim();
        sched_yield();
    }
    ftb_free(fake);
}

/* Bug hunted: a fold that misses runs of the old handlers, or gives them to the new. */
static void
test_nested_changes_are_not_mistaken(void)
{
    struct ftb_bus *bus = bus_new();
    struct churn churn = {.topic = topic_of(bus, "nested")};
    for (int i = 0; i < STEADY_N; i++) {
        fake_init(&churn.fakes[i]);
        churn.steady[i] = subscribe(churn.topic, &churn.fakes[i], 0, 0);
        for (int n = 0; n < 5; n++) {
            emit_counted(churn.topic, NULL, NULL);
            emit_counted(churn.topic, come_and_go, &churn);
            emit_counted(churn.topic, NULL, NULL);
            for (int k = 0; k <= i; k++) {
                check_calls(churn.steady[k]);
            }
        }
    }
    for (int i = 0; i < STEADY_N; i++) {
        cancel(churn.steady[i]);
        ftb_handler_release(churn.steady[i]);
    }
    bus_end(bus);
}

/* Bug hunted: calls lost or doubled between a fold and a reader, or that go backwards. */
static void
churn_body(int ix, void *context)
{
    struct churn *churn = context;
    if (ix < 3) {
        for (long n = 0; n < churn->rounds; n++) {
            if (ix == 0 && n % 20 == 0) {
                come_and_go(churn);
            } else {
                emit_counted(churn->topic, NULL, NULL);
            }
        }
        ftb_sub_acq_rel(&churn->left, 1);
        return;
    }
    uint64_t before[STEADY_N] = {0};
    while (ftb_load_acquire(&churn->left) > 0) {
        for (int i = 0; i < STEADY_N; i++) {
            uint64_t now = calls_of(churn->steady[i]);
            CHECK(now >= before[i]);
            before[i] = now;
        }
    }
}

static void
test_calls_under_churn_add_up(void)
{
    struct ftb_bus *bus = bus_new();
    struct churn churn = {
        .topic = topic_of(bus, "churn"), .left = 3, .rounds = scaled(20000)};
    for (int i = 0; i < STEADY_N; i++) {
        fake_init(&churn.fakes[i]);
        churn.steady[i] = subscribe(churn.topic, &churn.fakes[i], 0, 0);
    }
    run_threads(5, churn_body, &churn);
    for (int i = 0; i < STEADY_N; i++) {
        check_calls(churn.steady[i]);
        CHECK(calls_of(churn.steady[i]) >= (uint64_t)churn.rounds * 3);
        cancel(churn.steady[i]);
        ftb_handler_release(churn.steady[i]);
    }
    bus_end(bus);
}

/* Bug hunted: a fold that loses the total when it has no memory for the tallies. */
static void
test_without_memory_totals_are_right(void)
{
    struct ftb_bus *bus = bus_new();
    struct ftb_topic *topic = topic_of(bus, "memory");
    struct fake fakes[2];
    struct ftb_handler *handlers[2];
    fake_init(&fakes[0]);
    handlers[0] = subscribe(topic, &fakes[0], 0, 0);
    for (int n = 0; n < 3; n++) {
        emit_counted(topic, NULL, NULL);
    }
    fake_init(&fakes[1]);
    handlers[1] = subscribe(topic, &fakes[1], 0, 0);
    struct ftb_thread *thread = ftb_thread_current();
    struct ftb_snapshot *snapshot = ftb_topic_hold(thread, topic);
    ftb_fault_alloc(0);
    ftb_tally_sync(thread, cell_of(thread, topic), snapshot);
    ftb_fault_alloc(-1);
    ftb_hazard_drop(thread);
    emit_counted(topic, NULL, NULL);
    struct ftb_totals totals = {0};
    ftb_shard_sum(ftb_topic_id(topic), &totals);
    CHECK(totals.emitted == 4);
    for (int i = 0; i < 2; i++) {
        cancel(handlers[i]);
        ftb_handler_release(handlers[i]);
    }
    bus_end(bus);
}

enum { TIMED_N = 200, TIMERS_N = 3, TIME_READERS_N = 2 };

struct timed {
    struct ftb_topic *topics[TIMED_N];
    struct ftb_handler *handlers[TIMED_N];
    struct fake fake[TIMED_N];
    ftb_atomic(uint32_t) left;
};

static struct ftb_histogram_sum *
sums_new(void)
{
    struct ftb_histogram_sum *sums = ftb_alloc((FTB_TIMES_N + 1) * sizeof *sums);
    CHECK(sums != NULL);
    for (int i = 0; i <= FTB_TIMES_N; i++) {
        ftb_histogram_sum_init(&sums[i]);
    }
    return sums;
}

static uint64_t
longest_of(struct ftb_tally *tally)
{
    struct ftb_histogram *time = ftb_load_acquire(&tally->time);
    return time == NULL ? 0 : ftb_load_acquire(&time->max_ns);
}

/* Bug hunted: a slow call that nobody ranks, or every call ranked. */
static void
test_recording_says_whether_a_time_is_the_longest(void)
{
    struct ftb_bus *bus = bus_new();
    struct fake fake;
    fake_init(&fake);
    struct ftb_topic *topic = topic_of(bus, "key");
    struct ftb_handler *handler = subscribe(topic, &fake, 0, 0);
    struct ftb_tally *tally = ftb_tally_local(handler, ftb_thread_current());
    CHECK(tally != NULL && longest_of(tally) == 0);
    for (long count = 0; count < 2; count++) { /* the histogram, its first octave */
        ftb_fault_alloc(count);
        CHECK(!ftb_tally_record_local(tally, 5000));
        ftb_fault_alloc(-1);
        CHECK(longest_of(tally) == 0);
    }
    CHECK(ftb_tally_record_local(tally, 5000));
    CHECK(!ftb_tally_record_local(tally, 4999));
    CHECK(ftb_tally_record_local(tally, 5000)); /* as long as the longest */
    CHECK(ftb_tally_record_local(tally, 5001));
    CHECK(longest_of(tally) == 5001);
    cancel(handler);
    ftb_handler_release(handler);
    bus_end(bus);
}

/* Bug hunted: a time in the wrong place, one that dies with its thread, and memory that is
 * seen before its zeros. */
static void
timed_body(int ix, void *context)
{
    struct timed *timed = context;
    struct ftb_thread *thread = ftb_thread_current();
    struct ftb_histogram_sum *sums = sums_new();
    if (ix >= TIMERS_N) {
        uint64_t random = seed + (uint64_t)ix;
        struct ftb_tally_sum calls;
        struct ftb_totals totals = {0};
        while (ftb_load_acquire(&timed->left) > 0) {
            uint64_t i = next_random(&random) % TIMED_N;
            uint32_t id = ftb_topic_id(timed->topics[i]);
            switch (next_random(&random) % 3) {
            case 0:
                (void)ftb_shard_times(id, sums);
                break;
            case 1:
                ftb_shard_sum(id, &totals);
                break;
            default:
                ftb_tally_sum(timed->handlers[i], &calls, &sums[FTB_TIMES_N]);
            }
        }
    }
    for (int i = 0; i < TIMED_N && ix < TIMERS_N; i++) {
        struct ftb_cell *cell = cell_of(thread, timed->topics[i]);
        ftb_cell_record_local(cell, FTB_TIME_ENCODE, (uint64_t)(2000 + ix));
        sched_yield();
        struct ftb_tally *tally = ftb_tally_local(timed->handlers[i], thread);
        CHECK(tally != NULL);
        /* This record of a thread may have been another thread's, which has ended. */
        uint64_t ns = (uint64_t)(1000 + ix);
        bool is_longest = ns >= longest_of(tally);
        CHECK(ftb_tally_record_local(tally, ns) == is_longest);
        sched_yield();
    }
    if (ix < TIMERS_N) {
        ftb_sub_acq_rel(&timed->left, 1);
    }
    ftb_free(sums);
}

static void
check_times(struct timed *timed, int i)
{
    struct ftb_histogram_sum *sums = sums_new();
    CHECK(ftb_shard_times(ftb_topic_id(timed->topics[i]), sums));
    struct ftb_histogram_sum *encodes = &sums[FTB_TIME_ENCODE],
                             *calls = &sums[FTB_TIMES_N];
    CHECK(encodes->min_ns == 2000 && encodes->max_ns == 2000 + TIMERS_N - 1);
    CHECK(encodes->sum_ns == TIMERS_N * 2000 + 3);
    CHECK(sums[FTB_TIME_WAIT].sum_ns == 0);
    struct ftb_tally_sum unused;
    ftb_tally_sum(timed->handlers[i], &unused, calls);
    CHECK(calls->sum_ns == TIMERS_N * 1000 + 3);
    ftb_free(sums);
}

static void
test_times_of_all_threads_add_up(void)
{
    static struct timed timed;
    struct ftb_bus *bus = bus_new();
    ftb_init(&timed.left, TIMERS_N);
    for (int i = 0; i < TIMED_N; i++) {
        char name[24];
        snprintf(name, sizeof name, "%d", i);
        fake_init(&timed.fake[i]);
        timed.topics[i] = topic_of(bus, name);
        timed.handlers[i] = subscribe(timed.topics[i], &timed.fake[i], 0, 0);
    }
    run_threads(TIMERS_N + TIME_READERS_N, timed_body, &timed);
    for (int i = 0; i < TIMED_N; i++) {
        check_times(&timed, i);
        cancel(timed.handlers[i]);
        ftb_handler_release(timed.handlers[i]);
    }
    bus_end(bus);
}

/* Bug hunted: a choice that is seen before what is in it, or not found. */
static void
choices_body(int ix, void *context)
{
    struct churn *churn = context;
    struct ftb_bus *bus = churn->topic->bus;
    if (ix == 0) {
        for (long n = 0; n < 200; n++) {
            char name[24];
            snprintf(name, sizeof name, "%ld", n);
            struct ftb_topic *topic = topic_of(bus, name);
            CHECK(ftb_topic_timing(topic) == FTB_TIMING_OFF);
            CHECK(ftb_topic_set_timing(topic, FTB_TIMING_ALL) == FTB_OK);
            CHECK(ftb_topic_timing(topic) == FTB_TIMING_ALL);
        }
        ftb_store_release(&churn->left, 0);
        return;
    }
    while (ftb_load_acquire(&churn->left) > 0) {
        CHECK(ftb_topic_timing(churn->topic) == FTB_TIMING_OFF);
    }
}

static void
test_topics_have_the_timing_they_chose(void)
{
    struct ftb_bus *bus = bus_new();
    struct churn churn = {.topic = topic_of(bus, "choices"), .left = 1};
    run_threads(3, choices_body, &churn);
    bus_end(bus);
}

struct meeting {
    struct ftb_topic *topic;
    struct ftb_handler *read, *counted;
    struct baton baton;
};

static void
meeting_body(int ix, void *context)
{
    struct meeting *meeting = context;
    struct ftb_thread *thread = ftb_thread_current();
    if (ix == 0) {
        struct ftb_tally *tally = ftb_tally_local(meeting->read, thread);
        CHECK(tally != NULL && ftb_tally_record_local(tally, 5000));
        CHECK(ftb_topic_set_timing(meeting->topic, FTB_TIMING_ALL) == FTB_OK);
        CHECK(ftb_tally_local(meeting->counted, thread) != NULL);
        baton_pass(&meeting->baton, 1);
        return;
    }
    /* In the order of the writes: what one acquires says nothing of those after it. */
    struct ftb_histogram_sum *sums = sums_new();
    struct ftb_tally_sum calls;
    baton_await(&meeting->baton, 1);
    ftb_tally_sum(meeting->read, &calls, sums);
    CHECK(ftb_topic_timing(meeting->topic) == FTB_TIMING_ALL);
    CHECK(ftb_tally_local(meeting->counted, thread) != NULL);
    ftb_free(sums);
}

/* Bug hunted, under ThreadSanitizer: a tally, a histogram or a choice that another thread
 * sees before what is in it. */
static void
test_another_thread_meets_what_was_just_made(void)
{
    struct ftb_bus *bus = bus_new();
    struct fake fakes[2];
    struct meeting meeting = {.topic = topic_of(bus, "met")};
    fake_init(&fakes[0]);
    fake_init(&fakes[1]);
    meeting.read = subscribe(meeting.topic, &fakes[0], 0, 0);
    meeting.counted = subscribe(meeting.topic, &fakes[1], 0, 0);
    run_threads(2, meeting_body, &meeting);
    cancel(meeting.read);
    cancel(meeting.counted);
    ftb_handler_release(meeting.read);
    ftb_handler_release(meeting.counted);
    bus_end(bus);
}

int
main(void)
{
    fakes_begin();
    RUN(test_another_thread_meets_what_was_just_made);
    RUN(test_runs_go_to_the_handlers_that_ran);
    RUN(test_nested_changes_are_not_mistaken);
    RUN(test_calls_under_churn_add_up);
    RUN(test_without_memory_totals_are_right);
    RUN(test_recording_says_whether_a_time_is_the_longest);
    RUN(test_times_of_all_threads_add_up);
    RUN(test_topics_have_the_timing_they_chose);
    return 0;
}

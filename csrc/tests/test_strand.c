/* ftb_strand.h: order and exclusion of a partition, and the cache of nodes.
 *
 * Under ThreadSanitizer the hand-overs must fail if the owner lets go without release,
 * begins without acquire or follows a link without acquire. Forgotten events are
 * left to models/strand.cpp: the gap in which the owner could forget one is a few
 * instructions wide. */
#include "check.h"

#include <sched.h>

#include "ftb_strand.h"

static uint64_t seed;

static struct ftb_item
item_of(uint64_t producer, uint64_t number)
{
    struct ftb_item item = {
        .target = (void *)(uintptr_t)producer,
        .payload = (void *)(uintptr_t)number,
        .stamp_ns = producer ^ number,
    };
    return item;
}

static bool
push(struct ftb_strand *strand, uint64_t producer, uint64_t number)
{
    struct ftb_node *node = ftb_node_new();
    CHECK(node != NULL);
    struct ftb_item item = item_of(producer, number);
    return ftb_strand_push_mpsc(strand, node, &item);
}

static bool
pop(struct ftb_strand *strand, struct ftb_item *item)
{
    struct ftb_node *spent = NULL;
    if (!ftb_strand_try_pop_local(strand, item, &spent)) {
        return false;
    }
    if (spent != NULL) {
        ftb_node_free(spent);
    }
    return true;
}

static void
test_only_the_first_push_schedules(void)
{
    struct ftb_strand strand;
    struct ftb_item item;
    ftb_strand_init(&strand);
    for (uint64_t lap = 0; lap < 3; lap++) {
        CHECK(push(&strand, 1, 10 * lap));
        CHECK(!push(&strand, 1, 10 * lap + 1));
        ftb_strand_begin_local(&strand);
        CHECK(pop(&strand, &item) && (uintptr_t)item.payload == 10 * lap);
        CHECK(ftb_strand_end_local(&strand)); /* one more: the caller makes the token */
        CHECK(!push(&strand, 1, 10 * lap + 2));
        ftb_strand_begin_local(&strand);
        CHECK(pop(&strand, &item) && (uintptr_t)item.payload == 10 * lap + 1);
        CHECK(pop(&strand, &item) && (uintptr_t)item.payload == 10 * lap + 2);
        CHECK(!pop(&strand, &item));
        CHECK(!ftb_strand_end_local(&strand));
    }
    ftb_strand_fini(&strand);
}

static void
test_a_push_while_running_is_not_forgotten(void)
{
    struct ftb_strand strand;
    struct ftb_item item;
    ftb_strand_init(&strand);
    CHECK(push(&strand, 1, 1));
    ftb_strand_begin_local(&strand);
    CHECK(pop(&strand, &item));
    CHECK(!push(&strand, 1, 2));
    CHECK(ftb_strand_end_local(&strand));
    ftb_strand_begin_local(&strand);
    CHECK(!push(&strand, 1, 3));
    CHECK(pop(&strand, &item) && pop(&strand, &item));
    /* The push of 3 left SCHEDULED behind, but its item is gone: not a reason to stay. */
    CHECK(!ftb_strand_end_local(&strand));
    CHECK(push(&strand, 1, 4));
    ftb_strand_fini(&strand);
}

static void
test_a_half_linked_push_holds_nobody_up(void)
{
    /* What a producer stopped between its two steps leaves: the tail moved, no link. */
    struct ftb_strand strand;
    struct ftb_item item = item_of(1, 1);
    ftb_strand_init(&strand);
    struct ftb_node *slow = ftb_node_new();
    CHECK(slow != NULL);
    ftb_plain_set(&slow->item, item);
    ftb_init(&slow->next, NULL);
    struct ftb_node *before = ftb_exchange_acq_rel(&strand.tail, slow);
    CHECK(push(&strand, 2, 1)); /* behind it, and complete */
    ftb_strand_begin_local(&strand);
    CHECK(!pop(&strand, &item));
    CHECK(
        !ftb_strand_end_local(&strand)); /* idle: the slow producer will schedule it */
    ftb_store_release(ftb_strand_link(&strand, before), slow);
    CHECK(ftb_exchange_acq_rel(&strand.state, FTB_STRAND_SCHEDULED) == FTB_STRAND_IDLE);
    ftb_strand_begin_local(&strand);
    CHECK(pop(&strand, &item) && (uintptr_t)item.target == 1);
    CHECK(pop(&strand, &item) && (uintptr_t)item.target == 2);
    CHECK(!ftb_strand_end_local(&strand));
    ftb_strand_fini(&strand);
}

static void
test_fini_frees_what_is_queued(void)
{
    struct ftb_strand strand;
    struct ftb_item item;
    ftb_strand_init(&strand);
    for (uint64_t i = 0; i < 500; i++) {
        (void)push(&strand, 1, i);
    }
    ftb_strand_begin_local(&strand);
    CHECK(pop(&strand, &item));
    ftb_strand_fini(&strand);
}

static void
test_node_new_reports_no_memory(void)
{
    /* Empty this thread's cache and the depot first: nodes in stock need no memory. */
    enum { NODES_N = 10000 };
    static struct ftb_node *nodes[NODES_N];
    for (int i = 0; i < NODES_N; i++) {
        nodes[i] = ftb_node_new();
        CHECK(nodes[i] != NULL);
    }
    ftb_fault_alloc(0);
    CHECK(ftb_node_new() == NULL);
    ftb_fault_alloc(-1);
    for (int i = 0; i < NODES_N; i++) {
        ftb_node_free(nodes[i]);
    }
}

struct hand_over {
    struct ftb_strand strand;
    struct baton baton;
    uint64_t owned_n; /* written by the strand's owner, without atomics */
};

static void
owner_meets_a_push(int ix, void *context)
{
    struct hand_over *hand_over = context;
    struct ftb_item item;
    if (ix == 0) {
        ftb_strand_begin_local(&hand_over->strand);
        baton_pass(&hand_over->baton, 1);
        baton_await(&hand_over->baton, 2);
        CHECK(pop(&hand_over->strand, &item) && (uintptr_t)item.payload == 0);
        CHECK(pop(&hand_over->strand, &item) && (uintptr_t)item.payload == 1);
    } else {
        baton_await(&hand_over->baton, 1);
        CHECK(!push(&hand_over->strand, 1, 1));
        baton_pass(&hand_over->baton, 2);
    }
}

static void
owner_follows_an_owner(int ix, void *context)
{
    struct hand_over *hand_over = context;
    struct ftb_item item;
    if (ix == 1) {
        baton_await(&hand_over->baton, 1);
        CHECK(push(&hand_over->strand, 1, 1));
    }
    ftb_strand_begin_local(&hand_over->strand);
    hand_over->owned_n++;
    CHECK(pop(&hand_over->strand, &item) && (uintptr_t)item.payload == (uintptr_t)ix);
    CHECK(!ftb_strand_end_local(&hand_over->strand));
    if (ix == 0) {
        baton_pass(&hand_over->baton, 1);
    }
}

/* Two threads take turns at a strand that holds one item. */
static void
hand_over_run(void (*body)(int ix, void *context))
{
    struct hand_over *hand_over = ftb_alloc_line(sizeof *hand_over);
    CHECK(hand_over != NULL);
    ftb_strand_init(&hand_over->strand);
    ftb_init(&hand_over->baton.turn, 0);
    hand_over->owned_n = 0;
    CHECK(push(&hand_over->strand, 0, 0));
    run_threads(2, body, hand_over);
    ftb_strand_fini(&hand_over->strand);
    ftb_free(hand_over);
}

static void
test_an_owner_sees_what_a_later_push_wrote(void)
{
    hand_over_run(owner_meets_a_push);
}

static void
test_an_owner_sees_what_the_last_one_wrote(void)
{
    hand_over_run(owner_follows_an_owner);
}

#define PRODUCERS_N 3
#define WORKERS_N 3
#define STRANDS_N 4

struct lane {
    struct ftb_strand strand;
    /* Written by the strand's owner, without atomics: exclusion and hand-over are what is
     * tested, and ThreadSanitizer watches. */
    uint64_t next[PRODUCERS_N];
    uint32_t running_n;
    uint64_t done_n;
};

struct stress {
    struct ftb_ring ring; /* of tokens */
    uint64_t items_n;     /* by each producer, over all strands */
    uint32_t batch_n;
    ftb_atomic(uint64_t) popped_n;
    struct lane lanes[STRANDS_N];
};

static void
token_put(struct stress *stress, struct lane *lane)
{
    struct ftb_item token = {.target = lane};
    /* STRANDS_N cells, at most one token of each strand; a pop may still hold its cell. */
    while (ftb_ring_try_push_mpmc(&stress->ring, &token, 1, FTB_RING_TOKEN) == 0) {
        sched_yield();
    }
}

static void
stress_produce(struct stress *stress, uint64_t producer)
{
    uint64_t random = seed + producer;
    uint64_t numbers[STRANDS_N] = {0};
    for (uint64_t i = 0; i < stress->items_n; i++) {
        uint64_t at = next_random(&random) % STRANDS_N;
        struct lane *lane = &stress->lanes[at];
        if (push(&lane->strand, producer, numbers[at]++)) {
            token_put(stress, lane);
        }
        if (next_random(&random) % 64 == 0) {
            sched_yield(); /* let the strands run empty */
        }
    }
}

static void
lane_run(struct stress *stress, struct lane *lane)
{
    struct ftb_item item;
    uint64_t popped_n = 0;
    ftb_strand_begin_local(&lane->strand);
    CHECK(++lane->running_n == 1);
    while (popped_n < stress->batch_n && pop(&lane->strand, &item)) {
        uint64_t producer = (uintptr_t)item.target;
        CHECK(item.stamp_ns == (producer ^ (uintptr_t)item.payload));
        CHECK((uintptr_t)item.payload == lane->next[producer]++);
        popped_n++;
    }
    lane->done_n += popped_n;
    CHECK(--lane->running_n == 0);
    if (ftb_strand_end_local(&lane->strand)) {
        token_put(stress, lane);
    }
    ftb_add_relaxed(&stress->popped_n, popped_n);
}

static void
stress_body(int ix, void *context)
{
    struct stress *stress = context;
    if (ix < PRODUCERS_N) {
        stress_produce(stress, (uint64_t)ix);
        return;
    }
    while (ftb_load_relaxed(&stress->popped_n) < stress->items_n * PRODUCERS_N) {
        struct ftb_item token;
        enum ftb_ring_kind kind;
        if (ftb_ring_try_pop_mpmc(&stress->ring, &token, 1, &kind) == 1) {
            lane_run(stress, token.target);
        } else {
            sched_yield();
        }
    }
}

static void
stress_run(uint32_t batch_n, long items_n)
{
    struct stress *stress = ftb_alloc_line(sizeof *stress);
    CHECK(stress != NULL);
    stress->items_n = (uint64_t)items_n;
    stress->batch_n = batch_n;
    CHECK(ftb_ring_init(&stress->ring, STRANDS_N) == FTB_OK);
    for (int i = 0; i < STRANDS_N; i++) {
        ftb_strand_init(&stress->lanes[i].strand);
    }
    run_threads(PRODUCERS_N + WORKERS_N, stress_body, stress);
    uint64_t done_n = 0;
    for (int i = 0; i < STRANDS_N; i++) {
        done_n += stress->lanes[i].done_n;
        CHECK(ftb_load_relaxed(&stress->lanes[i].strand.state) == FTB_STRAND_IDLE);
        ftb_strand_fini(&stress->lanes[i].strand);
    }
    CHECK(done_n == stress->items_n * PRODUCERS_N);
    CHECK(ftb_ring_is_empty(&stress->ring));
    ftb_ring_fini(&stress->ring);
    ftb_free(stress);
}

static void
test_fifo_and_serial_one_at_a_time(void)
{
    stress_run(1, scaled(300000));
}

static void
test_fifo_and_serial_in_batches(void)
{
    stress_run(32, scaled(600000));
}

static void
node_drift(int ix, void *context)
{
    (void)context;
    struct ftb_node *nodes[300];
    for (int lap = 0; lap < 20 + ix; lap++) {
        for (int i = 0; i < 300; i++) {
            nodes[i] = ftb_node_new();
            CHECK(nodes[i] != NULL);
        }
        for (int i = 0; i < 300; i++) {
            ftb_node_free(nodes[i]);
        }
    }
}

static void
test_ending_threads_return_their_nodes(void)
{
    /* LeakSanitizer is the judge: nothing else knows the nodes of a thread that ended. */
    for (long i = 0; i < scaled(200); i++) {
        run_threads(4, node_drift, NULL);
    }
}

int
main(void)
{
    seed = run_seed();
    set_watchdog(120);
    RUN(test_only_the_first_push_schedules);
    RUN(test_a_push_while_running_is_not_forgotten);
    RUN(test_a_half_linked_push_holds_nobody_up);
    RUN(test_fini_frees_what_is_queued);
    RUN(test_node_new_reports_no_memory);
    RUN(test_an_owner_sees_what_a_later_push_wrote);
    RUN(test_an_owner_sees_what_the_last_one_wrote);
    RUN(test_fifo_and_serial_one_at_a_time);
    RUN(test_fifo_and_serial_in_batches);
    RUN(test_ending_threads_return_their_nodes);
    return 0;
}

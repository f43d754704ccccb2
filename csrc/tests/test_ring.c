/* ftb_ring.h: laps, kinds, bounds, and the queue under contention.
 *
 * The stress tests must fail if a claim is not checked against the turn and, under
 * ThreadSanitizer, if a turn is stored or loaded relaxed. */
#include "check.h"

#include <sched.h>

#include "ftb_ring.h"

static uint64_t seed;

static struct ftb_item
item_of(uint64_t producer, uint64_t number)
{
    struct ftb_item item = {
        .target = (void *)(uintptr_t)producer,
        .payload = (void *)(uintptr_t)number,
        .stamp_ns = producer * 1000003 + number,
    };
    return item;
}

static void
item_check(const struct ftb_item *item)
{
    uint64_t producer = (uintptr_t)item->target;
    uint64_t number = (uintptr_t)item->payload;
    CHECK(item->stamp_ns == producer * 1000003 + number);
}

static void
test_push_fills_exactly_capacity(void)
{
    for (uint64_t capacity = 1; capacity <= 64; capacity *= 2) {
        struct ftb_ring ring;
        CHECK(ftb_ring_init(&ring, capacity) == FTB_OK);
        uint64_t pushed = 0;
        uint64_t popped = 0;
        for (int lap = 0; lap < 5; lap++) {
            CHECK(ftb_ring_is_empty(&ring));
            for (uint64_t i = 0; i < capacity; i++) {
                struct ftb_item item = item_of(1, pushed++);
                CHECK(ftb_ring_try_push_mpmc(&ring, &item, 1, FTB_RING_PLAIN) == 1);
                CHECK(!ftb_ring_is_empty(&ring));
                CHECK(ftb_ring_length(&ring) == i + 1);
            }
            struct ftb_item extra = item_of(1, pushed);
            CHECK(ftb_ring_try_push_mpmc(&ring, &extra, 1, FTB_RING_PLAIN) == 0);
            for (uint64_t i = 0; i < capacity; i++) {
                struct ftb_item item;
                enum ftb_ring_kind kind;
                CHECK(ftb_ring_try_pop_mpmc(&ring, &item, 1, &kind) == 1);
                CHECK(kind == FTB_RING_PLAIN);
                CHECK((uintptr_t)item.payload == popped++);
                item_check(&item);
            }
        }
        ftb_ring_fini(&ring);
    }
}

static void
test_several_at_once(void)
{
    struct ftb_ring ring;
    CHECK(ftb_ring_init(&ring, 8) == FTB_OK);
    struct ftb_item items[16];
    struct ftb_item out[16];
    enum ftb_ring_kind kind;
    uint64_t pushed = 0;
    uint64_t popped = 0;
    uint64_t random = seed;
    for (int round = 0; round < 10000; round++) {
        uint32_t n = (uint32_t)(next_random(&random) % 16 + 1);
        for (uint32_t i = 0; i < n; i++) {
            items[i] = item_of(2, pushed + i);
        }
        uint64_t space = 8 - (pushed - popped);
        uint32_t pushed_n = ftb_ring_try_push_mpmc(&ring, items, n, FTB_RING_PLAIN);
        CHECK(pushed_n == (n < space ? n : space));
        pushed += pushed_n;
        n = (uint32_t)(next_random(&random) % 16 + 1);
        uint32_t popped_n = ftb_ring_try_pop_mpmc(&ring, out, n, &kind);
        CHECK(popped_n == (n < pushed - popped ? n : pushed - popped));
        for (uint32_t i = 0; i < popped_n; i++) {
            item_check(&out[i]);
            CHECK((uintptr_t)out[i].payload == popped++);
        }
    }
    ftb_ring_fini(&ring);
}

static void
test_a_token_is_popped_alone(void)
{
    struct ftb_ring ring;
    CHECK(ftb_ring_init(&ring, 8) == FTB_OK);
    const enum ftb_ring_kind kinds[] = {
        FTB_RING_PLAIN, FTB_RING_PLAIN, FTB_RING_TOKEN, FTB_RING_TOKEN, FTB_RING_PLAIN,
    };
    for (uint64_t i = 0; i < 5; i++) {
        struct ftb_item item = item_of(3, i);
        CHECK(ftb_ring_try_push_mpmc(&ring, &item, 1, kinds[i]) == 1);
    }
    const uint32_t runs[] = {2, 1, 1, 1, 0};
    uint64_t next = 0;
    for (int i = 0; i < 5; i++) {
        struct ftb_item out[8];
        enum ftb_ring_kind kind;
        uint32_t popped_n = ftb_ring_try_pop_mpmc(&ring, out, 8, &kind);
        CHECK(popped_n == runs[i]);
        for (uint32_t j = 0; j < popped_n; j++) {
            CHECK(kind == kinds[next]);
            CHECK((uintptr_t)out[j].payload == next++);
        }
    }
    ftb_ring_fini(&ring);
}

static void
test_init_reports_no_memory(void)
{
    struct ftb_ring ring;
    ftb_fault_alloc(0);
    CHECK(ftb_ring_init(&ring, 8) == FTB_NOMEM);
    ftb_fault_alloc(-1);
    CHECK(ftb_ring_init(&ring, UINT64_C(1) << 60) == FTB_NOMEM);
}

#define PRODUCERS_N 3
#define CONSUMERS_N 3

struct stress {
    struct ftb_ring ring;
    uint64_t items_n; /* by each producer */
    ftb_atomic(uint64_t) popped_n;
    ftb_atomic(uint8_t) * seen[PRODUCERS_N];
    uint32_t several; /* at most so many at once */
};

static void
stress_produce(struct stress *stress, uint64_t producer)
{
    uint64_t random = seed + producer;
    for (uint64_t next = 0; next < stress->items_n;) {
        struct ftb_item items[8];
        uint32_t n = (uint32_t)(next_random(&random) % stress->several + 1);
        if (n > stress->items_n - next) {
            n = (uint32_t)(stress->items_n - next);
        }
        for (uint32_t i = 0; i < n; i++) {
            items[i] = item_of(producer, next + i);
        }
        /* A token may go only alone; kinds follow from the number, for the check. */
        enum ftb_ring_kind kind = next % 7 == 0 ? FTB_RING_TOKEN : FTB_RING_PLAIN;
        n = kind == FTB_RING_TOKEN ? 1 : n;
        uint32_t pushed_n = ftb_ring_try_push_mpmc(&stress->ring, items, n, kind);
        next += pushed_n;
        if (pushed_n == 0) {
            sched_yield();
        }
    }
}

static void
stress_consume(struct stress *stress, uint64_t consumer)
{
    uint64_t random = seed + 100 + consumer;
    uint64_t last[PRODUCERS_N] = {0};
    uint64_t all = stress->items_n * PRODUCERS_N;
    while (ftb_load_relaxed(&stress->popped_n) < all) {
        struct ftb_item items[8];
        enum ftb_ring_kind kind = FTB_RING_NONE;
        uint32_t n = (uint32_t)(next_random(&random) % stress->several + 1);
        uint32_t popped_n = ftb_ring_try_pop_mpmc(&stress->ring, items, n, &kind);
        for (uint32_t i = 0; i < popped_n; i++) {
            item_check(&items[i]);
            uint64_t producer = (uintptr_t)items[i].target;
            uint64_t number = (uintptr_t)items[i].payload;
            CHECK(producer < PRODUCERS_N && number < stress->items_n);
            CHECK(number + 1 > last[producer]); /* positions grow */
            last[producer] = number + 1;
            CHECK(ftb_add_relaxed(&stress->seen[producer][number], 1) == 0);
        }
        CHECK(kind != FTB_RING_TOKEN || popped_n <= 1);
        ftb_add_relaxed(&stress->popped_n, popped_n);
        if (popped_n == 0) {
            sched_yield();
        }
    }
}

static void
stress_body(int ix, void *context)
{
    if (ix < PRODUCERS_N) {
        stress_produce(context, (uint64_t)ix);
    } else {
        stress_consume(context, (uint64_t)ix);
    }
}

static void
stress_run(uint64_t capacity, uint32_t several, long items_n)
{
    struct stress stress = {.items_n = (uint64_t)items_n, .several = several};
    CHECK(ftb_ring_init(&stress.ring, capacity) == FTB_OK);
    for (int i = 0; i < PRODUCERS_N; i++) {
        stress.seen[i] = calloc((size_t)items_n, 1);
        CHECK(stress.seen[i] != NULL);
    }
    run_threads(PRODUCERS_N + CONSUMERS_N, stress_body, &stress);
    for (int i = 0; i < PRODUCERS_N; i++) {
        for (long j = 0; j < items_n; j++) {
            CHECK(ftb_load_relaxed(&stress.seen[i][j]) == 1);
        }
        free((void *)stress.seen[i]);
    }
    CHECK(ftb_ring_is_empty(&stress.ring) && ftb_ring_length(&stress.ring) == 0);
    ftb_ring_fini(&stress.ring);
}

static void
test_exactly_once_through_two_cells(void)
{
    stress_run(2, 1, scaled(200000));
}

static void
test_exactly_once_several_at_once(void)
{
    stress_run(16, 8, scaled(600000));
}

static void
test_exactly_once_in_a_large_ring(void)
{
    stress_run(4096, 3, scaled(600000));
}

int
main(void)
{
    seed = run_seed();
    set_watchdog(120);
    RUN(test_push_fills_exactly_capacity);
    RUN(test_several_at_once);
    RUN(test_a_token_is_popped_alone);
    RUN(test_init_reports_no_memory);
    RUN(test_exactly_once_through_two_cells);
    RUN(test_exactly_once_several_at_once);
    RUN(test_exactly_once_in_a_large_ring);
    return 0;
}

/* ftb_chain.h: items go through a small ring, then through larger ones, in order.
 *
 * The stress test must fail if a ring is not closed before the next one is used. */
#include "check.h"

#include "ftb_chain.h"

enum { CAPACITY = 1 << 16, PRODUCERS = 3, CONSUMERS = 2 };

static struct ftb_chain chain;

static bool
push(uint64_t number)
{
    struct ftb_item item = {.stamp_ns = number};
    return ftb_chain_try_push_mpmc(&chain, &item, 1, FTB_RING_PLAIN) == 1;
}

static bool
pop(uint64_t *number)
{
    struct ftb_item item;
    enum ftb_ring_kind kind;
    if (ftb_chain_try_pop_mpmc(&chain, &item, 1, &kind) == 0) {
        return false;
    }
    CHECK(kind == FTB_RING_PLAIN);
    *number = item.stamp_ns;
    return true;
}

static void
test_a_short_queue_stays_in_the_first_ring(void)
{
    uint64_t number;
    CHECK(ftb_chain_init(&chain, CAPACITY) == FTB_OK);
    for (uint64_t i = 0; i < 10 * CAPACITY; i++) {
        CHECK(push(i) && pop(&number) && number == i);
    }
    CHECK(ftb_chain_is_empty(&chain));
    CHECK(ftb_load_acquire(&chain.push_level) == 0);
    ftb_chain_fini(&chain);
}

static void
test_a_long_queue_keeps_its_order_from_ring_to_ring(void)
{
    uint64_t number, popped_n = 0, pushed_n = 0;
    CHECK(ftb_chain_init(&chain, CAPACITY) == FTB_OK);
    while (push(pushed_n)) {
        pushed_n++;
        if (pushed_n % 3 == 0) {
            CHECK(pop(&number) && number == popped_n);
            popped_n++;
        }
    }
    CHECK(pushed_n - popped_n >= CAPACITY); /* the last ring has room for all */
    CHECK(!ftb_chain_is_empty(&chain));
    while (pop(&number)) {
        CHECK(number == popped_n++);
    }
    CHECK(popped_n == pushed_n && ftb_chain_is_empty(&chain));
    CHECK(ftb_load_acquire(&chain.pop_level) == chain.rings_n - 1);
    ftb_chain_fini(&chain);
}

static void
test_small_capacities_and_failed_allocations(void)
{
    for (uint64_t capacity = 1; capacity <= 4096; capacity *= 2) {
        long count = 0;
        enum ftb_result result;
        do {
            ftb_fault_alloc(count++);
            result = ftb_chain_init(&chain, capacity);
            ftb_fault_alloc(-1);
            CHECK(result == FTB_OK || result == FTB_NOMEM);
            if (result == FTB_NOMEM) {
                ftb_chain_fini(&chain);
            }
        } while (result == FTB_NOMEM);
        uint64_t n = 0, number;
        while (push(n)) {
            n++;
        }
        CHECK(n >= capacity);
        for (uint64_t i = 0; i < n; i++) {
            CHECK(pop(&number) && number == i);
        }
        CHECK(!pop(&number));
        ftb_chain_fini(&chain);
    }
}

static void
test_a_ring_is_passed_only_when_closed_and_empty(void)
{
    uint64_t number;
    CHECK(ftb_chain_init(&chain, CAPACITY) == FTB_OK);
    CHECK(!ftb_chain_is_passed(&chain, 0, 0));
    CHECK(push(0) && !ftb_chain_is_passed(&chain, 0, 0)); /* its head was seen before */
    ftb_ring_close(&chain.rings[0]);
    CHECK(!ftb_chain_is_passed(&chain, 0, 0));
    CHECK(pop(&number) && ftb_chain_is_passed(&chain, 0, 1));
    CHECK(push(1) && pop(&number) && number == 1); /* by the next one */
    CHECK(!ftb_chain_is_passed(&chain, chain.rings_n - 1, 0));
    ftb_chain_fini(&chain);
}

static ftb_atomic(uint64_t) popped_n;
static ftb_atomic(uint8_t) * seen;
static long items_n;

/* Each producer's items, as far as one consumer gets them, come in order. */
static void
run_one(int ix, void *unused)
{
    (void)unused;
    if (ix < PRODUCERS) {
        for (long i = 0; i < items_n;) {
            i += push((uint64_t)(i * PRODUCERS + ix));
        }
        return;
    }
    uint64_t number, next[PRODUCERS] = {0};
    uint64_t all_n = (uint64_t)(items_n * PRODUCERS);
    while (ftb_load_relaxed(&popped_n) < all_n) { /* relaxed: a count */
        if (!pop(&number)) {
            continue;
        }
        CHECK(ftb_exchange_acq_rel(&seen[number], 1) == 0);
        CHECK(number / PRODUCERS + 1 > next[number % PRODUCERS]);
        next[number % PRODUCERS] = number / PRODUCERS + 1;
        ftb_add_relaxed(&popped_n, 1);
    }
}

static void
test_stress(void)
{
    items_n = scaled(200000);
    for (int round = 0; round < 5; round++) {
        CHECK(ftb_chain_init(&chain, CAPACITY) == FTB_OK);
        seen = ftb_alloc((size_t)(items_n * PRODUCERS));
        CHECK(seen != NULL);
        ftb_init(&popped_n, 0);
        run_threads(PRODUCERS + CONSUMERS, run_one, NULL);
        CHECK(ftb_chain_is_empty(&chain));
        ftb_free((void *)(uintptr_t)seen);
        ftb_chain_fini(&chain);
    }
}

int
main(void)
{
    set_watchdog(120);
    RUN(test_a_short_queue_stays_in_the_first_ring);
    RUN(test_a_long_queue_keeps_its_order_from_ring_to_ring);
    RUN(test_small_capacities_and_failed_allocations);
    RUN(test_a_ring_is_passed_only_when_closed_and_empty);
    RUN(test_stress);
    return 0;
}

/* ftb_chain.h: a ring of one cell and one of two, two producers, two consumers that go to
 * sleep. Every item comes out once, in its producer's order, and if one is left behind by
 * consumers that sleep, its producer has seen that there is somebody to wake. */
#define FTB_CHAIN_FIRST_CELLS 1

#include "numbered.h"

#include "ftb_chain.h"

struct chain_model : rl::test_suite<chain_model, PRODUCERS_N + CONSUMERS_N> {
    ftb_chain chain;
    ftb_ring_cell cells[3];
    ftb_atomic(uint32_t) idle_n;
    numbered seen;
    bool has_woken[PRODUCERS_N][ITEMS_N];
    unsigned slept_n;

    void before()
    {
        chain.rings_n = 2;
        model_ring_init(&chain.rings[0], cells, 0);
        model_ring_init(&chain.rings[1], cells + 1, 1);
        ftb_init(&chain.push_level, 0);
        ftb_init(&chain.pop_level, 0);
        ftb_init(&idle_n, 0);
        seen.clear();
        std::memset(has_woken, 0, sizeof has_woken);
        slept_n = 0;
    }

    void produce(unsigned producer)
    {
        uint64_t next = 0;
        for (int i = 0; i < TRIES_N + 1 && next < ITEMS_N; i++) {
            ftb_item item = numbered::item(producer, next);
            if (ftb_chain_try_push_mpmc(&chain, &item, 1, FTB_RING_PLAIN) == 1) {
                has_woken[producer][next] = ftb_load_seq_cst(&idle_n) > 0; /* P2 */
                next++;
            } else {
                ftb_relax();
            }
        }
        seen.pushed[producer] = next;
    }

    uint32_t consume_once(uint64_t *last)
    {
        ftb_item item;
        enum ftb_ring_kind kind = FTB_RING_NONE;
        uint32_t popped_n = ftb_chain_try_pop_mpmc(&chain, &item, 1, &kind);
        if (popped_n == 1) {
            seen.take(item, kind, last);
        }
        return popped_n;
    }

    void consume()
    {
        uint64_t last[PRODUCERS_N] = {0, 0};
        for (int i = 0; i < TRIES_N; i++) {
            if (consume_once(last) == 0) {
                ftb_relax();
            }
        }
        ftb_add_seq_cst(&idle_n, 1); /* W1 */
        if (ftb_chain_is_empty(&chain)) {
            slept_n++;
        }
    }

    void thread(unsigned ix)
    {
        if (ix < PRODUCERS_N) {
            produce(ix);
        } else {
            consume();
        }
    }

    void after()
    {
        uint64_t last[PRODUCERS_N] = {0, 0};
        bool is_left = false, has_waker = false;
        for (unsigned i = 0; i < PRODUCERS_N; i++) {
            for (uint32_t j = 0; j < seen.pushed[i]; j++) {
                is_left = is_left || seen.popped[i][j] == 0;
                has_waker = has_waker || (seen.popped[i][j] == 0 && has_woken[i][j]);
            }
        }
        RL_ASSERT(!is_left || slept_n < CONSUMERS_N || has_waker);
        while (consume_once(last) > 0) {
        }
        RL_ASSERT(ftb_chain_is_empty(&chain));
        seen.check_complete();
    }
};

int
main(int argc, char **argv)
{
    return run_model<chain_model>(argc, argv, "chain", 500000, 1);
}

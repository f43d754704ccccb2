/* ftb_ring.h: two cells, two producers, two consumers, two laps. Every item comes out
 * once, whole, and in its producer's order. ring_several.cpp makes this a model of pushes
 * and pops of several items at once. */
#include "numbered.h"

#ifdef RING_SEVERAL
static const uint32_t AT_ONCE = 2;
#else
static const uint32_t AT_ONCE = 1;
#endif

struct ring_model : rl::test_suite<ring_model, PRODUCERS_N + CONSUMERS_N> {
    ftb_ring ring;
    ftb_ring_cell cells[2];
    numbered seen;

    void before()
    {
        model_ring_init(&ring, cells, 1);
        seen.clear();
    }

    void produce(unsigned producer)
    {
        uint64_t next = 0;
        for (int i = 0; i < TRIES_N && next < ITEMS_N; i++) {
            ftb_item items[AT_ONCE];
            uint32_t n = 0;
            while (n < AT_ONCE && next + n < ITEMS_N) {
                items[n] = numbered::item(producer, next + n);
                n++;
            }
            uint32_t pushed_n = ftb_ring_try_push_mpmc(&ring, items, n, FTB_RING_PLAIN);
            next += pushed_n;
            if (pushed_n == 0) {
                ftb_relax();
            }
        }
        seen.pushed[producer] = next;
    }

    uint32_t consume_once(uint64_t *last)
    {
        ftb_item items[AT_ONCE];
        enum ftb_ring_kind kind = FTB_RING_NONE;
        uint32_t popped_n = ftb_ring_try_pop_mpmc(&ring, items, AT_ONCE, &kind);
        for (uint32_t i = 0; i < popped_n; i++) {
            seen.take(items[i], kind, last);
        }
        return popped_n;
    }

    void thread(unsigned ix)
    {
        if (ix < PRODUCERS_N) {
            produce(ix);
            return;
        }
        uint64_t last[PRODUCERS_N] = {0, 0};
        for (int i = 0; i < TRIES_N; i++) {
            if (consume_once(last) == 0) {
                ftb_relax();
            }
        }
    }

    void after()
    {
        uint64_t last[PRODUCERS_N] = {0, 0};
        while (consume_once(last) > 0) {
        }
        RL_ASSERT(ftb_ring_is_empty(&ring));
        seen.check_complete();
    }
};

int
main(int argc, char **argv)
{
#ifdef RING_SEVERAL
    return run_model<ring_model>(argc, argv, "ring several", 1000000, 1);
#else
    return run_model<ring_model>(argc, argv, "ring", 1000000, 2);
#endif
}

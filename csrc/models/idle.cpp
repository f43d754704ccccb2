/* ftb_idle.h alone: a worker that announces itself, looks and takes the announcement back,
 * as ftb_pool_wait_work does when it finds something or its deadline passes. If it was
 * claimed meanwhile, it is told so and looks once more: then the item that it was claimed
 * for must be there. */
#define FTB_IDLE_MAX 1u
#define FTB_IDLE_WORD_BITS 1u

#include "model.h"

#include "ftb_idle.h"

struct idle_model : rl::test_suite<idle_model, 2> {
    ftb_ring ring;
    ftb_ring_cell cells[2];
    ftb_idle idle;

    void before()
    {
        model_ring_init(&ring, cells, 1);
        ftb_idle_init(&idle, 1);
    }

    void thread(unsigned ix)
    {
        ftb_item item = numbered_item(7);
        if (ix == 0) {
            RL_ASSERT(ftb_ring_try_push_mpmc(&ring, &item, 1, FTB_RING_PLAIN) == 1);
            (void)ftb_idle_claim(&idle, 0);
            return;
        }
        ftb_idle_set(&idle, 0);
        if (!ftb_idle_clear(&idle, 0)) {
            enum ftb_ring_kind kind;
            RL_ASSERT(ftb_ring_try_pop_mpmc(&ring, &item, 1, &kind) == 1);
        }
    }

    void after()
    {
        RL_ASSERT(ftb_load_relaxed(&idle.words[0]) == 0);
    }
};

int
main(int argc, char **argv)
{
    return run_model<idle_model>(argc, argv, "idle", 10000, 5);
}

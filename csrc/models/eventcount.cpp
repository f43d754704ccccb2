/* ftb_waitset as the pool uses it for space: givers free one slot each and wake one
 * waiter; takers want one each. One taker may give up at a deadline instead, and then must
 * not take the wake-up of another with it. A lost wake-up is a deadlock. */
#include "model.h"

#include "ftb_park.h"

static const unsigned GIVERS_N = 2;
static const unsigned TAKERS_N = 2;

struct eventcount_model : rl::test_suite<eventcount_model, GIVERS_N + TAKERS_N> {
    ftb_waitset waitset;
    ftb_atomic(uint32_t) slots_n;
    unsigned given_up_n; /* for the model's eyes only */

    void before()
    {
        ftb_init(&waitset.word, 0);
        ftb_init(&slots_n, 0);
        given_up_n = 0;
    }

    bool take()
    {
        uint32_t seen = ftb_load_seq_cst(&slots_n);
        while (seen > 0) {
            if (ftb_cas_seq_cst(&slots_n, &seen, seen - 1)) {
                return true;
            }
        }
        return false;
    }

    void wait_and_take(bool may_give_up)
    {
        while (!take()) {
            uint32_t key = ftb_waitset_prepare(&waitset);
            if (ftb_load_seq_cst(&slots_n) > 0) {
                ftb_waitset_cancel(&waitset);
                continue;
            }
            uint64_t deadline_ns = may_give_up ? 0 : FTB_FOREVER;
            (void)ftb_waitset_commit(&waitset, key, deadline_ns);
            if (ftb_load_seq_cst(&slots_n) > 0) {
                ftb_waitset_notify(&waitset, false); /* as ftb_pool_wait_space does */
            }
            if (may_give_up) {
                given_up_n++;
                return;
            }
        }
    }

    void thread(unsigned ix)
    {
        if (ix < GIVERS_N) {
            ftb_add_seq_cst(&slots_n, 1);
            ftb_waitset_notify(&waitset, false);
        } else {
            wait_and_take(with_deadlines && ix == GIVERS_N);
        }
    }

    void after()
    {
        RL_ASSERT(ftb_load_relaxed(&slots_n) == GIVERS_N - TAKERS_N + given_up_n);
        RL_ASSERT((uint32_t)ftb_load_relaxed(&waitset.word) == 0);
    }
};

int
main(int argc, char **argv)
{
    return run_model<eventcount_model>(argc, argv, "eventcount", 1000000, 3);
}

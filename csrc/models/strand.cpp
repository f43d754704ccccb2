/* ftb_strand.h: two producers, two workers, tokens counted in one word that synchronizes
 * like a ring does. One owner at a time, its items in order, none forgotten, and no node
 * touched after it was given back: nodes come from relacy's heap. */
#include "model.h"

#include "ftb_strand.h"

static const unsigned PRODUCERS_N = 2;
static const unsigned WORKERS_N = 2;
static const uint64_t ITEMS_N = 2; /* by each producer */
static const int TRIES_N = 3;
static const int BATCH_N = 2; /* so that some batches end with items left */

struct strand_model : rl::test_suite<strand_model, PRODUCERS_N + WORKERS_N> {
    ftb_strand strand;
    ftb_atomic(uint32_t) tokens_n;
    /* What handlers of the partition may touch without a lock. */
    rl::var<uint64_t> done_n;
    rl::var<uint64_t> next[PRODUCERS_N];

    void before()
    {
        ftb_strand_init(&strand);
        ftb_init(&tokens_n, 0);
        done_n($) = 0;
        next[0]($) = 0;
        next[1]($) = 0;
    }

    void token_put()
    {
        ftb_add_acq_rel(&tokens_n, 1);
    }

    bool token_take()
    {
        uint32_t seen = ftb_load_relaxed(&tokens_n);
        while (seen > 0) {
            RL_ASSERT(seen == 1); /* at most one ring cell for a strand */
            if (ftb_cas_acquire(&tokens_n, &seen, seen - 1)) {
                return true;
            }
        }
        return false;
    }

    void run()
    {
        ftb_strand_begin_local(&strand);
        for (int i = 0; i < BATCH_N; i++) {
            ftb_item item;
            ftb_node *spent = NULL;
            if (!ftb_strand_try_pop_local(&strand, &item, &spent)) {
                break;
            }
            delete spent;
            uint64_t producer = item.stamp_ns / 100;
            RL_ASSERT(item.stamp_ns % 100 == next[producer]($));
            next[producer]($) += 1;
            done_n($) += 1;
        }
        if (ftb_strand_end_local(&strand)) {
            token_put();
        }
    }

    void thread(unsigned ix)
    {
        for (uint64_t i = 0; ix < PRODUCERS_N && i < ITEMS_N; i++) {
            ftb_item item = numbered_item(ix * 100 + i);
            if (ftb_strand_push_mpsc(&strand, new ftb_node, &item)) {
                token_put();
            }
        }
        for (int i = 0; ix >= PRODUCERS_N && i < TRIES_N; i++) {
            if (token_take()) {
                run();
            } else {
                ftb_relax();
            }
        }
    }

    /* Whatever is left must be reachable by tokens alone. */
    void after()
    {
        while (token_take()) {
            run();
        }
        RL_ASSERT(done_n($) == PRODUCERS_N * ITEMS_N);
        RL_ASSERT(ftb_load_relaxed(&strand.state) == FTB_STRAND_IDLE);
        ftb_node *last = ftb_plain_get(&strand.head);
        RL_ASSERT(last == ftb_load_relaxed(&strand.tail));
        delete last;
    }
};

int
main(int argc, char **argv)
{
    return run_model<strand_model>(argc, argv, "strand", 1000000, 2);
}

/* ftb_ring.h, ftb_idle.h and ftb_park.h together, in the order in which the pool calls
 * them: post and wake against look, sleep and take. A wake-up that gets lost leaves a
 * sleeper behind, which relacy reports as a deadlock.
 *
 * In park_chain.cpp one producer publishes two items and wakes one worker only, and the
 * items want a worker each: that worker has to wake the other (argument 4 in ftb_idle.h),
 * whose bit is in another word, which the producer has not looked at. */
#ifdef PARK_CHAIN
#define FTB_IDLE_MAX 2u
#define FTB_IDLE_WORD_BITS 1u
#endif

#include "model.h"

#include "ftb_idle.h"
#include "ftb_park.h"

#ifdef PARK_CHAIN
static const unsigned PRODUCERS_N = 1;
static const uint32_t POST_N = 2; /* items in one post */
#else
static const unsigned PRODUCERS_N = 2;
static const uint32_t POST_N = 1;
#endif
static const unsigned WORKERS_N = 2;
static const uint32_t ITEMS_N = 2;

struct park_model : rl::test_suite<park_model, PRODUCERS_N + WORKERS_N> {
    ftb_ring ring;
    ftb_ring_cell cells[2];
    ftb_idle idle;
    ftb_parker parkers[WORKERS_N];
    ftb_atomic(uint32_t) taken_n;
    ftb_atomic(uint32_t) is_stopped;

    void before()
    {
        model_ring_init(&ring, cells, 1);
        ftb_idle_init(&idle, WORKERS_N);
        for (unsigned i = 0; i < WORKERS_N; i++) {
            ftb_init(&parkers[i].state, FTB_PARKER_EMPTY);
        }
        ftb_init(&taken_n, 0);
        ftb_init(&is_stopped, 0);
    }

    void wake()
    {
        int32_t ix = ftb_idle_claim(&idle, 0);
        if (ix >= 0) {
            ftb_parker_unpark(&parkers[ix]);
        }
    }

    void produce(unsigned ix)
    {
        ftb_item items[POST_N];
        for (uint32_t i = 0; i < POST_N; i++) {
            items[i] = numbered_item(ix * 100 + i);
        }
        uint32_t pushed_n =
            ftb_ring_try_push_mpmc(&ring, items, POST_N, FTB_RING_PLAIN);
        RL_ASSERT(pushed_n == POST_N);
        wake();
    }

    void stop()
    {
        ftb_store_seq_cst(&is_stopped, 1);
        for (unsigned i = 0; i < WORKERS_N; i++) {
            ftb_parker_unpark(&parkers[i]);
        }
    }

    /* Take one item; the handler of the last stops the workers. */
    bool take()
    {
        ftb_item item;
        enum ftb_ring_kind kind;
        if (ftb_ring_try_pop_mpmc(&ring, &item, 1, &kind) == 0) {
            return false;
        }
#ifdef PARK_CHAIN
        if (ftb_idle_has_any(&idle) && !ftb_ring_is_empty(&ring)) {
            wake();
        }
#endif
        if (ftb_add_seq_cst(&taken_n, 1) + 1 == ITEMS_N) {
            stop();
        }
#ifdef PARK_CHAIN
        /* The handler returns when the other item is being handled, too. */
        while (ftb_load_acquire(&taken_n) < ITEMS_N) {
            ftb_relax();
        }
#endif
        return true;
    }

    void work(unsigned ix)
    {
        while (ftb_load_acquire(&is_stopped) == 0) {
            if (take()) {
                continue;
            }
            ftb_idle_set(&idle, ix);
            if (ftb_ring_is_empty(&ring)) {
                enum ftb_result result = ftb_parker_wait(&parkers[ix], FTB_FOREVER);
                RL_ASSERT(result == FTB_OK);
            }
            ftb_idle_clear(&idle, ix);
        }
    }

    void thread(unsigned ix)
    {
        if (ix < PRODUCERS_N) {
            produce(ix);
        } else {
            work(ix - PRODUCERS_N);
        }
    }

    void after()
    {
        RL_ASSERT(ftb_load_relaxed(&taken_n) == ITEMS_N);
    }
};

int
main(int argc, char **argv)
{
#ifdef PARK_CHAIN
    return run_model<park_model>(argc, argv, "park chain", 1000000, 2);
#else
    return run_model<park_model>(argc, argv, "park", 1000000, 2);
#endif
}

/* Items that say who pushed them and when: each comes out once, and those of one producer
 * in their order. */
#ifndef FTB_MODEL_NUMBERED_H
#define FTB_MODEL_NUMBERED_H

#include "model.h"

static const unsigned PRODUCERS_N = 2;
static const unsigned CONSUMERS_N = 2;
static const uint32_t ITEMS_N = 2; /* by each producer, if there is space */
static const int TRIES_N = 2;

/* For the threads' own eyes: what went in and what came out. */
struct numbered {
    uint64_t pushed[PRODUCERS_N];
    uint32_t popped[PRODUCERS_N][ITEMS_N];

    void clear()
    {
        std::memset(this, 0, sizeof *this);
    }

    static ftb_item item(unsigned producer, uint64_t number)
    {
        return numbered_item(producer * 100 + number);
    }

    /* last: by producer, one more than the last number this thread popped. */
    void take(const ftb_item &item, enum ftb_ring_kind kind, uint64_t *last)
    {
        uint64_t producer = item.stamp_ns / 100;
        uint64_t number = item.stamp_ns % 100;
        RL_ASSERT(kind == FTB_RING_PLAIN);
        RL_ASSERT(producer < PRODUCERS_N && number < ITEMS_N);
        RL_ASSERT(number >= last[producer]);
        last[producer] = number + 1;
        RL_ASSERT(++popped[producer][number] == 1);
    }

    /* With nothing left inside. */
    void check_complete() const
    {
        for (unsigned i = 0; i < PRODUCERS_N; i++) {
            for (uint32_t j = 0; j < ITEMS_N; j++) {
                RL_ASSERT(popped[i][j] == (j < pushed[i] ? 1u : 0u));
            }
        }
    }
};

#endif

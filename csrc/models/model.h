/* What every model shares: how its schedules are searched, and what its program prints.
 *
 * A model program takes `random N`, N random schedules, or `bounded N K`, up to N of the
 * schedules with at most K preemptions. It returns 0 if none fails; the first that fails
 * is printed step by step.
 *
 * This is evidence and not proof: relacy (by Dmitry Vyukov) explores the interleavings and
 * stale reads that C++11 allows, but a write is never older in its location's order than
 * one that was scheduled before it. */
#ifndef FTB_MODEL_H
#define FTB_MODEL_H

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>

#include <relacy/relacy.hpp>

#include "ftb_ring.h"

/* An item that carries only a number. */
inline ftb_item
numbered_item(uint64_t number)
{
    ftb_item item = ftb_item();
    item.stamp_ns = number;
    return item;
}

/* A ring over given cells, as ftb_ring_init makes it. */
inline void
model_ring_init(ftb_ring *ring, ftb_ring_cell *cells, uint32_t shift)
{
    ring->cells = cells;
    ring->mask = (1u << shift) - 1;
    ring->shift = shift;
    for (uint64_t i = 0; i <= ring->mask; i++) {
        ftb_init(&cells[i].turn, 0);
    }
    ftb_init(&ring->tail, 0);
    ftb_init(&ring->head, 0);
}

template <typename Model>
int
run_model(int argc, char **argv, const char *name)
{
    std::ostringstream log;
    rl::test_params params;
    bool is_bounded = argc > 3 && std::strcmp(argv[1], "bounded") == 0;
    params.iteration_count = argc > 2 ? (rl::iteration_t)std::atoll(argv[2]) : 100000;
    params.search_type = is_bounded ? rl::sched_bound : rl::random_scheduler_type;
    params.context_bound = is_bounded ? (unsigned)std::atoi(argv[3]) : 0;
    params.output_stream = &log;
    params.progress_stream = &log;
    bool is_ok = rl::simulate<Model>(params);
    if (!is_ok) {
        std::fputs(log.str().c_str(), stderr);
    }
    std::printf(
        "%-34s %-8s %-6s after %llu schedules\n", name, is_bounded ? "bounded" : "random",
        is_ok ? "ok" : "FAILED", (unsigned long long)params.stop_iteration);
    return is_ok ? 0 : 1;
}

#endif

/* What every model shares: how its schedules are searched, and what its program prints.
 *
 * A model program takes `random N`, N random schedules, or `bounded K`, every schedule
 * with at most K preemptions; without arguments it does both, as its main plans. It returns
 * 0 if none fails; the first that fails is printed step by step.
 *
 * This is evidence and not proof: relacy (by Dmitry Vyukov) explores the interleavings and
 * stale reads that C++11 allows, but a write is never older in its location's order than
 * one that was scheduled before it. */
#ifndef FTB_MODEL_H
#define FTB_MODEL_H

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ostream>
#include <streambuf>

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

/* Keeps what relacy prints, without the heap: relacy has taken that over by then. */
class model_log : public std::streambuf
{
  public:
    model_log()
    {
        setp(text, text + sizeof text - 1); /* what does not fit is left out */
    }

    const char *c_str()
    {
        *pptr() = '\0';
        return text;
    }

  private:
    char text[1 << 20];
};

/* Whether waits may end at a deadline. Not in bounded searches: relacy's scheduler for
 * those runs a finished thread again after a timed wait. */
static bool with_deadlines;

template <typename Model>
bool
search_model(const char *name, bool is_bounded, long number)
{
    static model_log log;
    std::ostream out(&log);
    rl::test_params params;
    with_deadlines = !is_bounded;
    params.search_type = is_bounded ? rl::sched_bound : rl::random_scheduler_type;
    params.iteration_count = is_bounded ? 0 : (rl::iteration_t)number;
    params.context_bound = is_bounded ? (unsigned)number : 0;
    params.output_stream = &out;
    params.progress_stream = &out;
    bool is_ok = rl::simulate<Model>(params);
    if (!is_ok) {
        std::fputs(log.c_str(), stderr);
    }
    std::printf(
        "   %-14s %-7s %-8ld %-6s after %llu schedules\n", name,
        is_bounded ? "bounded" : "random", number, is_ok ? "ok" : "FAILED",
        (unsigned long long)params.stop_iteration);
    std::fflush(stdout);
    return is_ok;
}

/* The model's main: search as the arguments say, or as planned. */
template <typename Model>
int
run_model(int argc, char **argv, const char *name, long random_n, long bound)
{
    if (argc > 2) {
        bool is_bounded = std::strcmp(argv[1], "bounded") == 0;
        return search_model<Model>(name, is_bounded, std::atol(argv[2])) ? 0 : 1;
    }
    bool is_ok = search_model<Model>(name, false, random_n);
    return is_ok && search_model<Model>(name, true, bound) ? 0 : 1;
}

#endif

/* What every model shares: how a model is searched, and what its program prints.
 *
 * A model program takes `random N` (N random schedules) or `bounded N K` (schedules with
 * at most K preemptions, up to N of them). It exits with 0 if none fails; a failed
 * schedule is printed step by step. Evidence and not proof: relacy explores stale reads
 * and reordering of C++11 atomics, but its modification orders follow its schedule. */
#ifndef FTB_MODEL_H
#define FTB_MODEL_H

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ostream>
#include <string>

#include <relacy/relacy.hpp>

template <typename Model>
static int
run_model(int argc, char **argv, const char *name)
{
    rl::test_params params;
    params.iteration_count = argc > 2 ? (rl::iteration_t)std::atoll(argv[2]) : 100000;
    params.search_type = rl::random_scheduler_type;
    params.execution_depth_limit = 5000;
    params.progress_stream = nullptr;
    if (argc > 3 && std::strcmp(argv[1], "bounded") == 0) {
        params.search_type = rl::sched_bound;
        params.context_bound = (unsigned)std::atoi(argv[3]);
    }
    bool is_ok = rl::simulate<Model>(params);
    std::printf(
        "%-24s %-8s %s after %llu schedules\n", name, argc > 1 ? argv[1] : "random",
        is_ok ? "ok" : "FAILED", (unsigned long long)params.stop_iteration);
    return is_ok ? 0 : 1;
}

#endif

/* The C tests' helpers: a check that is on in every build, scaled sizes, and threads
 * that start together. */
#ifndef FTB_TESTS_CHECK_H
#define FTB_TESTS_CHECK_H

#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "ftb_atomic.h"

#if defined(__APPLE__) || defined(FTB_WAIT_RELATIVE)
#include "barrier.h"
#endif

#define CHECK(condition)                                                               \
    do {                                                                               \
        if (!(condition)) {                                                            \
            fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);    \
            abort();                                                                   \
        }                                                                              \
    } while (0)

#define RUN(test)                                                                      \
    do {                                                                               \
        printf("   %s\n", #test);                                                      \
        fflush(stdout);                                                                \
        test();                                                                        \
    } while (0)

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define CHECK_SHRINK 10 /* instrumented code is about ten times slower */
#else
#define CHECK_SHRINK 1
#endif

/* n stretched by the environment's FTB_SCALE and shrunk under a sanitizer; at least 1. */
static inline long
scaled(long n)
{
    const char *scale = getenv("FTB_SCALE");
    double factor = scale != NULL ? atof(scale) : 1.0;
    double size = (double)n * factor / CHECK_SHRINK;
    return size < 1 ? 1 : (long)size;
}

/* A small generator for tests (xorshift64*); *state must not be 0. */
static inline uint64_t
next_random(uint64_t *state)
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * 0x2545F4914F6CDD1Du;
}

/* The seed of this run, not 0: FTB_SEED, or a new one. It is printed, so that a run that
 * fails can be tried again. */
static inline uint64_t
run_seed(void)
{
    const char *text = getenv("FTB_SEED");
    uint64_t seed = text != NULL ? strtoull(text, NULL, 0) : (uint64_t)time(NULL);
    printf("   FTB_SEED=%llu\n", (unsigned long long)seed);
    return seed == 0 ? 1 : seed;
}

/* Kill this program unless it ends or calls this again in so many seconds: a lost wake-up
 * does not fail, it hangs. */
static inline void
set_watchdog(unsigned seconds)
{
    alarm(seconds);
}

#define CHECK_MAX_THREADS 64

struct check_thread {
    pthread_barrier_t *barrier;
    void (*body)(int ix, void *context);
    void *context;
    int ix;
};

static inline void *
check_thread_main(void *argument)
{
    struct check_thread *self = argument;
    pthread_barrier_wait(self->barrier);
    self->body(self->ix, self->context);
    return NULL;
}

/* Run body(0..threads_n-1, context) on that many threads, started at one barrier. */
static inline void
run_threads(int threads_n, void (*body)(int ix, void *context), void *context)
{
    pthread_t handles[CHECK_MAX_THREADS];
    struct check_thread threads[CHECK_MAX_THREADS];
    pthread_barrier_t barrier;
    CHECK(threads_n <= CHECK_MAX_THREADS);
    pthread_barrier_init(&barrier, NULL, (unsigned)threads_n);
    for (int i = 0; i < threads_n; i++) {
        threads[i] = (struct check_thread){&barrier, body, context, i};
        CHECK(pthread_create(&handles[i], NULL, check_thread_main, &threads[i]) == 0);
    }
    for (int i = 0; i < threads_n; i++) {
        pthread_join(handles[i], NULL);
    }
    pthread_barrier_destroy(&barrier);
}

/* Who may go on, of threads that take turns. Under ThreadSanitizer it is relaxed and orders
 * nothing but the turns: what one thread does before and the next one after is then a race,
 * seen without luck, unless the code under test orders the two. (That runs on x86 alone,
 * where the second thread still finds what the first one did.) Elsewhere it orders both. */
struct baton {
    ftb_atomic(uint32_t) turn;
};

static inline void
baton_pass(struct baton *baton, uint32_t turn)
{
#ifdef __SANITIZE_THREAD__
    ftb_store_relaxed(&baton->turn, turn);
#else
    ftb_store_release(&baton->turn, turn);
#endif
}

static inline uint32_t
baton_turn(struct baton *baton)
{
#ifdef __SANITIZE_THREAD__
    return ftb_load_relaxed(&baton->turn);
#else
    return ftb_load_acquire(&baton->turn);
#endif
}

static inline void
baton_await(struct baton *baton, uint32_t turn)
{
    while (baton_turn(baton) != turn) {
        sched_yield();
    }
}

#endif

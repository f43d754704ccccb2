#include "ftb_park.h"

#include <errno.h>
#include <time.h>

/* A deadline must not be a wall-clock time, which jumps. macOS has no condition variable
 * with another clock, but can sleep for a duration; test_park_relative tests that path
 * elsewhere. */
#if defined(__APPLE__) && !defined(FTB_WAIT_RELATIVE)
#define FTB_WAIT_RELATIVE
#endif

static struct timespec
to_timespec(uint64_t ns)
{
    return (struct timespec){
        .tv_sec = (time_t)(ns / 1000000000u),
        .tv_nsec = (long)(ns % 1000000000u),
    };
}

#ifdef FTB_WAIT_RELATIVE

#define LONGEST_NS UINT64_C(3600000000000) /* far from what the system may refuse */

static void
cond_init(ftb_cond_t *cond)
{
    pthread_cond_init(cond, NULL);
}

/* Whether the deadline passed is the clock's to say: the system rounds durations. So a
 * sleep that ends early, or was cut to LONGEST_NS, is a wake-up for no reason, after which
 * every caller waits again. */
static bool
wait_until(ftb_cond_t *cond, ftb_mutex_t *mutex, uint64_t deadline_ns)
{
    uint64_t now_ns = ftb_now_ns();
    if (now_ns >= deadline_ns) {
        return true; /* a duration of zero would mean no deadline */
    }
    uint64_t left_ns = deadline_ns - now_ns;
    struct timespec left = to_timespec(left_ns < LONGEST_NS ? left_ns : LONGEST_NS);
    (void)pthread_cond_timedwait_relative_np(cond, mutex, &left);
    return ftb_now_ns() >= deadline_ns;
}

#else

static void
cond_init(ftb_cond_t *cond)
{
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(cond, &attributes);
    pthread_condattr_destroy(&attributes);
}

static bool
wait_until(ftb_cond_t *cond, ftb_mutex_t *mutex, uint64_t deadline_ns)
{
    struct timespec deadline = to_timespec(deadline_ns);
    return pthread_cond_timedwait(cond, mutex, &deadline) == ETIMEDOUT;
}

#endif

void
ftb_parker_init(struct ftb_parker *parker)
{
    ftb_init(&parker->state, FTB_PARKER_EMPTY);
    pthread_mutex_init(&parker->mutex, NULL);
    cond_init(&parker->cond);
}

void
ftb_parker_fini(struct ftb_parker *parker)
{
    pthread_cond_destroy(&parker->cond);
    pthread_mutex_destroy(&parker->mutex);
}

void
ftb_waitset_init(struct ftb_waitset *waitset)
{
    ftb_init(&waitset->word, 0);
    pthread_mutex_init(&waitset->mutex, NULL);
    cond_init(&waitset->cond);
}

void
ftb_waitset_fini(struct ftb_waitset *waitset)
{
    pthread_cond_destroy(&waitset->cond);
    pthread_mutex_destroy(&waitset->mutex);
}

bool
ftb_cond_wait(ftb_cond_t *cond, ftb_mutex_t *mutex, uint64_t deadline_ns)
{
    if (deadline_ns == FTB_FOREVER) {
        pthread_cond_wait(cond, mutex);
        return false;
    }
    return wait_until(cond, mutex, deadline_ns);
}

/* macOS's wait for a duration, for systems that lack it: ftb_park.c compiled with
 * FTB_WAIT_RELATIVE and this is what macOS gets. It sleeps for at most CUT_NS and then
 * says that the time is over, so every longer wait tests that nobody believes it. */
#ifndef FTB_RELATIVE_WAIT_H
#define FTB_RELATIVE_WAIT_H

#include <pthread.h>
#include <time.h>

#define CUT_NS 3000000L

static inline int
pthread_cond_timedwait_relative_np(
    pthread_cond_t *cond, pthread_mutex_t *mutex, const struct timespec *duration)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec +=
        duration->tv_sec > 0 || duration->tv_nsec > CUT_NS ? CUT_NS : duration->tv_nsec;
    if (until.tv_nsec >= 1000000000L) {
        until.tv_nsec -= 1000000000L;
        until.tv_sec++;
    }
    return pthread_cond_clockwait(cond, mutex, CLOCK_MONOTONIC, &until);
}

#endif

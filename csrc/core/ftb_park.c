#include "ftb_park.h"

#include <errno.h>
#include <time.h>

static void
cond_init(ftb_cond_t *cond)
{
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    /* Without this the deadlines would be wall-clock times, which jump. */
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(cond, &attributes);
    pthread_condattr_destroy(&attributes);
}

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
    struct timespec deadline = {
        .tv_sec = (time_t)(deadline_ns / 1000000000u),
        .tv_nsec = (long)(deadline_ns % 1000000000u),
    };
    return pthread_cond_timedwait(cond, mutex, &deadline) == ETIMEDOUT;
}

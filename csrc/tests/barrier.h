/* POSIX's barriers, which macOS lacks. test_park_relative runs with these everywhere. */
#ifndef FTB_TESTS_BARRIER_H
#define FTB_TESTS_BARRIER_H

#include <pthread.h>
#include <stddef.h>

struct barrier {
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    unsigned threads_n;
    unsigned waiting_n;  /* under the mutex */
    unsigned long round; /* under the mutex; ends when all have come */
};

static inline int
barrier_init(struct barrier *barrier, const void *attributes, unsigned threads_n)
{
    (void)attributes;
    pthread_mutex_init(&barrier->mutex, NULL);
    pthread_cond_init(&barrier->cond, NULL);
    barrier->threads_n = threads_n;
    barrier->waiting_n = 0;
    barrier->round = 0;
    return 0;
}

static inline int
barrier_wait(struct barrier *barrier)
{
    pthread_mutex_lock(&barrier->mutex);
    unsigned long round = barrier->round;
    if (++barrier->waiting_n == barrier->threads_n) {
        barrier->waiting_n = 0;
        barrier->round++;
        pthread_cond_broadcast(&barrier->cond);
    }
    while (barrier->round == round) {
        pthread_cond_wait(&barrier->cond, &barrier->mutex);
    }
    pthread_mutex_unlock(&barrier->mutex);
    return 0;
}

static inline int
barrier_destroy(struct barrier *barrier)
{
    pthread_cond_destroy(&barrier->cond);
    return pthread_mutex_destroy(&barrier->mutex);
}

#define pthread_barrier_t struct barrier
#define pthread_barrier_init barrier_init
#define pthread_barrier_wait barrier_wait
#define pthread_barrier_destroy barrier_destroy

#endif

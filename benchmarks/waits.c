/* Counts how often threads find a lock taken. benchmarks/waits.py compiles it and preloads
 * it into a process of its own (LD_PRELOAD); nothing else does.
 *
 * It stands before the C library's functions, so it sees the locks of the interpreter, of
 * extensions and of threading alike. A PyMutex, which a threading.Lock, a list and a dict
 * have, yields up to 40 times when it is taken, and then waits for a semaphore; locks of C
 * are pthread mutexes. Yields and sleeps that follow each other within GAP_NS are one wait.
 * What spins without a yield is not seen. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stddef.h>
#include <time.h>

#define GAP_NS 200

/* Of one thread, and written by it alone. */
struct waits {
    unsigned long long found_taken;
    unsigned long long sleeps;
    long long waited_ns; /* when its last yield or sleep was over */
};

static _Thread_local struct waits waits;

/* Found when the library is loaded, before there are threads. */
static struct {
    int (*sem_trywait)(sem_t *);
    int (*sem_wait)(sem_t *);
    int (*sem_timedwait)(sem_t *, const struct timespec *);
    int (*sem_clockwait)(sem_t *, clockid_t, const struct timespec *);
    int (*mutex_lock)(pthread_mutex_t *);
    int (*mutex_trylock)(pthread_mutex_t *);
    int (*cond_wait)(pthread_cond_t *, pthread_mutex_t *);
    int (*cond_timedwait)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
    int (*yield)(void);
} real;

__attribute__((constructor)) static void
find_real(void)
{
    *(void **)&real.sem_trywait = dlsym(RTLD_NEXT, "sem_trywait");
    *(void **)&real.sem_wait = dlsym(RTLD_NEXT, "sem_wait");
    *(void **)&real.sem_timedwait = dlsym(RTLD_NEXT, "sem_timedwait");
    *(void **)&real.sem_clockwait = dlsym(RTLD_NEXT, "sem_clockwait");
    *(void **)&real.mutex_lock = dlsym(RTLD_NEXT, "pthread_mutex_lock");
    *(void **)&real.mutex_trylock = dlsym(RTLD_NEXT, "pthread_mutex_trylock");
    *(void **)&real.cond_wait = dlsym(RTLD_NEXT, "pthread_cond_wait");
    *(void **)&real.cond_timedwait = dlsym(RTLD_NEXT, "pthread_cond_timedwait");
    *(void **)&real.yield = dlsym(RTLD_NEXT, "sched_yield");
}

static long long
now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static void
begin_wait(void)
{
    waits.found_taken += now_ns() - waits.waited_ns > GAP_NS;
}

static int
end_wait(int result)
{
    waits.waited_ns = now_ns();
    return result;
}

static void
begin_sleep(void)
{
    begin_wait();
    waits.sleeps++;
}

/* Write how often the calling thread found a lock taken, and how often it slept. */
void
waits_read(unsigned long long *counts)
{
    counts[0] = waits.found_taken;
    counts[1] = waits.sleeps;
}

int
sched_yield(void)
{
    begin_wait();
    return end_wait(real.yield());
}

int
sem_trywait(sem_t *semaphore)
{
    int result = real.sem_trywait(semaphore);
    if (result != 0 && errno == EAGAIN) {
        begin_wait();
        end_wait(0);
        errno = EAGAIN;
    }
    return result;
}

int
sem_wait(sem_t *semaphore)
{
    if (real.sem_trywait(semaphore) == 0) {
        return 0;
    }
    begin_sleep();
    return end_wait(real.sem_wait(semaphore));
}

int
sem_timedwait(sem_t *semaphore, const struct timespec *until)
{
    if (real.sem_trywait(semaphore) == 0) {
        return 0;
    }
    begin_sleep();
    return end_wait(real.sem_timedwait(semaphore, until));
}

int
sem_clockwait(sem_t *semaphore, clockid_t clock, const struct timespec *until)
{
    if (real.sem_trywait(semaphore) == 0) {
        return 0;
    }
    begin_sleep();
    return end_wait(real.sem_clockwait(semaphore, clock, until));
}

int
pthread_mutex_trylock(pthread_mutex_t *mutex)
{
    int result = real.mutex_trylock(mutex);
    if (result == EBUSY) {
        begin_wait();
        end_wait(0);
    }
    return result;
}

int
pthread_mutex_lock(pthread_mutex_t *mutex)
{
    int result = real.mutex_trylock(mutex);
    if (result != EBUSY) {
        return result;
    }
    begin_sleep();
    return end_wait(real.mutex_lock(mutex));
}

int
pthread_cond_wait(pthread_cond_t *cond, pthread_mutex_t *mutex)
{
    begin_sleep();
    return end_wait(real.cond_wait(cond, mutex));
}

int
pthread_cond_timedwait(
    pthread_cond_t *cond, pthread_mutex_t *mutex, const struct timespec *until)
{
    begin_sleep();
    return end_wait(real.cond_timedwait(cond, mutex, until));
}

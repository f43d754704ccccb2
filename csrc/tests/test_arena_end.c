/* Threads that end, arenas that end and processes that fork. Each test says which bug it
 * hunts; ../mutants_arena.py lists what SAN=thread must notice. */
#include "arena_work.h"

#include <stdbool.h>
#include <sys/wait.h>
#include <unistd.h>

#if defined(__SANITIZE_THREAD__)
enum { UNDER_TSAN = 1, UNDER_ASAN = 0 };
#elif defined(__SANITIZE_ADDRESS__)
enum { UNDER_TSAN = 0, UNDER_ASAN = 1 };
#else
enum { UNDER_TSAN = 0, UNDER_ASAN = 0 };
#endif

/* Hunts: records or blocks lost with their thread. */
static void
test_ended_threads_leave_everything(void)
{
    enum { AT_ONCE = 4 };
    ftb_arena_t *arena = ftb_arena_new(0);
    pthread_t threads[AT_ONCE];
    uint64_t reserved = 0;
    long waves = scaled(150) + 2;
    for (long wave = 0; wave < waves; wave++) {
        for (int i = 0; i < AT_ONCE; i++) {
            CHECK(pthread_create(&threads[i], NULL, short_thread, arena) == 0);
        }
        for (int i = 0; i < AT_ONCE; i++) {
            pthread_join(threads[i], NULL);
        }
        check_at_rest(arena);
        reserved = stats_of(arena).reserved_bytes;
        CHECK(stats_of(arena).caches <= AT_ONCE);
        CHECK(reserved <= AT_ONCE * 50 * 3000);
    }
    CHECK(stats_of(arena).allocs == (uint64_t)waves * AT_ONCE * 50);
    CHECK(ftb_arena_trim(arena) == reserved);
    ftb_arena_free(arena);
}

static void
late_release_body(int ix, void *context)
{
    struct work *work = context;
    if (ix == 0) {
        /* Every second round waits for the others through the counters alone. */
        while (work->rounds % 2 == 0 && stats_of(work->arena).live_blocks > 0) {
            sched_yield();
        }
        ftb_arena_free(work->arena);
        atomic_store(&work->running, 0);
        return;
    }
    for (int i = 0; i < 20; i++) {
        ftb_block_t *block = ring_get(&work->rings[0]);
        verify(block);
        ftb_block_release(block);
    }
    /* A thread's end would order what the counters must order. */
    while (atomic_load(&work->running) != 0) {
        sched_yield();
    }
}

/* Hunts: an arena that ends under a release, or never. The leak checker says the
 * second; the new arena at the end meets what a late count left behind. */
static void
test_an_arena_ends_with_its_last_block(void)
{
    struct work work;
    for (long round = 0; round < scaled(1000); round++) {
        work_init(&work, 0, round);
        for (int i = 0; i < 60; i++) {
            /* In every fourth round the last ones are large, which are counted apart. */
            bool is_large = round % 4 == 0 ? i >= 54 : i % 7 == 0;
            ftb_block_t *block = ftb_block_new(work.arena, is_large ? 300000 : 100);
            fill(block, (uint64_t)i);
            ring_put(&work.rings[0], block);
        }
        atomic_store(&work.running, 1);
        run_threads(4, late_release_body, &work);
        work.arena = NULL;
        work_fini(&work);
    }
    ftb_arena_free(ftb_arena_new(0));
}

/* Thread 1 gets no memory for a cache, so it counts in the arena. */
static void
stray_release_body(int ix, void *context)
{
    struct work *work = context;
    if (ix == 0) {
        while (stats_of(work->arena).live_blocks > 0) {
            sched_yield();
        }
        ftb_arena_free(work->arena);
        atomic_store(&work->running, 0);
        return;
    }
    for (unsigned i = 0; i < 2; i++) {
        ftb_block_t *block = work->rings[0].slots[(unsigned)(work->rounds + i) % 2];
        verify(block);
        ftb_fault_alloc(0); /* this thread alone allocates now: the table of caches */
        ftb_block_release(block);
    }
    while (atomic_load(&work->running) != 0) {
        sched_yield();
    }
}

/* Hunts: the same, where what orders the end is a count that all threads share. The last
 * block of a round is a pooled one or a large one by turns. */
static void
test_an_arena_ends_with_a_release_without_cache(void)
{
    struct work work;
    for (long round = 0; round < scaled(2000); round++) {
        work_init(&work, 0, round);
        for (int i = 0; i < 2; i++) {
            work.rings[0].slots[i] = ftb_block_new(work.arena, i == 0 ? 300000 : 100);
            CHECK(work.rings[0].slots[i] != NULL);
            fill(work.rings[0].slots[i], (uint64_t)i);
        }
        atomic_store(&work.running, 1);
        run_threads(2, stray_release_body, &work);
        work.arena = NULL;
        work_fini(&work);
    }
    ftb_fault_alloc(-1);
    ftb_arena_free(ftb_arena_new(0));
}

static void
fork_child(struct work *work)
{
    alarm(20); /* a lock that nobody releases would hang the child */
    ftb_arena_after_fork_child();
    for (int i = 0; i < 2000; i++) {
        ftb_block_t *block = ftb_block_new(work->arena, (uint64_t)i * 20);
        fill(block, 1);
        verify(block);
        ftb_block_release(block);
    }
    short_thread(work->arena);
    ftb_arena_trim(work->arena);
    ftb_arena_t *another = ftb_arena_new(0);
    bool sound = another != NULL && ftb_arena_check(work->arena);
    ftb_arena_free(another);
    _exit(sound ? 0 : 1);
}

/* AddressSanitizer's own allocator, in gcc 12, does not free its locks in the child: a
 * program of nothing but malloc, free and fork hangs there in 2 of 100 forks. So there,
 * and only there, a fork waits until the others are between two bursts of work. */
static pthread_rwlock_t malloc_gate;

static void
gate_init(void)
{
    pthread_rwlockattr_t fair;
    pthread_rwlockattr_init(&fair);
#ifdef __GLIBC__ /* whose default lets a fork wait for as long as others come */
    pthread_rwlockattr_setkind_np(&fair, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
#endif
    pthread_rwlock_init(&malloc_gate, &fair);
    pthread_rwlockattr_destroy(&fair);
}

static pid_t
fork_amid_work(void)
{
    if (UNDER_ASAN) {
        pthread_rwlock_wrlock(&malloc_gate);
    }
    pid_t child = fork();
    if (UNDER_ASAN && child != 0) {
        pthread_rwlock_unlock(&malloc_gate);
    }
    return child;
}

static void
work_amid_forks(int ix, struct work *work)
{
    while (atomic_load(&work->running) > 0) {
        if (UNDER_ASAN) {
            pthread_rwlock_rdlock(&malloc_gate);
        }
        random_body(ix, work);
        if (UNDER_ASAN) {
            pthread_rwlock_unlock(&malloc_gate);
        }
    }
}

static void
forked_body(int ix, void *context)
{
    struct work *work = context;
    if (ix > 0) {
        work_amid_forks(ix, work);
        return;
    }
    long forks = scaled(50);
    for (long i = 0; i < forks; i++) {
        pid_t child = fork_amid_work();
        CHECK(child >= 0);
        if (child == 0) {
            fork_child(work);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child);
        if (status != 0) {
            printf(
                "      fork %ld: the child ended with status %#x\n", i,
                (unsigned)status);
        }
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    atomic_store(&work->running, 0);
}

/* Hunts: a lock or a half-changed list that the child inherits. */
static void
test_a_fork_child_can_allocate(void)
{
    if (UNDER_TSAN) {
        printf("      skipped: ThreadSanitizer does not support it\n");
        return;
    }
    struct work work;
    work_init(&work, 0, 200);
    gate_init();
    atomic_store(&work.running, 1);
    run_threads(4, forked_body, &work);
    check_at_rest(work.arena);
    work_fini(&work);
}

int
main(void)
{
    set_watchdog(240);
    seed = run_seed();
    RUN(test_ended_threads_leave_everything);
    RUN(test_an_arena_ends_with_its_last_block);
    RUN(test_an_arena_ends_with_a_release_without_cache);
    RUN(test_a_fork_child_can_allocate);
    return 0;
}

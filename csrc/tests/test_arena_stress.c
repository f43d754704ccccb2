/* The arena under threads. Each test says which bug it hunts; ../mutants_arena.py lists
 * what SAN=thread must notice. */
#include "ftb_arena.h"

#include "check.h"
#include "ftb_base.h"

#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#if defined(__SANITIZE_THREAD__)
enum { UNDER_TSAN = 1, UNDER_ASAN = 0 };
#elif defined(__SANITIZE_ADDRESS__)
enum { UNDER_TSAN = 0, UNDER_ASAN = 1 };
#else
enum { UNDER_TSAN = 0, UNDER_ASAN = 0 };
#endif

static uint64_t seed;

static struct ftb_arena_stats
stats_of(ftb_arena_t *arena)
{
    struct ftb_arena_stats stats;
    ftb_arena_stats(arena, &stats);
    return stats;
}

static void
check_at_rest(ftb_arena_t *arena)
{
    struct ftb_arena_stats stats = stats_of(arena);
    CHECK(stats.live_blocks == 0 && stats.live_bytes == 0);
    CHECK(stats.allocs == stats.frees);
    CHECK(ftb_arena_check(arena));
}

static void
fill(ftb_block_t *block, uint64_t mark)
{
    uint64_t length = ftb_block_length(block);
    memset(ftb_block_data(block), (int)(mark & 0xFF), (size_t)length);
}

static void
verify(ftb_block_t *block)
{
    uint64_t length = ftb_block_length(block);
    const unsigned char *data = ftb_block_data(block);
    for (uint64_t i = 1; i < length; i++) {
        CHECK(data[i] == data[0]);
    }
}

/* A bounded queue between threads, as plain as can be. */
#define RING 256
struct ring {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    ftb_block_t *slots[RING];
    unsigned head, tail;
};

static void
ring_init(struct ring *ring)
{
    pthread_mutex_init(&ring->lock, NULL);
    pthread_cond_init(&ring->changed, NULL);
    ring->head = ring->tail = 0;
}

static void
ring_put(struct ring *ring, ftb_block_t *block)
{
    pthread_mutex_lock(&ring->lock);
    while (ring->tail - ring->head == RING) {
        pthread_cond_wait(&ring->changed, &ring->lock);
    }
    ring->slots[ring->tail++ % RING] = block;
    pthread_cond_broadcast(&ring->changed);
    pthread_mutex_unlock(&ring->lock);
}

static ftb_block_t *
ring_get(struct ring *ring)
{
    pthread_mutex_lock(&ring->lock);
    while (ring->tail == ring->head) {
        pthread_cond_wait(&ring->changed, &ring->lock);
    }
    ftb_block_t *block = ring->slots[ring->head++ % RING];
    pthread_cond_broadcast(&ring->changed);
    pthread_mutex_unlock(&ring->lock);
    return block;
}

static void
ring_fini(struct ring *ring)
{
    pthread_mutex_destroy(&ring->lock);
    pthread_cond_destroy(&ring->changed);
}

struct work {
    ftb_arena_t *arena;
    struct ring rings[4];
    long rounds;
    atomic_int running;
};

static void
work_init(struct work *work, uint64_t limit_bytes, long rounds)
{
    work->arena = ftb_arena_new(limit_bytes);
    work->rounds = rounds;
    atomic_init(&work->running, 0);
    for (int i = 0; i < 4; i++) {
        ring_init(&work->rings[i]);
    }
}

static void
work_fini(struct work *work)
{
    for (int i = 0; i < 4; i++) {
        ring_fini(&work->rings[i]);
    }
    ftb_arena_free(work->arena);
}

/* Even threads allocate, odd ones free what they get. */
static void
pass_body(int ix, void *context)
{
    struct work *work = context;
    struct ring *ring = &work->rings[ix / 2];
    uint64_t random = seed + (uint64_t)ix;
    for (long i = 0; i < work->rounds; i++) {
        if (ix % 2 == 0) {
            uint64_t size = next_random(&random) % 2 == 0 ? 200 : 1024;
            ftb_block_t *block = ftb_block_new(work->arena, size);
            CHECK(block != NULL);
            fill(block, random);
            ring_put(ring, block);
        } else {
            ftb_block_t *block = ring_get(ring);
            verify(block);
            ftb_block_release(block);
        }
    }
}

/* Hunts: blocks that drift to the freeing thread and never come back, and content
 * written by the next owner while the last one still reads. */
static void
test_blocks_come_back_from_other_threads(void)
{
    struct work work;
    work_init(&work, 0, scaled(100000));
    run_threads(4, pass_body, &work);
    check_at_rest(work.arena);
    struct ftb_arena_stats stats = stats_of(work.arena);
    CHECK(stats.allocs == 2 * (uint64_t)work.rounds);
    /* In flight at most: two rings, and four magazines of each class per thread. */
    CHECK(stats.misses <= 2 * RING + 4 * 2 * 4 * 32);
    work_fini(&work);
}

static void
random_body(int ix, void *context)
{
    struct work *work = context;
    ftb_block_t *held[64] = {0};
    uint64_t random = seed + 100 + (uint64_t)ix;
    for (long i = 0; i < work->rounds; i++) {
        uint64_t dice = next_random(&random);
        ftb_block_t **slot = &held[dice % 64];
        if (*slot != NULL) {
            verify(*slot);
            ftb_block_release(*slot);
        }
        uint64_t size = dice >> 8;
        size = size % 100 < 2 ? size % 400000 : size % 3000;
        *slot = ftb_block_new(work->arena, size);
        if (*slot != NULL) {
            fill(*slot, dice >> 20);
        }
    }
    for (int i = 0; i < 64; i++) {
        if (held[i] != NULL) {
            ftb_block_release(held[i]);
        }
    }
}

/* Hunts: a block in two hands, and counters that miss one. */
static void
test_random_sizes_keep_their_content(void)
{
    struct work work;
    work_init(&work, 0, scaled(40000));
    run_threads(4, random_body, &work);
    check_at_rest(work.arena);
    CHECK(stats_of(work.arena).allocs == 4 * (uint64_t)work.rounds);
    work_fini(&work);
}

/* Hunts: a bound that two threads can pass together, or a retry that loses bytes. */
static void
test_limit_holds_under_threads(void)
{
    struct work work;
    work_init(&work, 300000, scaled(40000));
    run_threads(4, random_body, &work);
    struct ftb_arena_stats stats = stats_of(work.arena);
    CHECK(stats.peak_bytes <= 300000);
    check_at_rest(work.arena);
    ftb_arena_trim(work.arena);
    CHECK(stats_of(work.arena).reserved_bytes == 0);
    work_fini(&work);
}

/* Thread 0 makes each block and gives it to three readers with one add. */
static void
fan_out_body(int ix, void *context)
{
    struct work *work = context;
    for (long i = 0; i < work->rounds; i++) {
        if (ix == 0) {
            ftb_block_t *block = ftb_block_new(work->arena, 300);
            fill(block, (uint64_t)i);
            ftb_block_retain_many(block, 2);
            for (int reader = 1; reader <= 3; reader++) {
                ring_put(&work->rings[reader], block);
            }
        } else {
            ftb_block_t *block = ring_get(&work->rings[ix]);
            verify(block);
            ftb_block_release(block);
        }
    }
}

/* Hunts: a last release that does not wait for the other readers' accesses. */
static void
test_fan_out_frees_once_after_all_readers(void)
{
    struct work work;
    work_init(&work, 0, scaled(30000));
    run_threads(4, fan_out_body, &work);
    check_at_rest(work.arena);
    CHECK(stats_of(work.arena).frees == (uint64_t)work.rounds);
    work_fini(&work);
}

/* Thread 0 writes, thread 1 reads; when it has let go, thread 0 writes again. */
static void
rewrite_body(int ix, void *context)
{
    struct work *work = context;
    for (long i = 0; i < work->rounds; i++) {
        if (ix == 1) {
            ftb_block_t *block = ring_get(&work->rings[0]);
            verify(block);
            ftb_block_release(block);
            continue;
        }
        ftb_block_t *block = ftb_block_new(work->arena, 100);
        fill(block, (uint64_t)i);
        ring_put(&work->rings[0], ftb_block_retain(block));
        while (!ftb_block_is_unique(block)) {
            sched_yield();
        }
        fill(block, (uint64_t)i + 1);
        ftb_block_release(block);
    }
}

/* Hunts: an only holder that writes while the one before still reads. */
static void
test_an_only_holder_may_write_again(void)
{
    struct work work;
    work_init(&work, 0, scaled(20000));
    run_threads(2, rewrite_body, &work);
    check_at_rest(work.arena);
    work_fini(&work);
}

static void *
short_thread(void *context)
{
    ftb_arena_t *arena = context;
    ftb_block_t *held[50];
    for (int i = 0; i < 50; i++) {
        held[i] = ftb_block_new(arena, (uint64_t)i * 40);
        fill(held[i], (uint64_t)i);
    }
    for (int i = 0; i < 50; i++) {
        verify(held[i]);
        ftb_block_release(held[i]);
    }
    return NULL;
}

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
            ftb_block_t *block = ftb_block_new(work.arena, i % 7 == 0 ? 300000 : 100);
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
watched_body(int ix, void *context)
{
    struct work *work = context;
    if (ix > 0) {
        random_body(ix, work);
        atomic_fetch_sub(&work->running, 1);
        return;
    }
    uint64_t allocs = 0;
    while (atomic_load(&work->running) > 0) {
        struct ftb_arena_stats stats = stats_of(work->arena);
        CHECK(stats.allocs >= allocs && stats.allocs >= stats.frees);
        CHECK(stats.live_blocks <= stats.allocs);
        CHECK(stats.live_bytes <= UINT64_C(1) << 40);
        allocs = stats.allocs;
        ftb_arena_trim(work->arena);
    }
}

/* Hunts: a sum that goes negative, and a trim that takes what is in use. */
static void
test_stats_and_trim_amid_work(void)
{
    struct work work;
    work_init(&work, 0, scaled(20000));
    atomic_store(&work.running, 3);
    run_threads(4, watched_body, &work);
    check_at_rest(work.arena);
    work_fini(&work);
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
    pthread_rwlockattr_setkind_np(&fair, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
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
    const char *text = getenv("FTB_SEED");
    seed =
        text != NULL ? strtoull(text, NULL, 0) : (uint64_t)getpid() * 2654435761u + 1;
    printf("   FTB_SEED=%llu\n", (unsigned long long)seed);
    RUN(test_blocks_come_back_from_other_threads);
    RUN(test_random_sizes_keep_their_content);
    RUN(test_limit_holds_under_threads);
    RUN(test_fan_out_frees_once_after_all_readers);
    RUN(test_an_only_holder_may_write_again);
    RUN(test_ended_threads_leave_everything);
    RUN(test_an_arena_ends_with_its_last_block);
    RUN(test_an_arena_ends_with_a_release_without_cache);
    RUN(test_stats_and_trim_amid_work);
    RUN(test_a_fork_child_can_allocate);
    return 0;
}

/* What threads do with an arena in its tests, and how they hand blocks on. */
#ifndef FTB_TESTS_ARENA_WORK_H
#define FTB_TESTS_ARENA_WORK_H

#include "ftb_arena.h"
#include "ftb_base.h"

#include "check.h"

#include <sched.h>
#include <stdatomic.h>
#include <string.h>

static uint64_t seed;

static inline struct ftb_arena_stats
stats_of(ftb_arena_t *arena)
{
    struct ftb_arena_stats stats;
    ftb_arena_stats(arena, &stats);
    return stats;
}

static inline void
check_at_rest(ftb_arena_t *arena)
{
    struct ftb_arena_stats stats = stats_of(arena);
    CHECK(stats.live_blocks == 0 && stats.live_bytes == 0);
    CHECK(stats.allocs == stats.frees);
    CHECK(ftb_arena_check(arena));
}

static inline void
fill(ftb_block_t *block, uint64_t mark)
{
    uint64_t length = ftb_block_length(block);
    memset(ftb_block_data(block), (int)(mark & 0xFF), (size_t)length);
}

static inline void
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

static inline void
ring_init(struct ring *ring)
{
    pthread_mutex_init(&ring->lock, NULL);
    pthread_cond_init(&ring->changed, NULL);
    ring->head = ring->tail = 0;
}

static inline void
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

static inline ftb_block_t *
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

static inline void
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

static inline void
work_init(struct work *work, uint64_t limit_bytes, long rounds)
{
    work->arena = ftb_arena_new(limit_bytes);
    work->rounds = rounds;
    atomic_init(&work->running, 0);
    for (int i = 0; i < 4; i++) {
        ring_init(&work->rings[i]);
    }
}

static inline void
work_fini(struct work *work)
{
    for (int i = 0; i < 4; i++) {
        ring_fini(&work->rings[i]);
    }
    ftb_arena_free(work->arena);
}

/* Hold up to 64 blocks of any size, and look at what is in them. */
static inline void
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

/* A thread that ends with full caches. */
static inline void *
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

#endif

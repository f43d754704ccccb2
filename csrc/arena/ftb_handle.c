/* Handles: a table of references that wait to be taken, named by integers.
 *
 * Thread rule: any thread, at any time. A shard's slots are guarded by its lock, which
 * is a leaf: under it nothing is called but the allocator.
 *
 * A handle is a slot's place and its generation (the slot map of game engines). Taking
 * it raises the generation, so each value is good once. A slot that has run through all
 * generations is used no more, so no value ever comes back. Whoever makes a handle
 * gets a slot of its thread's own shard, so threads that hand over to one another meet
 * two at a time. Slots never move and are never freed: there are as many as handles
 * ever waited at once. */
#include "ftb_arena_internal.h"

#define SHARD_BITS 3u
#define SHARDS (1u << SHARD_BITS)
#define PLACE_BITS 32u /* a handle: generation, index, shard */
#define FIRST_CHUNK_BITS 6u
#define CHUNKS 22u /* each twice as long as the one before: 2**28 slots */

struct slot {
    struct ftb_share share; /* while a handle waits; block is NULL otherwise */
    uint32_t gen;           /* of the handle that waits, or of the next one */
    uint32_t next_free;     /* index + 1 of the next free slot; 0: none */
};

struct shard {
    FTB_ALIGNED pthread_mutex_t lock;
    struct slot *chunks[CHUNKS]; /* this and the next three are guarded by lock */
    uint32_t free_first;         /* index + 1; 0: none */
    uint32_t used_n;             /* slots that were ever used */
    uint32_t waiting_n;
    bool lost; /* written in a fork child only */
};

#define SHARD {.lock = PTHREAD_MUTEX_INITIALIZER}
static struct shard shards[SHARDS] = {SHARD, SHARD, SHARD, SHARD,
                                      SHARD, SHARD, SHARD, SHARD};

static ftb_atomic(uint32_t) threads_n; /* written by each thread's first handle */
static FTB_TLS uint32_t home;          /* this thread's shard + 1; 0: none yet */

static uint32_t
home_shard(void)
{
    if (FTB_UNLIKELY(home == 0)) {
        /* Relaxed: only spreads the threads. */
        home = ftb_add_relaxed(&threads_n, 1) % SHARDS + 1;
    }
    return home - 1;
}

/* The chunk that holds a slot; sets *offset within it. */
static uint32_t
chunk_of(uint32_t index, uint32_t *offset)
{
    uint32_t place = index + (1u << FIRST_CHUNK_BITS);
    uint32_t top = 31u - (uint32_t)__builtin_clz(place);
    *offset = place - (1u << top);
    return top - FIRST_CHUNK_BITS;
}

static struct slot *
slot_at(struct shard *shard, uint32_t index)
{
    uint32_t offset;
    uint32_t chunk = chunk_of(index, &offset);
    return &shard->chunks[chunk][offset];
}

/* A slot that was never used, or NULL. */
static struct slot *
slot_new_locked(struct shard *shard, uint32_t *index)
{
    uint32_t offset;
    uint32_t chunk = chunk_of(shard->used_n, &offset);
    if (chunk == CHUNKS) {
        return NULL;
    }
    if (shard->chunks[chunk] == NULL) {
        size_t slots_n = (size_t)1 << (FIRST_CHUNK_BITS + chunk);
        shard->chunks[chunk] = ftb_alloc(slots_n * sizeof(struct slot));
        if (shard->chunks[chunk] == NULL) {
            return NULL;
        }
    }
    *index = shard->used_n;
    shard->used_n++;
    struct slot *slot = &shard->chunks[chunk][offset];
    slot->gen = 1; /* so that no handle is 0 */
    return slot;
}

static struct slot *
slot_obtain_locked(struct shard *shard, uint32_t *index)
{
    if (shard->free_first == 0) {
        return slot_new_locked(shard, index);
    }
    *index = shard->free_first - 1;
    struct slot *slot = slot_at(shard, *index);
    shard->free_first = slot->next_free;
    return slot;
}

static void
slot_free_locked(struct shard *shard, struct slot *slot, uint32_t index)
{
    slot->share.block = NULL;
    slot->gen++;
    if (slot->gen != 0) {
        slot->next_free = shard->free_first;
        shard->free_first = index + 1;
    }
}

/* 0 if the shard has no memory, or was lost in a fork. */
static uint64_t
shard_add(uint32_t shard_ix, const struct ftb_share *share)
{
    struct shard *shard = &shards[shard_ix];
    uint32_t index = 0;
    uint64_t handle = 0;
    pthread_mutex_lock(&shard->lock);
    struct slot *slot = shard->lost ? NULL : slot_obtain_locked(shard, &index);
    if (slot != NULL) {
        slot->share = *share;
        shard->waiting_n++;
        handle = ((uint64_t)slot->gen << PLACE_BITS) | (index << SHARD_BITS) | shard_ix;
    }
    pthread_mutex_unlock(&shard->lock);
    return handle;
}

uint64_t
ftb_handle_new(ftb_block_t *block, uint64_t start, uint64_t length)
{
    if (FTB_UNLIKELY(ftb_load_acquire(&block->rc) == 0)) {
        ftb__block_fault(block, "handed over after free");
    }
    if (start > block->len || length > block->len - start) {
        return 0;
    }
    struct ftb_share share = {block, start, length};
    uint32_t first = home_shard();
    uint64_t handle = 0;
    for (uint32_t i = 0; i < SHARDS && handle == 0; i++) {
        handle = shard_add((first + i) % SHARDS, &share);
    }
    return handle;
}

/* Why the slot's share may not be taken, or FTB_HANDLE_OK. A count of 1 is the handle's
 * own reference, which nobody can copy without the shard's lock. */
static int
slot_refuses_locked(const struct slot *slot, ftb_arena_t *arena, int unique)
{
    if (arena != NULL && slot->share.block->arena != arena) {
        return FTB_HANDLE_FOREIGN;
    }
    if (unique != 0 && !ftb_block_is_unique(slot->share.block)) {
        return FTB_HANDLE_SHARED;
    }
    return FTB_HANDLE_OK;
}

int
ftb_handle_take(
    uint64_t handle, ftb_arena_t *arena, int unique, struct ftb_share *share)
{
    struct shard *shard = &shards[handle % SHARDS];
    uint32_t index = (uint32_t)handle >> SHARD_BITS;
    uint32_t gen = (uint32_t)(handle >> PLACE_BITS);
    int result = FTB_HANDLE_STALE;
    pthread_mutex_lock(&shard->lock);
    if (!shard->lost && index < shard->used_n) {
        struct slot *slot = slot_at(shard, index);
        if (slot->gen == gen && slot->share.block != NULL) {
            result = slot_refuses_locked(slot, arena, unique);
            if (result == FTB_HANDLE_OK) {
                *share = slot->share;
                slot_free_locked(shard, slot, index);
                shard->waiting_n--;
            }
        }
    }
    pthread_mutex_unlock(&shard->lock);
    return result;
}

uint64_t
ftb_handle_count(void)
{
    uint64_t count = 0;
    for (uint32_t i = 0; i < SHARDS; i++) {
        pthread_mutex_lock(&shards[i].lock);
        count += shards[i].lost ? 0 : shards[i].waiting_n;
        pthread_mutex_unlock(&shards[i].lock);
    }
    return count;
}

/* As with depots: a lock that is taken belongs to a thread that is gone, and what it
 * guards may be half changed, so it is left alone for good. */
void
ftb__handle_after_fork_child(void)
{
    for (uint32_t i = 0; i < SHARDS; i++) {
        if (pthread_mutex_trylock(&shards[i].lock) == 0) {
            pthread_mutex_unlock(&shards[i].lock);
        } else {
            shards[i].lost = true;
        }
        pthread_mutex_init(&shards[i].lock, NULL);
    }
}

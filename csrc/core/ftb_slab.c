#include "ftb_slab.h"

#include <pthread.h>

#include "ftb_atomic.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
bool ftb_slab_is_pooled = false;
#endif

enum {
    SLAB_BYTES = 16384, /* and so aligned: a cell's address tells its slab */
    /* One cell for the header, and one left to malloc for its own: without that, each
     * slab would leave a hole as large as itself before the next. */
    SLAB_CELLS = SLAB_BYTES / FTB_SLAB_CELL_BYTES - 2,
    CACHE_CELLS = 64,
    CACHE_BATCH = CACHE_CELLS / 2, /* moved at once between a cache and the slabs */
};

struct cell {
    struct cell *next; /* the owner's while in use; else guarded by slabs_lock */
    unsigned char room[FTB_SLAB_CELL_BYTES - sizeof(void *)];
};

/* Guarded by slabs_lock. On the list while it has a free cell. */
struct ftb_slab {
    struct ftb_slab *previous, *next;
    struct cell *free; /* given back, the newest first */
    uint32_t used_n;
    uint32_t fresh_ix; /* cells from here on were never taken */
    FTB_ALIGNED_TO(FTB_SLAB_CELL_BYTES) struct cell cells[];
};

_Static_assert(sizeof(struct cell) == FTB_SLAB_CELL_BYTES, "a cell is one line");
_Static_assert(
    sizeof(struct ftb_slab) == FTB_SLAB_CELL_BYTES, "the header is one cell");

/* A thread's own cells; its owner only. */
struct cache {
    uint32_t cells_n;
    struct cell *cells[CACHE_CELLS];
};

static FTB_TLS struct cache *cache_local = NULL;

static pthread_once_t hooks_once = PTHREAD_ONCE_INIT;
static pthread_key_t exit_hook;
static bool has_exit_hook = false; /* written once, under hooks_once */
static pthread_mutex_t slabs_lock = PTHREAD_MUTEX_INITIALIZER;
/* Guarded by slabs_lock. */
static struct ftb_slab *slabs = NULL;
static size_t slabs_n = 0;
static size_t empty_n = 0; /* slabs on the list with no cell in use: 0 or 1 */

static void
slab_link_locked(struct ftb_slab *slab)
{
    slab->previous = NULL;
    slab->next = slabs;
    if (slabs != NULL) {
        slabs->previous = slab;
    }
    slabs = slab;
}

static void
slab_unlink_locked(struct ftb_slab *slab)
{
    if (slab->next != NULL) {
        slab->next->previous = slab->previous;
    }
    if (slab->previous != NULL) {
        slab->previous->next = slab->next;
    } else {
        slabs = slab->next;
    }
}

/* One more slab on the list; false without memory. */
static bool
slab_add_locked(void)
{
    struct ftb_slab *slab =
        ftb_alloc_aligned(SLAB_BYTES, sizeof *slab + SLAB_CELLS * sizeof(struct cell));
    if (slab == NULL) {
        return false;
    }
    slab_link_locked(slab);
    slabs_n++;
    empty_n++;
    return true;
}

static bool
slab_is_full(const struct ftb_slab *slab)
{
    return slab->free == NULL && slab->fresh_ix == SLAB_CELLS;
}

/* A cell of a slab that has one free. */
static struct cell *
cell_take_locked(struct ftb_slab *slab)
{
    struct cell *cell = slab->free;
    if (cell != NULL) {
        slab->free = cell->next;
    } else {
        cell = &slab->cells[slab->fresh_ix++];
    }
    empty_n -= slab->used_n++ == 0;
    if (slab_is_full(slab)) {
        slab_unlink_locked(slab);
    }
    return cell;
}

/* Up to n cells; returns how many there were. */
static uint32_t
cells_take(struct cell **cells, uint32_t n)
{
    uint32_t taken_n = 0;
    pthread_mutex_lock(&slabs_lock);
    while (taken_n < n && (slabs != NULL || slab_add_locked())) {
        cells[taken_n++] = cell_take_locked(slabs);
    }
    pthread_mutex_unlock(&slabs_lock);
    return taken_n;
}

static inline struct ftb_slab *
slab_of(struct cell *cell)
{
    return (struct ftb_slab *)((uintptr_t)cell & ~(uintptr_t)(SLAB_BYTES - 1));
}

/* Returns the slab if the system should have it back, else NULL. */
static struct ftb_slab *
cell_give_locked(struct cell *cell)
{
    struct ftb_slab *slab = slab_of(cell);
    if (slab_is_full(slab)) {
        slab_link_locked(slab);
    }
    cell->next = slab->free;
    slab->free = cell;
    if (--slab->used_n > 0) {
        return NULL;
    }
    if (empty_n == 0) {
        empty_n = 1;
        return NULL;
    }
    slab_unlink_locked(slab);
    slabs_n--;
    return slab;
}

static void
cells_give(struct cell **cells, uint32_t n)
{
    pthread_mutex_lock(&slabs_lock);
    for (uint32_t i = 0; i < n; i++) {
        ftb_free(cell_give_locked(cells[i]));
    }
    pthread_mutex_unlock(&slabs_lock);
}

static void
thread_exit(void *value)
{
    struct cache *cache = value;
    cache_local = NULL;
    cells_give(cache->cells, cache->cells_n);
    ftb_free(cache);
}

static void
lock_for_fork(void)
{
    pthread_mutex_lock(&slabs_lock);
}

static void
unlock_after_fork(void)
{
    pthread_mutex_unlock(&slabs_lock);
}

/* A fork waits until the slabs are whole, so that its child can use them. */
static void
hooks_init(void)
{
    has_exit_hook = pthread_key_create(&exit_hook, thread_exit) == 0;
    pthread_atfork(lock_for_fork, unlock_after_fork, unlock_after_fork);
}

/* This thread's cache, made on first use. NULL: no memory, or no keys left. */
static FTB_NOINLINE struct cache *
cache_new(void)
{
    pthread_once(&hooks_once, hooks_init);
    struct cache *cache = has_exit_hook ? ftb_alloc(sizeof *cache) : NULL;
    if (cache != NULL && pthread_setspecific(exit_hook, cache) != 0) {
        ftb_free(cache);
        cache = NULL;
    }
    cache_local = cache;
    return cache;
}

void *
ftb_slab_take(void)
{
    if (!ftb_slab_is_pooled) {
        return ftb_alloc_aligned(FTB_SLAB_CELL_BYTES, FTB_SLAB_CELL_BYTES);
    }
    if (FTB_UNLIKELY(ftb_fault_strikes())) {
        return NULL;
    }
    struct cache *cache = cache_local != NULL ? cache_local : cache_new();
    if (FTB_UNLIKELY(cache == NULL)) {
        struct cell *cell;
        return cells_take(&cell, 1) == 1 ? cell : NULL;
    }
    if (FTB_UNLIKELY(cache->cells_n == 0)) {
        cache->cells_n = cells_take(cache->cells, CACHE_BATCH);
    }
    return cache->cells_n > 0 ? cache->cells[--cache->cells_n] : NULL;
}

void
ftb_slab_give(void *memory)
{
    if (!ftb_slab_is_pooled) {
        ftb_free(memory);
        return;
    }
    struct cell *cell = memory;
    struct cache *cache = cache_local != NULL ? cache_local : cache_new();
    if (FTB_UNLIKELY(cell == NULL)) {
        return;
    }
    if (FTB_UNLIKELY(cache == NULL)) {
        cells_give(&cell, 1);
        return;
    }
    if (FTB_UNLIKELY(cache->cells_n == CACHE_CELLS)) {
        cache->cells_n -= CACHE_BATCH;
        cells_give(&cache->cells[cache->cells_n], CACHE_BATCH);
    }
    cache->cells[cache->cells_n++] = cell;
}

size_t
ftb_slab_bytes(void)
{
    pthread_mutex_lock(&slabs_lock);
    size_t bytes = slabs_n * SLAB_BYTES;
    pthread_mutex_unlock(&slabs_lock);
    return bytes;
}

/* Arenas: their beginning, their end, their limit, and what a fork does to them.
 *
 * Thread rule: any thread. The registry below is guarded by its lock; the rest of an
 * arena by what ftb_arena_internal.h says of each field.
 *
 * Why an arena can end while others still hold its blocks, with no shared count:
 * 1. ftb_arena_free sets closing. From then on nothing is allocated, so the counts of
 *    allocations are final, and whoever made them had the arena before the caller of
 *    ftb_arena_free gave it up, so they are visible to it.
 * 2. A release counts itself last of all, with release order, and touches neither the
 *    arena nor its record after that. So who reads, with acquire, as many frees as
 *    allocations, comes after the last access, and may free everything.
 * 3. That comparison is made under the registry's lock by ftb_arena_free, by each
 *    release that saw closing, and, for the release that read closing too early and
 *    counted too late, by any later call that walks the registry. */
#include "ftb_arena_internal.h"
#include "ftb_leak.h"

/* Guards the registry. Taken before any arena's lock. */
static pthread_mutex_t registry_lock = PTHREAD_MUTEX_INITIALIZER;
/* Arenas by slot. Written under the lock, each change as one ordered store, so that a
 * fork child finds them whole even if the lock was held: slots first, then the size.
 * Read under the lock or in such a child, which has one thread: all loads are relaxed. */
typedef ftb_atomic(ftb_arena_t *) registry_slot_t;
static ftb_atomic(registry_slot_t *) registry_slots;
static ftb_atomic(uint32_t) registry_n;
static uint64_t registry_serial; /* the last one given; guarded by the lock */

static ftb_arena_t *
registry_at(uint32_t slot)
{
    return ftb_load_relaxed(&ftb_load_relaxed(&registry_slots)[slot]);
}

static void
registry_set_locked(uint32_t slot, ftb_arena_t *arena)
{
    ftb_store_release(&ftb_load_relaxed(&registry_slots)[slot], arena);
}

static bool
registry_grow_locked(void)
{
    uint32_t old_n = ftb_load_relaxed(&registry_n);
    registry_slot_t *old = ftb_load_relaxed(&registry_slots);
    uint32_t new_n = 2 * (old_n + 4);
    registry_slot_t *slots = ftb_alloc(new_n * sizeof *slots);
    if (slots == NULL) {
        return false;
    }
    for (uint32_t i = 0; i < old_n; i++) {
        ftb_init(&slots[i], registry_at(i));
    }
    ftb_store_release(&registry_slots, slots); /* after the copies, for a child */
    ftb_store_release(&registry_n, new_n);     /* after the slots, likewise */
    ftb_free(old);
    return true;
}

/* Give the arena a free slot and a new serial. */
static bool
registry_add_locked(ftb_arena_t *arena)
{
    uint32_t n = ftb_load_relaxed(&registry_n);
    uint32_t slot = 0;
    while (slot < n && registry_at(slot) != NULL) {
        slot++;
    }
    if (slot == n && !registry_grow_locked()) {
        return false;
    }
    arena->slot = slot;
    arena->serial = ++registry_serial;
    registry_set_locked(slot, arena);
    return true;
}

static ftb_arena_t *
registry_find_locked(uint32_t slot, uint64_t serial)
{
    if (slot >= ftb_load_relaxed(&registry_n)) {
        return NULL;
    }
    ftb_arena_t *arena = registry_at(slot);
    return arena != NULL && arena->serial == serial ? arena : NULL;
}

static void
arena_destroy(ftb_arena_t *arena)
{
    for (struct ftb__cache *cache = arena->caches; cache != NULL;) {
        struct ftb__cache *next = cache->next;
        ftb__cache_flush(arena, cache);
        ftb_free(cache);
        cache = next;
    }
    for (uint32_t i = 0; i < FTB_ARENA_CLASSES; i++) {
        ftb__depot_empty(&arena->depots[i]);
        pthread_mutex_destroy(&arena->depots[i].lock);
    }
    pthread_mutex_destroy(&arena->lock);
    ftb_free(arena);
}

/* End a closing arena if no block of it is out. Caller holds the registry's lock. */
static void
arena_reap_locked(ftb_arena_t *arena)
{
    pthread_mutex_lock(&arena->lock);
    uint64_t live = ftb__arena_live_locked(arena);
    pthread_mutex_unlock(&arena->lock);
    if (live == 0) {
        registry_set_locked(arena->slot, NULL);
        arena_destroy(arena);
    }
}

static void
registry_sweep_locked(void)
{
    for (uint32_t i = 0; i < ftb_load_relaxed(&registry_n); i++) {
        ftb_arena_t *arena = registry_at(i);
        if (arena != NULL && ftb_load_relaxed(&arena->closing)) {
            arena_reap_locked(arena);
        }
    }
}

ftb_arena_t *
ftb_arena_new(uint64_t limit_bytes)
{
    ftb_arena_t *arena = ftb_alloc_line(sizeof *arena);
    if (arena == NULL) {
        return NULL;
    }
    arena->limit_bytes = limit_bytes;
    pthread_mutex_init(&arena->lock, NULL);
    for (uint32_t i = 0; i < FTB_ARENA_CLASSES; i++) {
        pthread_mutex_init(&arena->depots[i].lock, NULL);
    }
    pthread_mutex_lock(&registry_lock);
    registry_sweep_locked();
    bool added = registry_add_locked(arena);
    pthread_mutex_unlock(&registry_lock);
    if (!added) {
        arena_destroy(arena);
        return NULL;
    }
    return arena;
}

void
ftb_arena_free(ftb_arena_t *arena)
{
    if (arena == NULL) {
        return;
    }
    pthread_mutex_lock(&registry_lock);
    ftb_store_relaxed(&arena->closing, true); /* relaxed: by 3, early or late is fine */
    registry_sweep_locked();
    pthread_mutex_unlock(&registry_lock);
}

void
ftb__arena_reap(uint32_t slot, uint64_t serial)
{
    pthread_mutex_lock(&registry_lock);
    ftb_arena_t *arena = registry_find_locked(slot, serial);
    if (arena != NULL) {
        arena_reap_locked(arena);
    }
    pthread_mutex_unlock(&registry_lock);
}

void
ftb__arena_thread_exit(struct ftb__thread *thread)
{
    pthread_mutex_lock(&registry_lock);
    for (uint32_t i = 0; i < thread->entries_n; i++) {
        uint64_t serial = thread->entries[i].serial;
        ftb_arena_t *arena = serial != 0 ? registry_find_locked(i, serial) : NULL;
        if (arena != NULL) {
            struct ftb__cache *cache = thread->entries[i].cache;
            ftb__cache_flush(arena, cache);
            pthread_mutex_lock(&arena->lock);
            cache->in_use = false;
            pthread_mutex_unlock(&arena->lock);
        }
    }
    registry_sweep_locked();
    pthread_mutex_unlock(&registry_lock);
}

uint64_t
ftb_arena_trim(ftb_arena_t *arena)
{
    struct ftb__cache *cache = ftb__cache_get(arena);
    if (cache != NULL) {
        ftb__cache_flush(arena, cache);
    }
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < FTB_ARENA_CLASSES; i++) {
        bytes += ftb__depot_empty(&arena->depots[i]);
    }
    return bytes;
}

bool
ftb__arena_reserve(ftb_arena_t *arena, uint64_t bytes)
{
    /* relaxed, all: sums that bound nothing but themselves */
    uint64_t before = ftb_load_relaxed(&arena->reserved_bytes);
    do {
        if (arena->limit_bytes != 0
            && (before > arena->limit_bytes || bytes > arena->limit_bytes - before)) {
            return false;
        }
    } while (!ftb_cas_relaxed(&arena->reserved_bytes, &before, before + bytes));
    uint64_t now = before + bytes;
    uint64_t peak = ftb_load_relaxed(&arena->peak_bytes);
    while (peak < now && !ftb_cas_relaxed(&arena->peak_bytes, &peak, now)) {
    }
    return true;
}

void
ftb__arena_unreserve(ftb_arena_t *arena, uint64_t bytes)
{
    ftb_sub_relaxed(&arena->reserved_bytes, bytes); /* relaxed: as above */
}

/* This thread's own record is whole: the thread was in fork, not in the arena. */
static void
arena_after_fork_child(ftb_arena_t *arena)
{
    struct ftb__thread *self = ftb__thread_self;
    struct ftb__cache *own = NULL;
    if (self != NULL && arena->slot < self->entries_n
        && self->entries[arena->slot].serial == arena->serial) {
        own = self->entries[arena->slot].cache;
    }
    pthread_mutex_init(&arena->lock, NULL);
    for (struct ftb__cache *cache = arena->caches; cache != NULL; cache = cache->next) {
        if (cache != own && cache->in_use) {
            ftb__cache_abandon(cache);
            cache->in_use = false;
            arena->lost_blocks = true;
        }
    }
    for (uint32_t i = 0; i < FTB_ARENA_CLASSES; i++) {
        if (!ftb__depot_after_fork_child(&arena->depots[i])) {
            arena->lost_blocks = true;
        }
    }
}

void
ftb_arena_after_fork_child(void)
{
    pthread_mutex_init(&registry_lock, NULL);
    ftb__leak_after_fork_child();
    for (uint32_t i = 0; i < ftb_load_relaxed(&registry_n); i++) {
        ftb_arena_t *arena = registry_at(i);
        if (arena != NULL) {
            arena_after_fork_child(arena);
        }
    }
    ftb__handle_after_fork_child();
}

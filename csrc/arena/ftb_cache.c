/* Thread caches: how a thread finds its record in an arena, and what becomes of the
 * record when the thread ends.
 *
 * Thread rule: a record belongs to one thread at a time. It passes to another under
 * the arena's lock, which orders the two owners' accesses. Records are never freed
 * while the arena lives, so that anybody may sum their counters. */
#include "ftb_arena_internal.h"

#include <string.h>

FTB_TLS struct ftb__thread *ftb__thread_self;

/* Its destructor runs at a thread's end; written once. */
static pthread_key_t exit_key;
static pthread_once_t exit_key_once = PTHREAD_ONCE_INIT;
static bool exit_key_made; /* written once, in exit_key_make */

/* Other destructors may release blocks after this one: they then find no table, make
 * a new one, and the system runs this destructor again. */
static void
thread_exit(void *argument)
{
    struct ftb__thread *self = argument;
    ftb__thread_self = NULL;
    ftb__arena_thread_exit(self);
    ftb_free(self);
}

static void
exit_key_make(void)
{
    exit_key_made = pthread_key_create(&exit_key, thread_exit) == 0;
}

/* This thread's table with room for that slot, or NULL. A table that no destructor
 * would see is not made: its caches would be lost with the thread. */
static struct ftb__thread *
thread_table(uint32_t slot)
{
    struct ftb__thread *old = ftb__thread_self;
    if (old != NULL && slot < old->entries_n) {
        return old;
    }
    pthread_once(&exit_key_once, exit_key_make);
    if (!exit_key_made) {
        return NULL;
    }
    uint32_t entries_n = (uint32_t)ftb_next_pow2((uint64_t)slot + 8u);
    struct ftb__thread *table =
        ftb_alloc(sizeof(struct ftb__thread) + entries_n * sizeof table->entries[0]);
    if (table == NULL) {
        return NULL;
    }
    table->entries_n = entries_n;
    if (old != NULL) {
        memcpy(table->entries, old->entries, old->entries_n * sizeof old->entries[0]);
    }
    if (pthread_setspecific(exit_key, table) != 0) {
        ftb_free(table);
        return NULL;
    }
    ftb__thread_self = table;
    ftb_free(old);
    return table;
}

static void
cache_init(struct ftb__cache *cache)
{
    for (uint32_t i = 0; i < FTB_ARENA_CLASSES; i++) {
        uint64_t capacity = ftb__class_capacity(i);
        uint64_t fit = FTB__MAGAZINE_BYTES / capacity;
        if (capacity <= FTB__MAX_CACHED) {
            cache->bins[i].magazine_n =
                fit < FTB__MAGAZINE_MAX ? (uint32_t)fit : FTB__MAGAZINE_MAX;
        }
    }
    cache->in_use = true;
}

/* A record whose thread has ended, or NULL. */
static struct ftb__cache *
cache_reuse(ftb_arena_t *arena)
{
    pthread_mutex_lock(&arena->lock);
    struct ftb__cache *cache = arena->caches;
    while (cache != NULL && cache->in_use) {
        cache = cache->next;
    }
    if (cache != NULL) {
        cache->in_use = true;
    }
    pthread_mutex_unlock(&arena->lock);
    return cache;
}

static struct ftb__cache *
cache_new(ftb_arena_t *arena)
{
    struct ftb__cache *cache = ftb_alloc_line(sizeof *cache);
    if (cache == NULL) {
        return NULL;
    }
    cache_init(cache);
    pthread_mutex_lock(&arena->lock);
    cache->next = arena->caches;
    arena->caches = cache;
    arena->caches_n++;
    pthread_mutex_unlock(&arena->lock);
    return cache;
}

FTB_NOINLINE struct ftb__cache *
ftb__cache_attach(ftb_arena_t *arena)
{
    struct ftb__thread *table = thread_table(arena->slot);
    if (table == NULL) {
        return NULL;
    }
    struct ftb__cache *cache = cache_reuse(arena);
    if (cache == NULL) {
        cache = cache_new(arena);
    }
    if (cache == NULL) {
        return NULL;
    }
    table->entries[arena->slot].serial = arena->serial;
    table->entries[arena->slot].cache = cache;
    return cache;
}

void
ftb__cache_flush(ftb_arena_t *arena, struct ftb__cache *cache)
{
    for (uint32_t i = 0; i < FTB_ARENA_CLASSES; i++) {
        struct ftb__bin *bin = &cache->bins[i];
        if (bin->loaded != NULL) {
            ftb__depot_put(&arena->depots[i], bin->loaded, bin->loaded_n);
        }
        if (bin->previous != NULL) {
            ftb__depot_put(&arena->depots[i], bin->previous, bin->previous_n);
        }
    }
    ftb__cache_abandon(cache);
}

void
ftb__cache_abandon(struct ftb__cache *cache)
{
    for (uint32_t i = 0; i < FTB_ARENA_CLASSES; i++) {
        struct ftb__bin *bin = &cache->bins[i];
        bin->loaded = NULL;
        bin->previous = NULL;
        bin->loaded_n = 0;
        bin->previous_n = 0;
    }
}

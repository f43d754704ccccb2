/* Watched blocks: the table, the turn, the report.
 *
 * The lock is a leaf: under it nothing is called but memory's malloc and free, so that a
 * site function, which may be Python's, never runs there. The records of blocks freed
 * lately stay in a ring, because a double free is only found after the first. */
#include "ftb_leak.h"

#include "ftb_arena_internal.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BUCKETS_N 4096u /* a power of two */
#define FREED_N 256u

struct record {
    struct ftb_leak leak;
    uint32_t generation; /* the block's while it is held */
    char *freed_at;
    struct record *next;
};

struct ftb__leak_period ftb__leak_period;

static ftb_atomic(ftb_leak_site_fn) site_fn; /* written by ftb_leak_set_period */
static ftb_atomic(uint32_t) first_turn;      /* where the next thread begins to count */
static FTB_TLS uint32_t turn_self;           /* 0: this thread has not begun */
static FTB_TLS uint64_t owner_self;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct record *buckets[BUCKETS_N]; /* guarded by lock, as all below */
static struct record *freed[FREED_N];     /* the newest at freed_n - 1, modulo */
static uint64_t freed_n;
static uint64_t serial_last;
static size_t live_n;

void
ftb_leak_set_period(uint32_t period, ftb_leak_site_fn site)
{
    ftb_store_release(&site_fn, site); /* before the period that makes use of it */
    ftb_store_release(&ftb__leak_period.value, period);
}

uint64_t
ftb_leak_set_owner(uint64_t owner)
{
    uint64_t before = owner_self;
    owner_self = owner;
    return before;
}

uint64_t
ftb_arena_serial(const ftb_arena_t *arena)
{
    return arena->serial;
}

static char *
site_of(bool is_long, uint64_t *thread)
{
    ftb_leak_site_fn site = ftb_load_acquire(&site_fn);
    *thread = 0;
    return site != NULL ? site(is_long, thread) : NULL;
}

/* The thread's first turn differs from other threads', so that many short threads are
 * sampled at the same rate as one long one. 37 is coprime to any power of two. */
static bool
is_due(uint32_t period)
{
    if (turn_self == 0) {
        turn_self =
            ftb_add_relaxed(&first_turn, 37) | 1u << 31; /* relaxed: any will do */
    }
    turn_self = (turn_self + 1) | 1u << 31;
    return (turn_self & ((1u << 31) - 1)) % period == 0;
}

static void
record_free(struct record *record)
{
    if (record != NULL) {
        ftb_free(record->leak.site);
        ftb_free(record->freed_at);
        for (uint32_t i = 0; i < FTB_LEAK_TOUCHES; i++) {
            ftb_free(record->leak.touches[i]);
        }
        ftb_free(record);
    }
}

static struct record **
bucket_of(const ftb_block_t *block)
{
    uint64_t hash = ((uint64_t)(uintptr_t)block >> 6) * UINT64_C(0x9E3779B97F4A7C15);
    return &buckets[(hash >> 40) % BUCKETS_N];
}

/* The link that leads to a live block's record, or to NULL. */
static struct record **
find_locked(const ftb_block_t *block)
{
    struct record **link = bucket_of(block);
    while (*link != NULL && (*link)->leak.block != block) {
        link = &(*link)->next;
    }
    return link;
}

FTB_NOINLINE void
ftb__leak_allocated(ftb_block_t *block)
{
    uint32_t period = ftb_leak_period();
    struct record *record =
        period != 0 && is_due(period) ? ftb_alloc(sizeof *record) : NULL;
    if (record == NULL) {
        return; /* not its turn; or without memory for it, unwatched */
    }
    record->leak.block = block;
    record->leak.arena_serial = block->arena->serial;
    record->leak.owner = owner_self;
    record->leak.size_bytes = block->len;
    record->leak.site = site_of(true, &record->leak.thread);
    record->generation = ftb__block_gen(block);
    pthread_mutex_lock(&lock);
    struct record **bucket = bucket_of(block);
    record->leak.serial = ++serial_last;
    record->next = *bucket;
    *bucket = record;
    live_n++;
    pthread_mutex_unlock(&lock);
    block->flags |= FTB__WATCHED; /* still this thread's alone */
}

FTB_NOINLINE void
ftb_leak_touch(const ftb_block_t *block)
{
    uint64_t thread;
    char *text = site_of(false, &thread);
    if (text == NULL) {
        return;
    }
    pthread_mutex_lock(&lock);
    struct record *record = *find_locked(block);
    char **touches = record != NULL ? record->leak.touches : NULL;
    if (touches != NULL && (touches[0] == NULL || strcmp(touches[0], text) != 0)) {
        char *oldest = touches[FTB_LEAK_TOUCHES - 1];
        memmove(touches + 1, touches, (FTB_LEAK_TOUCHES - 1) * sizeof *touches);
        touches[0] = text;
        text = oldest;
    }
    pthread_mutex_unlock(&lock);
    ftb_free(text);
}

FTB_NOINLINE void
ftb__leak_freed(ftb_block_t *block)
{
    uint64_t thread;
    char *text = site_of(false, &thread);
    pthread_mutex_lock(&lock);
    struct record **link = find_locked(block);
    struct record *record = *link, *evicted = NULL;
    if (record != NULL) {
        *link = record->next;
        record->freed_at = text;
        text = NULL;
        evicted = freed[freed_n % FREED_N];
        freed[freed_n++ % FREED_N] = record;
        live_n--;
    }
    pthread_mutex_unlock(&lock);
    record_free(evicted);
    ftb_free(text);
}

static char *
text_copy(const char *text)
{
    size_t size = text != NULL ? strlen(text) + 1 : 0;
    char *copy = size != 0 ? ftb_alloc(size) : NULL;
    if (copy != NULL) {
        memcpy(copy, text, size);
    }
    return copy;
}

static int
by_serial(const void *a, const void *b)
{
    uint64_t x = ((const struct ftb_leak *)a)->serial;
    uint64_t y = ((const struct ftb_leak *)b)->serial;
    return (x > y) - (x < y);
}

/* Copy what is asked for. Returns how many. */
static size_t
copy_locked(uint64_t arena_serial, uint64_t owner, struct ftb_leak *to)
{
    size_t n = 0;
    for (uint32_t i = 0; i < BUCKETS_N; i++) {
        for (struct record *record = buckets[i]; record != NULL;
             record = record->next) {
            const struct ftb_leak *leak = &record->leak;
            if ((arena_serial != 0 && leak->arena_serial != arena_serial)
                || (owner != 0 && leak->owner != owner)) {
                continue;
            }
            to[n] = *leak;
            to[n].site = text_copy(leak->site);
            for (uint32_t k = 0; k < FTB_LEAK_TOUCHES; k++) {
                to[n].touches[k] = text_copy(leak->touches[k]);
            }
            n++;
        }
    }
    return n;
}

size_t
ftb_leaks(uint64_t arena_serial, uint64_t owner, struct ftb_leak **out)
{
    pthread_mutex_lock(&lock);
    struct ftb_leak *found = live_n != 0 ? ftb_alloc(live_n * sizeof *found) : NULL;
    size_t n = found != NULL ? copy_locked(arena_serial, owner, found) : 0;
    pthread_mutex_unlock(&lock);
    if (n != 0) {
        qsort(found, n, sizeof *found, by_serial);
    }
    *out = found;
    return n;
}

void
ftb_leaks_free(struct ftb_leak *leaks, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        ftb_free(leaks[i].site);
        for (uint32_t k = 0; k < FTB_LEAK_TOUCHES; k++) {
            ftb_free(leaks[i].touches[k]);
        }
    }
    ftb_free(leaks);
}

/* The record of the block as it is now: held, or freed and not handed out since. */
static const struct record *
known_locked(const ftb_block_t *block)
{
    uint32_t generation = ftb__block_gen(block);
    const struct record *record = *find_locked(block);
    if (record != NULL && record->generation == generation) {
        return record;
    }
    for (uint64_t back = 1; back <= FREED_N && back <= freed_n; back++) {
        record = freed[(freed_n - back) % FREED_N];
        if (record->leak.block == block && record->generation + 1 == generation) {
            return record;
        }
    }
    return NULL;
}

void
ftb__leak_describe(const ftb_block_t *block)
{
    pthread_mutex_lock(&lock);
    const struct record *record = known_locked(block);
    if (record != NULL) {
        const char *site = record->leak.site != NULL ? record->leak.site : "?";
        fprintf(stderr, "allocated at:\n%s\n", site);
        for (uint32_t i = 0; i < FTB_LEAK_TOUCHES; i++) {
            if (record->leak.touches[i] != NULL) {
                fprintf(stderr, "used at: %s\n", record->leak.touches[i]);
            }
        }
        if (record->freed_at != NULL) {
            fprintf(stderr, "released at: %s\n", record->freed_at);
        }
    }
    pthread_mutex_unlock(&lock);
}

/* The lock's holder may be gone with the table half changed, so it is given up, whole. */
void
ftb__leak_after_fork_child(void)
{
    pthread_mutex_init(&lock, NULL);
    memset(buckets, 0, sizeof buckets);
    memset(freed, 0, sizeof freed);
    freed_n = 0;
    live_n = 0;
}

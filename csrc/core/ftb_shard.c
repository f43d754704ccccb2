#include "ftb_shard.h"

#include <pthread.h>
#include <string.h>

#include "ftb_reclaim.h"

/* Free topic ids, a stack. Guarded by id_lock. */
static pthread_mutex_t id_lock = PTHREAD_MUTEX_INITIALIZER;
static uint32_t *free_ids = NULL;
static size_t free_ids_n = 0, free_ids_capacity = 0;
static uint32_t next_id = 0;

static void
lock_ids(void)
{
    pthread_mutex_lock(&id_lock);
}

static void
unlock_ids(void)
{
    pthread_mutex_unlock(&id_lock);
}

/* A fork waits for whoever changes the stack, so that its child finds it whole. */
__attribute__((constructor)) static void
hold_ids_across_fork(void)
{
    pthread_atfork(lock_ids, unlock_ids, unlock_ids);
}

static struct ftb_directory *
directory_new(uint32_t pages_n)
{
    struct ftb_directory *directory =
        ftb_alloc(sizeof *directory + pages_n * sizeof directory->pages[0]);
    if (directory != NULL) {
        directory->pages_n = pages_n;
    }
    return directory;
}

struct ftb_shard *
ftb_shard_new(void)
{
    struct ftb_shard *shard = ftb_alloc_line(sizeof *shard);
    struct ftb_directory *directory = directory_new(4);
    if (shard == NULL || directory == NULL) {
        ftb_free(shard);
        ftb_free(directory);
        return NULL;
    }
    ftb_init(&shard->directory, directory);
    return shard;
}

static struct ftb_directory *
directory_grow_local(struct ftb_shard *shard, uint32_t page_ix)
{
    struct ftb_directory *old = ftb_load_relaxed(&shard->directory);
    if (page_ix < old->pages_n) {
        return old;
    }
    struct ftb_directory *grown =
        directory_new((uint32_t)ftb_next_pow2((uint64_t)page_ix + 1));
    if (grown == NULL) {
        return NULL;
    }
    for (uint32_t i = 0; i < old->pages_n; i++) {
        ftb_init(&grown->pages[i], ftb_load_relaxed(&old->pages[i]));
    }
    grown->shorter = old; /* a reader may still walk it: kept, half the size */
    ftb_store_release(&shard->directory, grown); /* pairs with ftb_shard_sum */
    return grown;
}

struct ftb_cell *
ftb_shard_cell_make_local(struct ftb_shard *shard, uint32_t id)
{
    uint32_t page_ix = id / FTB_PAGE_CELLS;
    struct ftb_directory *directory =
        id != FTB_NO_ID ? directory_grow_local(shard, page_ix) : NULL;
    if (directory == NULL) {
        return NULL;
    }
    struct ftb_page *page = ftb_load_relaxed(&directory->pages[page_ix]);
    if (page == NULL) {
        page = ftb_alloc_line(sizeof *page);
        if (page == NULL) {
            return NULL;
        }
        ftb_store_release(&directory->pages[page_ix], page); /* for readers */
    }
    return &page->cells[id % FTB_PAGE_CELLS];
}

struct ftb_ledger *
ftb_cell_ledger_local(struct ftb_cell *cell)
{
    struct ftb_ledger *ledger = ftb_load_relaxed(&cell->ledger); /* the owner's own */
    if (ledger == NULL) {
        ledger = ftb_alloc(sizeof *ledger);
        if (ledger != NULL) {
            ftb_store_release(&cell->ledger, ledger); /* with its zeros */
        }
    }
    return ledger;
}

void
ftb_cell_emitted_apart_local(struct ftb_cell *cell)
{
    struct ftb_ledger *ledger =
        ftb_load_relaxed(&cell->version) != 0 ? ftb_cell_ledger_local(cell) : NULL;
    /* Without a version nothing is inferred from it; without memory the total is right
     * and the calls of the handlers are not. relaxed: the owner's own. */
    ftb_count_local(ledger != NULL ? &ledger->emitted : &cell->emitted, 1);
}

bool
ftb_cell_record_local(struct ftb_cell *cell, enum ftb_time what, uint64_t ns)
{
    struct ftb_ledger *ledger = ftb_cell_ledger_local(cell);
    if (ledger == NULL) {
        return false;
    }
    struct ftb_histogram *times = ftb_load_relaxed(&ledger->times[what]); /* own */
    if (times == NULL) {
        times = ftb_alloc(sizeof *times);
        if (times == NULL) {
            return false;
        }
        ftb_store_release(&ledger->times[what], times); /* pairs with times_one */
    }
    return ftb_histogram_record_local(times, ns);
}

static struct ftb_page *
page_find(struct ftb_shard *shard, uint32_t page_ix)
{
    struct ftb_directory *directory = ftb_load_acquire(&shard->directory);
    return page_ix < directory->pages_n ? ftb_load_acquire(&directory->pages[page_ix])
                                        : NULL;
}

void
ftb_shard_note_slow_local(struct ftb_shard *shard, uint32_t id, uint64_t ns)
{
    struct ftb_page *page = page_find(shard, id / FTB_PAGE_CELLS);
    if (page == NULL) {
        return;
    }
    ns = ns < FTB_HISTOGRAM_MAX_NS ? ns : FTB_HISTOGRAM_MAX_NS;
    uint32_t rank = ftb_histogram_bucket(ns) + 1;
    ftb_atomic(uint16_t) *slowest = &page->slowest[id % FTB_PAGE_CELLS];
    if (rank > ftb_load_relaxed(slowest)) { /* relaxed, both: the owner's own; a hint */
        ftb_store_relaxed(slowest, (uint16_t)rank);
    }
}

struct ftb_cell *
ftb_shard_cell_find(struct ftb_shard *shard, uint32_t id)
{
    struct ftb_page *page = page_find(shard, id / FTB_PAGE_CELLS);
    return page == NULL ? NULL : &page->cells[id % FTB_PAGE_CELLS];
}

static inline void
cell_add_to(struct ftb_cell *cell, struct ftb_totals *totals)
{
    /* relaxed: any recent value of each counter will do */
#define ADD(name) totals->name += ftb_load_relaxed(&cell->name);
    FTB_COUNTERS(ADD)
#undef ADD
    struct ftb_ledger *ledger = ftb_load_acquire(&cell->ledger);
    if (ledger != NULL) {
        totals->emitted += ftb_load_relaxed(&ledger->emitted); /* as above */
    }
}

struct sum_request {
    uint32_t id;
    struct ftb_totals *totals;
};

static void
sum_one(struct ftb_thread *thread, void *context)
{
    struct sum_request *request = context;
    struct ftb_cell *cell = ftb_shard_cell_find(thread->shard, request->id);
    if (cell != NULL) {
        cell_add_to(cell, request->totals);
    }
}

void
ftb_shard_sum(uint32_t id, struct ftb_totals *totals)
{
    struct sum_request request = {id, totals};
    ftb_thread_each(sum_one, &request);
}

struct page_request {
    const uint32_t *ids;
    uint32_t n;
    struct ftb_totals *totals;
    uint16_t *slowest;
};

static void
sum_page_one(struct ftb_thread *thread, void *context)
{
    struct page_request *request = context;
    struct ftb_page *page = page_find(thread->shard, request->ids[0] / FTB_PAGE_CELLS);
    if (page == NULL) {
        return;
    }
    /* Ledgers lie anywhere: waited for all at once and not one after the other. */
    for (uint32_t i = 0; i < request->n; i++) {
        struct ftb_cell *cell = &page->cells[request->ids[i] % FTB_PAGE_CELLS];
        __builtin_prefetch(ftb_load_relaxed(&cell->ledger)); /* relaxed: not read */
    }
    for (uint32_t i = 0; i < request->n; i++) {
        uint32_t place = request->ids[i] % FTB_PAGE_CELLS;
        uint16_t slowest = ftb_load_relaxed(&page->slowest[place]); /* any recent */
        cell_add_to(&page->cells[place], &request->totals[i]);
        if (slowest > request->slowest[i]) {
            request->slowest[i] = slowest;
        }
    }
}

void
ftb_shard_sum_page(
    const uint32_t *ids, uint32_t n, struct ftb_totals *totals, uint16_t *slowest)
{
    struct page_request request = {ids, n, totals, slowest};
    ftb_thread_each(sum_page_one, &request);
}

struct times_request {
    uint32_t id;
    struct ftb_histogram_sum *sums;
    bool is_any;
};

static void
times_one(struct ftb_thread *thread, void *context)
{
    struct times_request *request = context;
    struct ftb_cell *cell = ftb_shard_cell_find(thread->shard, request->id);
    struct ftb_ledger *ledger = cell != NULL ? ftb_load_acquire(&cell->ledger) : NULL;
    for (int i = 0; ledger != NULL && i < FTB_TIMES_N; i++) {
        struct ftb_histogram *times = ftb_load_acquire(&ledger->times[i]);
        if (times != NULL) {
            ftb_histogram_add_to(times, &request->sums[i]);
            request->is_any = true;
        }
    }
}

bool
ftb_shard_times(uint32_t id, struct ftb_histogram_sum *sums)
{
    struct times_request request = {id, sums, false};
    ftb_thread_each(times_one, &request);
    return request.is_any;
}

static void
zero_ledger(struct ftb_ledger *ledger)
{
    /* relaxed, all: as in zero_one */
    ftb_store_relaxed(&ledger->mark, 0);
    ftb_store_relaxed(&ledger->emitted, 0);
    for (int i = 0; i < FTB_TIMES_N; i++) {
        struct ftb_histogram *times = ftb_load_relaxed(&ledger->times[i]);
        if (times != NULL) {
            ftb_histogram_clear(times);
        }
    }
}

static void
zero_one(struct ftb_thread *thread, void *context)
{
    uint32_t id = *(uint32_t *)context;
    struct ftb_page *page = page_find(thread->shard, id / FTB_PAGE_CELLS);
    if (page == NULL) {
        return;
    }
    struct ftb_cell *cell = &page->cells[id % FTB_PAGE_CELLS];
    /* relaxed: the id has no writer now; its next user gets it through id_lock */
#define ZERO(name) ftb_store_relaxed(&cell->name, 0);
    FTB_COUNTERS(ZERO)
#undef ZERO
    ftb_store_relaxed(&cell->version, 0);
    ftb_store_relaxed(&page->slowest[id % FTB_PAGE_CELLS], (uint16_t)0);
    struct ftb_ledger *ledger = ftb_load_relaxed(&cell->ledger);
    if (ledger != NULL) {
        zero_ledger(ledger);
    }
}

uint32_t
ftb_shard_id_acquire(void)
{
    uint32_t id = FTB_NO_ID;
    pthread_mutex_lock(&id_lock);
    if (free_ids_n > 0) {
        id = free_ids[--free_ids_n];
    } else if (next_id < free_ids_capacity) {
        id = next_id++;
    } else {
        size_t capacity = free_ids_capacity == 0 ? 256 : free_ids_capacity * 2;
        uint32_t *grown = ftb_alloc(capacity * sizeof *grown);
        if (grown != NULL) { /* the stack has room for every id ever given out */
            ftb_free(free_ids);
            free_ids = grown; /* it was empty: nothing to copy */
            free_ids_capacity = capacity;
            id = next_id++;
        }
    }
    pthread_mutex_unlock(&id_lock);
    return id;
}

void
ftb_shard_id_release(uint32_t id)
{
    if (id == FTB_NO_ID) {
        return;
    }
    ftb_thread_each(zero_one, &id);
    pthread_mutex_lock(&id_lock);
    free_ids[free_ids_n++] = id;
    pthread_mutex_unlock(&id_lock);
}

#include "ftb_pool_internal.h"

/* The most events for which there is space before who waits for some is woken: takes long
 * enough to hide what a wake-up costs, and more would only keep the queue short. */
#define ROOM_MAX 1024u

static bool
options_are_valid(const struct ftb_pool_options *options)
{
    return options->workers_n >= 1 && options->workers_n <= FTB_POOL_MAX_WORKERS
           && options->queue_size >= 1 && options->queue_size <= FTB_POOL_MAX_QUEUE
           && options->strands_n >= 1 && options->strands_n <= FTB_POOL_MAX_STRANDS;
}

/* The workers that share what worker ix has, an ascending array says of each. */
static struct ftb_range
range_of(const uint32_t *group_of, uint32_t workers_n, uint32_t ix)
{
    struct ftb_range range = {0, workers_n};
    if (group_of != NULL) {
        while (group_of[range.begin] != group_of[ix]) {
            range.begin++;
        }
        while (group_of[range.end - 1] != group_of[ix]) {
            range.end--;
        }
    }
    return range;
}

static size_t
strand_pages_n(const ftb_pool_t *pool)
{
    return (pool->strands_n + FTB_STRANDS_PER_PAGE - 1) / FTB_STRANDS_PER_PAGE;
}

/* Strands are valid when zero, and not touched here: most are never used. */
static bool
strands_make(ftb_pool_t *pool)
{
    size_t align = _Alignof(struct ftb_strand);
    /* ftb_alloc and not ftb_alloc_line, whose memset would touch every page. */
    pool->strands_memory = ftb_alloc(pool->strands_n * sizeof *pool->strands + align);
    pool->strand_pages = ftb_alloc(strand_pages_n(pool));
    uintptr_t address = (uintptr_t)pool->strands_memory;
    pool->strands = (struct ftb_strand *)((address + align - 1) / align * align);
    return pool->strands_memory != NULL && pool->strand_pages != NULL;
}

/* Call visit for the strands that may have been used, a page at a time. */
static void
strands_each(
    ftb_pool_t *pool, void (*visit)(struct ftb_strand *strand, void *context),
    void *context)
{
    for (size_t page = 0; page < strand_pages_n(pool); page++) {
        /* relaxed: a strand that is used only now may be missed, or is the caller's */
        if (ftb_load_relaxed(&pool->strand_pages[page]) == 0) {
            continue;
        }
        size_t end = (page + 1) * FTB_STRANDS_PER_PAGE;
        for (size_t i = page * FTB_STRANDS_PER_PAGE; i < end && i < pool->strands_n;
             i++) {
            visit(&pool->strands[i], context);
        }
    }
}

static void
strand_free(struct ftb_strand *strand, void *context)
{
    (void)context;
    ftb_strand_fini(strand);
}

static void
strands_free(ftb_pool_t *pool)
{
    if (pool->strands_memory != NULL && pool->strand_pages != NULL) {
        strands_each(pool, strand_free, NULL);
    }
    ftb_free((void *)pool->strand_pages);
    ftb_free(pool->strands_memory);
}

/* Fill the rings, parkers and strands. Returns FTB_NOMEM with whatever was made, which
 * ftb_pool_free can take. */
static enum ftb_result
pool_fill(ftb_pool_t *pool, const struct ftb_pool_options *options)
{
    /* Together as many cells as argument 3 in ftb_pool_internal.h asks for. */
    uint64_t cells_n = pool->queue_size;
    uint64_t ring_n = ftb_next_pow2((cells_n + pool->workers_n - 1) / pool->workers_n);
    pool->workers = ftb_alloc_line(pool->workers_n * sizeof *pool->workers);
    if (pool->workers == NULL || !strands_make(pool)
        || ftb_chain_init(&pool->urgent, ftb_next_pow2(pool->queue_size)) != FTB_OK) {
        return FTB_NOMEM;
    }
    for (uint32_t i = 0; i < pool->workers_n; i++) {
        pool->workers[i].batch_n = 1;
        pool->workers[i].near[0] = range_of(options->cache_of, pool->workers_n, i);
        pool->workers[i].near[1] = range_of(options->node_of, pool->workers_n, i);
        pool->workers[i].near[2] = range_of(NULL, pool->workers_n, i);
        ftb_parker_init(&pool->workers[i].parker);
    }
    for (uint32_t i = 0; i < pool->workers_n; i++) {
        if (ftb_chain_init(&pool->workers[i].ring, ring_n) != FTB_OK) {
            return FTB_NOMEM;
        }
    }
    return FTB_OK;
}

ftb_pool_t *
ftb_pool_new(const struct ftb_pool_options *options)
{
    if (!options_are_valid(options)) {
        return NULL;
    }
    ftb_pool_t *pool = ftb_alloc_line(sizeof *pool);
    if (pool == NULL) {
        return NULL;
    }
    pool->workers_n = options->workers_n;
    pool->queue_size = options->queue_size;
    /* Space for one event is not worth a wake-up: it would be full again at once, and the
     * next take would have to wake somebody again. */
    uint32_t room_n = (pool->queue_size + 3) / 4;
    pool->room_queued = pool->queue_size - (room_n < ROOM_MAX ? room_n : ROOM_MAX);
    pool->strands_n = options->strands_n;
    pool->spin_ns = options->spin_ns;
    pool->linger_ns = options->linger_ns;
    /* More than half of the workers spinning would only slow the others down. */
    pool->spinners_max = pool->workers_n < 4 ? 1 : pool->workers_n / 2;
    ftb_idle_init(&pool->idle, pool->workers_n);
    ftb_waitset_init(&pool->space);
    ftb_waitset_init(&pool->drained);
    if (pool_fill(pool, options) != FTB_OK) {
        ftb_pool_free(pool);
        return NULL;
    }
    return pool;
}

void
ftb_pool_free(ftb_pool_t *pool)
{
    if (pool == NULL) {
        return;
    }
    /* pool_fill makes the members of the workers once it has all arrays. */
    if (pool->workers != NULL && pool->strands_memory != NULL
        && pool->strand_pages != NULL) {
        for (uint32_t i = 0; i < pool->workers_n; i++) {
            ftb_chain_fini(&pool->workers[i].ring);
            ftb_parker_fini(&pool->workers[i].parker);
        }
    }
    strands_free(pool);
    ftb_chain_fini(&pool->urgent);
    ftb_waitset_fini(&pool->space);
    ftb_waitset_fini(&pool->drained);
    ftb_free(pool->workers);
    ftb_free(pool);
}

void
ftb_pool_touch(ftb_pool_t *pool, uint32_t worker_ix)
{
    struct ftb_ring *ring = &pool->workers[worker_ix].ring.rings[0];
    for (uint64_t i = 0; i <= ring->mask; i += 4096 / sizeof ring->cells[0]) {
        /* A page is placed by its first write. relaxed: adding 0 tells nobody anything */
        ftb_add_relaxed(&ring->cells[i].turn, 0);
    }
}

void
ftb_pool_close(ftb_pool_t *pool)
{
    ftb_or_seq_cst(&pool->word, FTB_WORD_CLOSED);
    ftb_waitset_notify(&pool->space, true);
}

void
ftb_pool_stop(ftb_pool_t *pool)
{
    ftb_pool_close(pool);
    /* seq_cst: pairs with the loads that waiters do after they registered. */
    ftb_store_seq_cst(&pool->is_stopped, true);
    for (uint32_t i = 0; i < pool->workers_n; i++) {
        (void)ftb_parker_unpark(&pool->workers[i].parker);
    }
    ftb_waitset_notify(&pool->drained, true);
}

uint32_t
ftb_pool_queued(ftb_pool_t *pool)
{
    return ftb__word_queued(ftb_load_seq_cst(&pool->word));
}

uint32_t
ftb_pool_unfinished(ftb_pool_t *pool)
{
    return ftb__word_unfinished(ftb_load_seq_cst(&pool->word));
}

static void
strand_count_busy(struct ftb_strand *strand, void *context)
{
    *(uint32_t *)context += ftb_load_relaxed(&strand->state) != FTB_STRAND_IDLE;
}

void
ftb_pool_stats(ftb_pool_t *pool, struct ftb_pool_stats *stats)
{
    uint64_t word = ftb_load_seq_cst(&pool->word);
    stats->workers_n = pool->workers_n;
    stats->queue_size = pool->queue_size;
    stats->strands_n = pool->strands_n;
    stats->queued = ftb__word_queued(word);
    stats->unfinished = ftb__word_unfinished(word);
    stats->is_closed = (word & FTB_WORD_CLOSED) != 0;
    stats->is_stopped = ftb_load_seq_cst(&pool->is_stopped);
    /* relaxed, here and below: counters that nothing is inferred from */
    stats->wakes = 0;
    stats->fulls = ftb_load_relaxed(&pool->fulls);
    stats->helped = ftb_load_relaxed(&pool->helped);
    stats->evicted = ftb_load_relaxed(&pool->evicted);
    stats->urgent = ftb_load_relaxed(&pool->urgent_posts);
    stats->queued_max = stats->fulls > 0 ? pool->queue_size : stats->queued;
    for (uint32_t i = 0; i < pool->workers_n; i++) {
        stats->wakes += ftb_load_relaxed(&pool->workers[i].wakes);
        uint32_t seen = ftb_load_relaxed(&pool->workers[i].queued_max);
        if (seen > stats->queued_max) {
            stats->queued_max = seen;
        }
    }
    stats->strands_busy = 0;
    strands_each(pool, strand_count_busy, &stats->strands_busy);
}

void
ftb_pool_worker_stats(
    ftb_pool_t *pool, uint32_t worker_ix, struct ftb_pool_worker_stats *stats)
{
    struct ftb_pool_worker *worker = &pool->workers[worker_ix];
    /* relaxed: each counter is some recent value of its own */
    stats->taken = ftb_load_relaxed(&worker->taken);
    stats->stolen = ftb_load_relaxed(&worker->stolen);
    stats->batches = ftb_load_relaxed(&worker->batches);
    stats->parks = ftb_load_relaxed(&worker->parks);
    stats->wakes = ftb_load_relaxed(&worker->wakes);
    stats->busy_ns = ftb_load_relaxed(&worker->busy_ns);
}

void
ftb_pool_after_fork_child(ftb_pool_t *pool)
{
    ftb_node_after_fork_child();
    ftb_idle_init(&pool->idle, pool->workers_n);
    ftb_init(&pool->spinners_n, 0);
    ftb_init(&pool->watchers_n, 0);
    ftb_init(&pool->drain_own_n, 0);
    ftb_waitset_init(&pool->space);
    ftb_waitset_init(&pool->drained);
    for (uint32_t i = 0; i < pool->workers_n; i++) {
        ftb_parker_init(&pool->workers[i].parker);
        ftb__pool_offer_after_fork_child(&pool->workers[i].offer);
        pool->workers[i].depth = 0;
    }
    ftb_pool_stop(pool);
}

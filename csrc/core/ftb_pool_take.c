#include "ftb_pool_internal.h"

/* One in this many takes starts at another worker's ring, so that events behind a worker
 * that is stuck in a long handler do not wait for a lull of the others. */
#define FAIR_TAKES 16u

/* Takes of urgent events in a row, before a worker looks at the others first. */
#define URGENT_TAKES 8u

#define FROM_URGENT UINT32_MAX

/* Take up to n events off the strand, whose token the caller has just popped. If it has
 * none that can be had, let go of it and return 0. */
static uint32_t
strand_take(
    ftb_pool_t *pool, uint32_t ring_ix, struct ftb_strand *strand, uint32_t n,
    struct ftb_item *items)
{
    ftb_strand_begin_local(strand);
    uint32_t taken_n = 0;
    struct ftb_node *spent;
    while (taken_n < n && ftb_strand_try_pop_local(strand, &items[taken_n], &spent)) {
        taken_n++;
        if (spent != NULL) {
            ftb_node_free(spent);
        }
    }
    if (taken_n == 0 && ftb_strand_end_local(strand)) {
        ftb__pool_put_token(pool, ring_ix, strand, true);
    }
    return taken_n;
}

/* Take up to n events from one ring: plain ones, or some of one strand. */
static uint32_t
ring_take(ftb_pool_t *pool, uint32_t ring_ix, uint32_t n, struct ftb_batch *batch)
{
    struct ftb_chain *ring = &pool->workers[ring_ix].ring;
    for (;;) {
        enum ftb_ring_kind kind = FTB_RING_NONE;
        uint32_t taken_n = ftb_chain_try_pop_mpmc(ring, batch->items, n, &kind);
        batch->strand = NULL;
        batch->fan = NULL;
        if (kind == FTB_RING_TOKEN) {
            batch->strand = batch->items[0].target;
            taken_n = strand_take(pool, ring_ix, batch->strand, n, batch->items);
            if (taken_n == 0) {
                continue; /* there may be more behind the token */
            }
        }
        batch->n = taken_n;
        return taken_n;
    }
}

/* Take up to n urgent events. */
static uint32_t
urgent_take(ftb_pool_t *pool, uint32_t n, struct ftb_batch *batch)
{
    enum ftb_ring_kind kind = FTB_RING_NONE;
    if (FTB_LIKELY(ftb_chain_is_empty(&pool->urgent))) {
        return 0;
    }
    batch->n = ftb_chain_try_pop_mpmc(&pool->urgent, batch->items, n, &kind);
    batch->strand = NULL;
    batch->fan = NULL;
    return batch->n;
}

/* Take up to n events from any ring, looking first at `first`, then at those near it.
 * Returns how many, and from
 * which ring in *from_ix. */
static uint32_t
rings_take(
    ftb_pool_t *pool, uint32_t first, uint32_t n, struct ftb_batch *batch,
    uint32_t *from_ix)
{
    const struct ftb_range *near = pool->workers[first].near;
    struct ftb_range seen = {first, first};
    for (int level = 0; level < 3; level++) {
        /* From `first` on, around the range, without what was seen at a nearer level. */
        struct ftb_range range = near[level];
        uint32_t left_n = (range.end - range.begin) - (seen.end - seen.begin);
        for (uint32_t ix = first; left_n > 0;
             ix = ix + 1 < range.end ? ix + 1 : range.begin) {
            if (ix >= seen.begin && ix < seen.end) {
                continue;
            }
            if (ring_take(pool, ix, n, batch) > 0) {
                *from_ix = ix;
                return batch->n;
            }
            left_n--;
        }
        seen = range;
    }
    batch->n = 0;
    batch->strand = NULL;
    batch->fan = NULL;
    return 0;
}

uint64_t
ftb__pool_subtract(ftb_pool_t *pool, uint32_t queued_n, uint32_t unfinished_n)
{
    uint64_t part =
        queued_n * FTB_WORD_QUEUED_ONE + unfinished_n * FTB_WORD_UNFINISHED_ONE;
    /* seq_cst: comes before the loads that look for waiters; releases what the handlers
     * did to who waits for the drain. */
    uint64_t word = ftb_sub_seq_cst(&pool->word, part) - part;
    if (queued_n > 0 && ftb__word_queued(word) <= pool->room_queued) {
        ftb_waitset_notify(&pool->space, false);
    }
    if (unfinished_n > 0
        && ftb__word_unfinished(word) <= ftb_load_seq_cst(&pool->drain_own_n)) {
        ftb_waitset_notify(&pool->drained, true);
    }
    return word;
}

/* The same with urgent events, before the others or after them; *from_ix may be
 * FROM_URGENT. */
static uint32_t
pool_take_from(
    ftb_pool_t *pool, uint32_t first, bool urgent_first, uint32_t n,
    struct ftb_batch *batch, uint32_t *from_ix)
{
    if (urgent_first && urgent_take(pool, n, batch) > 0) {
        *from_ix = FROM_URGENT;
        return batch->n;
    }
    if (rings_take(pool, first, n, batch, from_ix) > 0 || urgent_first) {
        return batch->n;
    }
    *from_ix = FROM_URGENT;
    return urgent_take(pool, n, batch);
}

/* How many events the worker may take now: its batch size, or its share of the queue, so
 * that it does not sit on events that an idle worker could run. */
static uint32_t
worker_limit(ftb_pool_t *pool, struct ftb_pool_worker *worker)
{
    /* relaxed: an estimate */
    uint32_t queued = ftb__word_queued(ftb_load_relaxed(&pool->word));
    if (queued > ftb_load_relaxed(&worker->queued_max)) {
        ftb_store_relaxed(&worker->queued_max, queued);
    }
    uint32_t share = pool->workers_n == 1 ? queued : queued / pool->workers_n;
    uint32_t limit = worker->batch_n < share ? worker->batch_n : share;
    return limit < 1 ? 1 : limit;
}

/* Where the worker looks first: at its own ring, and now and then at another. */
static uint32_t
worker_first_ring(ftb_pool_t *pool, struct ftb_pool_worker *worker, uint32_t worker_ix)
{
    if (FTB_LIKELY(++worker->takes_n < FAIR_TAKES)) {
        return worker_ix;
    }
    worker->takes_n = 0;
    worker->victim_ix =
        worker->victim_ix + 1 < pool->workers_n ? worker->victim_ix + 1 : 0;
    return worker->victim_ix;
}

static void
batch_clear(struct ftb_batch *batch)
{
    batch->n = 0;
    batch->next = 0;
    batch->offer = NULL;
}

uint32_t
ftb_pool_take(ftb_pool_t *pool, uint32_t worker_ix, struct ftb_batch *batch)
{
    struct ftb_pool_worker *worker = &pool->workers[worker_ix];
    batch_clear(batch);
    if (FTB_UNLIKELY(ftb_load_acquire(&pool->is_stopped))) {
        return 0;
    }
    uint32_t limit = worker_limit(pool, worker);
    uint32_t first = worker_first_ring(pool, worker, worker_ix);
    uint32_t from_ix;
    bool urgent_first = worker->urgent_n < URGENT_TAKES;
    bool has_more = false;
    if (pool_take_from(pool, first, urgent_first, limit, batch, &from_ix) > 0) {
        (void)ftb__pool_subtract(pool, batch->n, 0);
        worker->urgent_n = from_ix == FROM_URGENT ? worker->urgent_n + 1 : 0;
        from_ix = from_ix == FROM_URGENT ? worker_ix : from_ix; /* nobody's own */
    } else if (ftb__pool_take_fan(pool, worker_ix, batch) > 0) {
        from_ix = worker_ix;
    } else {
        uint32_t n = worker->batch_n;
        if (ftb__pool_take_offered(pool, worker_ix, n, batch, &has_more) == 0) {
            return 0;
        }
        ftb_count_local(&worker->stolen, batch->n);
        from_ix = worker_ix;
    }
    if (worker->stamp_ns == 0) {
        worker->stamp_ns = ftb_now_ns();
    }
    batch->start_ns = worker->stamp_ns;
    worker->depth++;
    ftb_count_local(&worker->batches, 1);
    if (from_ix != worker_ix) {
        ftb_count_local(&worker->stolen, batch->n);
    }
    /* Argument 4 in ftb_idle.h, 3 in ftb_pool_offer.c: what is left must not wait while
     * others sleep. */
    if (ftb_idle_has_any(&pool->idle)
        && (has_more || ftb__pool_has_work(pool, from_ix)
            || ftb__pool_is_unwatched(pool))) {
        ftb__pool_wake(pool, from_ix);
    }
    return batch->n;
}

uint32_t
ftb_pool_take_one(ftb_pool_t *pool, struct ftb_batch *batch)
{
    uint32_t from_ix;
    bool has_more;
    batch_clear(batch);
    batch->start_ns = 0;
    if (FTB_UNLIKELY(ftb_load_acquire(&pool->is_stopped))) {
        return 0;
    }
    uint32_t first = ftb__pool_next_ring(pool);
    if (pool_take_from(pool, first, true, 1, batch, &from_ix) == 1) {
        (void)ftb__pool_subtract(pool, 1, 0);
    } else {
        (void)ftb__pool_take_offered(pool, FTB_NO_WORKER, 1, batch, &has_more);
    }
    ftb_add_relaxed(&pool->helped, batch->n); /* relaxed: a statistic */
    return batch->n;
}

/* Whether a batch with all that is queued after it is less than half of what it could have
 * been. Not if nothing is queued: then the worker looks again, and waits. */
static bool
is_trickle(
    const struct ftb_pool_worker *worker, const struct ftb_batch *batch,
    uint32_t queued_n)
{
    return queued_n > 0 && 2 * (uint64_t)(batch->n + queued_n) < worker->batch_n;
}

/* Learn from the batch how many events to take next. */
static void
worker_learn(struct ftb_pool_worker *worker, const struct ftb_batch *batch)
{
    uint64_t now_ns = ftb_now_ns();
    uint64_t elapsed_ns = now_ns - batch->start_ns;
    uint64_t fit_n = FTB_BATCH_MAX;
    if (elapsed_ns > 0) {
        fit_n = (uint64_t)FTB_BATCH_GOAL_NS * batch->n / elapsed_ns;
    }
    if (fit_n > 2 * (uint64_t)worker->batch_n) {
        fit_n = 2 * (uint64_t)worker->batch_n;
    }
    if (fit_n > FTB_BATCH_MAX) {
        fit_n = FTB_BATCH_MAX;
    }
    worker->batch_n = fit_n < 1 ? 1 : (uint32_t)fit_n;
    worker->stamp_ns = now_ns;
    ftb_count_local(&worker->busy_ns, elapsed_ns);
}

void
ftb_pool_finish(ftb_pool_t *pool, uint32_t worker_ix, struct ftb_batch *batch)
{
    bool is_worker = worker_ix != FTB_NO_WORKER;
    bool is_outer = is_worker && --pool->workers[worker_ix].depth == 0;
    if (batch->offer != NULL) {
        ftb__pool_close_offer(batch);
    }
    if (is_worker) {
        ftb_count_local(&pool->workers[worker_ix].taken, batch->n);
    }
    if (batch->strand != NULL && ftb_strand_end_local(batch->strand)) {
        /* A worker that has no other batch open takes or waits next, and sees the token
         * then; nobody else has to be woken for it. */
        uint32_t ring_ix = is_worker ? worker_ix : ftb__pool_choose_ring(pool);
        ftb__pool_put_token(pool, ring_ix, batch->strand, !is_outer);
    }
    uint64_t word = ftb__pool_subtract(pool, 0, batch->n);
    if (is_outer) {
        struct ftb_pool_worker *worker = &pool->workers[worker_ix];
        worker->linger_until_ns = is_trickle(worker, batch, ftb__word_queued(word))
                                      ? batch->start_ns + pool->linger_ns
                                      : 0;
        worker_learn(worker, batch);
    }
    batch->n = 0;
    batch->strand = NULL;
}

bool
ftb_pool_evict(ftb_pool_t *pool, struct ftb_item *item)
{
    struct ftb_batch batch;
    uint32_t from_ix;
    uint32_t first = ftb__pool_next_ring(pool);
    if (pool_take_from(pool, first, false, 1, &batch, &from_ix) == 0) {
        return false;
    }
    if (batch.strand != NULL && ftb_strand_end_local(batch.strand)) {
        ftb__pool_put_token(pool, from_ix, batch.strand, true);
    }
    *item = batch.items[0];
    (void)ftb__pool_subtract(pool, 1, 1);
    ftb_add_relaxed(&pool->evicted, 1); /* relaxed: a statistic */
    return true;
}

uint32_t
ftb_pool_behind(const struct ftb_batch *batch)
{
    return batch->strand != NULL ? ftb_strand_count_local(batch->strand) : 0;
}

bool
ftb_pool_evict_behind(
    ftb_pool_t *pool, const struct ftb_batch *batch, struct ftb_item *item)
{
    struct ftb_node *spent;
    if (batch->strand == NULL
        || !ftb_strand_try_pop_local(batch->strand, item, &spent)) {
        return false;
    }
    if (spent != NULL) {
        ftb_node_free(spent);
    }
    (void)ftb__pool_subtract(pool, 1, 1);
    ftb_add_relaxed(&pool->evicted, 1); /* relaxed: a statistic */
    return true;
}

#include <sched.h>

#include "ftb_pool_internal.h"

/* Events that one thread puts into one ring before it goes on to the next: enough for a
 * worker to take them as a batch, few enough to share them out. */
#define STICKY_POSTS 16u

/* Counts the calling thread's posts, to walk over the rings. */
static FTB_TLS uint32_t posts_of_thread;

/* Count up to n events in, as many as there is space for. Returns how many, with the
 * result in *result. Argument 1 in ftb_pool_internal.h. */
static inline uint32_t
pool_admit(ftb_pool_t *pool, uint32_t n, enum ftb_result *result)
{
    uint64_t word = ftb_load_relaxed(&pool->word); /* relaxed: the swap checks it */
    for (;;) {
        if (FTB_UNLIKELY((word & FTB_WORD_CLOSED) != 0)) {
            *result = FTB_CLOSED;
            return 0;
        }
        uint32_t space_n = pool->queue_size - ftb__word_queued(word);
        uint32_t admitted_n = n < space_n ? n : space_n;
        uint64_t one = FTB_WORD_QUEUED_ONE + FTB_WORD_UNFINISHED_ONE;
        if (FTB_UNLIKELY(admitted_n == 0 && n > 0)) {
            ftb_add_relaxed(&pool->fulls, 1); /* relaxed: a statistic */
            *result = FTB_FULL;
            return 0;
        }
        if (ftb_cas_seq_cst(&pool->word, &word, word + admitted_n * one)) {
            if (admitted_n < n) {
                ftb_add_relaxed(&pool->fulls, 1); /* relaxed: a statistic */
            }
            *result = admitted_n == n ? FTB_OK : FTB_FULL;
            return admitted_n;
        }
    }
}

uint32_t
ftb__pool_next_ring(ftb_pool_t *pool)
{
    return posts_of_thread++ / STICKY_POSTS % pool->workers_n;
}

uint32_t
ftb__pool_choose_ring(ftb_pool_t *pool)
{
    if (pool->workers_n == 1) {
        return 0;
    }
    int32_t idle_ix = ftb_idle_find(&pool->idle);
    return idle_ix >= 0 ? (uint32_t)idle_ix : ftb__pool_next_ring(pool);
}

void
ftb__pool_put(
    ftb_pool_t *pool, uint32_t ring_ix, const struct ftb_item *items, uint32_t n,
    enum ftb_ring_kind kind)
{
    uint32_t put_n = 0;
    for (uint32_t full_n = 0; put_n < n;) {
        struct ftb_chain *ring = &pool->workers[ring_ix].ring;
        uint32_t pushed_n =
            ftb_chain_try_push_mpmc(ring, items + put_n, n - put_n, kind);
        put_n += pushed_n;
        if (FTB_UNLIKELY(pushed_n == 0)) {
            ring_ix = ring_ix + 1 < pool->workers_n ? ring_ix + 1 : 0;
            if (++full_n % pool->workers_n == 0) {
                sched_yield(); /* argument 3 in ftb_pool_internal.h */
            }
        }
    }
}

void
ftb__pool_wake(ftb_pool_t *pool, uint32_t preferred)
{
    int32_t ix = ftb_idle_claim(&pool->idle, preferred);
    if (ix >= 0) {
        (void)ftb_parker_unpark(&pool->workers[ix].parker);
        ftb_add_relaxed(&pool->workers[ix].wakes, 1); /* relaxed: a statistic */
    }
}

void
ftb__pool_put_token(
    ftb_pool_t *pool, uint32_t ring_ix, struct ftb_strand *strand, bool wake)
{
    struct ftb_item token = {.target = strand};
    ftb__pool_put(pool, ring_ix, &token, 1, FTB_RING_TOKEN);
    if (wake) {
        ftb__pool_wake(pool, ring_ix);
    }
}

enum ftb_result
ftb_pool_try_post(ftb_pool_t *pool, const struct ftb_item *item)
{
    enum ftb_result result;
    if (FTB_LIKELY(pool_admit(pool, 1, &result) == 1)) {
        uint32_t ring_ix = ftb__pool_choose_ring(pool);
        struct ftb_chain *ring = &pool->workers[ring_ix].ring;
        /* As ftb__pool_put, but here the compiler knows that it is one plain item. */
        if (FTB_UNLIKELY(ftb_chain_try_push_mpmc(ring, item, 1, FTB_RING_PLAIN) == 0)) {
            ftb__pool_put(pool, ring_ix, item, 1, FTB_RING_PLAIN);
        }
        ftb__pool_wake(pool, ring_ix);
    }
    return result;
}

enum ftb_result
ftb_pool_try_post_urgent(ftb_pool_t *pool, const struct ftb_item *item)
{
    enum ftb_result result;
    if (pool_admit(pool, 1, &result) == 1) {
        while (ftb_chain_try_push_mpmc(&pool->urgent, item, 1, FTB_RING_PLAIN) == 0) {
            sched_yield(); /* argument 3 in ftb_pool_internal.h */
        }
        ftb_add_relaxed(&pool->urgent_posts, 1); /* relaxed: a statistic */
        ftb__pool_wake(pool, ftb__pool_choose_ring(pool));
    }
    return result;
}

enum ftb_result
ftb_pool_try_post_many(
    ftb_pool_t *pool, const struct ftb_item *items, uint32_t n, uint32_t *accepted_n)
{
    enum ftb_result result;
    *accepted_n = pool_admit(pool, n, &result);
    if (*accepted_n == 0) {
        return result;
    }
    /* An equal share for every ring, but pieces that are worth a batch. */
    uint32_t share_n = (*accepted_n + pool->workers_n - 1) / pool->workers_n;
    if (share_n < STICKY_POSTS) {
        share_n = STICKY_POSTS;
    }
    uint32_t first_ix = ftb__pool_choose_ring(pool);
    uint32_t ring_ix = first_ix;
    for (uint32_t done_n = 0; done_n < *accepted_n;) {
        uint32_t left_n = *accepted_n - done_n;
        uint32_t piece_n = left_n < share_n ? left_n : share_n;
        ftb__pool_put(pool, ring_ix, items + done_n, piece_n, FTB_RING_PLAIN);
        done_n += piece_n;
        ring_ix = ring_ix + 1 < pool->workers_n ? ring_ix + 1 : 0;
    }
    /* One worker; it wakes the next if there is more than it takes. */
    ftb__pool_wake(pool, first_ix);
    return result;
}

enum ftb_result
ftb_pool_try_post_strand(
    ftb_pool_t *pool, uint64_t partition_hash, const struct ftb_item *item)
{
    struct ftb_node *node = ftb_node_new(); /* first, so that it can still fail */
    if (FTB_UNLIKELY(node == NULL)) {
        return FTB_NOMEM;
    }
    enum ftb_result result;
    if (pool_admit(pool, 1, &result) == 0) {
        ftb_node_free(node);
        return result;
    }
    /* Fibonacci hashing: neighbouring numbers, too, spread over the strands. */
    uint64_t mixed = (partition_hash * UINT64_C(0x9E3779B97F4A7C15)) >> 32;
    uint64_t ix = (mixed * pool->strands_n) >> 32;
    struct ftb_strand *strand = &pool->strands[ix];
    ftb_atomic(uint8_t) *page = &pool->strand_pages[ix / FTB_STRANDS_PER_PAGE];
    if (FTB_UNLIKELY(ftb_load_relaxed(page) == 0)) { /* relaxed: for ftb_pool_free */
        ftb_store_relaxed(page, 1);
    }
    if (ftb_strand_push_mpsc(strand, node, item)) {
        ftb__pool_put_token(pool, ftb__pool_choose_ring(pool), strand, true);
    }
    return result;
}

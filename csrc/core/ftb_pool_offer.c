/* Events behind a handler that turns out slow: they are in the batch of its worker, where
 * nobody finds them by looking at rings. So a worker offers its batch (ftb_offer.h), and
 * who has nothing else to do takes from a batch that has been open for OLD_NS. Somebody
 * has to be awake by then: a worker that goes to sleep while batches are open watches, in
 * sleeps that get longer up to PAUSE_MAX_NS; one watcher is enough, the others sleep until
 * they are woken, and so does the watcher once there is nothing to watch.
 *
 * Why no open batch is forgotten: it always has a watcher, or a worker that is awake and
 * on its way to look (at R2 or W2), or no worker is idle.
 *
 *   offer, O1: store its word             sleep, W1: set the idle bit
 *          O2: load watchers_n                   W2: load every offer's word
 *          O3: if 0, wake an idle one            W3: if one is open, load watchers_n;
 *   end of a watch,                                  0: add 1, sleep with a deadline
 *          V1: clear the idle bit                otherwise, or none is open: sleep
 *          V2: subtract from watchers_n
 *   take of something, before it is run,
 *          R1: load the idle bits; any set?
 *          R2: load every offer's word; one open?
 *          R3: load watchers_n; if 0, wake an idle one
 * All are seq_cst, so they are in one total order.
 * 1. O1 against W2. If W2 does not see the offer, then W1, W2, O1, O2, O3 come in this
 *    order: O3 finds the bit, or somebody who has claimed it since and woken the worker,
 *    or O2 has seen a watcher. If W2 sees it, the worker watches, or W3 has seen a watcher.
 * 2. Who has seen a watcher, by O2, W3 or R3, did so before that one's V2. Hence O1, or the
 *    O1 that W2 or R2 has seen, comes before what the watcher does next: either W2, where
 *    1 applies, or R1 to R3. So does R of a worker that O3 or R3 has woken, as the wake-up
 *    orders them.
 * 3. R1 to R3 hand the watch on. If R1 misses the bit of a worker, that one's W1 and W2 are
 *    still to come. If it sees one, and R2 sees the offer, then R3 sees a watcher or wakes
 *    a worker.
 * 4. Woken in vain, for an offer that is closed by then, a worker sleeps again after its
 *    next look: that costs one wake-up. That a stream of short batches does not wake
 *    somebody for each is the watcher's part: it stays until nothing was offered for a
 *    whole pause. */
#include <sched.h>

#include "ftb_pool_internal.h"

/* Since when a batch must be open: its events take much longer than others did. */
#define OLD_NS (4 * (uint64_t)FTB_BATCH_GOAL_NS)

/* How long a watcher sleeps first, and at most. */
#define PAUSE_MIN_NS OLD_NS
#define PAUSE_MAX_NS (16 * OLD_NS)

/* What a look at all offers has found. */
struct look {
    bool is_open;      /* some batch has events to take */
    bool is_old;       /* has had for long */
    uint64_t openings; /* changes with every batch that is offered */
};

/* Whether the opening that `word` is of is old enough to take from. */
static bool
offer_is_old(struct ftb_offer *offer, uint64_t now_ns)
{
    /* relaxed: a swap checks the word, argument 5 in ftb_offer.h */
    return (int64_t)(now_ns - ftb_load_relaxed(&offer->since_ns)) > (int64_t)OLD_NS;
}

static struct look
offers_look(ftb_pool_t *pool, uint64_t now_ns)
{
    struct look look = {false, false, 0};
    for (uint32_t i = 0; i < pool->workers_n; i++) {
        struct ftb_offer *offer = &pool->workers[i].offer;
        uint64_t word = ftb_offer_look(offer); /* W2, R2 */
        look.openings += word / FTB_OFFER_OPENING_ONE;
        if (ftb_offer_is_open(word)) {
            look.is_open = true;
            look.is_old = look.is_old || offer_is_old(offer, now_ns);
        }
    }
    return look;
}

static bool
has_watcher(ftb_pool_t *pool)
{
    return ftb_load_seq_cst(&pool->watchers_n) > 0; /* O2, W3, R3 */
}

static void
begin_watch(ftb_pool_t *pool)
{
    ftb_add_seq_cst(&pool->watchers_n, 1);
}

void
ftb__pool_end_watch(ftb_pool_t *pool)
{
    ftb_sub_seq_cst(&pool->watchers_n, 1); /* V2 */
}

bool
ftb__pool_is_unwatched(ftb_pool_t *pool)
{
    return offers_look(pool, 0).is_open && !has_watcher(pool);
}

void
ftb_pool_offer(ftb_pool_t *pool, uint32_t worker_ix, struct ftb_batch *batch)
{
    struct ftb_pool_worker *worker = &pool->workers[worker_ix];
    /* A nested batch is short-lived: its handlers run inside another one. */
    if (batch->n < 2 || pool->workers_n == 1 || batch->strand != NULL
        || worker->depth != 1) {
        return;
    }
    batch->offer = &worker->offer;
    ftb_offer_open_local(
        batch->offer, batch->items, batch->n, batch->start_ns); /* O1 */
    if (FTB_UNLIKELY(!has_watcher(pool))) {
        ftb__pool_wake(pool, worker_ix); /* O3 */
    }
}

uint32_t
ftb__pool_take_offered(
    ftb_pool_t *pool, uint32_t worker_ix, uint32_t n, struct ftb_batch *batch,
    bool *has_more)
{
    uint64_t now_ns = 0;
    for (uint32_t ix = 0; ix < pool->workers_n; ix++) {
        struct ftb_offer *offer = &pool->workers[ix].offer;
        uint64_t word = ftb_offer_look(offer);
        if (ix == worker_ix || !ftb_offer_is_open(word)) {
            continue;
        }
        now_ns = now_ns != 0 ? now_ns : ftb_now_ns();
        if (!offer_is_old(offer, now_ns)) {
            continue;
        }
        /* Half: the owner, and others, may soon have time, too. */
        uint32_t half_n = (ftb_offer_left(word) + 1) / 2, first;
        const struct ftb_item *items;
        batch->n =
            ftb_offer_try_take(offer, word, n < half_n ? n : half_n, &items, &first);
        for (uint32_t i = 0; i < batch->n; i++) {
            batch->items[i] = items[first + i];
        }
        if (batch->n > 0) {
            ftb_offer_copied(offer);
            *has_more = ftb_offer_left(word) > batch->n;
            return batch->n;
        }
    }
    return 0;
}

void
ftb_pool_keep(struct ftb_batch *batch)
{
    if (batch->offer != NULL) {
        ftb_offer_keep_local(batch->offer);
    }
}

uint32_t
ftb_pool_own_n(const struct ftb_batch *batch)
{
    if (batch->offer == NULL) {
        return batch->n;
    }
    /* relaxed, here and below: only this thread knows what to make of it */
    return batch->n - ftb_offer_stolen(ftb_load_relaxed(&batch->offer->word));
}

uint32_t
ftb_pool_unclaimed_n(const struct ftb_batch *batch)
{
    if (batch->offer == NULL) {
        return batch->n - batch->next;
    }
    uint32_t first_n = batch->next == 0 ? 1 : 0;
    return first_n + ftb_offer_left(ftb_load_relaxed(&batch->offer->word));
}

void
ftb__pool_close_offer(struct ftb_batch *batch)
{
    uint32_t stolen_n;
    while (!ftb_offer_try_close_local(batch->offer, &stolen_n)) {
        sched_yield(); /* argument 3 in ftb_offer.h */
    }
    batch->n -= stolen_n;
    batch->offer = NULL;
}

void
ftb__pool_offer_after_fork_child(struct ftb_offer *offer)
{
    /* What a thief was copying is gone with it. */
    uint64_t word = ftb_load_relaxed(&offer->word); /* relaxed: no other thread */
    ftb_store_relaxed(&offer->word, word & ~FTB_OFFER_COPIERS);
}

enum ftb_result
ftb__pool_sleep(
    ftb_pool_t *pool, uint32_t worker_ix, uint64_t deadline_ns, bool *watches)
{
    struct ftb_parker *parker = &pool->workers[worker_ix].parker;
    struct look before = {false, false, 0};
    uint64_t pause_ns = PAUSE_MIN_NS;
    if (pool->workers_n == 1) {
        return ftb_parker_wait(parker, deadline_ns);
    }
    for (;;) {
        uint64_t now_ns = ftb_now_ns();
        struct look look = offers_look(pool, now_ns);
        if (look.is_old) {
            return FTB_OK;
        }
        if (*watches && !look.is_open && look.openings == before.openings) {
            *watches = false;
            ftb__pool_end_watch(pool);
            continue; /* W2 */
        }
        if (!*watches && look.is_open && !has_watcher(pool)) {
            *watches = true;
            begin_watch(pool);
        }
        if (!*watches) {
            return ftb_parker_wait(parker, deadline_ns);
        }
        uint64_t until_ns = now_ns + pause_ns;
        until_ns = until_ns < deadline_ns ? until_ns : deadline_ns;
        if (ftb_parker_wait(parker, until_ns) == FTB_OK) {
            return FTB_OK;
        }
        if (until_ns == deadline_ns) {
            return FTB_TIMEOUT;
        }
        pause_ns = 2 * pause_ns < PAUSE_MAX_NS ? 2 * pause_ns : PAUSE_MAX_NS;
        before = look;
    }
}

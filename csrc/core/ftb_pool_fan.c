#include "ftb_pool_internal.h"

/* A worker whose batches have grown beyond this runs events too short to be worth a
 * wake-up: FTB_BATCH_GOAL_NS divided by this is what an event takes. */
#define FAN_BATCH_MAX 4u

bool
ftb_pool_wants_fan(ftb_pool_t *pool, uint32_t worker_ix)
{
    struct ftb_pool_worker *worker = &pool->workers[worker_ix];
    return ftb_idle_find(&pool->idle) >= 0 && worker->batch_n <= FAN_BATCH_MAX
           && ftb_fan_is_free_local(&worker->fan);
}

void
ftb_pool_fan_open(ftb_pool_t *pool, uint32_t worker_ix, void *work, uint32_t n)
{
    /* seq_cst: a worker that looks for work must not see the fan without the count. */
    ftb_add_seq_cst(&pool->fans_n, 1);
    ftb_fan_open_local(&pool->workers[worker_ix].fan, work, n);
    if (n > 1) { /* the first index is for the worker itself */
        ftb__pool_wake(pool, worker_ix);
    }
}

static bool
fan_claim(ftb_pool_t *pool, struct ftb_fan *fan, uint32_t *ix, void **work)
{
    bool is_last_claim;
    if (!ftb_fan_try_claim(fan, ix, work, &is_last_claim)) {
        return false;
    }
    if (is_last_claim) {
        ftb_sub_seq_cst(&pool->fans_n, 1);
    }
    return true;
}

bool
ftb_pool_fan_claim(ftb_pool_t *pool, uint32_t worker_ix, uint32_t *ix)
{
    void *work;
    return fan_claim(pool, &pool->workers[worker_ix].fan, ix, &work);
}

bool
ftb_pool_fan_done(ftb_pool_t *pool, uint32_t worker_ix, const struct ftb_batch *batch)
{
    return ftb_fan_done(batch != NULL ? batch->fan : &pool->workers[worker_ix].fan);
}

bool
ftb__pool_has_fan(ftb_pool_t *pool)
{
    if (FTB_LIKELY(ftb_load_seq_cst(&pool->fans_n) == 0)) {
        return false;
    }
    for (uint32_t i = 0; i < pool->workers_n; i++) {
        if (ftb_fan_is_open(&pool->workers[i].fan)) {
            return true;
        }
    }
    return false;
}

uint32_t
ftb__pool_take_fan(ftb_pool_t *pool, uint32_t worker_ix, struct ftb_batch *batch)
{
    if (FTB_LIKELY(ftb_load_seq_cst(&pool->fans_n) == 0)) {
        return 0;
    }
    /* Counted before the claim: the event may otherwise be finished by the others before
     * this thread has said that it runs a part of it. */
    ftb_add_seq_cst(&pool->word, FTB_WORD_UNFINISHED_ONE);
    for (uint32_t i = 1, ix = worker_ix; i < pool->workers_n; i++) {
        ix = ix + 1 < pool->workers_n ? ix + 1 : 0;
        struct ftb_fan *fan = &pool->workers[ix].fan;
        uint32_t handler_ix;
        if (fan_claim(pool, fan, &handler_ix, &batch->items[0].payload)) {
            batch->n = 1;
            batch->fan = fan;
            batch->fan_ix = handler_ix;
            return 1;
        }
    }
    (void)ftb__pool_subtract(pool, 0, 1);
    return 0;
}

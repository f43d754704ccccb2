/* What the tests of the pool share: a small pool, and events that are numbers. */
#ifndef FTB_TESTS_POOL_H
#define FTB_TESTS_POOL_H

#include "check.h"

#include "ftb_pool.h"

#define MS UINT64_C(1000000)

static inline ftb_pool_t *
pool_make(uint32_t workers_n, uint32_t queue_size)
{
    struct ftb_pool_options options = {
        .workers_n = workers_n,
        .queue_size = queue_size,
        .strands_n = 16,
        .spin_ns = 1000,
    };
    ftb_pool_t *pool = ftb_pool_new(&options);
    CHECK(pool != NULL);
    return pool;
}

static inline struct ftb_item
item_of(uintptr_t number)
{
    return (struct ftb_item){.payload = (void *)number};
}

static inline uintptr_t
number_of(const struct ftb_item *item)
{
    return (uintptr_t)item->payload;
}

static inline enum ftb_result
post(ftb_pool_t *pool, uintptr_t number)
{
    struct ftb_item item = item_of(number);
    return ftb_pool_try_post(pool, &item);
}

static inline enum ftb_result
post_strand(ftb_pool_t *pool, uint64_t hash, uintptr_t number)
{
    struct ftb_item item = item_of(number);
    return ftb_pool_try_post_strand(pool, hash, &item);
}

/* Take and finish everything, as worker 0; returns how many events. */
static inline uint32_t
run_all(ftb_pool_t *pool)
{
    struct ftb_batch batch;
    uint32_t n = 0;
    while (ftb_pool_take(pool, 0, &batch) > 0) {
        n += batch.n;
        ftb_pool_finish(pool, 0, &batch);
    }
    return n;
}

#endif

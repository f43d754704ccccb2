/* The dispatcher: a bounded queue of items in front of a set of workers.
 *
 * It owns no thread: the layer above brings its own, one per worker index, and runs what
 * ftb_pool_take hands out. Any thread may post, help, evict, wait for space or for the
 * drain, close, stop and ask for statistics, a worker in the middle of a batch included.
 * take, finish and wait_work of one worker index belong to one thread at a time; an index
 * without a thread is fine, others run what lands there. new, free and after_fork_child
 * want the pool to themselves. A worker:
 *
 *     while (true) {
 *         while (ftb_pool_take(pool, ix, &batch) > 0) {
 *             ... run batch.items[0 .. batch.n) in order ...
 *             ftb_pool_finish(pool, ix, &batch);
 *         }
 *         if (ftb_pool_wait_work(pool, ix, FTB_FOREVER) == FTB_CLOSED) {
 *             break;
 *         }
 *     }
 *
 * Events posted to one partition run one at a time and in the order in which their posts
 * began (of one thread: in the order of its calls). Other events have no order, except
 * that with one worker those of one thread keep theirs. Urgent events are taken before
 * others, but so that these always get on.
 *
 * Nothing here blocks except the three functions named wait. */
#ifndef FTB_POOL_H
#define FTB_POOL_H

#include "ftb_base.h"
#include "ftb_fan.h"
#include "ftb_offer.h"
#include "ftb_ring.h"

#define FTB_BATCH_MAX 64u
#define FTB_POOL_MAX_WORKERS 1024u
#define FTB_POOL_MAX_QUEUE (UINT32_C(1) << 30)
#define FTB_POOL_MAX_STRANDS (UINT32_C(1) << 20)

/* The worker index of a thread that is no worker, for ftb_pool_finish. */
#define FTB_NO_WORKER UINT32_MAX

typedef struct ftb_pool ftb_pool_t;

struct ftb_pool_options {
    uint32_t workers_n;  /* 1 .. FTB_POOL_MAX_WORKERS */
    uint32_t queue_size; /* events queued and not yet taken; 1 .. FTB_POOL_MAX_QUEUE */
    uint32_t strands_n; /* 1 .. FTB_POOL_MAX_STRANDS; partitions that fall on one strand
                          * wait for each other */
    uint32_t spin_ns;   /* how long a wait looks on before it sleeps; 0 = not at all */
    uint32_t linger_ns; /* see ftb_pool_linger; 0 = not at all */
    /* For each worker, which it shares a cache and a memory node with; in ascending order,
     * and those of one cache of one node. NULL: all share both. Read by ftb_pool_new only.
     */
    const uint32_t *cache_of;
    const uint32_t *node_of;
};

/* What a worker runs in one go. */
struct ftb_batch {
    uint32_t n;
    struct ftb_strand *strand; /* set if the items are of one partition; not for use */
    uint64_t start_ns;         /* about when it was taken; 0 in batches of take_one */
    /* Set if items[0].payload is the work of another worker's event, of which this one is
     * to run handler fan_ix. */
    struct ftb_fan *fan;
    uint32_t fan_ix;
    uint32_t next;           /* what ftb_pool_claim hands out, if offer is not set */
    struct ftb_offer *offer; /* set if other threads may take items; not for use */
    struct ftb_item items[FTB_BATCH_MAX];
};

struct ftb_pool_stats {
    uint32_t workers_n;
    uint32_t queue_size;
    uint32_t strands_n;
    uint32_t strands_busy; /* those with items that wait or run */
    uint32_t queued;       /* events posted and not yet taken or evicted */
    uint32_t queued_max;   /* the most that anybody saw; a short peak may be missed */
    uint32_t unfinished;   /* queued, and taken but not yet finished */
    bool is_closed;
    bool is_stopped;
    uint64_t wakes;   /* times an idle worker was woken */
    uint64_t fulls;   /* posts that found the queue full */
    uint64_t helped;  /* events taken by ftb_pool_take_one */
    uint64_t evicted; /* events taken by ftb_pool_evict */
    uint64_t urgent;  /* events posted as urgent */
};

struct ftb_pool_worker_stats {
    uint64_t taken;   /* events of finished batches, those stolen included */
    uint64_t stolen;  /* events that lay in another worker's ring or batch */
    uint64_t batches; /* batches taken */
    uint64_t parks;   /* times the worker went to sleep */
    uint64_t wakes;   /* times it was woken because there was something to run */
    uint64_t busy_ns; /* time from take to finish; a nested batch counts once */
};

/* Make a pool. Returns NULL if there is no memory or an option is out of its range. */
FTB_MUST_USE ftb_pool_t *ftb_pool_new(const struct ftb_pool_options *options);

/* Free the pool; NULL is allowed. No thread may be inside. Items still queued are
 * forgotten: evict them first. */
void ftb_pool_free(ftb_pool_t *pool);

/* Put the worker's ring into memory near its thread, which is to call this before it takes
 * anything. Any thread may use the ring meanwhile. */
void ftb_pool_touch(ftb_pool_t *pool, uint32_t worker_ix);

/* Queue one event. Returns FTB_OK; or FTB_FULL or FTB_CLOSED, with nothing consumed. */
FTB_MUST_USE enum ftb_result
ftb_pool_try_post(ftb_pool_t *pool, const struct ftb_item *item);

/* Queue one event ahead of those that are not urgent; among themselves, and with one
 * worker, urgent ones of one thread keep their order. Returns as above. */
FTB_MUST_USE enum ftb_result
ftb_pool_try_post_urgent(ftb_pool_t *pool, const struct ftb_item *item);

/* Queue one event of the partition with this hash. Returns FTB_OK; or FTB_FULL, FTB_CLOSED
 * or FTB_NOMEM, with nothing consumed. */
FTB_MUST_USE enum ftb_result ftb_pool_try_post_strand(
    ftb_pool_t *pool, uint64_t partition_hash, const struct ftb_item *item);

/* Queue items[0 .. *accepted_n), as many as there is space for. Returns FTB_OK if that is
 * all n, FTB_FULL if it is fewer (0 is possible), FTB_CLOSED if it is none because the
 * pool is closed. */
FTB_MUST_USE enum ftb_result ftb_pool_try_post_many(
    ftb_pool_t *pool, const struct ftb_item *items, uint32_t n, uint32_t *accepted_n);

/* Take the next batch for this worker, without waiting. Returns batch->n; 0 if there is
 * nothing to run right now or the pool is stopped, and then there is nothing to finish.
 * A batch shrinks to one event as handlers get slow, and never holds more than the
 * worker's share of what is queued. Legal while another batch of the worker is open. */
uint32_t ftb_pool_take(ftb_pool_t *pool, uint32_t worker_ix, struct ftb_batch *batch);

/* Let others take events of the batch that are not claimed yet, once it has been open for
 * long: an event behind a handler that blocks does not wait for it. For a batch that the
 * worker has just taken; run then only what ftb_pool_claim hands out. With one worker, for
 * a batch of one and for events of a partition this does nothing. */
void ftb_pool_offer(ftb_pool_t *pool, uint32_t worker_ix, struct ftb_batch *batch);

/* Claim the next item of an open batch, offered or not; by the thread that took it.
 * Returns false if none is left. */
FTB_MUST_USE static inline bool
ftb_pool_claim(struct ftb_batch *batch, uint32_t *ix)
{
    if (FTB_LIKELY(batch->offer == NULL || batch->next == 0)) {
        *ix = batch->next;
        batch->next += *ix < batch->n;
        return *ix < batch->n;
    }
    return ftb_offer_claim_local(batch->offer, ix);
}

/* Let nobody take events of the batch any more; by the thread that took it. */
void ftb_pool_keep(struct ftb_batch *batch);

/* How many events of an open batch are the thread's own: all but those that others took.
 * It shrinks while ftb_pool_unclaimed_n is not 0 and the batch is not kept. */
uint32_t ftb_pool_own_n(const struct ftb_batch *batch);

/* How many of them it has not claimed yet. */
uint32_t ftb_pool_unclaimed_n(const struct ftb_batch *batch);

/* Whether this worker should share out the handlers of an event it has taken: others are
 * idle, its events are not over at once, and its last shared one is. Cheap if not. */
bool ftb_pool_wants_fan(ftb_pool_t *pool, uint32_t worker_ix);

/* Share an event's n handlers out (1 .. FTB_FAN_MAX), after ftb_pool_wants_fan. Whoever
 * claims an index runs that handler; idle workers get some as batches with `fan` set and
 * `work` as payload. Afterwards the worker claims with ftb_pool_fan_claim until none is
 * left. */
void ftb_pool_fan_open(ftb_pool_t *pool, uint32_t worker_ix, void *work, uint32_t n);

/* Claim the next handler of the event that this worker shares out. Returns false if none
 * is left. */
FTB_MUST_USE bool
ftb_pool_fan_claim(ftb_pool_t *pool, uint32_t worker_ix, uint32_t *ix);

/* A claimed handler has been run: of the worker's own event (batch is NULL), or of the
 * batch's. Returns whether it was the last of all: then the work is the caller's to end. */
FTB_MUST_USE bool
ftb_pool_fan_done(ftb_pool_t *pool, uint32_t worker_ix, const struct ftb_batch *batch);

/* Take one event to run, from any thread: for one that would otherwise wait inside a
 * handler. Returns 1, or 0 as above. Finish it with FTB_NO_WORKER. */
uint32_t ftb_pool_take_one(ftb_pool_t *pool, struct ftb_batch *batch);

/* The batch has been run (or given up): release its partition, count it as finished, wake
 * who waited for that. Each batch is finished once, by the thread that took it. */
void ftb_pool_finish(ftb_pool_t *pool, uint32_t worker_ix, struct ftb_batch *batch);

/* Take the oldest event of some ring out of the queue without running it, from any
 * thread; of a partition, its oldest. Works after close and stop too. Returns false if
 * none can be had now: queued events may belong to a partition that is being run, or be
 * on their way into a ring. */
FTB_MUST_USE bool ftb_pool_evict(ftb_pool_t *pool, struct ftb_item *item);

/* How many events wait behind a batch that the calling thread has open: those of its
 * partition, which nobody can have until it is finished. */
uint32_t ftb_pool_behind(const struct ftb_batch *batch);

/* Take the oldest of these out of the queue without running it. Returns false if there is
 * none. */
FTB_MUST_USE bool ftb_pool_evict_behind(
    ftb_pool_t *pool, const struct ftb_batch *batch, struct ftb_item *item);

/* Leave the queue alone for a moment if events trickle in, so that the next batch is worth
 * its fixed costs: until linger_ns after the last one began. A worker calls it after
 * finish. */
void ftb_pool_linger(ftb_pool_t *pool, uint32_t worker_ix);

/* Wait until there may be something to take. Returns FTB_OK: look again; FTB_CLOSED: the
 * pool is stopped, leave; or FTB_TIMEOUT. */
FTB_MUST_USE enum ftb_result
ftb_pool_wait_work(ftb_pool_t *pool, uint32_t worker_ix, uint64_t deadline_ns);

/* Wait until there is room: space for a quarter of the queue, or for 1,024 events, as space
 * for one is not worth waking a thread. Returns FTB_OK: post again, it may have been taken
 * meanwhile; FTB_CLOSED; or FTB_TIMEOUT: post again all the same, there may be space, and
 * what would make room may be waiting for this thread. */
FTB_MUST_USE enum ftb_result
ftb_pool_wait_space(ftb_pool_t *pool, uint64_t deadline_ns);

/* Wait until everything posted is finished. A thread that is running events itself says
 * how many: own_n, the sum of n over its open batches; they are not waited for, nor are
 * those of other threads that wait here with an own_n. Returns FTB_OK; FTB_CLOSED if the
 * pool is stopped, so that what is queued will not run; or FTB_TIMEOUT. */
FTB_MUST_USE enum ftb_result
ftb_pool_wait_drained(ftb_pool_t *pool, uint32_t own_n, uint64_t deadline_ns);

/* Let no more events in. What is queued still runs. When this returns, every post that
 * returns FTB_OK, now or later, is counted in ftb_pool_stats. Idempotent. */
void ftb_pool_close(ftb_pool_t *pool);

/* Close, and let workers leave at their next take or wait_work even if events remain;
 * ftb_pool_evict empties what is left. Idempotent. */
void ftb_pool_stop(ftb_pool_t *pool);

/* Events queued and not yet taken or evicted, at some moment during the call. */
uint32_t ftb_pool_queued(ftb_pool_t *pool);

/* Events queued, or taken and not yet finished, at some moment during the call. */
uint32_t ftb_pool_unfinished(ftb_pool_t *pool);

/* Fill *stats; each counter is exact once the threads that write it are quiet. */
void ftb_pool_stats(ftb_pool_t *pool, struct ftb_pool_stats *stats);

/* Fill *stats for one worker. */
void ftb_pool_worker_stats(
    ftb_pool_t *pool, uint32_t worker_ix, struct ftb_pool_worker_stats *stats);

/* In the child of a fork: make locks usable again and stop the pool. Nobody waits in it
 * any more, and its workers are gone; events that other threads were moving at the time
 * of the fork stay counted but can no longer be had. */
void ftb_pool_after_fork_child(ftb_pool_t *pool);

#endif

/* What the files of the pool share; nothing else includes this.
 *
 *     ftb_pool.c        make, free, close, stop, fork, statistics
 *     ftb_pool_post.c   producers: admission, choice of a ring, the wake decision
 *     ftb_pool_take.c   consumers: batches, stealing, partitions, eviction
 *     ftb_pool_fan.c    one event's handlers shared out over idle workers
 *     ftb_pool_offer.c  events behind a slow handler, and who watches for such
 *     ftb_pool_wait.c   waiting for work, for space, for the drain
 *
 * The admission word counts all events in one atomic:
 *     bits 0..31    queued: admitted and not yet taken or evicted
 *     bits 32..62   unfinished: admitted and not yet finished or evicted
 *     bit  63       closed
 * 1. Bound. A post adds one to both counts by a compare-and-swap from a word whose queued
 *    is below queue_size, so queued never exceeds it, and a post is refused only at a
 *    moment at which exactly queue_size events are queued.
 * 2. Close. The closed bit is in the word that the post swaps, so after close has set it
 *    no swap succeeds: admission linearizes before or after close, with nothing between.
 * 3. Cells. An event is admitted before it is put into a ring, leaves the ring before it
 *    is subtracted from queued, and a strand has at most one token (ftb_strand.h), made
 *    while one of its events is queued and not yet popped, and taken before that is popped.
 *    So each cell that is claimed or needed stands for a queued event of its own: they are
 *    at most queue_size. The rings have at least that many together (the last ring of each
 *    chain), so if no thread stands still inside a push or a pop, a push that needs a cell
 *    finds one: some ring is not full. The urgent ring has room for all by itself. A
 *    thread that does stand still there is between two instructions of its own, not waiting
 *    for anybody; ftb__pool_put yields to it.
 *    A worker that runs a share of another's event counts as one unfinished event more, so
 *    that an event is finished when all are who run its handlers. An event that is taken
 *    out of an open batch stays counted; who took it counts it as finished.
 * 4. Drain. finish subtracts by a read-modify-write that releases, and every change of the
 *    word is one, so who reads unfinished == 0 sees everything the handlers did. */
#ifndef FTB_POOL_INTERNAL_H
#define FTB_POOL_INTERNAL_H

#include "ftb_atomic.h"
#include "ftb_chain.h"
#include "ftb_idle.h"
#include "ftb_park.h"
#include "ftb_pool.h"
#include "ftb_strand.h"

/* How long a batch should take: long enough to spread its fixed costs, short enough that
 * its last event does not notice. */
#define FTB_BATCH_GOAL_NS 25000u

#define FTB_WORD_QUEUED_ONE UINT64_C(1)
#define FTB_WORD_UNFINISHED_ONE (UINT64_C(1) << 32)
#define FTB_WORD_CLOSED (UINT64_C(1) << 63)

#define FTB_STRANDS_PER_PAGE (4096 / sizeof(struct ftb_strand))

/* Workers begin .. end - 1. */
struct ftb_range {
    uint32_t begin, end;
};

struct ftb_pool_worker {
    struct ftb_chain ring;
    /* Written once, by ftb_pool_new: the workers of its cache, of its node, and all; it
     * steals from near ones first. */
    struct ftb_range near[3];
    struct ftb_fan fan;     /* the event that it shares out */
    struct ftb_offer offer; /* its open batch */
    /* Its state is written by wakers and by the worker. */
    FTB_ALIGNED struct ftb_parker parker;
    ftb_atomic(uint64_t) wakes; /* added by wakers */
    /* All below is written by the worker's thread; only the counters are read by others.
     */
    FTB_ALIGNED uint64_t stamp_ns; /* the last time read; a batch starts there */
    uint64_t linger_until_ns;      /* 0: take the next at once */
    uint32_t batch_n;              /* how many events to take at most */
    uint32_t depth;                /* open batches */
    uint32_t takes_n;              /* counts up to FTB_FAIR_TAKES */
    uint32_t victim_ix;            /* where the next fair take starts */
    uint32_t urgent_n;             /* takes of urgent events in a row */
    ftb_atomic(uint32_t) queued_max;
    ftb_atomic(uint64_t) taken;
    ftb_atomic(uint64_t) stolen;
    ftb_atomic(uint64_t) batches;
    ftb_atomic(uint64_t) parks;
    ftb_atomic(uint64_t) busy_ns;
};

struct ftb_pool {
    /* Written once, by ftb_pool_new. */
    uint32_t workers_n;
    uint32_t queue_size;
    uint32_t room_queued; /* so few queued that who waits for space is woken */
    uint32_t strands_n;
    uint32_t spin_ns;
    uint32_t linger_ns;
    uint32_t spinners_max;
    struct ftb_pool_worker *workers;
    struct ftb_strand *strands; /* in strands_memory, aligned, untouched till used */
    void *strands_memory;
    /* For FTB_STRANDS_PER_PAGE strands each, whether one was used; set by producers. */
    ftb_atomic(uint8_t) * strand_pages;
    struct ftb_chain urgent; /* every worker looks there first; room for all events */
    /* Written by ftb_pool_stop, once. */
    ftb_atomic(bool) is_stopped;
    /* The admission word, described above: producers add, consumers subtract. */
    FTB_ALIGNED ftb_atomic(uint64_t) word;
    FTB_ALIGNED struct ftb_idle idle;
    /* Fans with an index to claim, or a few more: counted up before one opens, and down by
     * who claims its last index, so that a look for work need not visit every fan. */
    FTB_ALIGNED ftb_atomic(uint32_t) fans_n;
    /* Sleeping workers that look at the open batches now and then; written by them. */
    FTB_ALIGNED ftb_atomic(uint32_t) watchers_n;
    /* Threads spinning in wait_work; written by them. */
    FTB_ALIGNED ftb_atomic(uint32_t) spinners_n;
    /* Who waits for space; for the drain; and the sum of the latter's own_n. */
    FTB_ALIGNED struct ftb_waitset space;
    FTB_ALIGNED struct ftb_waitset drained;
    ftb_atomic(uint32_t) drain_own_n;
    /* Counters of rare events, added by any thread. */
    FTB_ALIGNED ftb_atomic(uint64_t) fulls;
    ftb_atomic(uint64_t) helped;
    ftb_atomic(uint64_t) evicted;
    ftb_atomic(uint64_t) urgent_posts;
};

static inline uint32_t
ftb__word_queued(uint64_t word)
{
    return (uint32_t)word;
}

static inline uint32_t
ftb__word_unfinished(uint64_t word)
{
    return (uint32_t)((word & ~FTB_WORD_CLOSED) >> 32);
}

/* ftb_pool_post.c */

/* Put admitted items, or a token, into rings, the first of them into ring_ix if it has
 * space; yields until all are in. Does not wake anybody. */
void ftb__pool_put(
    ftb_pool_t *pool, uint32_t ring_ix, const struct ftb_item *items, uint32_t n,
    enum ftb_ring_kind kind);

/* Put a strand's token into a ring, and wake a worker for it if `wake`. */
void ftb__pool_put_token(
    ftb_pool_t *pool, uint32_t ring_ix, struct ftb_strand *strand, bool wake);

/* Walks over the rings, a few calls for each; every thread by itself. */
uint32_t ftb__pool_next_ring(ftb_pool_t *pool);

/* The ring for the next event: an idle worker's, or the next. */
uint32_t ftb__pool_choose_ring(ftb_pool_t *pool);

/* Wake one idle worker, `preferred` if it is idle. Call it after publishing. */
void ftb__pool_wake(ftb_pool_t *pool, uint32_t preferred);

/* ftb_pool_take.c */

/* Subtract from the admission word and wake who waits for that. Returns the word. */
uint64_t ftb__pool_subtract(ftb_pool_t *pool, uint32_t queued_n, uint32_t unfinished_n);

/* ftb_pool_fan.c */

/* Whether some fan has an index to claim. Seq_cst, see ftb_idle.h. */
bool ftb__pool_has_fan(ftb_pool_t *pool);

/* Claim a share of some other worker's event as a batch of one. */
uint32_t
ftb__pool_take_fan(ftb_pool_t *pool, uint32_t worker_ix, struct ftb_batch *batch);

/* ftb_pool_offer.c */

/* Take up to n events of a batch that has been open for long, not worker_ix's. Returns
 * batch->n, and in *has_more whether the same batch has more. */
uint32_t ftb__pool_take_offered(
    ftb_pool_t *pool, uint32_t worker_ix, uint32_t n, struct ftb_batch *batch,
    bool *has_more);

/* End an offered batch: batch->n is then what its own thread claimed. */
void ftb__pool_close_offer(struct ftb_batch *batch);

/* Sleep, with the idle bit set, until an unpark, the deadline, or until some open batch is
 * old enough to take from. Returns FTB_OK or FTB_TIMEOUT, and in *watches whether the
 * worker counts as a watcher: then it calls ftb__pool_end_watch once its bit is clear. */
enum ftb_result ftb__pool_sleep(
    ftb_pool_t *pool, uint32_t worker_ix, uint64_t deadline_ns, bool *watches);

/* Not a watcher any more, but awake: it takes or waits next. */
void ftb__pool_end_watch(ftb_pool_t *pool);

/* Whether some batch has events to take, and no worker watches. Seq_cst. */
bool ftb__pool_is_unwatched(ftb_pool_t *pool);

/* In the child of a fork: nobody copies any more. */
void ftb__pool_offer_after_fork_child(struct ftb_offer *offer);

/* ftb_pool_wait.c */

/* Whether any ring holds something; starts at `first`. Seq_cst, see ftb_idle.h. */
bool ftb__pool_has_work(ftb_pool_t *pool, uint32_t first);

#endif

#include "ftb_pool_internal.h"

/* A waiting worker first watches its ring without showing its idle bit, which would make
 * the next producer spend a swap and an exchange on it: in a steady stream the next event
 * comes within this time. */
#define QUIET_SPIN_NS 1000u

/* A clock costs as much as a few looks at a ring. */
#define LOOKS_PER_CLOCK 8u

bool
ftb__pool_has_work(ftb_pool_t *pool, uint32_t first)
{
    if (!ftb_chain_is_empty(&pool->urgent)) {
        return true;
    }
    for (uint32_t i = 0, ix = first; i < pool->workers_n; i++) {
        if (!ftb_chain_is_empty(&pool->workers[ix].ring)) {
            return true;
        }
        ix = ix + 1 < pool->workers_n ? ix + 1 : 0;
    }
    return ftb__pool_has_fan(pool);
}

/* Look at the worker's ring, at its parker and sometimes at the other rings until there is
 * something or the time is over. Returns whether there is something. */
static bool
worker_spin(ftb_pool_t *pool, uint32_t worker_ix, uint64_t until_ns)
{
    struct ftb_pool_worker *worker = &pool->workers[worker_ix];
    do {
        for (uint32_t i = 0; i < LOOKS_PER_CLOCK; i++) {
            if (!ftb_chain_is_empty(&worker->ring)
                || ftb_parker_has_note_local(&worker->parker)) {
                return true;
            }
            ftb_relax();
        }
        if (ftb__pool_has_work(pool, worker_ix)) {
            return true;
        }
    } while (ftb_now_ns() < until_ns);
    return false;
}

/* Whether the caller may spin; if so it must call spin_end. */
static bool
spin_begin(ftb_pool_t *pool)
{
    if (pool->spin_ns == 0) {
        return false;
    }
    /* relaxed, here and in spin_end: the count only limits how many spin */
    if (ftb_add_relaxed(&pool->spinners_n, 1) < pool->spinners_max) {
        return true;
    }
    ftb_sub_relaxed(&pool->spinners_n, 1);
    return false;
}

static void
spin_end(ftb_pool_t *pool)
{
    ftb_sub_relaxed(&pool->spinners_n, 1);
}

/* Look for something to do without sleeping, the last time with the idle bit set.
 * Arguments 1 and 2 in ftb_idle.h. Returns whether there may be something. */
static bool
worker_look(ftb_pool_t *pool, uint32_t worker_ix, uint64_t deadline_ns)
{
    bool may_spin = spin_begin(pool);
    uint64_t until_ns = 0;
    if (may_spin) {
        uint64_t now_ns = ftb_now_ns();
        uint64_t quiet_ns =
            pool->spin_ns < QUIET_SPIN_NS ? pool->spin_ns : QUIET_SPIN_NS;
        until_ns = now_ns + pool->spin_ns;
        until_ns = until_ns < deadline_ns ? until_ns : deadline_ns;
        if (worker_spin(pool, worker_ix, now_ns + quiet_ns)) {
            spin_end(pool);
            return true;
        }
    }
    ftb_idle_set(&pool->idle, worker_ix);
    bool has_found = ftb__pool_has_work(pool, worker_ix)
                     || (may_spin && worker_spin(pool, worker_ix, until_ns));
    if (may_spin) {
        spin_end(pool);
    }
    return has_found;
}

/* A worker that is as fast as the producers would else find one or two events each time,
 * and fetch for them the lines that the producers are writing: the cells, and the
 * admission word twice. */
void
ftb_pool_linger(ftb_pool_t *pool, uint32_t worker_ix)
{
    struct ftb_pool_worker *worker = &pool->workers[worker_ix];
    while (worker->stamp_ns < worker->linger_until_ns) {
        for (uint32_t i = 0; i < LOOKS_PER_CLOCK; i++) {
            ftb_relax();
        }
        worker->stamp_ns = ftb_now_ns();
    }
}

enum ftb_result
ftb_pool_wait_work(ftb_pool_t *pool, uint32_t worker_ix, uint64_t deadline_ns)
{
    struct ftb_pool_worker *worker = &pool->workers[worker_ix];
    enum ftb_result result = FTB_OK;
    bool watches = false;
    /* A stop that this load misses unparks the worker afterwards. */
    if (ftb_load_acquire(&pool->is_stopped)) {
        return FTB_CLOSED;
    }
    if (worker_look(pool, worker_ix, deadline_ns)) {
        if (ftb_parker_has_note_local(&worker->parker)) {
            (void)ftb_parker_take_note_local(&worker->parker);
        }
    } else {
        ftb_count_local(&worker->parks, 1);
        result = ftb__pool_sleep(pool, worker_ix, deadline_ns, &watches);
    }
    bool was_claimed = !ftb_idle_clear(&pool->idle, worker_ix);
    if (watches) {
        ftb__pool_end_watch(pool);
    }
    if (ftb_load_acquire(&pool->is_stopped)) {
        return FTB_CLOSED;
    }
    if (was_claimed || watches) {
        result = FTB_OK; /* somebody counts on this worker to look */
    }
    worker->stamp_ns = ftb_now_ns();
    return result;
}

/* Whether at most that many events are queued. */
static bool
has_at_most(ftb_pool_t *pool, uint32_t queued_max)
{
    /* seq_cst: after prepare, pairs with the subtraction before notify. */
    return ftb__word_queued(ftb_load_seq_cst(&pool->word)) <= queued_max;
}

static bool
is_closed(ftb_pool_t *pool)
{
    return (ftb_load_seq_cst(&pool->word) & FTB_WORD_CLOSED) != 0;
}

/* Look on while others may be about to make room, without sleeping. */
static void
space_spin(ftb_pool_t *pool, uint64_t until_ns)
{
    while (!has_at_most(pool, pool->room_queued) && !is_closed(pool)
           && ftb_now_ns() < until_ns) {
        for (uint32_t i = 0; i < LOOKS_PER_CLOCK; i++) {
            ftb_relax();
        }
    }
}

/* A take that leaves room wakes one waiter. That waiter may give up instead of posting, so
 * whoever has slept passes the wake-up on if there is room when it leaves: as long as
 * there is, somebody awake is on its way to find it. */
enum ftb_result
ftb_pool_wait_space(ftb_pool_t *pool, uint64_t deadline_ns)
{
    space_spin(pool, ftb_now_ns() + pool->spin_ns);
    for (;;) {
        if (is_closed(pool)) {
            return FTB_CLOSED;
        }
        if (has_at_most(pool, pool->room_queued)) {
            return FTB_OK;
        }
        if (ftb_now_ns() >= deadline_ns) {
            return FTB_TIMEOUT;
        }
        uint32_t key = ftb_waitset_prepare(&pool->space);
        if (has_at_most(pool, pool->room_queued) || is_closed(pool)) {
            ftb_waitset_cancel(&pool->space);
            continue;
        }
        (void)ftb_waitset_commit(&pool->space, key, deadline_ns);
        if (has_at_most(pool, pool->room_queued)) {
            ftb_waitset_notify(&pool->space, false);
        }
    }
}

/* Whether a thread that runs own_n events itself need not wait any more. One that runs
 * none waits for all; those that run some leave out one another's, or two handlers that
 * both wait for the drain would wait forever. */
static bool
is_drained(ftb_pool_t *pool, uint32_t own_n)
{
    uint32_t left_n = own_n == 0 ? 0 : ftb_load_seq_cst(&pool->drain_own_n);
    return ftb__word_unfinished(ftb_load_seq_cst(&pool->word)) <= left_n;
}

enum ftb_result
ftb_pool_wait_drained(ftb_pool_t *pool, uint32_t own_n, uint64_t deadline_ns)
{
    enum ftb_result result = FTB_OK;
    if (own_n > 0) {
        ftb_add_seq_cst(&pool->drain_own_n, own_n);
        ftb_waitset_notify(&pool->drained, true); /* it may be what others waited for */
    }
    while (!is_drained(pool, own_n)) {
        if (result == FTB_TIMEOUT) {
            break;
        }
        uint32_t key = ftb_waitset_prepare(&pool->drained);
        bool is_stopped = ftb_load_seq_cst(&pool->is_stopped);
        if (is_stopped || is_drained(pool, own_n)) {
            ftb_waitset_cancel(&pool->drained);
            result = is_stopped ? FTB_CLOSED : FTB_OK;
            break;
        }
        result = ftb_waitset_commit(&pool->drained, key, deadline_ns);
    }
    if (is_drained(pool, own_n)) {
        result = FTB_OK;
    }
    if (own_n > 0) {
        ftb_sub_seq_cst(&pool->drain_own_n, own_n);
    }
    return result;
}

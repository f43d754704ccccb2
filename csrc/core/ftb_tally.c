#include "ftb_tally.h"

#include <sched.h>

#include "ftb_topic.h"

struct ftb_tally *
ftb_tally_make_local(struct ftb_handler *handler, struct ftb_thread *thread)
{
    struct ftb_tally *tally = ftb_alloc(sizeof *tally);
    if (tally == NULL) {
        return NULL;
    }
    tally->owner = thread;
    struct ftb_tally *head = ftb_load_relaxed(&handler->tallies); /* the CAS checks */
    do {
        tally->next = head;
        /* release: what was written above; pairs with whoever walks the list. A failed
         * swap need not acquire: next is only passed on. */
    } while (!ftb_cas_release(&handler->tallies, &head, tally));
    return tally;
}

bool
ftb_tally_record_local(struct ftb_tally *tally, uint64_t ns)
{
    struct ftb_histogram *time = ftb_load_relaxed(&tally->time); /* the owner's own */
    if (time == NULL) {
        time = ftb_alloc(sizeof *time);
        if (time == NULL) {
            return false;
        }
        ftb_store_release(&tally->time, time); /* its zeros; pairs with sum_tally */
    }
    bool is_longest = ns >= ftb_load_relaxed(&time->max_ns); /* likewise */
    return ftb_histogram_record_local(time, ns) && is_longest;
}

void
ftb_tally_run_local(struct ftb_cell *cell)
{
    struct ftb_ledger *ledger = ftb_cell_ledger_local(cell);
    if (ledger != NULL) {
        ftb_count_local(&ledger->mark, UINT64_MAX); /* one less */
    }
}

/* Release in all stores between the two of seq: whoever reads one of them with an acquire
 * also sees that seq was odd. */
void
ftb_tally_fold(
    struct ftb_thread *thread, struct ftb_cell *cell, struct ftb_snapshot *snapshot)
{
    /* relaxed, all loads: the owner's own */
    uint64_t old_version = ftb_load_relaxed(&cell->version);
    uint64_t emitted = ftb_load_relaxed(&cell->emitted);
    uint64_t version = snapshot->version & ~FTB_VERSION_FLAGGED;
    if (version < old_version) {
        return; /* this emit met an older one than it is nested in: it cannot be */
    }
    struct ftb_ledger *ledger = ftb_load_relaxed(&cell->ledger);
    if (emitted > 0 && ledger == NULL) {
        ledger = ftb_cell_ledger_local(cell);
    }
    if (ledger == NULL) { /* nothing to fold, or without memory nowhere to */
        ftb_store_release(&cell->version, version);
        return;
    }
    uint64_t runs = emitted - ftb_load_relaxed(&ledger->mark);
    uint64_t seq = ftb_load_relaxed(&ledger->seq);
    ftb_store_relaxed(&ledger->seq, seq + 1);
    for (uint32_t i = 0; runs > 0 && i < snapshot->n; i++) {
        struct ftb_handler *handler = ftb_snapshot_handlers(snapshot)[i];
        struct ftb_tally *tally = handler->first_version <= old_version
                                      ? ftb_tally_local(handler, thread)
                                      : NULL;
        if (tally != NULL) {
            ftb_store_release(&tally->calls, ftb_load_relaxed(&tally->calls) + runs);
        }
    }
    ftb_store_release(&ledger->mark, emitted);
    ftb_store_release(&cell->version, version);
    ftb_store_release(&ledger->seq, seq + 2);
}

struct sum_request {
    struct ftb_handler *handler;
    struct ftb_tally_sum *sum;
    struct ftb_histogram_sum *time;
};

/* A cell's runs that are in no tally yet. */
static uint64_t
pending_runs(struct ftb_handler *handler, struct ftb_cell *cell)
{
    /* acquire, all: no later load goes before these, that of seq above all */
    uint64_t version = ftb_load_acquire(&cell->version);
    uint64_t emitted = ftb_load_acquire(&cell->emitted);
    struct ftb_ledger *ledger = ftb_load_acquire(&cell->ledger);
    uint64_t mark = ledger != NULL ? ftb_load_acquire(&ledger->mark) : 0;
    /* A run that is no emit is in mark at once, an emit that is none in neither. */
    return version >= handler->first_version && version != 0 ? emitted - mark : 0;
}

static struct ftb_tally *
tally_find(struct ftb_handler *handler, struct ftb_thread *owner)
{
    struct ftb_tally *tally = ftb_load_acquire(&handler->tallies);
    while (tally != NULL && tally->owner != owner) {
        tally = tally->next;
    }
    return tally;
}

static uint64_t
tallied_calls(struct ftb_tally *tally)
{
    return tally != NULL ? ftb_load_acquire(&tally->calls) : 0; /* as above */
}

static void
sum_one(struct ftb_thread *thread, void *context)
{
    struct sum_request *request = context;
    struct ftb_handler *handler = request->handler;
    struct ftb_cell *cell =
        ftb_shard_cell_find(thread->shard, ftb_topic_id(handler->topic));
    struct ftb_tally *tally = tally_find(handler, thread);
    uint64_t calls = tallied_calls(tally);
    for (int tries = 1; cell != NULL; tries++) {
        struct ftb_ledger *ledger = ftb_load_acquire(&cell->ledger);
        uint64_t seq = ledger != NULL ? ftb_load_acquire(&ledger->seq) : 0;
        tally = tally_find(handler, thread); /* a fold may have made it */
        calls = tallied_calls(tally) + pending_runs(handler, cell);
        /* relaxed: the acquires before it keep it here */
        ledger = ftb_load_relaxed(&cell->ledger);
        if ((seq & 1) == 0
            && seq == (ledger != NULL ? ftb_load_relaxed(&ledger->seq) : 0)) {
            break;
        }
        if (tries % 64 == 0) {
            sched_yield(); /* the owner may need this very core to end its fold */
        }
    }
    request->sum->calls += calls;
    if (tally == NULL) {
        return;
    }
    request->sum->failed += ftb_load_relaxed(&tally->failed); /* any recent value */
    struct ftb_histogram *time = ftb_load_acquire(&tally->time);
    if (time == NULL) {
        return;
    }
    uint64_t longest_ns = ftb_load_relaxed(&time->max_ns); /* likewise */
    if (longest_ns > request->sum->longest_ns) {
        request->sum->longest_ns = longest_ns;
    }
    if (request->time != NULL) {
        ftb_histogram_add_to(time, request->time);
    }
}

void
ftb_tally_sum(
    struct ftb_handler *handler, struct ftb_tally_sum *sum,
    struct ftb_histogram_sum *time)
{
    struct sum_request request = {handler, sum, time};
    *sum = (struct ftb_tally_sum){0};
    ftb_thread_each(sum_one, &request);
}

void
ftb_tallies_free(struct ftb_handler *handler)
{
    /* relaxed, all: the last reference is gone, and its drop acquired */
    struct ftb_tally *tally = ftb_load_relaxed(&handler->tallies);
    while (tally != NULL) {
        struct ftb_tally *next = tally->next;
        struct ftb_histogram *time = ftb_load_relaxed(&tally->time);
        if (time != NULL) {
            ftb_histogram_fini(time);
            ftb_free(time);
        }
        ftb_free(tally);
        tally = next;
    }
}

/* Per-thread counters: one writer, no shared write per event; readers add them up.
 *
 * A shard holds one cell of counters per topic id, in pages made on first use. Only the
 * owner writes a cell; any thread may sum. Shards live in thread records, which later
 * threads take over with their counts, so a total never goes backwards when a thread
 * ends and nothing needs folding. */
#ifndef FTB_SHARD_H
#define FTB_SHARD_H

#include "ftb_atomic.h"
#include "ftb_base.h"
#include "ftb_histogram.h"

/* posted == delivered + dropped + rejected + pending, in events. */
#define FTB_COUNTERS(X)                                                                \
    X(emitted)   /* events emitted here and now */                                     \
    X(posted)    /* events offered to the queue, accepted or not */                    \
    X(delivered) /* posted events whose handlers have run */                           \
    X(dropped)   /* posted events given up under an overflow policy or by close */     \
    X(rejected)  /* posted events refused: queue full, timeout or closed */            \
    X(handled)   /* handler calls */                                                   \
    X(failed)    /* handler calls that raised */                                       \
    X(encoded)   /* events encoded into bytes */                                       \
    X(given)     /* handler calls that got bytes, encoded for them or not */           \
    X(unheard)   /* events, emitted or delivered, for which no handler ran */

/* What takes time. */
enum ftb_time {
    FTB_TIME_EMIT = 0,    /* one emit */
    FTB_TIME_WAIT = 1,    /* a posted event in the queue */
    FTB_TIME_HANDLER = 2, /* one handler call */
    FTB_TIME_ENCODE = 3,  /* one event into bytes */
    FTB_TIMES_N = 4,
};

/* What few cells need; made on first use and kept. Written by the cell's owner. */
struct ftb_ledger {
    /* Odd while ftb_tally_fold changes mark, the version and tallies together. */
    ftb_atomic(uint64_t) seq;
    /* ftb_tally.h: of the cell's emitted events, how many are no run of its version, or
     * are in the tallies; less the runs that were no emit. */
    ftb_atomic(uint64_t) mark;
    ftb_atomic(uint64_t) emitted; /* events emitted in other ways than the usual one */
    ftb_atomic(struct ftb_histogram *) times[FTB_TIMES_N];
};

/* What an emit needs is in the first 32 bytes, which never lie across two lines. */
struct ftb_cell {
    ftb_atomic(uint64_t) emitted;
    ftb_atomic(uint64_t) handled;
    /* Of the snapshot whose handlers each emit since the last fold has run; 0: none. */
    ftb_atomic(uint64_t) version;
    ftb_atomic(struct ftb_ledger *) ledger;
    ftb_atomic(uint64_t) posted;
    ftb_atomic(uint64_t) delivered;
    ftb_atomic(uint64_t) dropped;
    ftb_atomic(uint64_t) rejected;
    ftb_atomic(uint64_t) failed;
    ftb_atomic(uint64_t) encoded;
    ftb_atomic(uint64_t) given;
    ftb_atomic(uint64_t) unheard;
};

/* The sum of one topic's cells, or of many. */
struct ftb_totals {
#define FTB_TOTAL_FIELD(name) uint64_t name;
    FTB_COUNTERS(FTB_TOTAL_FIELD)
#undef FTB_TOTAL_FIELD
};

#define FTB_PAGE_CELLS 64

/* The id of what is not counted: no cell has it. */
#define FTB_NO_ID UINT32_MAX

struct ftb_page {
    struct ftb_cell cells[FTB_PAGE_CELLS];
    /* Of the longest timed handler call under each id: the number of its histogram bucket,
     * plus one; 0: none was. Written by the owner only. */
    ftb_atomic(uint16_t) slowest[FTB_PAGE_CELLS];
};

/* Pages by number; replaced by a longer copy when it fills. */
struct ftb_directory {
    struct ftb_directory *shorter; /* what this replaced, freed with the shard */
    uint32_t pages_n;
    ftb_atomic(struct ftb_page *) pages[]; /* written by the owner only */
};

struct ftb_shard {
    ftb_atomic(struct ftb_directory *) directory; /* written by the owner only */
};

struct ftb_thread;

/* An empty shard. NULL: no memory. */
struct ftb_shard *ftb_shard_new(void);

/* The slow way to a cell: makes its page. NULL: no memory, or FTB_NO_ID. Owner only. */
FTB_NOINLINE struct ftb_cell *
ftb_shard_cell_make_local(struct ftb_shard *shard, uint32_t id);

/* The owner's cell of a topic id, or NULL if there is none yet. */
static inline struct ftb_cell *
ftb_shard_cell_try_local(struct ftb_shard *shard, uint32_t id)
{
    /* relaxed: the owner reads what it wrote itself */
    struct ftb_directory *directory = ftb_load_relaxed(&shard->directory);
    uint32_t page_ix = id / FTB_PAGE_CELLS;
    if (FTB_LIKELY(page_ix < directory->pages_n)) {
        struct ftb_page *page = ftb_load_relaxed(&directory->pages[page_ix]);
        if (FTB_LIKELY(page != NULL)) {
            return &page->cells[id % FTB_PAGE_CELLS];
        }
    }
    return NULL;
}

/* The owner's cell of a topic id, or NULL without memory. */
static inline struct ftb_cell *
ftb_shard_cell_local(struct ftb_shard *shard, uint32_t id)
{
    struct ftb_cell *cell = ftb_shard_cell_try_local(shard, id);
    return FTB_LIKELY(cell != NULL) ? cell : ftb_shard_cell_make_local(shard, id);
}

/* The cell's ledger, made on first use. NULL: no memory. Owner only. */
struct ftb_ledger *ftb_cell_ledger_local(struct ftb_cell *cell);

/* Count an event that was emitted in another way than as a run of the cell's version.
 * Owner only. */
void ftb_cell_emitted_apart_local(struct ftb_cell *cell);

/* Record a duration. Returns false if it could not be, for want of memory. Owner only. */
bool ftb_cell_record_local(struct ftb_cell *cell, enum ftb_time what, uint64_t ns);

/* A handler of a topic ran for so long; no more than its topic's longest is kept. Not for
 * an id without a cell. Owner only. */
void ftb_shard_note_slow_local(struct ftb_shard *shard, uint32_t id, uint64_t ns);

/* The cell of a topic id in any thread's shard, or NULL. */
struct ftb_cell *ftb_shard_cell_find(struct ftb_shard *shard, uint32_t id);

/* Add the cells of `id` in every shard to *totals. Each counter is monotone from one
 * call to the next; together they are no consistent cut while others write. */
void ftb_shard_sum(uint32_t id, struct ftb_totals *totals);

/* The same for `n` ids that share a page (id / FTB_PAGE_CELLS), which costs far less than
 * one by one: adds those of ids[i] to totals[i]. slowest[i] becomes the bucket of the
 * longest timed handler call, plus one, if that is greater. */
void ftb_shard_sum_page(
    const uint32_t *ids, uint32_t n, struct ftb_totals *totals, uint16_t *slowest);

/* Add what was recorded under `id` in every shard to sums[FTB_TIMES_N]. Returns whether
 * there was anything. */
bool ftb_shard_times(uint32_t id, struct ftb_histogram_sum *sums);

/* A topic id, the last one released or else the next new one, so that ids stay dense.
 * UINT32_MAX: no memory. */
uint32_t ftb_shard_id_acquire(void);

/* Zero the id's cells and make it free. Nobody may count on it any more. */
void ftb_shard_id_release(uint32_t id);

#endif

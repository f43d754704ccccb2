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

/* posted == delivered + dropped + rejected + pending, in events. */
#define FTB_COUNTERS(X)                                                                \
    X(emitted)   /* events emitted here and now */                                     \
    X(posted)    /* events offered to the queue, accepted or not */                    \
    X(delivered) /* posted events whose handlers have run */                           \
    X(dropped)   /* posted events given up under an overflow policy or by close */     \
    X(rejected)  /* posted events refused: queue full, timeout or closed */            \
    X(handled)   /* handler calls */                                                   \
    X(failed)    /* handler calls that raised */                                       \
    X(encoded)   /* events encoded into bytes */

struct ftb_cell {
#define FTB_CELL_FIELD(name) ftb_atomic(uint64_t) name;
    FTB_COUNTERS(FTB_CELL_FIELD)
#undef FTB_CELL_FIELD
};

/* The sum of one topic's cells, or of many. */
struct ftb_totals {
#define FTB_TOTAL_FIELD(name) uint64_t name;
    FTB_COUNTERS(FTB_TOTAL_FIELD)
#undef FTB_TOTAL_FIELD
};

#define FTB_PAGE_CELLS 64

struct ftb_page {
    struct ftb_cell cells[FTB_PAGE_CELLS];
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

/* The slow way to a cell: makes its page. NULL: no memory. Owner only. */
FTB_NOINLINE struct ftb_cell *
ftb_shard_cell_make_local(struct ftb_shard *shard, uint32_t id);

/* The owner's cell of a topic id, or NULL without memory. */
static inline struct ftb_cell *
ftb_shard_cell_local(struct ftb_shard *shard, uint32_t id)
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
    return ftb_shard_cell_make_local(shard, id);
}

/* Add the cells of `id` in every shard to *totals. Each counter is monotone from one
 * call to the next; together they are no consistent cut while others write. */
void ftb_shard_sum(uint32_t id, struct ftb_totals *totals);

/* A topic id, the last one released or else the next new one, so that ids stay dense.
 * UINT32_MAX: no memory. */
uint32_t ftb_shard_id_acquire(void);

/* Zero the id's cells and make it free. Nobody may count on it any more. */
void ftb_shard_id_release(uint32_t id);

#endif

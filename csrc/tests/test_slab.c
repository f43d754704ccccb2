/* ftb_slab.h: cells are aligned, apart, and go back to where they came from.
 *
 * The stress test must fail if the lock around the lists is left out. */
#include "check.h"

#include <string.h>

#include "ftb_atomic.h"
#include "ftb_slab.h"

enum { CELLS = 5000 };

static uint64_t seed;

/* Takes a cell and writes the whole of it. */
static void *
cell_new(unsigned char mark)
{
    void *cell = ftb_slab_take();
    CHECK(cell != NULL && (uintptr_t)cell % FTB_SLAB_CELL_BYTES == 0);
    memset(cell, mark, FTB_SLAB_CELL_BYTES);
    return cell;
}

static void
cell_give(void *memory, unsigned char mark)
{
    unsigned char *cell = memory;
    for (size_t i = 0; i < FTB_SLAB_CELL_BYTES; i++) {
        CHECK(cell[i] == mark);
    }
    ftb_slab_give(cell);
}

static void
test_memory_goes_back(void)
{
    static void *cells[CELLS];
    for (int lap = 0; lap < 3; lap++) {
        for (int i = 0; i < CELLS; i++) {
            cells[i] = cell_new((unsigned char)i);
        }
        size_t bytes = ftb_slab_bytes();
        CHECK(bytes >= CELLS * FTB_SLAB_CELL_BYTES);
        CHECK(bytes <= CELLS * FTB_SLAB_CELL_BYTES * 11 / 10 + 16384);
        for (int i = 0; i < CELLS; i++) {
            int at = lap == 1 ? CELLS - 1 - i : i;
            cell_give(cells[at], (unsigned char)at);
        }
        /* The cache's cells may lie in two slabs, and one more is kept. */
        CHECK(ftb_slab_bytes() <= 3 * 16384);
    }
    ftb_slab_give(NULL);
}

static void
test_without_memory(void)
{
    static void *cells[CELLS];
    int n = -1;
    do { /* what is in store still comes: the take itself succeeds, the slab fails */
        ftb_fault_alloc(1);
        cells[++n] = ftb_slab_take();
    } while (n + 1 < CELLS && cells[n] != NULL);
    CHECK(cells[n] == NULL);
    ftb_fault_alloc(0);
    CHECK(ftb_slab_take() == NULL);
    ftb_fault_alloc(-1);
    cells[n] = cell_new(1);
    for (int i = 0; i <= n; i++) {
        ftb_slab_give(cells[i]);
    }
}

/* Threads hand cells to each other in slots, so that most are given back by another. */
static ftb_atomic(unsigned char *) slots[64];

static void
pass_cells(int ix, void *unused)
{
    (void)unused;
    uint64_t random = seed + (uint64_t)ix;
    long rounds = scaled(300000);
    for (long i = 0; i < rounds; i++) {
        unsigned char *cell = NULL;
        if (next_random(&random) % 2 == 0) {
            unsigned char mark = (unsigned char)next_random(&random);
            cell = cell_new(mark);
        }
        unsigned char *other =
            ftb_exchange_acq_rel(&slots[next_random(&random) % 64], cell);
        if (other != NULL) {
            cell_give(other, other[0]);
        }
    }
}

static void
test_stress(void)
{
    run_threads(4, pass_cells, NULL);
    for (int i = 0; i < 64; i++) {
        unsigned char *left = ftb_exchange_acq_rel(&slots[i], (unsigned char *)NULL);
        if (left != NULL) {
            cell_give(left, left[0]);
        }
    }
    CHECK(ftb_slab_bytes() <= 4 * 16384); /* the threads' caches went back too */
}

int
main(void)
{
    set_watchdog(120);
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    ftb_slab_is_pooled = true;
#endif
    seed = run_seed();
    RUN(test_memory_goes_back);
    RUN(test_without_memory);
    RUN(test_stress);
    return 0;
}

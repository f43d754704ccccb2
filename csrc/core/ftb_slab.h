/* Cells of 64 bytes, aligned to 64: topics, snapshots and the entries of maps, a million
 * at a time.
 *
 * aligned_alloc takes 192 bytes and 300 ns for such a cell (measured with glibc 2.36);
 * here it is 64 bytes, and a few nanoseconds from a small cache of the thread's own. Any
 * thread may call everything here, also to give back what another thread took. */
#ifndef FTB_SLAB_H
#define FTB_SLAB_H

#include "ftb_base.h"

#define FTB_SLAB_CELL_BYTES 64

/* Under a sanitizer each cell is an allocation of its own, so that it reports who uses one
 * too long; a test of the slabs themselves sets this first. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
extern bool ftb_slab_is_pooled;
#else
enum { ftb_slab_is_pooled = true };
#endif

/* A cell, with whatever its last owner left in it. NULL: no memory. */
FTB_MUST_USE void *ftb_slab_take(void);

/* Give a cell back; NULL is allowed. Memory returns to the system by slabs of 255 cells,
 * but for one empty slab that is kept in store. */
void ftb_slab_give(void *cell);

/* What all slabs take from the system now. */
size_t ftb_slab_bytes(void);

#endif

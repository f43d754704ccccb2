#include "ftb_ring.h"

enum ftb_result
ftb_ring_init(struct ftb_ring *ring, uint64_t capacity)
{
    ftb_assert(capacity > 0 && (capacity & (capacity - 1)) == 0);
    size_t cell_size = sizeof(struct ftb_ring_cell);
    if (capacity > (SIZE_MAX - FTB_LINE) / cell_size) {
        return FTB_NOMEM;
    }
    /* ftb_alloc and not ftb_alloc_line, whose memset would touch every page. */
    ring->memory = ftb_alloc((size_t)capacity * cell_size + FTB_LINE);
    if (ring->memory == NULL) {
        return FTB_NOMEM;
    }
    uintptr_t address = (uintptr_t)ring->memory;
    address = (address + FTB_LINE - 1) / FTB_LINE * FTB_LINE;
    ring->cells = (struct ftb_ring_cell *)address;
    ring->mask = capacity - 1;
    ring->shift = 0;
    while ((UINT64_C(1) << ring->shift) < capacity) {
        ring->shift++;
    }
    ftb_init(&ring->tail, 0);
    ftb_init(&ring->head, 0);
    return FTB_OK;
}

void
ftb_ring_fini(struct ftb_ring *ring)
{
    ftb_free(ring->memory);
    ring->memory = NULL;
    ring->cells = NULL;
}

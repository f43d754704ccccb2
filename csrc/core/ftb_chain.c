#include "ftb_chain.h"

enum ftb_result
ftb_chain_init(struct ftb_chain *chain, uint64_t capacity)
{
    uint64_t cells_n = FTB_CHAIN_FIRST_CELLS;
    enum ftb_result result = FTB_OK;
    chain->rings_n = 0;
    ftb_init(&chain->push_level, 0);
    ftb_init(&chain->pop_level, 0);
    while (result == FTB_OK && cells_n < capacity) {
        result = ftb_ring_init(&chain->rings[chain->rings_n++], cells_n);
        cells_n *= FTB_CHAIN_GROWTH;
    }
    if (result == FTB_OK) {
        result = ftb_ring_init(&chain->rings[chain->rings_n++], capacity);
    }
    return result;
}

void
ftb_chain_fini(struct ftb_chain *chain)
{
    for (uint32_t i = 0; i < chain->rings_n; i++) {
        ftb_ring_fini(&chain->rings[i]);
    }
    chain->rings_n = 0;
}

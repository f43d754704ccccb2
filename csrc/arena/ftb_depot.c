/* Depots: the free magazines of one size class, where threads trade them.
 *
 * Thread rule: any thread; the depot's lock guards its stack. Nothing is allocated,
 * freed or called back under it, so a holder is never long and never waits.
 *
 * What the depot keeps follows Bonwick and Adams (USENIX 2001, section 3): the fewest
 * magazines it held over a period is what nobody needed, and half of that goes back to
 * the system, so a burst is remembered for some periods and then forgotten. A period is
 * counted in puts, because an arena that nobody uses must not need a clock; who goes
 * idle calls ftb_arena_trim. */
#include "ftb_arena_internal.h"

ftb_block_t *
ftb__depot_take(struct ftb__depot *depot)
{
    pthread_mutex_lock(&depot->lock);
    ftb_block_t *chain = depot->chains;
    if (chain != NULL) {
        depot->chains = chain->link.next_chain;
        depot->chains_n--;
        depot->blocks_n -= chain->chain_n;
        if (depot->chains_n < depot->low_n) {
            depot->low_n = depot->chains_n;
        }
    }
    pthread_mutex_unlock(&depot->lock);
    return chain;
}

/* Unlink up to n chains, linked as in the depot. The caller holds the depot's lock. */
static ftb_block_t *
depot_unlink_locked(struct ftb__depot *depot, uint32_t n)
{
    ftb_block_t *first = depot->chains;
    ftb_block_t *last = NULL;
    while (n > 0 && depot->chains != NULL) {
        last = depot->chains;
        depot->chains = last->link.next_chain;
        depot->chains_n--;
        depot->blocks_n -= last->chain_n;
        n--;
    }
    if (last == NULL) {
        return NULL;
    }
    last->link.next_chain = NULL;
    return first;
}

static uint64_t
destroy_chains(ftb_block_t *chains)
{
    uint64_t bytes = 0;
    while (chains != NULL) {
        ftb_block_t *next = chains->link.next_chain;
        bytes += ftb__block_destroy_chain(chains);
        chains = next;
    }
    return bytes;
}

void
ftb__depot_put(struct ftb__depot *depot, ftb_block_t *chain, uint32_t n)
{
    uint64_t most_n = FTB__DEPOT_BYTES / chain->cap;
    ftb_block_t *surplus = NULL;
    chain->chain_n = n;
    pthread_mutex_lock(&depot->lock);
    chain->link.next_chain = depot->chains;
    depot->chains = chain;
    depot->chains_n++;
    depot->blocks_n += n;
    depot->puts_n++;
    if (FTB_UNLIKELY(depot->blocks_n > most_n)) {
        surplus = depot_unlink_locked(depot, 1);
    } else if (FTB_UNLIKELY(depot->puts_n >= FTB__DEPOT_PERIOD)) {
        surplus = depot_unlink_locked(depot, (depot->low_n + 1) / 2);
        depot->puts_n = 0;
        depot->low_n = depot->chains_n;
    }
    pthread_mutex_unlock(&depot->lock);
    destroy_chains(surplus);
}

uint64_t
ftb__depot_empty(struct ftb__depot *depot)
{
    pthread_mutex_lock(&depot->lock);
    ftb_block_t *chains = depot_unlink_locked(depot, UINT32_MAX);
    depot->low_n = 0;
    pthread_mutex_unlock(&depot->lock);
    return destroy_chains(chains);
}

/* A lock that is free in the child was free at the fork, so what it guards is whole.
 * One that is taken belongs to a thread that is gone: the stack may be half changed,
 * and leaving it alone is the only safe use of it. */
bool
ftb__depot_after_fork_child(struct ftb__depot *depot)
{
    bool whole = pthread_mutex_trylock(&depot->lock) == 0;
    if (!whole) {
        depot->chains = NULL;
        depot->chains_n = 0;
        depot->low_n = 0;
        depot->blocks_n = 0;
    } else {
        pthread_mutex_unlock(&depot->lock);
    }
    pthread_mutex_init(&depot->lock, NULL);
    return whole;
}

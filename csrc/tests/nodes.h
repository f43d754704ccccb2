/* Nodes to hold, replace and retire, for the tests of ftb_reclaim.h.
 *
 * A freed node is filled with poison and kept apart until the test ends, so that a read
 * after the free finds the poison even where malloc would have handed the memory out
 * again. ThreadSanitizer sees the same bug as a race between the poison and the read. */
#ifndef FTB_TESTS_NODES_H
#define FTB_TESTS_NODES_H

#include "check.h"

#include <string.h>

#include "ftb_reclaim.h"

#define GOOD 0x600DF00D600DF00Du
#define POISON_BYTE 0xDD

struct node {
    uint64_t words[6];
    struct node *next_freed; /* not poisoned */
    struct ftb_retired retired;
};

static uint64_t seed;
static _Atomic(uint64_t) freed_n, retired_n;
static _Atomic(struct node *) graveyard;

static inline struct node *
node_new(void)
{
    struct node *node = malloc(sizeof *node);
    CHECK(node != NULL);
    for (int i = 0; i < 6; i++) {
        node->words[i] = GOOD + (uint64_t)i;
    }
    return node;
}

static inline void
node_check(const struct node *node)
{
    for (int i = 0; i < 6; i++) {
        CHECK(node->words[i] == GOOD + (uint64_t)i);
    }
}

static inline void
node_free(struct ftb_retired *retired)
{
    struct node *node = (struct node *)(uintptr_t)retired->object;
    CHECK(&node->retired == retired);
    node_check(node); /* freed twice? */
    memset(node->words, POISON_BYTE, sizeof node->words);
    struct node *head = ftb_load_relaxed(&graveyard);
    do {
        node->next_freed = head;
    } while (!ftb_cas_release(&graveyard, &head, node));
    ftb_add_relaxed(&freed_n, 1);
}

static inline void
node_retire(struct node *node)
{
    ftb_add_relaxed(&retired_n, 1);
    ftb_retire(&node->retired, node, node_free);
}

static inline void
bury(void)
{
    struct node *node = ftb_exchange_acq_rel(&graveyard, (struct node *)NULL);
    while (node != NULL) {
        struct node *next = node->next_freed;
        free(node);
        node = next;
    }
}

/* At rest, one reclaim frees everything. */
static inline void
check_all_freed(void)
{
    CHECK(ftb_reclaim() == 0);
    CHECK(ftb_load_acquire(&freed_n) == ftb_load_acquire(&retired_n));
    bury();
}

/* What an emit does to find its snapshot. */
static inline struct node *
node_hold(struct ftb_thread *thread, ftb_atomic(struct node *) * link)
{
    uint64_t odd = ftb_section_enter(thread);
    struct node *node = ftb_load_seq_cst(link); /* (2) */
    if (node != NULL) {
        ftb_hazard_hold(thread, node);
    }
    ftb_section_leave(thread, odd);
    return node;
}

static inline void
link_replace(ftb_atomic(struct node *) * link, struct node *fresh)
{
    struct node *old = ftb_exchange_seq_cst(link, fresh); /* (6) */
    if (old != NULL) {
        node_retire(old);
    }
}

enum { LINKS_N = 4, HOLDERS_N = 3, WRITERS_N = 3 };

struct churn {
    ftb_atomic(struct node *) links[LINKS_N];
    ftb_atomic(uint32_t) writers_left, holders_ready;
    long rounds;
};

static inline void
read_nested(struct ftb_thread *thread, struct churn *churn, uint64_t *random, int more)
{
    struct node *node = node_hold(thread, &churn->links[next_random(random) % LINKS_N]);
    node_check(node);
    if (more > 0) {
        read_nested(thread, churn, random, more - 1);
    }
    node_check(node);
    ftb_hazard_drop(thread);
}

/* How many records there are, and how many have an owner. */
struct census {
    size_t records_n, in_use_n;
};

static inline void
census_one(struct ftb_thread *thread, void *context)
{
    struct census *census = context;
    census->records_n++;
    census->in_use_n += ftb_load_acquire(&thread->in_use);
}

static inline struct census
census_take(void)
{
    struct census census = {0, 0};
    ftb_thread_each(census_one, &census);
    return census;
}

static inline bool
is_no_node(const void *object, void *context)
{
    node_check(object);
    uint64_t *random = context;
    if (next_random(random) % 2 == 0) {
        sched_yield(); /* let a new node into the slots that are still to be read */
    }
    return false;
}

#endif

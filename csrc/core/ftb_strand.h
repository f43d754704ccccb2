/* A strand: the queue of one partition, whose items are run one at a time, in order, by
 * whichever worker holds the strand's token.
 *
 * Any thread may push. Functions marked _local are for the strand's owner: the thread
 * that took its token. A push linearizes at its exchange of the tail.
 *
 * The list is Dmitry Vyukov's intrusive MPSC queue (1024cores.net); the right to run is a
 * three-valued state like the notification bit of tokio's tasks. The owner never compares
 * the list with anything after it let go, so no node can be mistaken for another, and a
 * producer stopped in the middle of a push makes nobody spin.
 *
 * Why it is correct:
 * 1. One owner. A token is made by the one producer whose exchange turned IDLE into
 *    SCHEDULED, or by the owner that gives up its ownership to make it. While a token or
 *    an owner exists the state is never IDLE: only an owner stores IDLE, and it stops
 *    being one. So a strand has at most one of {token, owner}, runs one item at a time,
 *    and needs at most one ring cell.
 * 2. Hand-over. What an owner did happens before what the next one does: through the ring
 *    if it made the token; otherwise through the state: its swap to IDLE releases, the
 *    exchange in begin acquires, and what the state saw in between were exchanges, which
 *    continue the release whatever their own order. So a producer, which only passes the
 *    token on, need not acquire, and an owner publishes nothing until it lets go.
 * 3. Order. The list is in the order of the exchanges of tail. A producer's exchange
 *    releases the store of NULL into its node, and acquires that into the node it links
 *    behind, so its link comes last.
 * 4. Nothing is forgotten. Take a node x that is in the list and not popped, and the first
 *    node y between the head and x, x included, whose producer has not yet exchanged the
 *    state. If there is such a y, that exchange is still to come. If it finds IDLE a token
 *    is made; otherwise there is an owner, or its token, that 4 holds for afterwards.
 *    If there is no such y, then every link from the head to x was stored before an
 *    exchange to SCHEDULED. Let E be the last one. An owner that turns the state into IDLE
 *    swaps it from RUNNING, which it stored itself: if E came before that RUNNING, the
 *    exchange that stored it acquired E and the links, so the load of head->next that
 *    follows it does not return NULL and the owner does not let go. If E came after, the
 *    swap finds SCHEDULED and fails.
 * 5. A node is freed by the owner that moved past it. Its successor's link is then in
 *    place, so the one producer that writes to it has done so.  */
#ifndef FTB_STRAND_H
#define FTB_STRAND_H

#include "ftb_atomic.h"
#include "ftb_base.h"
#include "ftb_ring.h"

struct ftb_node {
    /* Written by the node's producer (NULL), then by the producer of its successor. */
    ftb_atomic_ordered(struct ftb_node *) next;
    /* Written by the node's producer, before it exchanges the tail. */
    ftb_plain(struct ftb_item) item;
};

enum ftb_strand_state {
    FTB_STRAND_IDLE = 0,      /* no token, no owner */
    FTB_STRAND_SCHEDULED = 1, /* a node was linked since the owner last looked */
    FTB_STRAND_RUNNING = 2,   /* the owner has looked since */
};

/* Empty and ready when it is all zero: an array of strands need not be touched before it is
 * used. Small rather than free of false sharing, for there are many. */
struct ftb_strand {
    /* The newest node, or NULL before the first; exchanged by producers. */
    FTB_ALIGNED_TO(32) ftb_atomic(struct ftb_node *) tail;
    /* The link to the first node ever; written by its producer. */
    ftb_atomic_ordered(struct ftb_node *) first;
    /* The newest popped node, or NULL before the first; written by the owner. */
    ftb_plain(struct ftb_node *) head;
    /* Exchanged by producers (SCHEDULED) and by the owner (RUNNING, IDLE). */
    ftb_atomic(uint32_t) state;
};

/* A node for ftb_strand_push_mpsc. Returns NULL if there is no memory. Any thread; nodes
 * come from a cache of the calling thread. */
FTB_MUST_USE struct ftb_node *ftb_node_new(void);

/* Give a node back, from any thread. */
void ftb_node_free(struct ftb_node *node);

/* In the child of a fork: forget what other threads had cached. */
void ftb_node_after_fork_child(void);

/* Make an empty strand of any memory. */
static inline void
ftb_strand_init(struct ftb_strand *strand)
{
    ftb_init(&strand->tail, NULL);
    ftb_init(&strand->first, NULL);
    ftb_plain_set(&strand->head, NULL);
    ftb_init(&strand->state, FTB_STRAND_IDLE);
}

/* The link to the node behind `node`, which may be NULL for the first. */
static inline ftb_atomic_ordered(struct ftb_node *)
    * ftb_strand_link(struct ftb_strand *strand, struct ftb_node *node)
{
    return node != NULL ? &node->next : &strand->first;
}

/* Free the nodes. Items still inside are forgotten. No other thread uses the strand. */
void ftb_strand_fini(struct ftb_strand *strand);

/* Append a node. Returns true if the strand was idle: the caller must then put its token
 * into a ring, exactly once. */
static inline bool
ftb_strand_push_mpsc(
    struct ftb_strand *strand, struct ftb_node *node, const struct ftb_item *item)
{
    ftb_plain_set(&node->item, *item);
    ftb_store_relaxed(&node->next, NULL); /* relaxed: the exchange below releases it */
    struct ftb_node *before = ftb_exchange_acq_rel(&strand->tail, node);
    /* Pairs with the acquire load of next in pop. */
    ftb_store_release(ftb_strand_link(strand, before), node);
    /* Releases the link to the owner's exchanges, in begin and end. */
    return ftb_exchange_release(&strand->state, FTB_STRAND_SCHEDULED)
           == FTB_STRAND_IDLE;
}

/* Become the owner; the caller has just taken the strand's token out of a ring. */
static inline void
ftb_strand_begin_local(struct ftb_strand *strand)
{
    /* Acquires every push so far, and what the last owner did. */
    (void)ftb_exchange_acquire(&strand->state, FTB_STRAND_RUNNING);
}

/* Pop the oldest item. Returns false if there is none (or if the next push is still being
 * linked). *spent is then the node to give back, or NULL. */
static inline bool
ftb_strand_try_pop_local(
    struct ftb_strand *strand, struct ftb_item *item, struct ftb_node **spent)
{
    struct ftb_node *head = ftb_plain_get(&strand->head);
    struct ftb_node *next = ftb_load_acquire(ftb_strand_link(strand, head));
    if (next == NULL) {
        return false;
    }
    *item = ftb_plain_get(&next->item);
    ftb_plain_set(&strand->head, next);
    *spent = head;
    return true;
}

/* How many items are in the strand, without those that are just being linked. */
static inline uint32_t
ftb_strand_count_local(const struct ftb_strand *strand)
{
    const struct ftb_node *node = ftb_plain_get(&strand->head);
    uint32_t n = 0;
    while ((node = ftb_load_acquire(&node->next)) != NULL) {
        n++;
    }
    return n;
}

/* Let go. Returns true if there is more to run: the caller then still owns the strand and
 * must put its token into a ring, which ends the ownership. */
static inline bool
ftb_strand_end_local(struct ftb_strand *strand)
{
    struct ftb_node *head = ftb_plain_get(&strand->head);
    for (;;) {
        /* relaxed: whoever pops the node loads the link again */
        if (ftb_load_relaxed(ftb_strand_link(strand, head)) != NULL) {
            return true;
        }
        uint32_t state = FTB_STRAND_RUNNING;
        /* Releases the owner's work to the producer that finds IDLE. */
        if (ftb_cas_release(&strand->state, &state, FTB_STRAND_IDLE)) {
            return false;
        }
        /* A push announced itself since: acquire its link and look again. */
        (void)ftb_exchange_acquire(&strand->state, FTB_STRAND_RUNNING);
    }
}

#endif

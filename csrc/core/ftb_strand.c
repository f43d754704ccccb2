#include "ftb_strand.h"

#include <pthread.h>

/* The cache of nodes: a node is taken by a producer and given back by a worker, so free
 * nodes drift from thread to thread. Each thread keeps up to two magazines of them; full
 * magazines travel through a depot that a mutex protects, once per FTB_MAGAZINE_N nodes
 * (Bonwick and Adams, "Magazines and Vmem", USENIX 2001). A thread that ends gives its
 * nodes back; what the depot cannot hold goes back to the system. */
#define MAGAZINE_N 64u
#define CACHE_N (2 * MAGAZINE_N)
/* In magazines: the nodes of two default queues, 6 MiB if they were ever in use. Beyond
 * that a long queue pays malloc and free on different threads: 15 times as much. */
#define DEPOT_N 2048u

/* Written by its thread only. */
struct node_cache {
    uint32_t nodes_n;
    struct ftb_node *nodes[CACHE_N];
};

static FTB_TLS struct node_cache *cache_of_thread;

static pthread_once_t depot_once = PTHREAD_ONCE_INIT;
static pthread_key_t cache_key; /* written by depot_once */
static bool cache_key_works;    /* written by depot_once */
static pthread_mutex_t depot_mutex = PTHREAD_MUTEX_INITIALIZER;
static uint32_t depot_n;                /* guarded by depot_mutex */
static struct ftb_node *depot[DEPOT_N]; /* magazines chained by next; same guard */

static struct ftb_node *
magazine_take(void)
{
    struct ftb_node *chain = NULL;
    pthread_mutex_lock(&depot_mutex);
    if (depot_n > 0) {
        chain = depot[--depot_n];
    }
    pthread_mutex_unlock(&depot_mutex);
    return chain;
}

/* Put the cache's last nodes_n nodes into the depot, or free them if it is full. */
static void
magazine_put(struct node_cache *cache, uint32_t nodes_n)
{
    struct ftb_node *chain = NULL;
    for (uint32_t i = 0; i < nodes_n; i++) {
        struct ftb_node *node = cache->nodes[--cache->nodes_n];
        ftb_store_relaxed(&node->next, chain); /* relaxed: handed on by the mutex */
        chain = node;
    }
    pthread_mutex_lock(&depot_mutex);
    if (depot_n < DEPOT_N) {
        depot[depot_n++] = chain;
        chain = NULL;
    }
    pthread_mutex_unlock(&depot_mutex);
    while (chain != NULL) {
        struct ftb_node *next = ftb_load_relaxed(&chain->next); /* relaxed: ours */
        ftb_free(chain);
        chain = next;
    }
}

static void
cache_drop(void *memory)
{
    struct node_cache *cache = memory;
    cache_of_thread = NULL; /* a later destructor that frees a node makes a new cache */
    while (cache->nodes_n > 0) {
        uint32_t nodes_n = cache->nodes_n < MAGAZINE_N ? cache->nodes_n : MAGAZINE_N;
        magazine_put(cache, nodes_n);
    }
    ftb_free(cache);
}

static void
depot_make(void)
{
    cache_key_works = pthread_key_create(&cache_key, cache_drop) == 0;
}

/* The calling thread's cache, or NULL if there cannot be one. */
static struct node_cache *
cache_get(void)
{
    if (FTB_LIKELY(cache_of_thread != NULL)) {
        return cache_of_thread;
    }
    pthread_once(&depot_once, depot_make);
    struct node_cache *cache = cache_key_works ? ftb_alloc(sizeof *cache) : NULL;
    if (cache != NULL && pthread_setspecific(cache_key, cache) != 0) {
        ftb_free(cache);
        cache = NULL;
    }
    cache_of_thread = cache;
    return cache;
}

struct ftb_node *
ftb_node_new(void)
{
    struct node_cache *cache = cache_get();
    if (cache != NULL && cache->nodes_n == 0) {
        struct ftb_node *chain = magazine_take();
        while (chain != NULL) {
            cache->nodes[cache->nodes_n++] = chain;
            chain = ftb_load_relaxed(&chain->next); /* relaxed: ours */
        }
    }
    if (cache != NULL && cache->nodes_n > 0) {
        return cache->nodes[--cache->nodes_n];
    }
    return ftb_alloc(sizeof(struct ftb_node));
}

void
ftb_node_free(struct ftb_node *node)
{
    struct node_cache *cache = cache_get();
    if (cache == NULL) {
        ftb_free(node);
        return;
    }
    if (cache->nodes_n == CACHE_N) {
        magazine_put(cache, MAGAZINE_N);
    }
    cache->nodes[cache->nodes_n++] = node;
}

void
ftb_node_after_fork_child(void)
{
    /* Another thread may have held the mutex, its change half done: start anew. Nodes
     * that were in the depot are lost to the child. */
    pthread_mutex_init(&depot_mutex, NULL);
    depot_n = 0;
}

void
ftb_strand_fini(struct ftb_strand *strand)
{
    struct ftb_node *head = ftb_plain_get(&strand->head);
    struct ftb_node *node = head;
    if (head == NULL) {
        node = ftb_load_relaxed(&strand->first); /* relaxed, here and below: ours */
    }
    while (node != NULL) {
        struct ftb_node *next = ftb_load_relaxed(&node->next);
        ftb_node_free(node);
        node = next;
    }
    ftb_strand_init(strand);
}

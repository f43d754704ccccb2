/* ftb_reclaim.h: what is held is never freed, what is not held is freed.
 *
 * A freed node is filled with poison and kept apart until the test ends, so that a read
 * after the free finds the poison even where malloc would have handed the memory out
 * again. ThreadSanitizer sees the same bug as a race between the poison and the read. */
#include "check.h"

#include <string.h>
#include <sys/wait.h>

#include "ftb_reclaim.h"
#include "ftb_shard.h"

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

static struct node *
node_new(void)
{
    struct node *node = malloc(sizeof *node);
    CHECK(node != NULL);
    for (int i = 0; i < 6; i++) {
        node->words[i] = GOOD + (uint64_t)i;
    }
    return node;
}

static void
node_check(const struct node *node)
{
    for (int i = 0; i < 6; i++) {
        CHECK(node->words[i] == GOOD + (uint64_t)i);
    }
}

static void
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

static void
node_retire(struct node *node)
{
    ftb_add_relaxed(&retired_n, 1);
    ftb_retire(&node->retired, node, node_free);
}

static void
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
static void
check_all_freed(void)
{
    CHECK(ftb_reclaim() == 0);
    CHECK(ftb_load_acquire(&freed_n) == ftb_load_acquire(&retired_n));
    bury();
}

/* What an emit does to find its snapshot. */
static struct node *
node_hold(struct ftb_thread *thread, ftb_atomic(struct node *) *link)
{
    uint64_t odd = ftb_section_enter(thread);
    struct node *node = ftb_load_seq_cst(link); /* (2) */
    if (node != NULL) {
        ftb_hazard_hold(thread, node);
    }
    ftb_section_leave(thread, odd);
    return node;
}

static void
link_replace(ftb_atomic(struct node *) *link, struct node *fresh)
{
    struct node *old = ftb_exchange_seq_cst(link, fresh); /* (6) */
    if (old != NULL) {
        node_retire(old);
    }
}

static void
test_each_depth_protects_its_own(void)
{
    ftb_atomic(struct node *) link = NULL;
    struct ftb_thread *thread = ftb_thread_current();
    CHECK(thread != NULL && thread->depth == 0);
    struct node *held[FTB_DEPTH_MAX];
    for (int i = 0; i < FTB_DEPTH_MAX; i++) {
        link_replace(&link, node_new());
        held[i] = node_hold(thread, &link);
    }
    link_replace(&link, NULL);
    for (uint32_t left = FTB_DEPTH_MAX; left > 0; left--) {
        CHECK(ftb_reclaim() == left);
        for (uint32_t i = 0; i < left; i++) {
            node_check(held[i]);
        }
        ftb_hazard_drop(thread);
    }
    CHECK(thread->depth == 0);
    check_all_freed();
}

static void
test_an_open_section_keeps_all(void)
{
    ftb_atomic(struct node *) link = NULL;
    struct ftb_thread *thread = ftb_thread_current();
    link_replace(&link, node_new());
    uint64_t odd = ftb_section_enter(thread);
    struct node *node = ftb_load_seq_cst(&link);
    link_replace(&link, NULL);
    CHECK(ftb_reclaim() == 1); /* gives up waiting for this very section */
    node_check(node);
    ftb_section_leave(thread, odd);
    check_all_freed();
}

/* Long holders and churning writers */

enum { LINKS_N = 4, HOLDERS_N = 3, WRITERS_N = 3 };

struct churn {
    ftb_atomic(struct node *) links[LINKS_N];
    ftb_atomic(uint32_t) writers_left, holders_ready;
    long rounds;
};

/* Bug hunted: an object that sits in a slot for a long time is freed by the hundredth
 * scan, or the kept list loses it. */
static void
long_hold_body(int ix, void *context)
{
    struct churn *churn = context;
    struct ftb_thread *thread = ftb_thread_current();
    if (ix < HOLDERS_N) {
        struct node *held[LINKS_N];
        for (int i = 0; i < LINKS_N; i++) {
            held[i] = node_hold(thread, &churn->links[i]);
        }
        ftb_add_acq_rel(&churn->holders_ready, 1);
        while (ftb_load_acquire(&churn->writers_left) > 0) {
            for (int i = 0; i < LINKS_N; i++) {
                node_check(held[i]);
            }
            sched_yield();
        }
        for (int i = 0; i < LINKS_N; i++) {
            node_check(held[i]);
        }
        for (int i = 0; i < LINKS_N; i++) {
            ftb_hazard_drop(thread);
        }
        return;
    }
    while (ftb_load_acquire(&churn->holders_ready) < HOLDERS_N) {
        sched_yield();
    }
    uint64_t random = seed + (uint64_t)ix * 7919;
    for (long n = 0; n < churn->rounds; n++) {
        link_replace(&churn->links[next_random(&random) % LINKS_N], node_new());
        /* Holders hold at most so many; three writers' newest may come on top. */
        CHECK(ftb_reclaim() <= LINKS_N * HOLDERS_N + 2 * WRITERS_N * 64);
    }
    ftb_sub_acq_rel(&churn->writers_left, 1);
}

static void
test_long_hold_under_churn(void)
{
    struct churn churn = {.writers_left = WRITERS_N, .rounds = scaled(300000)};
    for (int i = 0; i < LINKS_N; i++) {
        link_replace(&churn.links[i], node_new());
    }
    run_threads(HOLDERS_N + WRITERS_N, long_hold_body, &churn);
    for (int i = 0; i < LINKS_N; i++) {
        link_replace(&churn.links[i], NULL);
    }
    check_all_freed();
}

/* Bug hunted: a reader between its look-up and its slot is missed (a weakened (1), (2),
 * (4) or (7)), or a node is freed while the last reads through it are under way (5). */
static void
read_nested(struct ftb_thread *thread, struct churn *churn, uint64_t *random, int more)
{
    struct node *node
        = node_hold(thread, &churn->links[next_random(random) % LINKS_N]);
    node_check(node);
    if (more > 0) {
        read_nested(thread, churn, random, more - 1);
    }
    node_check(node);
    ftb_hazard_drop(thread);
}

static void
churn_body(int ix, void *context)
{
    struct churn *churn = context;
    struct ftb_thread *thread = ftb_thread_current();
    uint64_t random = seed + (uint64_t)ix * 104729;
    for (long n = 0; n < churn->rounds; n++) {
        if (ix % 2 == 0) {
            read_nested(thread, churn, &random, (int)(next_random(&random) % 4));
            if (next_random(&random) % 8 == 0) {
                sched_yield(); /* its last drop is all that a scan can go by */
            }
            continue;
        }
        link_replace(&churn->links[next_random(&random) % LINKS_N], node_new());
        if (next_random(&random) % 4 == 0) {
            ftb_reclaim();
        }
    }
}

static void
test_readers_against_writers(void)
{
    struct churn churn = {.rounds = scaled(600000)};
    for (int i = 0; i < LINKS_N; i++) {
        link_replace(&churn.links[i], node_new());
    }
    run_threads(8, churn_body, &churn);
    for (int i = 0; i < LINKS_N; i++) {
        link_replace(&churn.links[i], NULL);
    }
    check_all_freed();
}

/* Threads that come and go */

struct census {
    size_t records_n, in_use_n;
};

static void
census_one(struct ftb_thread *thread, void *context)
{
    struct census *census = context;
    census->records_n++;
    census->in_use_n += ftb_load_acquire(&thread->in_use);
}

static struct census
census_take(void)
{
    struct census census = {0, 0};
    ftb_thread_each(census_one, &census);
    return census;
}

static pthread_key_t late_key;
static ftb_atomic(struct node *) late_link;

/* Runs among the thread's other key destructors, before or after the record's own. */
static void
late_use(void *value)
{
    uintptr_t left = (uintptr_t)value;
    struct ftb_thread *thread = ftb_thread_current();
    CHECK(thread->depth == 0);
    node_check(node_hold(thread, &late_link));
    ftb_hazard_drop(thread);
    if (left > 1) {
        pthread_setspecific(late_key, (void *)(left - 1)); /* and once more */
    }
}

/* Bug hunted: a record that is lost when its thread ends, or that two threads own; a
 * reader that registers while a scan is under way and is missed. */
static void *
short_thread(void *argument)
{
    struct churn *churn = argument;
    struct ftb_thread *thread = ftb_thread_current();
    uint64_t random = seed + (uint64_t)(uintptr_t)thread;
    CHECK(thread != NULL && thread->depth == 0);
    CHECK((ftb_load_relaxed(&thread->seq) & 1) == 0);
    read_nested(thread, churn, &random, 1);
    if (next_random(&random) % 4 == 0) {
        pthread_setspecific(late_key, (void *)2);
    }
    return NULL;
}

static void
spawn_body(int ix, void *context)
{
    struct churn *churn = context;
    if (ix == 0) {
        while (ftb_load_acquire(&churn->writers_left) > 0) {
            link_replace(&churn->links[0], node_new());
            ftb_reclaim();
        }
        return;
    }
    for (long n = 0; n < churn->rounds; n++) {
        pthread_t handles[4];
        for (int i = 0; i < 4; i++) {
            CHECK(pthread_create(&handles[i], NULL, short_thread, churn) == 0);
        }
        for (int i = 0; i < 4; i++) {
            CHECK(pthread_join(handles[i], NULL) == 0);
        }
    }
    ftb_sub_acq_rel(&churn->writers_left, 1);
}

static void
test_thousands_of_short_threads(void)
{
    struct churn churn = {.writers_left = 2, .rounds = scaled(1500)};
    CHECK(pthread_key_create(&late_key, late_use) == 0);
    link_replace(&late_link, node_new());
    for (int i = 0; i < LINKS_N; i++) {
        link_replace(&churn.links[i], node_new());
    }
    size_t before_n = census_take().records_n;
    run_threads(3, spawn_body, &churn);
    struct census after = census_take();
    /* 8 short ones at a time and the writer; main's own record stays in use. */
    CHECK(after.records_n <= (before_n > 10 ? before_n : 10));
    CHECK(after.in_use_n == 1);
    for (int i = 0; i < LINKS_N; i++) {
        link_replace(&churn.links[i], NULL);
    }
    link_replace(&late_link, NULL);
    pthread_key_delete(late_key);
    check_all_freed();
}

static void *
exit_while_holding(void *argument)
{
    node_hold(ftb_thread_current(), argument);
    node_hold(ftb_thread_current(), argument);
    pthread_exit(NULL); /* as a daemon thread of Python does when the process ends */
}

/* Bug hunted: the next owner of the record starts at depth 2, and the two slots protect
 * what nobody uses until it nests as deep. */
static void
test_thread_ends_inside_a_handler(void)
{
    ftb_atomic(struct node *) link = NULL;
    pthread_t handle;
    link_replace(&link, node_new());
    CHECK(pthread_create(&handle, NULL, exit_while_holding, (void *)&link) == 0);
    pthread_join(handle, NULL);
    link_replace(&link, NULL);
    check_all_freed();
}

/* ftb_hazard_find */

struct find {
    ftb_atomic(struct node *) link;
    pthread_barrier_t step;
    ftb_atomic(uint32_t) stop;
};

static bool
is_this_node(const void *object, void *context)
{
    node_check(object); /* it is protected, and its bytes are visible */
    return object == context;
}

static bool
is_no_node(const void *object, void *context)
{
    node_check(object);
    uint64_t *random = context;
    if (next_random(random) % 2 == 0) {
        sched_yield(); /* let a new node into the slots that are still to be read */
    }
    return false;
}

static void
find_body(int ix, void *context)
{
    struct find *find = context;
    struct ftb_thread *thread = ftb_thread_current();
    if (ix == 0) {
        node_hold(thread, &find->link);
        pthread_barrier_wait(&find->step); /* 1: held here */
        pthread_barrier_wait(&find->step); /* 2: looked at */
        ftb_hazard_drop(thread);
        pthread_barrier_wait(&find->step); /* 3: dropped */
        return;
    }
    pthread_barrier_wait(&find->step); /* 1 */
    struct node *node = node_hold(thread, &find->link);
    struct node *other = node_new();
    CHECK(ftb_hazard_find(is_this_node, node));
    CHECK(!ftb_hazard_find(is_this_node, other));
    pthread_barrier_wait(&find->step); /* 2 */
    pthread_barrier_wait(&find->step); /* 3 */
    CHECK(!ftb_hazard_find(is_this_node, node)); /* this thread's own does not count */
    ftb_hazard_drop(thread);
    free(other);
}

static void
test_find_sees_other_threads_only(void)
{
    struct find find = {.link = NULL};
    link_replace(&find.link, node_new());
    pthread_barrier_init(&find.step, NULL, 2);
    run_threads(2, find_body, &find);
    pthread_barrier_destroy(&find.step);
    link_replace(&find.link, NULL);
    check_all_freed();
}

/* Bug hunted: `match` looks into a node that is being freed, or whose bytes another
 * thread has just written and (3) did not publish (ThreadSanitizer). */
static void
find_race_body(int ix, void *context)
{
    struct churn *churn = context;
    struct ftb_thread *thread = ftb_thread_current();
    uint64_t random = seed + (uint64_t)ix * 31;
    for (long n = 0; n < churn->rounds; n++) {
        if (ix == 0) {
            ftb_hazard_find(is_no_node, &random);
        } else if (ix == 1) {
            link_replace(&churn->links[0], node_new());
            ftb_reclaim();
        } else {
            struct node *node = node_hold(thread, &churn->links[0]);
            node_check(node);
            ftb_hazard_drop(thread);
            if (next_random(&random) % 64 == 0) {
                sched_yield();
            }
        }
    }
}

static void
test_find_looks_into_live_objects(void)
{
    struct churn churn = {.rounds = scaled(1000000)};
    link_replace(&churn.links[0], node_new());
    run_threads(6, find_race_body, &churn);
    link_replace(&churn.links[0], NULL);
    check_all_freed();
}

/* Retiring */

static int chain_left;

static void
chain_free(struct ftb_retired *retired)
{
    node_free(retired);
    if (chain_left > 0) {
        chain_left--;
        struct node *node = node_new();
        ftb_add_relaxed(&retired_n, 1);
        ftb_retire(&node->retired, node, chain_free);
        ftb_reclaim(); /* a finalizer that cancels a subscription does this */
    }
}

static void
test_free_function_retires_and_reclaims(void)
{
    struct node *node = node_new();
    chain_left = 100;
    ftb_add_relaxed(&retired_n, 1);
    ftb_retire(&node->retired, node, chain_free);
    CHECK(ftb_reclaim() == 0);
    CHECK(chain_left == 0);
    check_all_freed();
}

struct handover {
    pthread_barrier_t step;
    long rounds;
};

/* Bug hunted: a thread that finds the reclaimer at work goes away, the reclaimer has
 * already taken its list, and the object stays until some later cancel. */
static void
handover_body(int ix, void *context)
{
    struct handover *handover = context;
    for (long n = 0; n < handover->rounds; n++) {
        pthread_barrier_wait(&handover->step);
        node_retire(node_new());
        ftb_reclaim();
        pthread_barrier_wait(&handover->step);
        if (ix == 0) {
            CHECK(ftb_load_acquire(&freed_n) == ftb_load_acquire(&retired_n));
        }
    }
}

static void
test_nothing_waits_for_a_later_reclaim(void)
{
    struct handover handover = {.rounds = scaled(20000)};
    pthread_barrier_init(&handover.step, NULL, 3);
    run_threads(3, handover_body, &handover);
    pthread_barrier_destroy(&handover.step);
    check_all_freed();
}

/* Without memory */

static void *
register_without_memory(void *unused)
{
    (void)unused;
    long fail_at = 0;
    struct ftb_thread *thread;
    do {
        ftb_fault_alloc(fail_at++);
        thread = ftb_thread_current();
    } while (thread == NULL);
    ftb_fault_alloc(-1);
    CHECK(thread == ftb_thread_current() && thread->shard != NULL);
    return (void *)(uintptr_t)fail_at;
}

static void *
hold_until_told(void *argument)
{
    struct find *find = argument;
    node_hold(ftb_thread_current(), &find->link);
    pthread_barrier_wait(&find->step);
    pthread_barrier_wait(&find->step);
    ftb_hazard_drop(ftb_thread_current());
    return NULL;
}

/* Bug hunted: a scan that finds no memory for its set of slots takes them for empty, or
 * drops the list. Runs first, while no record is there to be reused. */
static void
test_without_memory(void)
{
    struct find find = {.link = NULL};
    pthread_t handle;
    void *attempts_n;
    CHECK(census_take().records_n == 0);
    CHECK(pthread_create(&handle, NULL, register_without_memory, NULL) == 0);
    pthread_join(handle, &attempts_n);
    CHECK((uintptr_t)attempts_n >= 4); /* record, shard, directory; then it works */
    CHECK(census_take().records_n == 1);

    pthread_barrier_init(&find.step, NULL, 2);
    link_replace(&find.link, node_new());
    CHECK(pthread_create(&handle, NULL, hold_until_told, &find) == 0);
    pthread_barrier_wait(&find.step);
    link_replace(&find.link, NULL);
    node_retire(node_new()); /* held by nobody */
    ftb_fault_alloc(0);
    CHECK(ftb_reclaim() == 2);
    ftb_fault_alloc(-1);
    CHECK(ftb_reclaim() == 1);
    pthread_barrier_wait(&find.step);
    pthread_join(handle, NULL);
    pthread_barrier_destroy(&find.step);
    check_all_freed();
}

/* Fork */

#ifndef __SANITIZE_THREAD__
static void
child_check(struct churn *churn)
{
    set_watchdog(20);
    ftb_reclaim_after_fork_child();
    struct census census = census_take();
    CHECK(census.in_use_n == 1);
    for (int i = 0; i < LINKS_N; i++) {
        link_replace(&churn->links[i], NULL);
    }
    CHECK(ftb_reclaim() == 0); /* no dead thread's slot or section holds anything */
    uint32_t id = ftb_shard_id_acquire();
    CHECK(id != UINT32_MAX && ftb_shard_id_acquire() != id);
    _exit(0);
}

/* Bug hunted: a lock, a section or a slot that a thread of the parent had at the moment
 * of the fork is there for ever in the child. */
static void
fork_body(int ix, void *context)
{
    struct churn *churn = context;
    uint64_t random = seed + (uint64_t)ix * 257;
    if (ix == 0) {
        ftb_thread_current();
        for (long n = 0; n < churn->rounds; n++) {
            pid_t child = fork();
            CHECK(child >= 0);
            if (child == 0) {
                child_check(churn);
            }
            int status;
            CHECK(waitpid(child, &status, 0) == child);
            CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        }
        ftb_store_release(&churn->writers_left, 0);
        return;
    }
    while (ftb_load_acquire(&churn->writers_left) > 0) {
        if (ix == 1) {
            link_replace(&churn->links[next_random(&random) % LINKS_N], node_new());
            ftb_reclaim();
            bury(); /* a small process forks fast */
            ftb_hazard_find(is_no_node, &random); /* has the lock for some time */
        } else if (ix == 2) {
            node_hold(ftb_thread_current(), &churn->links[0]);
            sched_yield();
            ftb_hazard_drop(ftb_thread_current());
        } else {
            ftb_shard_id_release(ftb_shard_id_acquire());
        }
        sched_yield(); /* a fork waits for both locks */
    }
}

static void
test_fork_in_the_middle(void)
{
    struct churn churn = {.writers_left = 1, .rounds = scaled(50)};
    for (int i = 0; i < LINKS_N; i++) {
        link_replace(&churn.links[i], node_new());
    }
    run_threads(4, fork_body, &churn);
    for (int i = 0; i < LINKS_N; i++) {
        link_replace(&churn.links[i], NULL);
    }
    check_all_freed();
}
#endif

int
main(void)
{
    set_watchdog(240);
    seed = run_seed();
    RUN(test_without_memory);
    RUN(test_each_depth_protects_its_own);
    RUN(test_an_open_section_keeps_all);
    RUN(test_long_hold_under_churn);
    RUN(test_readers_against_writers);
    RUN(test_thousands_of_short_threads);
    RUN(test_thread_ends_inside_a_handler);
    RUN(test_find_sees_other_threads_only);
    RUN(test_find_looks_into_live_objects);
    RUN(test_free_function_retires_and_reclaims);
    RUN(test_nothing_waits_for_a_later_reclaim);
#ifndef __SANITIZE_THREAD__
    RUN(test_fork_in_the_middle); /* its child starts no thread, but TSan gives up */
#endif
    return 0;
}

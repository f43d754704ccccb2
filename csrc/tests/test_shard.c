/* ftb_shard.h: sums are exact, ids are recycled clean, directories grow under readers. */
#include "check.h"

#include <string.h>

#include "ftb_reclaim.h"
#include "ftb_shard.h"

enum { WRITERS_N = 8, IDS_N = 16 };

static uint64_t seed;

static struct ftb_totals
sum_of(uint32_t id)
{
    struct ftb_totals totals = {0};
    ftb_shard_sum(id, &totals);
    return totals;
}

static void
count(uint32_t id, uint64_t emitted_n, uint64_t handled_n)
{
    struct ftb_cell *cell = ftb_shard_cell_local(ftb_thread_current()->shard, id);
    CHECK(cell != NULL);
    ftb_count_local(&cell->emitted, emitted_n);
    ftb_count_local(&cell->handled, handled_n);
}

struct tally {
    uint32_t ids[IDS_N];
    _Atomic(uint64_t) emitted[IDS_N], handled[IDS_N];
    ftb_atomic(uint32_t) writers_left;
    long rounds;
};

/* Bug hunted: two threads that share a cell lose counts, a page that is made twice loses
 * the first one's, a counter is added under the wrong name; a sum goes backwards. */
static void
tally_body(int ix, void *context)
{
    struct tally *tally = context;
    uint64_t random = seed + (uint64_t)ix * 997;
    if (ix >= WRITERS_N) {
        struct ftb_totals before[IDS_N];
        memset(before, 0, sizeof before);
        while (ftb_load_acquire(&tally->writers_left) > 0) {
            uint64_t k = next_random(&random) % IDS_N;
            struct ftb_totals now = sum_of(tally->ids[k]);
            CHECK(now.emitted >= before[k].emitted);
            CHECK(now.handled >= before[k].handled);
            CHECK(now.failed == 0 && now.posted == 0);
            before[k] = now;
        }
        return;
    }
    uint64_t emitted[IDS_N] = {0}, handled[IDS_N] = {0};
    for (long n = 0; n < tally->rounds; n++) {
        uint64_t k = next_random(&random) % IDS_N, more = next_random(&random) % 5;
        count(tally->ids[k], 1, more);
        emitted[k] += 1;
        handled[k] += more;
    }
    for (int k = 0; k < IDS_N; k++) {
        ftb_add_relaxed(&tally->emitted[k], emitted[k]);
        ftb_add_relaxed(&tally->handled[k], handled[k]);
    }
    ftb_sub_acq_rel(&tally->writers_left, 1);
}

static void
test_sums_are_exact(void)
{
    struct tally tally = {.writers_left = WRITERS_N, .rounds = scaled(1000000)};
    uint32_t spare[IDS_N][100]; /* so that the ids lie on different pages */
    for (int k = 0; k < IDS_N; k++) {
        tally.ids[k] = ftb_shard_id_acquire();
        for (int i = 0; i < 100; i++) {
            spare[k][i] = ftb_shard_id_acquire();
        }
    }
    run_threads(WRITERS_N + 2, tally_body, &tally);
    for (int k = 0; k < IDS_N; k++) { /* their threads have ended: the counts stay */
        struct ftb_totals totals = sum_of(tally.ids[k]);
        CHECK(totals.emitted == ftb_load_acquire(&tally.emitted[k]));
        CHECK(totals.handled == ftb_load_acquire(&tally.handled[k]));
    }
    for (int k = 0; k < IDS_N; k++) {
        ftb_shard_id_release(tally.ids[k]);
        CHECK(sum_of(tally.ids[k]).emitted == 0);
        for (int i = 0; i < 100; i++) {
            ftb_shard_id_release(spare[k][i]);
        }
    }
}

/* Bug hunted: a page that is summed otherwise than its ids one by one, or that leaves out
 * a thread, a ledger or the slowest call; an id that keeps its last owner's. */
static void
page_body(int ix, void *context)
{
    uint32_t *ids = context;
    struct ftb_shard *shard = ftb_thread_current()->shard;
    for (uint32_t i = 0; i < IDS_N; i++) {
        if (i % 3 == (uint32_t)ix) { /* one of the three threads has nothing of it */
            continue;
        }
        count(ids[i], 1 + i, i);
        ftb_shard_note_slow_local(shard, ids[i], 100 * i * (uint32_t)(ix + 1));
        struct ftb_cell *cell = ftb_shard_cell_local(shard, ids[i]);
        ftb_store_relaxed(&cell->version, (uint64_t)1);
        ftb_cell_emitted_apart_local(cell);
        ftb_store_relaxed(&cell->version, (uint64_t)0);
    }
}

static void
test_page_is_the_sum_of_its_ids(void)
{
    uint32_t ids[IDS_N];
    for (int k = 0; k < IDS_N; k++) {
        ids[k] = ftb_shard_id_acquire();
    }
    run_threads(3, page_body, ids);
    uint32_t n;
    for (uint32_t first = 0; first < IDS_N; first += n) {
        struct ftb_totals totals[IDS_N];
        uint16_t slowest[IDS_N] = {0};
        memset(totals, 0, sizeof totals);
        uint32_t page_ix = ids[first] / FTB_PAGE_CELLS;
        for (n = 1; first + n < IDS_N && ids[first + n] / FTB_PAGE_CELLS == page_ix;) {
            n++;
        }
        ftb_shard_sum_page(ids + first, n, totals, slowest);
        for (uint32_t i = 0; i < n; i++) {
            uint32_t k = first + i, most = k % 3 == 2 ? 2 : 3;
            struct ftb_totals one = sum_of(ids[k]);
            CHECK(memcmp(&totals[i], &one, sizeof one) == 0);
            CHECK(one.emitted == 2 * (1 + k) + 2 && one.handled == 2 * k);
            CHECK(slowest[i] == ftb_histogram_bucket(100 * k * most) + 1);
        }
    }
    for (int k = 0; k < IDS_N; k++) {
        ftb_shard_id_release(ids[k]);
        struct ftb_totals totals = {0};
        uint16_t slowest = 0;
        ftb_shard_sum_page(&ids[k], 1, &totals, &slowest);
        CHECK(totals.emitted == 0 && slowest == 0);
    }
    ftb_shard_note_slow_local(ftb_thread_current()->shard, FTB_NO_ID, 5); /* nowhere */
}

struct recycle {
    pthread_mutex_t lock;
    uint8_t owners[4096]; /* by id; guarded by lock */
    long rounds;
};

/* Bug hunted: an id that is given to two, or that still carries its last owner's counts,
 * its own thread's or another's. */
static void
recycle_body(int ix, void *context)
{
    struct recycle *recycle = context;
    uint64_t random = seed + (uint64_t)ix * 613;
    uint32_t held[20];
    for (long n = 0; n < recycle->rounds; n++) {
        int held_n = (int)(next_random(&random) % 20) + 1;
        for (int i = 0; i < held_n; i++) {
            uint32_t id = ftb_shard_id_acquire();
            CHECK(id < sizeof recycle->owners);
            pthread_mutex_lock(&recycle->lock);
            CHECK(recycle->owners[id]++ == 0);
            pthread_mutex_unlock(&recycle->lock);
            struct ftb_totals before = sum_of(id);
            CHECK(before.emitted == 0 && before.handled == 0);
            count(id, 3, 4);
            CHECK(sum_of(id).emitted == 3 && sum_of(id).handled == 4);
            held[i] = id;
        }
        for (int i = 0; i < held_n; i++) {
            pthread_mutex_lock(&recycle->lock);
            recycle->owners[held[i]] = 0;
            pthread_mutex_unlock(&recycle->lock);
            ftb_shard_id_release(held[i]);
        }
    }
}

static void
test_ids_are_recycled_clean(void)
{
    static struct recycle recycle = {.lock = PTHREAD_MUTEX_INITIALIZER};
    recycle.rounds = scaled(20000);
    run_threads(4, recycle_body, &recycle);
}

/* Bug hunted: a sum that walks a directory while its owner replaces it by a longer one. */
static void
growth_body(int ix, void *context)
{
    struct tally *tally = context;
    uint32_t last = (uint32_t)tally->rounds * FTB_PAGE_CELLS;
    if (ix >= 2) {
        uint64_t random = seed + (uint64_t)ix;
        while (ftb_load_acquire(&tally->writers_left) > 0) {
            uint32_t id = (uint32_t)(next_random(&random) % last);
            CHECK(sum_of(id).emitted <= 2);
        }
        return;
    }
    for (uint32_t id = 7; id < last; id += FTB_PAGE_CELLS) {
        count(id, 1, 0);
    }
    ftb_sub_acq_rel(&tally->writers_left, 1);
}

static void
check_grown(struct ftb_thread *thread, void *context)
{
    /* Doubling: what was replaced is together no longer than what there is. */
    (void)context;
    struct ftb_directory *directory = ftb_load_acquire(&thread->shard->directory);
    uint64_t shorter_n = 0;
    for (struct ftb_directory *d = directory->shorter; d != NULL; d = d->shorter) {
        shorter_n += d->pages_n;
    }
    CHECK(shorter_n <= directory->pages_n);
}

static void
test_directory_grows_under_readers(void)
{
    struct tally tally = {.writers_left = 2, .rounds = scaled(20000)};
    run_threads(4, growth_body, &tally);
    for (uint32_t page = 0; page < (uint32_t)tally.rounds; page++) {
        CHECK(sum_of(page * FTB_PAGE_CELLS + 7).emitted == 2);
        CHECK(sum_of(page * FTB_PAGE_CELLS + 8).emitted == 0);
    }
    ftb_thread_each(check_grown, NULL);
}

/* Bug hunted: a failed growth that loses the old directory or counts. */
static void
test_without_memory(void)
{
    struct ftb_shard *shard = ftb_thread_current()->shard;
    uint32_t far = ftb_load_acquire(&shard->directory)->pages_n * FTB_PAGE_CELLS + 5;
    for (long fail_at = 0; fail_at < 2; fail_at++) { /* the directory, then the page */
        ftb_fault_alloc(fail_at);
        CHECK(ftb_shard_cell_local(shard, far) == NULL);
        ftb_fault_alloc(-1);
    }
    CHECK(ftb_shard_cell_local(shard, far) != NULL);
    for (long fail_at = 0; fail_at < 2; fail_at++) {
        ftb_fault_alloc(fail_at);
        CHECK(ftb_shard_new() == NULL);
        ftb_fault_alloc(-1);
    }
    /* An id that finds no room on the stack of free ones is not given out. */
    static uint32_t ids[40000];
    size_t ids_n = 0, refused_n = 0;
    while (ids_n < sizeof ids / sizeof ids[0]) {
        ftb_fault_alloc(0);
        uint32_t id = ftb_shard_id_acquire();
        ftb_fault_alloc(-1);
        if (id == UINT32_MAX) {
            refused_n++;
            id = ftb_shard_id_acquire();
            CHECK(id != UINT32_MAX);
        }
        ids[ids_n++] = id;
    }
    CHECK(refused_n >= 3);
    while (ids_n > 0) {
        ftb_shard_id_release(ids[--ids_n]);
    }
}

int
main(void)
{
    set_watchdog(240);
    seed = run_seed();
    RUN(test_sums_are_exact);
    RUN(test_page_is_the_sum_of_its_ids);
    RUN(test_ids_are_recycled_clean);
    RUN(test_directory_grows_under_readers);
    RUN(test_without_memory);
    return 0;
}

/* ftb_histogram.h: every duration in its bucket, sums exact, readers beside the writer. */
#include "check.h"

#include <string.h>

#include "ftb_histogram.h"

static uint64_t seed;

/* The smallest duration of a bucket, written out anew. */
static uint64_t
lowest_of(uint32_t bucket)
{
    uint32_t octave = bucket < 64 ? 0 : bucket / 32 - 1;
    return (uint64_t)(bucket - octave * 32) << octave;
}

static struct ftb_histogram_sum
sum_of(struct ftb_histogram *histogram)
{
    struct ftb_histogram_sum sum;
    ftb_histogram_sum_init(&sum);
    ftb_histogram_add_to(histogram, &sum);
    return sum;
}

/* Bug hunted: a bucket that is one off at an octave's end, wider than 1/32, or missing. */
static void
test_bounds_of_all_octaves(void)
{
    CHECK(ftb_histogram_bucket(0) == 0);
    CHECK(ftb_histogram_bucket(FTB_HISTOGRAM_MAX_NS) == FTB_HISTOGRAM_BUCKETS - 1);
    for (uint32_t bucket = 0; bucket < FTB_HISTOGRAM_BUCKETS; bucket++) {
        uint64_t lowest = lowest_of(bucket), next = lowest_of(bucket + 1);
        CHECK(ftb_histogram_bucket(lowest) == bucket);
        CHECK(ftb_histogram_bucket(next - 1) == bucket);
        CHECK(ftb_histogram_lowest(bucket) == lowest);
        CHECK(ftb_histogram_highest(bucket) == next - 1);
        CHECK((next - lowest - 1) * 32 <= lowest);
    }
}

/* Bug hunted: a count in the wrong bucket or octave, a sum, minimum or maximum that misses
 * a value, one that does not forget. */
static void
test_records_every_octave(void)
{
    struct ftb_histogram histogram;
    memset(&histogram, 0, sizeof histogram);
    struct ftb_histogram_sum sum = sum_of(&histogram);
    CHECK(sum.min_ns == UINT64_MAX && sum.max_ns == 0 && sum.sum_ns == 0);
    uint64_t total = 0;
    for (int round = 0; round < 2; round++) {
        for (uint32_t bucket = FTB_HISTOGRAM_BUCKETS; bucket-- > 5;) {
            CHECK(ftb_histogram_record_local(&histogram, lowest_of(bucket)));
            total += lowest_of(bucket);
        }
        sum = sum_of(&histogram);
        for (uint32_t bucket = 0; bucket < FTB_HISTOGRAM_BUCKETS; bucket++) {
            CHECK(sum.counts[bucket] == (bucket < 5 ? 0u : (uint64_t)round + 1));
        }
        CHECK(sum.sum_ns == total);
        CHECK(sum.min_ns == 5);
        CHECK(sum.max_ns == lowest_of(FTB_HISTOGRAM_BUCKETS - 1));
    }
    CHECK(ftb_histogram_record_local(&histogram, UINT64_MAX)); /* counted as the most */
    sum = sum_of(&histogram);
    CHECK(sum.counts[FTB_HISTOGRAM_BUCKETS - 1] == 3);
    CHECK(sum.max_ns == FTB_HISTOGRAM_MAX_NS);
    CHECK(sum.sum_ns == total + FTB_HISTOGRAM_MAX_NS);
    ftb_histogram_clear(&histogram);
    sum = sum_of(&histogram);
    CHECK(sum.min_ns == UINT64_MAX && sum.max_ns == 0 && sum.sum_ns == 0);
    for (uint32_t bucket = 0; bucket < FTB_HISTOGRAM_BUCKETS; bucket++) {
        CHECK(sum.counts[bucket] == 0);
    }
    CHECK(ftb_histogram_record_local(&histogram, 7));
    CHECK(sum_of(&histogram).min_ns == 7 && sum_of(&histogram).max_ns == 7);
    ftb_histogram_fini(&histogram);
}

/* Bug hunted: a merge that is not the histogram of all values. */
static void
test_merge_is_exact(void)
{
    enum { PARTS_N = 5 };
    struct ftb_histogram parts[PARTS_N], whole;
    memset(parts, 0, sizeof parts);
    memset(&whole, 0, sizeof whole);
    uint64_t random = seed;
    for (long n = 0; n < scaled(200000); n++) {
        uint64_t ns = next_random(&random) >> (next_random(&random) % 64);
        CHECK(ftb_histogram_record_local(&parts[next_random(&random) % PARTS_N], ns));
        CHECK(ftb_histogram_record_local(&whole, ns));
    }
    struct ftb_histogram_sum merged, expected = sum_of(&whole);
    ftb_histogram_sum_init(&merged);
    for (int i = 0; i < PARTS_N; i++) {
        ftb_histogram_add_to(&parts[i], &merged);
        ftb_histogram_fini(&parts[i]);
    }
    CHECK(memcmp(&merged, &expected, sizeof merged) == 0);
    ftb_histogram_fini(&whole);
}

/* Bug hunted: a record that counts half of a value when an octave cannot be had. */
static void
test_without_memory_nothing_is_recorded(void)
{
    struct ftb_histogram histogram;
    memset(&histogram, 0, sizeof histogram);
    CHECK(ftb_histogram_record_local(&histogram, 1000));
    ftb_fault_alloc(0);
    CHECK(!ftb_histogram_record_local(&histogram, 1000000));
    ftb_fault_alloc(-1);
    CHECK(ftb_histogram_record_local(&histogram, 1001));
    struct ftb_histogram_sum sum = sum_of(&histogram);
    CHECK(sum.sum_ns == 2001 && sum.min_ns == 1000 && sum.max_ns == 1001);
    ftb_histogram_fini(&histogram);
}

static uint64_t
highest_of(uint32_t bucket)
{
    return lowest_of(bucket + 1) - 1;
}

/* Bug hunted: a count or sum that is in both or in neither, bounds that miss a value that
 * is there; a part that was read later and has more lets the rest wrap around. */
static void
test_split_adds_up(void)
{
    static struct ftb_histogram_sum whole, part, rest, again, empty;
    ftb_histogram_sum_init(&empty);
    rest = again = empty;
    uint64_t random = seed;
    for (int round = 0; round < 200; round++) {
        struct ftb_histogram shown, other;
        memset(&shown, 0, sizeof shown);
        memset(&other, 0, sizeof other);
        uint64_t shown_n = next_random(&random) % 30,
                 other_n = next_random(&random) % 3;
        uint64_t least = UINT64_MAX, most = 0;
        for (uint64_t n = 0; n < shown_n + other_n * 10; n++) {
            uint64_t ns = next_random(&random) >> (24 + next_random(&random) % 40);
            bool is_shown = n < shown_n;
            CHECK(ftb_histogram_record_local(is_shown ? &shown : &other, ns));
            least = !is_shown && ns < least ? ns : least;
            most = !is_shown && ns > most ? ns : most;
        }
        part = sum_of(&shown);
        whole = empty;
        ftb_histogram_add_to(&shown, &whole);
        ftb_histogram_add_to(&other, &whole);
        struct ftb_histogram_sum before = whole;
        ftb_histogram_sum_split(&whole, &part, &rest);
        CHECK(memcmp(&whole, &before, sizeof whole) == 0);
        struct ftb_histogram_sum exact = sum_of(&other);
        CHECK(memcmp(rest.counts, exact.counts, sizeof rest.counts) == 0);
        CHECK(rest.sum_ns == exact.sum_ns);
        CHECK((rest.octaves == 0) == (other_n == 0));
        if (other_n > 0) {
            uint32_t low = ftb_histogram_bucket(least);
            uint32_t high = ftb_histogram_bucket(most);
            CHECK(rest.min_ns >= lowest_of(low) && rest.min_ns <= least);
            CHECK(rest.max_ns >= most && rest.max_ns <= highest_of(high));
        }
        ftb_histogram_sum_add(&again, &rest);
        ftb_histogram_sum_add(&again, &part);
        CHECK(memcmp(again.counts, whole.counts, sizeof again.counts) == 0);
        CHECK(again.sum_ns == whole.sum_ns && again.min_ns <= whole.min_ns);
        /* The part was read while others recorded: it has one that the whole has not. */
        ftb_histogram_sum_clear(&rest);
        CHECK(ftb_histogram_record_local(&shown, 77));
        part = sum_of(&shown);
        whole = sum_of(&other);
        ftb_histogram_sum_split(&whole, &part, &rest);
        for (uint32_t i = 0; i < FTB_HISTOGRAM_BUCKETS; i++) {
            CHECK(whole.counts[i] == part.counts[i] + rest.counts[i]);
            CHECK(whole.counts[i] >= part.counts[i]); /* no wrap around */
        }
        CHECK(whole.sum_ns >= part.sum_ns && whole.sum_ns >= rest.sum_ns);
        ftb_histogram_sum_clear(&rest);
        ftb_histogram_sum_clear(&again);
        CHECK(memcmp(&rest, &empty, sizeof rest) == 0);
        CHECK(memcmp(&again, &empty, sizeof again) == 0);
        ftb_histogram_fini(&shown);
        ftb_histogram_fini(&other);
    }
}

/* Bug hunted: a shortest time of 2^64 - 1, in a reading that met the first count. */
static void
test_extremes_are_brought_into_their_buckets(void)
{
    static struct ftb_histogram_sum sum;
    ftb_histogram_sum_init(&sum);
    uint32_t low = ftb_histogram_bucket(1000), high = ftb_histogram_bucket(5000);
    ftb_histogram_sum_fit(&sum, low, high); /* counted, and no extremes yet */
    CHECK(sum.min_ns == highest_of(low) && sum.max_ns == lowest_of(high));
    sum.min_ns = 1000;
    sum.max_ns = 5000;
    ftb_histogram_sum_fit(&sum, low, high);
    CHECK(sum.min_ns == 1000 && sum.max_ns == 5000);
    sum.min_ns = 3; /* of a time that was counted after the counts were read */
    sum.max_ns = 1000000;
    ftb_histogram_sum_fit(&sum, low, high);
    CHECK(sum.min_ns == lowest_of(low) && sum.max_ns == highest_of(high));
}

struct hand_over {
    struct ftb_histogram histogram;
    struct baton baton;
};

static void
read_behind_the_owner(int ix, void *context)
{
    struct hand_over *hand_over = context;
    if (ix == 0) {
        CHECK(ftb_histogram_record_local(&hand_over->histogram, 1000));
        baton_pass(&hand_over->baton, 1);
        return;
    }
    baton_await(&hand_over->baton, 1);
    struct ftb_histogram_sum sum = sum_of(&hand_over->histogram);
    CHECK(sum.counts[ftb_histogram_bucket(1000)] == 1 && sum.sum_ns == 1000);
}

/* Bug hunted, under ThreadSanitizer: an octave that is seen before its zeros. */
static void
test_a_reader_meets_a_new_octave(void)
{
    struct hand_over hand_over;
    memset(&hand_over, 0, sizeof hand_over);
    run_threads(2, read_behind_the_owner, &hand_over);
    ftb_histogram_fini(&hand_over.histogram);
}

struct race {
    ftb_atomic(struct ftb_histogram *) histogram;
    ftb_atomic(uint32_t) is_over;
    long rounds;
    struct ftb_histogram **all; /* written by the writer; freed when all have ended */
    size_t all_n;
};

static uint64_t
count_of(const struct ftb_histogram_sum *sum)
{
    uint64_t count = 0;
    for (uint32_t bucket = 0; bucket < FTB_HISTOGRAM_BUCKETS; bucket++) {
        count += sum->counts[bucket];
    }
    return count;
}

/* Bug hunted: an octave that is seen before its zeros, a figure that goes backwards. */
static void
race_body(int ix, void *context)
{
    struct race *race = context;
    if (ix == 0) {
        uint64_t random = seed;
        for (long n = 0; n < race->rounds; n++) {
            /* Now and then a new one, so that octaves are made under the readers' eyes. */
            struct ftb_histogram *histogram = ftb_load_relaxed(&race->histogram);
            if (n % 200 == 0) {
                histogram = ftb_alloc(sizeof *histogram);
                CHECK(histogram != NULL);
                race->all[race->all_n++] = histogram; /* a reader may be at the old */
                ftb_store_release(&race->histogram, histogram);
            }
            uint64_t ns = next_random(&random) >> (next_random(&random) % 64);
            CHECK(ftb_histogram_record_local(histogram, ns));
        }
        ftb_store_release(&race->is_over, 1);
        return;
    }
    struct ftb_histogram *last = NULL;
    struct ftb_histogram_sum before, now;
    ftb_histogram_sum_init(&before);
    while (!ftb_load_acquire(&race->is_over)) {
        struct ftb_histogram *histogram = ftb_load_acquire(&race->histogram);
        if (histogram == NULL) {
            continue;
        }
        if (histogram != last) {
            ftb_histogram_sum_init(&before);
        }
        now = sum_of(histogram);
        CHECK(count_of(&now) >= count_of(&before) && count_of(&now) <= 200);
        CHECK(now.min_ns <= before.min_ns && now.max_ns >= before.max_ns);
        before = now;
        last = histogram;
    }
}

static void
test_readers_beside_the_writer(void)
{
    struct race race = {.rounds = scaled(20000)};
    race.all = ftb_alloc((size_t)(race.rounds / 200 + 1) * sizeof *race.all);
    CHECK(race.all != NULL);
    run_threads(4, race_body, &race);
    for (size_t i = 0; i < race.all_n; i++) {
        ftb_histogram_fini(race.all[i]);
        ftb_free(race.all[i]);
    }
    ftb_free(race.all);
}

int
main(void)
{
    set_watchdog(240);
    seed = run_seed();
    RUN(test_bounds_of_all_octaves);
    RUN(test_records_every_octave);
    RUN(test_merge_is_exact);
    RUN(test_split_adds_up);
    RUN(test_extremes_are_brought_into_their_buckets);
    RUN(test_without_memory_nothing_is_recorded);
    RUN(test_a_reader_meets_a_new_octave);
    RUN(test_readers_beside_the_writer);
    return 0;
}

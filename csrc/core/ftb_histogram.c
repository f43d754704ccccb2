#include "ftb_histogram.h"

#include <string.h>

struct ftb_histogram_octave *
ftb_histogram_octave_make_local(struct ftb_histogram *histogram, uint32_t octave_ix)
{
    struct ftb_histogram_octave *octave = ftb_alloc(sizeof *octave);
    if (octave != NULL) {
        /* release: its zeros come before it; pairs with ftb_histogram_add_to */
        ftb_store_release(&histogram->octaves[octave_ix], octave);
    }
    return octave;
}

void
ftb_histogram_sum_init(struct ftb_histogram_sum *sum)
{
    memset(sum, 0, sizeof *sum);
    sum->min_ns = UINT64_MAX;
}

/* The lowest octave of a set, which is not empty. */
static uint32_t
octave_first(uint64_t octaves)
{
    return (uint32_t)__builtin_ctzll(octaves);
}

void
ftb_histogram_sum_clear(struct ftb_histogram_sum *sum)
{
    for (uint64_t left = sum->octaves; left != 0; left &= left - 1) {
        uint64_t *counts = sum->counts + octave_first(left) * FTB_HISTOGRAM_SUBS;
        memset(counts, 0, FTB_HISTOGRAM_SUBS * sizeof *counts);
    }
    sum->octaves = sum->sum_ns = sum->max_ns = 0;
    sum->min_ns = UINT64_MAX;
}

static void
extremes_add(struct ftb_histogram_sum *sum, uint64_t min_ns, uint64_t max_ns)
{
    sum->min_ns = min_ns < sum->min_ns ? min_ns : sum->min_ns;
    sum->max_ns = max_ns > sum->max_ns ? max_ns : sum->max_ns;
}

void
ftb_histogram_sum_add(
    struct ftb_histogram_sum *sum, const struct ftb_histogram_sum *other)
{
    for (uint64_t left = other->octaves; left != 0; left &= left - 1) {
        uint32_t first = octave_first(left) * FTB_HISTOGRAM_SUBS;
        for (uint32_t i = first; i < first + FTB_HISTOGRAM_SUBS; i++) {
            sum->counts[i] += other->counts[i];
        }
    }
    sum->octaves |= other->octaves;
    sum->sum_ns += other->sum_ns;
    extremes_add(sum, other->min_ns, other->max_ns);
}

void
ftb_histogram_sum_split(
    struct ftb_histogram_sum *whole, const struct ftb_histogram_sum *part,
    struct ftb_histogram_sum *rest)
{
    whole->octaves |= part->octaves;
    extremes_add(whole, part->min_ns, part->max_ns);
    uint32_t lowest = FTB_HISTOGRAM_BUCKETS, highest = 0;
    for (uint64_t left = whole->octaves; left != 0; left &= left - 1) {
        uint32_t first = octave_first(left) * FTB_HISTOGRAM_SUBS;
        for (uint32_t i = first; i < first + FTB_HISTOGRAM_SUBS; i++) {
            if (whole->counts[i] <= part->counts[i]) {
                whole->counts[i] = part->counts[i];
                continue;
            }
            rest->counts[i] = whole->counts[i] - part->counts[i];
            rest->octaves |= UINT64_C(1) << octave_first(left);
            lowest = i < lowest ? i : lowest;
            highest = i;
        }
    }
    whole->sum_ns = whole->sum_ns > part->sum_ns ? whole->sum_ns : part->sum_ns;
    if (rest->octaves != 0) {
        rest->sum_ns = whole->sum_ns - part->sum_ns;
        rest->min_ns = whole->min_ns;
        rest->max_ns = whole->max_ns;
        ftb_histogram_sum_fit(rest, lowest, highest);
    }
}

static uint64_t
fit_into(uint32_t bucket, uint64_t ns)
{
    uint64_t least_ns = ftb_histogram_lowest(bucket);
    uint64_t most_ns = ftb_histogram_highest(bucket);
    return ns < least_ns ? least_ns : ns > most_ns ? most_ns : ns;
}

void
ftb_histogram_sum_fit(struct ftb_histogram_sum *sum, uint32_t lowest, uint32_t highest)
{
    sum->min_ns = fit_into(lowest, sum->min_ns);
    sum->max_ns = fit_into(highest, sum->max_ns);
}

void
ftb_histogram_add_to(struct ftb_histogram *histogram, struct ftb_histogram_sum *sum)
{
    for (uint32_t i = 0; i < FTB_HISTOGRAM_OCTAVES; i++) {
        struct ftb_histogram_octave *octave = ftb_load_acquire(&histogram->octaves[i]);
        if (octave == NULL) {
            continue;
        }
        uint64_t *counts = sum->counts + (size_t)i * FTB_HISTOGRAM_SUBS;
        sum->octaves |= UINT64_C(1) << i;
        for (uint32_t k = 0; k < FTB_HISTOGRAM_SUBS; k++) {
            /* relaxed: any recent value will do, here and below */
            counts[k] += ftb_load_relaxed(&octave->counts[k]);
        }
    }
    sum->sum_ns += ftb_load_relaxed(&histogram->sum_ns);
    uint64_t min_ns = ~ftb_load_relaxed(&histogram->min_inverted);
    extremes_add(sum, min_ns, ftb_load_relaxed(&histogram->max_ns));
}

void
ftb_histogram_clear(struct ftb_histogram *histogram)
{
    /* relaxed, all: nobody else uses it, and its next owner gets it through a lock */
    for (uint32_t i = 0; i < FTB_HISTOGRAM_OCTAVES; i++) {
        struct ftb_histogram_octave *octave = ftb_load_relaxed(&histogram->octaves[i]);
        for (uint32_t k = 0; octave != NULL && k < FTB_HISTOGRAM_SUBS; k++) {
            ftb_store_relaxed(&octave->counts[k], 0);
        }
    }
    ftb_store_relaxed(&histogram->sum_ns, 0);
    ftb_store_relaxed(&histogram->min_inverted, 0);
    ftb_store_relaxed(&histogram->max_ns, 0);
}

void
ftb_histogram_fini(struct ftb_histogram *histogram)
{
    for (uint32_t i = 0; i < FTB_HISTOGRAM_OCTAVES; i++) {
        ftb_free(ftb_load_relaxed(&histogram->octaves[i])); /* relaxed: as above */
    }
}

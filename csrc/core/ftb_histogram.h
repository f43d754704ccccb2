/* Log-linear histograms of durations: one writer, any number of readers.
 *
 * The layout is HdrHistogram's (Gil Tene, 2012) with 5 bits of precision: values up to 63
 * have a bucket each, every further octave is cut into 32 buckets of equal width. So a
 * value is known to within 1/32 (3.1 %), from 1 ns to 2**40 ns; longer ones are counted as
 * that. A full table would take 9 KiB; what is measured falls into a few octaves, so their
 * counts are made on first use, 256 bytes each.
 *
 * Only the owner records. Readers add up what is there, exactly: buckets of one number are
 * the same durations in every histogram. Each figure is monotone; together they are no
 * consistent cut while the owner records. */
#ifndef FTB_HISTOGRAM_H
#define FTB_HISTOGRAM_H

#include "ftb_atomic.h"
#include "ftb_base.h"

#define FTB_HISTOGRAM_BITS 5
#define FTB_HISTOGRAM_SUBS (1u << FTB_HISTOGRAM_BITS)
#define FTB_HISTOGRAM_OCTAVES 36
#define FTB_HISTOGRAM_BUCKETS (FTB_HISTOGRAM_OCTAVES * FTB_HISTOGRAM_SUBS)
#define FTB_HISTOGRAM_MAX_NS ((UINT64_C(1) << 40) - 1)

struct ftb_histogram_octave {
    ftb_atomic(uint64_t) counts[FTB_HISTOGRAM_SUBS];
};

/* All zero is an empty one. Written by the owner only. */
struct ftb_histogram {
    ftb_atomic(uint64_t) sum_ns;
    /* ~ of the shortest, so that zero is "none": it only ever grows. */
    ftb_atomic(uint64_t) min_inverted;
    ftb_atomic(uint64_t) max_ns;
    ftb_atomic(struct ftb_histogram_octave *) octaves[FTB_HISTOGRAM_OCTAVES];
};

/* Sums of many; plain, for one thread. */
struct ftb_histogram_sum {
    uint64_t sum_ns, min_ns, max_ns; /* min_ns is UINT64_MAX if nothing was recorded */
    uint64_t octaves; /* bit i: the counts of octave i may be other than zero */
    uint64_t counts[FTB_HISTOGRAM_BUCKETS];
};

/* The bucket of a duration that is at most FTB_HISTOGRAM_MAX_NS. */
static inline uint32_t
ftb_histogram_bucket(uint64_t ns)
{
    uint32_t bits = 64 - (uint32_t)__builtin_clzll(ns | 1);
    uint32_t octave = bits > FTB_HISTOGRAM_BITS + 1 ? bits - FTB_HISTOGRAM_BITS - 1 : 0;
    return (octave << FTB_HISTOGRAM_BITS) + (uint32_t)(ns >> octave);
}

/* The shortest and the longest duration of a bucket. */
static inline uint64_t
ftb_histogram_lowest(uint32_t bucket)
{
    uint32_t octave = bucket / FTB_HISTOGRAM_SUBS;
    octave -= octave > 0;
    return (uint64_t)(bucket - (octave << FTB_HISTOGRAM_BITS)) << octave;
}

static inline uint64_t
ftb_histogram_highest(uint32_t bucket)
{
    return ftb_histogram_lowest(bucket + 1) - 1;
}

/* Make the counts of an octave. NULL: no memory. Owner only. */
FTB_NOINLINE struct ftb_histogram_octave *
ftb_histogram_octave_make_local(struct ftb_histogram *histogram, uint32_t octave_ix);

/* Record one duration. Returns false if it could not be, for want of memory; nothing is
 * changed then. Owner only. */
static inline bool
ftb_histogram_record_local(struct ftb_histogram *histogram, uint64_t ns)
{
    ns = ns < FTB_HISTOGRAM_MAX_NS ? ns : FTB_HISTOGRAM_MAX_NS;
    uint32_t bucket = ftb_histogram_bucket(ns);
    uint32_t octave_ix = bucket / FTB_HISTOGRAM_SUBS;
    /* relaxed, all: the owner reads what it wrote, and readers want no order */
    struct ftb_histogram_octave *octave =
        ftb_load_relaxed(&histogram->octaves[octave_ix]);
    if (FTB_UNLIKELY(octave == NULL)) {
        octave = ftb_histogram_octave_make_local(histogram, octave_ix);
        if (octave == NULL) {
            return false;
        }
    }
    ftb_count_local(&octave->counts[bucket % FTB_HISTOGRAM_SUBS], 1);
    ftb_count_local(&histogram->sum_ns, ns);
    if (~ns > ftb_load_relaxed(&histogram->min_inverted)) {
        ftb_store_relaxed(&histogram->min_inverted, ~ns);
    }
    if (ns > ftb_load_relaxed(&histogram->max_ns)) {
        ftb_store_relaxed(&histogram->max_ns, ns);
    }
    return true;
}

/* Start a sum with nothing in it, in memory that may hold anything. */
void ftb_histogram_sum_init(struct ftb_histogram_sum *sum);

/* Make a sum empty again; in time that is in proportion to what it holds. */
void ftb_histogram_sum_clear(struct ftb_histogram_sum *sum);

/* Add what a histogram holds. Any thread. */
void
ftb_histogram_add_to(struct ftb_histogram *histogram, struct ftb_histogram_sum *sum);

/* Add what another sum holds. */
void ftb_histogram_sum_add(
    struct ftb_histogram_sum *sum, const struct ftb_histogram_sum *other);

/* Set *rest, which is empty, to what is in `whole` and not in `part`. Both were read while
 * others recorded in the two, one after the other: where the part has more, the whole is
 * raised to it. The shortest and the longest of the rest are known as far as their
 * buckets. */
void ftb_histogram_sum_split(
    struct ftb_histogram_sum *whole, const struct ftb_histogram_sum *part,
    struct ftb_histogram_sum *rest);

/* Bring the shortest and the longest into the lowest and the highest of the buckets. A
 * reader may meet a count before the extremes that the owner writes after it. */
void
ftb_histogram_sum_fit(struct ftb_histogram_sum *sum, uint32_t lowest, uint32_t highest);

/* Make a histogram that nobody records in, or reads, empty again. */
void ftb_histogram_clear(struct ftb_histogram *histogram);

/* Free its octaves. Nobody uses it any more. */
void ftb_histogram_fini(struct ftb_histogram *histogram);

#endif

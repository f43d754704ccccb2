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

void
ftb_histogram_add_to(struct ftb_histogram *histogram, struct ftb_histogram_sum *sum)
{
    for (uint32_t i = 0; i < FTB_HISTOGRAM_OCTAVES; i++) {
        struct ftb_histogram_octave *octave = ftb_load_acquire(&histogram->octaves[i]);
        if (octave == NULL) {
            continue;
        }
        uint64_t *counts = sum->counts + (size_t)i * FTB_HISTOGRAM_SUBS;
        for (uint32_t k = 0; k < FTB_HISTOGRAM_SUBS; k++) {
            /* relaxed: any recent value will do, here and below */
            counts[k] += ftb_load_relaxed(&octave->counts[k]);
        }
    }
    sum->sum_ns += ftb_load_relaxed(&histogram->sum_ns);
    uint64_t min_ns = ~ftb_load_relaxed(&histogram->min_inverted);
    uint64_t max_ns = ftb_load_relaxed(&histogram->max_ns);
    sum->min_ns = min_ns < sum->min_ns ? min_ns : sum->min_ns;
    sum->max_ns = max_ns > sum->max_ns ? max_ns : sum->max_ns;
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

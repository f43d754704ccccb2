#include "ftb_base.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ftb_atomic.h"

/* Written by ftb_fault_alloc and by every allocation while it is armed. */
static _Atomic(long) fault_countdown = -1;

void
ftb_fault_alloc(long count)
{
    ftb_store_seq_cst(&fault_countdown, count);
}

bool
ftb_fault_strikes(void)
{
    if (FTB_LIKELY(ftb_load_relaxed(&fault_countdown) < 0)) {
        return false; /* relaxed: a test arms the hook before it starts its threads */
    }
    return ftb_sub_relaxed(&fault_countdown, 1) == 0;
}

/* On macOS the clock of time.monotonic(), which stands still while the machine sleeps, as
 * the waits in ftb_park.c do; CLOCK_MONOTONIC does not, and counts microseconds there. */
#ifdef __APPLE__
#define CLOCK CLOCK_UPTIME_RAW
#else
#define CLOCK CLOCK_MONOTONIC
#endif

uint64_t
ftb_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void *
ftb_alloc_aligned(size_t alignment, size_t size)
{
    void *memory;
    if (ftb_fault_strikes() || posix_memalign(&memory, alignment, size) != 0) {
        return NULL;
    }
    memset(memory, 0, size);
    return memory;
}

void *
ftb_alloc_line(size_t size)
{
    return size > SIZE_MAX - FTB_LINE
               ? NULL
               : ftb_alloc_aligned(
                     FTB_LINE, (size + FTB_LINE - 1) / FTB_LINE * FTB_LINE);
}

void *
ftb_alloc(size_t size)
{
    return ftb_fault_strikes() ? NULL : calloc(1, size);
}

void
ftb_free(void *memory)
{
    free(memory);
}

/* What every file of the core shares: results, memory, the clock.
 *
 * Any thread may call everything here. */
#ifndef FTB_BASE_H
#define FTB_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__) || defined(__clang__)
#define FTB_LIKELY(x) __builtin_expect(!!(x), 1)
#define FTB_UNLIKELY(x) __builtin_expect(!!(x), 0)
#define FTB_MUST_USE __attribute__((warn_unused_result))
#define FTB_NOINLINE __attribute__((noinline))
/* Keep a pointer as one value, not as the parts that it was computed from, each of which
 * would be saved across calls. */
#define FTB_ONE_REGISTER(pointer) __asm__("" : "+r"(pointer))
/* The module is loaded by dlopen, yet one pointer per thread fits the static TLS
 * reserve of glibc and musl, and saves a call per access. */
#define FTB_TLS _Thread_local __attribute__((tls_model("initial-exec")))
#else
#define FTB_LIKELY(x) (x)
#define FTB_UNLIKELY(x) (x)
#define FTB_MUST_USE
#define FTB_NOINLINE
#define FTB_ONE_REGISTER(pointer) ((void)0)
#define FTB_TLS _Thread_local
#endif

#ifdef FTB_DEBUG
#include <assert.h>
#define ftb_assert(x) assert(x)
#else
#define ftb_assert(x) ((void)0)
#endif

/* How a core call ended. The Python layer maps each to one exception. */
enum ftb_result {
    FTB_OK = 0,      /* done */
    FTB_FULL = 1,    /* a bound is reached; nothing was consumed */
    FTB_CLOSED = 2,  /* the object no longer takes work; nothing was consumed */
    FTB_NOMEM = 3,   /* the system gave no memory; nothing was changed */
    FTB_TIMEOUT = 4, /* the deadline passed first */
};

/* No deadline, for functions that take deadline_ns. */
#define FTB_FOREVER UINT64_MAX

/* Nanoseconds on the monotonic clock. */
uint64_t ftb_now_ns(void);

/* Zeroed memory, aligned to FTB_LINE so that neighbours never share a line pair.
 * Returns NULL when there is none. Free with ftb_free. */
FTB_MUST_USE void *ftb_alloc_line(size_t size);

/* Zeroed memory with malloc's alignment. Returns NULL when there is none. */
FTB_MUST_USE void *ftb_alloc(size_t size);

/* Zeroed memory, aligned to a power of two. Returns NULL when there is none. */
FTB_MUST_USE void *ftb_alloc_aligned(size_t alignment, size_t size);

/* Free memory from any of the above; NULL is allowed. */
void ftb_free(void *memory);

/* Test hook: let the next `count` allocations succeed and fail the one after, once.
 * A negative count turns the hook off. Process-wide. */
void ftb_fault_alloc(long count);

/* For what keeps memory in store and is an allocation to its caller: true if this one must
 * fail. */
bool ftb_fault_strikes(void);

/* The smallest power of two >= n, at least 1. n <= 2**63. */
static inline uint64_t
ftb_next_pow2(uint64_t n)
{
    uint64_t p = 1;
    while (p < n) {
        p <<= 1;
    }
    return p;
}

#endif

/* Atomics with the memory order in the name.
 *
 * Everything lock-free in csrc goes through these names, so that one source is
 * compiled three ways: C11 for the product, instrumented C11 for the sanitizers,
 * and relacy's C++ (-DFTB_RELACY, csrc/models) for the model checker.
 * There is no standalone fence: ThreadSanitizer cannot see one. */
#ifndef FTB_ATOMIC_H
#define FTB_ATOMIC_H

/* Two lines: x86-64 and Apple cores prefetch lines in adjacent pairs, so fields of
 * different writers are kept 128 bytes apart. */
#define FTB_LINE 128

#ifdef FTB_RELACY
#include "ftb_atomic_relacy.h"
#else
#include <stdatomic.h>

#define FTB_ALIGNED _Alignas(FTB_LINE)
#define FTB_ALIGNED_TO(bytes) _Alignas(bytes)
#define ftb_atomic(T) _Atomic(T)
#define ftb_init(p, v) atomic_init((p), (v))

/* An atomic whose stores some protocol puts in order, for which any order will do. The
 * model checker reports two stores that nothing orders. */
#define ftb_atomic_ordered(T) _Atomic(T)

/* Shared data that is not atomic: some protocol hands it from thread to thread. The
 * model checker reports every access that the protocol does not order. */
#define ftb_plain(T) T
#define ftb_plain_get(p) (*(p))
#define ftb_plain_set(p, v) ((void)(*(p) = (v)))

/* One turn of a spin loop: tells the processor, or the model checker, to let another
 * thread get on. */
#if defined(__x86_64__) || defined(__i386__)
#define ftb_relax() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define ftb_relax() __asm__ __volatile__("isb" ::: "memory")
#else
#define ftb_relax() ((void)0)
#endif

#define ftb_load_relaxed(p) atomic_load_explicit((p), memory_order_relaxed)
#define ftb_load_acquire(p) atomic_load_explicit((p), memory_order_acquire)
#define ftb_load_seq_cst(p) atomic_load_explicit((p), memory_order_seq_cst)

#define ftb_store_relaxed(p, v) atomic_store_explicit((p), (v), memory_order_relaxed)
#define ftb_store_release(p, v) atomic_store_explicit((p), (v), memory_order_release)
#define ftb_store_seq_cst(p, v) atomic_store_explicit((p), (v), memory_order_seq_cst)

#define ftb_exchange_acquire(p, v)                                                     \
    atomic_exchange_explicit((p), (v), memory_order_acquire)
#define ftb_exchange_release(p, v)                                                     \
    atomic_exchange_explicit((p), (v), memory_order_release)
#define ftb_exchange_acq_rel(p, v)                                                     \
    atomic_exchange_explicit((p), (v), memory_order_acq_rel)
#define ftb_exchange_seq_cst(p, v)                                                     \
    atomic_exchange_explicit((p), (v), memory_order_seq_cst)

/* Strong compare-and-swap: true if *p was *expected (and is now v); otherwise
 * *expected receives what was found. A failed swap loads relaxed, except seq_cst. */
#define ftb_cas_relaxed(p, expected, v)                                                \
    atomic_compare_exchange_strong_explicit(                                           \
        (p), (expected), (v), memory_order_relaxed, memory_order_relaxed)
#define ftb_cas_acquire(p, expected, v)                                                \
    atomic_compare_exchange_strong_explicit(                                           \
        (p), (expected), (v), memory_order_acquire, memory_order_relaxed)
#define ftb_cas_release(p, expected, v)                                                \
    atomic_compare_exchange_strong_explicit(                                           \
        (p), (expected), (v), memory_order_release, memory_order_relaxed)
#define ftb_cas_acq_rel(p, expected, v)                                                \
    atomic_compare_exchange_strong_explicit(                                           \
        (p), (expected), (v), memory_order_acq_rel, memory_order_relaxed)
#define ftb_cas_seq_cst(p, expected, v)                                                \
    atomic_compare_exchange_strong_explicit(                                           \
        (p), (expected), (v), memory_order_seq_cst, memory_order_seq_cst)

/* Fetch-and-op: each returns the value before. */
#define ftb_add_relaxed(p, v) atomic_fetch_add_explicit((p), (v), memory_order_relaxed)
#define ftb_add_release(p, v) atomic_fetch_add_explicit((p), (v), memory_order_release)
#define ftb_add_acq_rel(p, v) atomic_fetch_add_explicit((p), (v), memory_order_acq_rel)
#define ftb_add_seq_cst(p, v) atomic_fetch_add_explicit((p), (v), memory_order_seq_cst)
#define ftb_sub_relaxed(p, v) atomic_fetch_sub_explicit((p), (v), memory_order_relaxed)
#define ftb_sub_release(p, v) atomic_fetch_sub_explicit((p), (v), memory_order_release)
#define ftb_sub_acq_rel(p, v) atomic_fetch_sub_explicit((p), (v), memory_order_acq_rel)
#define ftb_sub_seq_cst(p, v) atomic_fetch_sub_explicit((p), (v), memory_order_seq_cst)
#define ftb_and_acq_rel(p, v) atomic_fetch_and_explicit((p), (v), memory_order_acq_rel)
#define ftb_or_seq_cst(p, v) atomic_fetch_or_explicit((p), (v), memory_order_seq_cst)
#endif /* FTB_RELACY */

/* Add to a counter that only this thread writes and others may read: a plain load and
 * store (0.3 ns against 2 ns for a locked add). Relaxed is enough: a reader wants some
 * recent value of each counter, never an order between two of them. */
#define ftb_count_local(p, n) ftb_store_relaxed((p), ftb_load_relaxed(p) + (n))

#endif

/* Orders, and an attempt, that the code does not use, for mutants.py: it puts one of these
 * in the place of a stronger one and wants to see a model or a test fail. */
#ifndef FTB_WEAKER_H
#define FTB_WEAKER_H

#include "ftb_atomic.h"

#ifdef FTB_RELACY
#define ftb_exchange_relaxed(p, v) (p)->exchange((v), rl::mo_relaxed, $)
#define ftb_or_acq_rel(p, v) (p)->fetch_or((v), rl::mo_acq_rel, $)
#define ftb_and_release(p, v) (p)->fetch_and((v), rl::mo_release, $)
#define ftb_sub_acquire(p, v) (p)->fetch_sub((v), rl::mo_acquire, $)
#define ftb_mutex_try_lock(mutex) (mutex)->try_lock($)
#else
#define ftb_exchange_relaxed(p, v)                                                     \
    atomic_exchange_explicit((p), (v), memory_order_relaxed)
#define ftb_or_acq_rel(p, v) atomic_fetch_or_explicit((p), (v), memory_order_acq_rel)
#define ftb_and_release(p, v) atomic_fetch_and_explicit((p), (v), memory_order_release)
#define ftb_sub_acquire(p, v) atomic_fetch_sub_explicit((p), (v), memory_order_acquire)
#define ftb_mutex_try_lock(mutex) (pthread_mutex_trylock(mutex) == 0)
#endif

#endif

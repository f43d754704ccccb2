/* ftb_atomic.h for the model checker: the same names over rl::atomic, so that the
 * headers of csrc/core are checked as they are. Compile with -std=c++11 -DFTB_RELACY. */
#ifndef FTB_ATOMIC_RELACY_H
#define FTB_ATOMIC_RELACY_H

#include <relacy/relacy.hpp>

#define FTB_ALIGNED
#define FTB_ALIGNED_TO(bytes)
#define ftb_atomic(T) rl::atomic<T>
#define ftb_init(p, v) (p)->store((v), rl::mo_relaxed, $)

/* rl::var wants numbers; this watches the accesses to a value of any type. */
template <typename T> class ftb_plain_var
{
  public:
    T get(rl::debug_info_param info) const
    {
        (void)accesses(info).load();
        return value;
    }

    void set(T new_value, rl::debug_info_param info)
    {
        accesses(info).store(0);
        value = new_value;
    }

  private:
    mutable rl::var<unsigned> accesses; /* also by who only reads */
    T value;
};

/* Stores as rl::var sees them: a race unless one happens before the other. */
template <typename T> class ftb_ordered_atomic
{
  public:
    T load(rl::memory_order order, rl::debug_info_param info) const
    {
        return value.load(order, info);
    }

    void store(T new_value, rl::memory_order order, rl::debug_info_param info)
    {
        stores(info).store(0);
        value.store(new_value, order, info);
    }

  private:
    rl::var<unsigned> stores;
    rl::atomic<T> value;
};

#define ftb_atomic_ordered(T) ftb_ordered_atomic<T>
#define ftb_plain(T) ftb_plain_var<T>
#define ftb_plain_get(p) (p)->get($)
#define ftb_plain_set(p, v) (p)->set((v), $)
#define ftb_relax() rl::yield(1, $)

/* The locks of ftb_park.h. A deadline may pass at any time. */
typedef rl::mutex ftb_mutex_t;
typedef rl::condition_variable ftb_cond_t;

#define ftb_mutex_lock(mutex) (mutex)->lock($)
#define ftb_mutex_unlock(mutex) (mutex)->unlock($)
#define ftb_cond_signal(cond) (cond)->notify_one($)
#define ftb_cond_broadcast(cond) (cond)->notify_all($)

static inline bool
ftb_cond_wait(ftb_cond_t *cond, ftb_mutex_t *mutex, unsigned long long deadline_ns)
{
    if (deadline_ns == ~0ULL) {
        cond->wait(*mutex, $);
        return false;
    }
    return !cond->wait_for(*mutex, 0, $);
}

#define ftb_load_relaxed(p) (p)->load(rl::mo_relaxed, $)
#define ftb_load_acquire(p) (p)->load(rl::mo_acquire, $)
#define ftb_load_seq_cst(p) (p)->load(rl::mo_seq_cst, $)
#define ftb_store_relaxed(p, v) (p)->store((v), rl::mo_relaxed, $)
#define ftb_store_release(p, v) (p)->store((v), rl::mo_release, $)
#define ftb_store_seq_cst(p, v) (p)->store((v), rl::mo_seq_cst, $)
#define ftb_exchange_acquire(p, v) (p)->exchange((v), rl::mo_acquire, $)
#define ftb_exchange_release(p, v) (p)->exchange((v), rl::mo_release, $)
#define ftb_exchange_acq_rel(p, v) (p)->exchange((v), rl::mo_acq_rel, $)
#define ftb_exchange_seq_cst(p, v) (p)->exchange((v), rl::mo_seq_cst, $)
#define ftb_cas_relaxed(p, expected, v)                                                \
    (p)->compare_exchange_strong(*(expected), (v), rl::mo_relaxed, $)
#define ftb_cas_acquire(p, expected, v)                                                \
    (p)->compare_exchange_strong(*(expected), (v), rl::mo_acquire, $)
#define ftb_cas_release(p, expected, v)                                                \
    (p)->compare_exchange_strong(*(expected), (v), rl::mo_release, $)
#define ftb_cas_acq_rel(p, expected, v)                                                \
    (p)->compare_exchange_strong(*(expected), (v), rl::mo_acq_rel, $)
#define ftb_cas_seq_cst(p, expected, v)                                                \
    (p)->compare_exchange_strong(*(expected), (v), rl::mo_seq_cst, $)
#define ftb_add_relaxed(p, v) (p)->fetch_add((v), rl::mo_relaxed, $)
#define ftb_add_release(p, v) (p)->fetch_add((v), rl::mo_release, $)
#define ftb_add_acq_rel(p, v) (p)->fetch_add((v), rl::mo_acq_rel, $)
#define ftb_add_seq_cst(p, v) (p)->fetch_add((v), rl::mo_seq_cst, $)
#define ftb_sub_relaxed(p, v) (p)->fetch_sub((v), rl::mo_relaxed, $)
#define ftb_sub_release(p, v) (p)->fetch_sub((v), rl::mo_release, $)
#define ftb_sub_acq_rel(p, v) (p)->fetch_sub((v), rl::mo_acq_rel, $)
#define ftb_sub_seq_cst(p, v) (p)->fetch_sub((v), rl::mo_seq_cst, $)
#define ftb_and_acq_rel(p, v) (p)->fetch_and((v), rl::mo_acq_rel, $)
#define ftb_or_seq_cst(p, v) (p)->fetch_or((v), rl::mo_seq_cst, $)

#endif

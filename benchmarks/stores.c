/* Records the stores of an extension compiled with FTBUS_SAN=stores, that is with gcc's
 * -fsanitize=thread: every access to memory that others could reach is then announced by a
 * call, or done by one if it is atomic, and ThreadSanitizer is what has these functions as a
 * rule. Here are others. benchmarks/shared_lines.py compiles this and loads it before the
 * extension; nothing else does.
 *
 * A store counts whatever it writes, and an atomic exchange, addition or comparison is one
 * too. Each thread records its own, between stores_begin and stores_end. Memory orders are
 * all taken for the strongest. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { LINE_BYTES = 64, STORES_MAX = 1 << 12 };

struct store {
    uintptr_t line;
    uintptr_t code; /* where it was done */
};

static _Thread_local struct store *stores; /* NULL: not recording */
static _Thread_local size_t stores_n;

static void
record(uintptr_t begin, size_t size, uintptr_t code)
{
    if (stores == NULL || size == 0) {
        return;
    }
    uintptr_t last = (begin + size - 1) / LINE_BYTES;
    for (uintptr_t line = begin / LINE_BYTES; line <= last; line++) {
        if (stores_n < STORES_MAX) {
            stores[stores_n] = (struct store){line, code};
        }
        stores_n++;
    }
}

/* Record the calling thread's stores in memory for STORES_MAX of them. */
void
stores_begin(struct store *memory)
{
    stores_n = 0;
    stores = memory;
}

/* Stop; return how many there were, which may be more than there was memory for. */
size_t
stores_end(void)
{
    stores = NULL;
    return stores_n;
}

size_t
stores_max(void)
{
    return STORES_MAX;
}

#define CODE ((uintptr_t)__builtin_return_address(0))

/* Plain accesses: announced. */

#define PLAIN(size)                                                                    \
    void __tsan_read##size(void *address)                                              \
    {                                                                                  \
        (void)address;                                                                 \
    }                                                                                  \
    void __tsan_write##size(void *address)                                             \
    {                                                                                  \
        record((uintptr_t)address, size, CODE);                                        \
    }

PLAIN(1)
PLAIN(2)
PLAIN(4)
PLAIN(8)
PLAIN(16)

void
__tsan_read_range(void *address, size_t size)
{
    (void)address;
    (void)size;
}

void
__tsan_write_range(void *address, size_t size)
{
    record((uintptr_t)address, size, CODE);
}

void
__tsan_func_entry(void *caller)
{
    (void)caller;
}

void
__tsan_func_exit(void)
{
}

void
__tsan_init(void)
{
}

/* Atomic accesses: done here. */

#define CHANGE(bits, change)                                                           \
    uint##bits##_t __tsan_atomic##bits##_##change(                                     \
        volatile uint##bits##_t *address, uint##bits##_t value, int order)             \
    {                                                                                  \
        (void)order;                                                                   \
        record((uintptr_t)address, bits / 8, CODE);                                    \
        return __atomic_##change(address, value, __ATOMIC_SEQ_CST);                    \
    }

#define __atomic_exchange(address, value, order)                                       \
    __atomic_exchange_n(address, value, order)

#define COMPARE_EXCHANGE(bits, strength, is_weak)                                      \
    bool __tsan_atomic##bits##_compare_exchange_##strength(                            \
        volatile uint##bits##_t *address, uint##bits##_t *expected,                    \
        uint##bits##_t value, int order, int failure_order)                            \
    {                                                                                  \
        (void)order;                                                                   \
        (void)failure_order;                                                           \
        record((uintptr_t)address, bits / 8, CODE);                                    \
        return __atomic_compare_exchange_n(                                            \
            address, expected, value, is_weak, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);    \
    }

#define ATOMIC(bits)                                                                   \
    uint##bits##_t __tsan_atomic##bits##_load(                                         \
        const volatile uint##bits##_t *address, int order)                             \
    {                                                                                  \
        (void)order;                                                                   \
        return __atomic_load_n(address, __ATOMIC_SEQ_CST);                             \
    }                                                                                  \
    void __tsan_atomic##bits##_store(                                                  \
        volatile uint##bits##_t *address, uint##bits##_t value, int order)             \
    {                                                                                  \
        (void)order;                                                                   \
        record((uintptr_t)address, bits / 8, CODE);                                    \
        __atomic_store_n(address, value, __ATOMIC_SEQ_CST);                            \
    }                                                                                  \
    COMPARE_EXCHANGE(bits, strong, false)                                              \
    COMPARE_EXCHANGE(bits, weak, true)                                                 \
    CHANGE(bits, exchange)                                                             \
    CHANGE(bits, fetch_add)                                                            \
    CHANGE(bits, fetch_sub)                                                            \
    CHANGE(bits, fetch_and)                                                            \
    CHANGE(bits, fetch_or)                                                             \
    CHANGE(bits, fetch_xor)

ATOMIC(8)
ATOMIC(16)
ATOMIC(32)
ATOMIC(64)

void
__tsan_atomic_thread_fence(int order)
{
    (void)order;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

/* By the linker's --wrap: what the C library writes for the extension. */

void *
__wrap_memset(void *target, int byte, size_t size)
{
    record((uintptr_t)target, size, CODE);
    return memset(target, byte, size);
}

void *
__wrap_memcpy(void *target, const void *source, size_t size)
{
    record((uintptr_t)target, size, CODE);
    return memcpy(target, source, size);
}

void *
__wrap_memmove(void *target, const void *source, size_t size)
{
    record((uintptr_t)target, size, CODE);
    return memmove(target, source, size);
}

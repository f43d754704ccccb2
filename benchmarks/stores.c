/* Records the stores of code compiled with -fsanitize=kernel-address, whose checks are calls
 * that somebody else has to provide: here they are. benchmarks/shared_lines.py compiles it
 * and loads it before the extension; nothing else does.
 *
 * A store counts whatever it writes, and an atomic exchange, addition or comparison is one
 * too. Each thread records its own, between stores_begin and stores_end. */
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
#define HOOK(size)                                                                     \
    void __asan_store##size##_noabort(uintptr_t address);                              \
    void __asan_store##size##_noabort(uintptr_t address)                               \
    {                                                                                  \
        record(address, size, CODE);                                                   \
    }

HOOK(1)
HOOK(2)
HOOK(4)
HOOK(8)
HOOK(16)

void
__asan_storeN_noabort(uintptr_t address, size_t size)
{
    record(address, size, CODE);
}

void
__asan_handle_no_return(void)
{
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

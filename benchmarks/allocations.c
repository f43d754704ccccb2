/* Counts the calls of CPython's allocators. benchmarks/allocations.py compiles and loads
 * it into its own process; nothing else does.
 *
 * Every allocator (raw, mem, object) is wrapped by one that counts and calls it. Threads:
 * start() and stop() are called while no other thread runs Python code. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdatomic.h>

enum { DOMAINS_N = 3 };

static const PyMemAllocatorDomain domains[DOMAINS_N] = {
    PYMEM_DOMAIN_RAW,
    PYMEM_DOMAIN_MEM,
    PYMEM_DOMAIN_OBJ,
};
/* Written by start() only. */
static PyMemAllocatorEx inner[DOMAINS_N];
/* Written by all threads; relaxed, as it is read after they have stopped. */
static atomic_ullong calls;

/* How deep this thread is in allocators. With a GIL the object allocator passes what is
 * larger than 512 bytes on to the raw one: that is one allocation. */
static _Thread_local int depth;

static void
enter(void)
{
    if (depth++ == 0) {
        atomic_fetch_add_explicit(&calls, 1, memory_order_relaxed);
    }
}

static void *
leave(void *block)
{
    depth--;
    return block;
}

static void *
counted_malloc(void *context, size_t size)
{
    PyMemAllocatorEx *next = context;
    enter();
    return leave(next->malloc(next->ctx, size));
}

static void *
counted_calloc(void *context, size_t n, size_t size)
{
    PyMemAllocatorEx *next = context;
    enter();
    return leave(next->calloc(next->ctx, n, size));
}

/* A block that moves is a new one; from here the two look alike, so both count. */
static void *
counted_realloc(void *context, void *block, size_t size)
{
    PyMemAllocatorEx *next = context;
    enter();
    return leave(next->realloc(next->ctx, block, size));
}

static void
uncounted_free(void *context, void *block)
{
    PyMemAllocatorEx *next = context;
    next->free(next->ctx, block);
}

/* Begin to count, from 0. */
void
allocations_start(void)
{
    atomic_store(&calls, 0);
    for (int i = 0; i < DOMAINS_N; i++) {
        PyMem_GetAllocator(domains[i], &inner[i]);
        PyMemAllocatorEx counted = {
            .ctx = &inner[i],
            .malloc = counted_malloc,
            .calloc = counted_calloc,
            .realloc = counted_realloc,
            .free = uncounted_free,
        };
        PyMem_SetAllocator(domains[i], &counted);
    }
}

/* Return the allocations since start(), and count no more. */
unsigned long long
allocations_stop(void)
{
    for (int i = 0; i < DOMAINS_N; i++) {
        PyMem_SetAllocator(domains[i], &inner[i]);
    }
    return atomic_load(&calls);
}

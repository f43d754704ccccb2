/* Dead Buffer objects kept for the next Buffer of the same thread: the inline half.
 *
 * The rules are in buffer_freelist.c. */
#ifndef FTB_PY_BUFFER_FREELIST_H
#define FTB_PY_BUFFER_FREELIST_H

#include "buffer.h"

#define FTB_BUFFERS_KEPT 64

struct buffer_freelist {
    uint32_t kept_n;
    BufferObject *kept[FTB_BUFFERS_KEPT];
    struct buffer_freelist *next; /* among the lists without a thread */
};

/* This thread's, or NULL before its first Buffer. */
extern FTB_TLS struct buffer_freelist *buffer_freelist_self;

BufferObject *buffer_freelist_take_slowly(void);

void buffer_freelist_give_slowly(BufferObject *self);

/* An object with its reference count at 1 and all else unset, or NULL with MemoryError
 * set. */
static inline BufferObject *
buffer_freelist_take(void)
{
    struct buffer_freelist *list = buffer_freelist_self;
    if (FTB_UNLIKELY(list == NULL || list->kept_n == 0)) {
        return buffer_freelist_take_slowly();
    }
    list->kept_n--;
    BufferObject *self = list->kept[list->kept_n];
    (void)PyObject_Init((PyObject *)self, &ftb_buffer_type);
    return self;
}

/* Where a dead one goes. */
static inline void
buffer_freelist_give(BufferObject *self)
{
    struct buffer_freelist *list = buffer_freelist_self;
    if (FTB_UNLIKELY(list == NULL || list->kept_n == FTB_BUFFERS_KEPT)) {
        buffer_freelist_give_slowly(self);
        return;
    }
    list->kept[list->kept_n] = self;
    list->kept_n++;
}

#endif

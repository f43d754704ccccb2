/* Dead Buffer objects kept for the next Buffer of the same thread.
 *
 * Thread rule: a list is its thread's alone. A thread that ends leaves its list, with
 * what is in it, to the next thread that needs one: freeing objects would need an
 * interpreter, which a thread that ends no longer has. So there are at most as many
 * lists as there were threads at once.
 *
 * The memory stays a Buffer's: an optimistic reader of a container, which may try to
 * take a reference to an object that just died, finds what it would find after the
 * interpreter itself reused the memory for another Buffer. */
#include <Python.h>

#include "buffer_freelist.h"

#include <pthread.h>

FTB_TLS struct buffer_freelist *buffer_freelist_self;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct buffer_freelist *ownerless; /* guarded by lock */
static pthread_key_t exit_key;            /* written once */
static pthread_once_t exit_key_once = PTHREAD_ONCE_INIT;
static bool exit_key_made; /* written once */

static void
thread_exit(void *list)
{
    struct buffer_freelist *self = list;
    buffer_freelist_self = NULL;
    pthread_mutex_lock(&lock);
    self->next = ownerless;
    ownerless = self;
    pthread_mutex_unlock(&lock);
}

/* The lock's holder may be gone; what it guards changes by single stores. */
static void
after_fork_child(void)
{
    pthread_mutex_init(&lock, NULL);
}

static void
exit_key_make(void)
{
    exit_key_made = pthread_atfork(NULL, NULL, after_fork_child) == 0
                    && pthread_key_create(&exit_key, thread_exit) == 0;
}

/* A list for this thread, or NULL. */
static FTB_NOINLINE struct buffer_freelist *
freelist_adopt(void)
{
    pthread_once(&exit_key_once, exit_key_make);
    if (!exit_key_made) {
        return NULL;
    }
    pthread_mutex_lock(&lock);
    struct buffer_freelist *list = ownerless;
    if (list != NULL) {
        ownerless = list->next;
    }
    pthread_mutex_unlock(&lock);
    if (list == NULL) {
        list = ftb_alloc(sizeof *list);
    }
    if (list != NULL && pthread_setspecific(exit_key, list) != 0) {
        thread_exit(list);
        return NULL;
    }
    buffer_freelist_self = list;
    return list;
}

BufferObject *
buffer_freelist_take_slowly(void)
{
    if (buffer_freelist_self == NULL && freelist_adopt() != NULL) {
        return buffer_freelist_take(); /* there may be something in it */
    }
    return PyObject_GC_New(BufferObject, &ftb_buffer_type);
}

void
buffer_freelist_give_slowly(BufferObject *self)
{
    if (buffer_freelist_self == NULL && freelist_adopt() != NULL) {
        buffer_freelist_give(self);
    } else {
        PyObject_GC_Del(self);
    }
}

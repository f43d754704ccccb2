#include "ftb_snapshot.h"

#include "ftb_topic.h"

void (*ftb_handler_release_fn)(struct ftb_handler *handler) = NULL;

static size_t
snapshot_bytes(uint32_t n)
{
    return sizeof(struct ftb_snapshot) + sizeof(struct ftb_retired)
           + n * (sizeof(struct ftb_call) + sizeof(struct ftb_handler *));
}

static bool
is_kept(struct ftb_handler *handler)
{
    return ftb_load_acquire(&handler->state) != FTB_HANDLER_CANCELLED;
}

/* Collect what the new snapshot holds, in order: priority high to low, then age. */
static uint32_t
handlers_collect(
    struct ftb_snapshot *old, struct ftb_handler *added, struct ftb_handler **out)
{
    struct ftb_handler **handlers = old != NULL ? ftb_snapshot_handlers(old) : NULL;
    uint32_t old_n = old != NULL ? old->n : 0, n = 0;
    for (uint32_t i = 0; i < old_n; i++) {
        if (added != NULL && handlers[i]->priority < added->priority) {
            out[n++] = added;
            added = NULL;
        }
        if (is_kept(handlers[i])) {
            out[n++] = handlers[i];
        }
    }
    if (added != NULL) {
        out[n++] = added;
    }
    return n;
}

enum ftb_result
ftb_snapshot_new(
    struct ftb_topic *topic,
    struct ftb_snapshot *old,
    struct ftb_handler *added,
    struct ftb_snapshot **out)
{
    *out = NULL;
    uint32_t most = (old != NULL ? old->n : 0) + (added != NULL ? 1 : 0);
    struct ftb_handler **handlers = ftb_alloc((most + 1) * sizeof(struct ftb_handler *));
    if (handlers == NULL) {
        return FTB_NOMEM;
    }
    uint32_t n = handlers_collect(old, added, handlers);
    if (n > 0) {
        struct ftb_snapshot *snapshot = ftb_alloc(snapshot_bytes(n));
        if (snapshot == NULL) {
            ftb_free(handlers);
            return FTB_NOMEM;
        }
        snapshot->topic = topic;
        snapshot->n = n;
        for (uint32_t i = 0; i < n; i++) {
            ftb_handler_retain(handlers[i]);
            snapshot->flags |= handlers[i]->flags;
            snapshot->calls[i]
                = (struct ftb_call){handlers[i]->func, handlers[i]->self};
            ftb_snapshot_handlers(snapshot)[i] = handlers[i];
        }
        *out = snapshot;
    }
    ftb_free(handlers);
    return FTB_OK;
}

void
ftb_snapshot_discard(struct ftb_snapshot *snapshot)
{
    struct ftb_handler **handlers = ftb_snapshot_handlers(snapshot);
    for (uint32_t i = 0; i < snapshot->n; i++) {
        ftb_handler_release(handlers[i]);
    }
    ftb_free(snapshot);
}

static void
snapshot_free(struct ftb_retired *retired)
{
    ftb_snapshot_discard((struct ftb_snapshot *)(uintptr_t)retired->object);
}

void
ftb_snapshot_retire(struct ftb_snapshot *snapshot)
{
    if (snapshot != NULL) {
        ftb_retire(ftb_snapshot_retired(snapshot), snapshot, snapshot_free);
    }
}

void
ftb_handler_release(struct ftb_handler *handler)
{
    /* acq_rel: the last one sees all that the others did with the handler. */
    if (ftb_sub_acq_rel(&handler->refs, 1) == 1) {
        struct ftb_bus *bus = handler->topic->bus;
        ftb_bus_unlink_handler(bus, handler);
        ftb_handler_release_fn(handler);
        ftb_free(handler);
        ftb_bus_release(bus);
    }
}

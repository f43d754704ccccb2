#include "ftb_snapshot.h"

#include "ftb_slab.h"
#include "ftb_tally.h"
#include "ftb_topic.h"

void (*ftb_handler_release_fn)(struct ftb_handler *handler) = NULL;

static _Atomic(uint64_t) next_version = 1;

struct ftb_snapshot *
ftb_snapshot_reserve(size_t most)
{
    size_t size = sizeof(struct ftb_snapshot) + sizeof(struct ftb_retired)
                  + most * (sizeof(struct ftb_call) + sizeof(struct ftb_handler *));
    bool is_cell = size <= FTB_SLAB_CELL_BYTES;
    struct ftb_snapshot *room = is_cell ? ftb_slab_take() : ftb_alloc(size);
    if (room != NULL) {
        room->is_cell = is_cell;
    }
    return room;
}

static void
snapshot_free_memory(struct ftb_snapshot *snapshot)
{
    if (snapshot->is_cell) {
        ftb_slab_give(snapshot);
    } else {
        ftb_free(snapshot);
    }
}

static bool
is_kept(struct ftb_handler *handler)
{
    /* relaxed: cancelled under the stripe's lock, which is held */
    return ftb_load_relaxed(&handler->state) != FTB_HANDLER_CANCELLED;
}

static void
snapshot_append(
    struct ftb_snapshot *snapshot, struct ftb_handler **out,
    struct ftb_handler *handler)
{
    ftb_handler_retain(handler);
    snapshot->flags |= (uint16_t)handler->flags;
    snapshot->calls[out - ftb_snapshot_handlers(snapshot)] =
        (struct ftb_call){handler->func, handler->self};
    *out = handler;
}

/* In order: priority high to low, then age. The stripe is locked, so that no handler is
 * cancelled between the count and the fill. */
struct ftb_snapshot *
ftb_snapshot_fill(
    struct ftb_snapshot *room, struct ftb_topic *topic, struct ftb_snapshot *old,
    struct ftb_handler *added)
{
    struct ftb_handler **handlers = old != NULL ? ftb_snapshot_handlers(old) : NULL;
    uint32_t old_n = old != NULL ? old->n : 0;
    room->flags = ftb_topic_flags(topic);
    room->n = added != NULL ? 1 : 0;
    for (uint32_t i = 0; i < old_n; i++) {
        room->n += is_kept(handlers[i]);
    }
    if (room->n == 0) {
        snapshot_free_memory(room);
        return NULL;
    }
    struct ftb_handler **out = ftb_snapshot_handlers(room); /* needs n */
    /* relaxed: one counter, and the stripe's lock puts a topic's snapshots in order */
    room->version = ftb_add_relaxed(&next_version, 1);
    if (added != NULL) {
        added->first_version = room->version;
    }
    for (uint32_t i = 0; i < old_n; i++) {
        if (added != NULL && handlers[i]->priority < added->priority) {
            snapshot_append(room, out++, added);
            added = NULL;
        }
        if (is_kept(handlers[i])) {
            snapshot_append(room, out++, handlers[i]);
        }
    }
    if (added != NULL) {
        snapshot_append(room, out, added);
    }
    room->version |= room->flags != 0 ? FTB_VERSION_FLAGGED : 0;
    return room;
}

void
ftb_snapshot_discard(struct ftb_snapshot *snapshot)
{
    struct ftb_handler **handlers = ftb_snapshot_handlers(snapshot);
    for (uint32_t i = 0; i < snapshot->n; i++) {
        ftb_handler_release(handlers[i]);
    }
    snapshot_free_memory(snapshot);
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
        ftb_tallies_free(handler);
        ftb_free(handler);
        ftb_bus_release(bus);
    }
}

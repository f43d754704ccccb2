#include "ftb_topic.h"

#include "ftb_shard.h"
#include "ftb_slab.h"
#include "ftb_topic_index.h"

_Static_assert(sizeof(struct ftb_topic) <= FTB_SLAB_CELL_BYTES, "a topic is one cell");

void (*ftb_topic_release_fn)(struct ftb_topic *topic) = NULL;

static _Atomic(uint64_t) next_serial = 1;

static void
own_ids_release(struct ftb_bus *bus)
{
    ftb_shard_id_release(bus->unheard_id);
    ftb_shard_id_release(bus->own_id);
    ftb_shard_id_release(bus->times_id);
}

struct ftb_bus *
ftb_bus_new(uint32_t stripes_n)
{
    struct ftb_bus *bus = ftb_alloc_line(sizeof *bus);
    if (bus == NULL || ftb_map_init(&bus->topics, stripes_n) != FTB_OK) {
        ftb_free(bus);
        return NULL;
    }
    bus->unheard_id = ftb_shard_id_acquire();
    bus->own_id = ftb_shard_id_acquire();
    bus->times_id = ftb_shard_id_acquire();
    if (bus->unheard_id == FTB_NO_ID || bus->own_id == FTB_NO_ID
        || bus->times_id == FTB_NO_ID) {
        own_ids_release(bus);
        ftb_map_fini(&bus->topics);
        ftb_free(bus);
        return NULL;
    }
    bus->serial = ftb_add_relaxed(&next_serial, 1); /* relaxed: uniqueness is enough */
    ftb_init(&bus->refs, 1);
    pthread_mutex_init(&bus->handlers_lock, NULL);
    pthread_mutex_init(&bus->index_lock, NULL);
    return bus;
}

static void
topic_free(struct ftb_entry *entry)
{
    struct ftb_topic *topic = (struct ftb_topic *)(void *)entry;
    if (ftb_topic_release_fn != NULL && topic->key_object != NULL) {
        ftb_topic_release_fn(topic);
    }
    ftb_shard_id_release(ftb_topic_id(topic));
    ftb_key_fini(&topic->entry.key);
    ftb_slab_give(topic);
}

void
ftb_bus_release(struct ftb_bus *bus)
{
    if (ftb_sub_acq_rel(&bus->refs, 1) != 1) {
        return;
    }
    /* The bus object is gone and every handler freed: nobody emits on it, nobody reads
     * its tables, so no grace period is needed. */
    ftb_topic_index_give(bus, bus->index);
    ftb_map_dismantle(&bus->topics, topic_free);
    own_ids_release(bus);
    ftb_map_fini(&bus->topics);
    struct ftb_timing_choice *choice = ftb_load_relaxed(&bus->choices); /* likewise */
    while (choice != NULL) {
        struct ftb_timing_choice *next = choice->next;
        ftb_free(choice);
        choice = next;
    }
    pthread_mutex_destroy(&bus->handlers_lock);
    pthread_mutex_destroy(&bus->index_lock);
    ftb_free(bus);
}

static struct ftb_topic *
topic_new(struct ftb_bus *bus, const struct ftb_keyview *view, void *key_object)
{
    struct ftb_topic *topic = ftb_slab_take();
    if (topic == NULL) {
        return NULL;
    }
    if (ftb_key_init(&topic->entry.key, view) != FTB_OK) {
        ftb_slab_give(topic);
        return NULL;
    }
    uint32_t id = bus->is_uncounted ? FTB_NO_ID : ftb_shard_id_acquire();
    if (id == FTB_NO_ID && !bus->is_uncounted) {
        ftb_key_fini(&topic->entry.key);
        ftb_slab_give(topic);
        return NULL;
    }
    topic->entry.key.owner_id = id;
    topic->bus = bus;
    topic->key_object = key_object;
    ftb_init(&topic->snapshot, (struct ftb_snapshot *)NULL);
    return topic;
}

enum ftb_result
ftb_bus_topic(
    struct ftb_bus *bus, const struct ftb_keyview *view, void *key_object,
    struct ftb_topic **topic, bool *is_new)
{
    enum ftb_result result = FTB_OK;
    struct ftb_stripe *stripe = ftb_map_lock(&bus->topics, view->hash);
    *is_new = false;
    *topic = ftb_bus_find(bus, view);
    if (*topic == NULL) {
        struct ftb_topic *fresh = topic_new(bus, view, key_object);
        result = fresh == NULL ? FTB_NOMEM : ftb_map_add_locked(stripe, &fresh->entry);
        if (result == FTB_OK) {
            *topic = fresh;
            *is_new = true;
        } else if (fresh != NULL) {
            fresh->key_object = NULL; /* still the caller's */
            topic_free(&fresh->entry);
        }
    }
    ftb_map_unlock(stripe);
    return result;
}

struct ftb_handler *
ftb_handler_new(struct ftb_topic *topic)
{
    struct ftb_handler *handler = ftb_alloc(sizeof *handler);
    if (handler == NULL) {
        return NULL;
    }
    struct ftb_bus *bus = topic->bus;
    handler->topic = topic;
    ftb_init(&handler->refs, 1);
    ftb_bus_retain(bus);
    pthread_mutex_lock(&bus->handlers_lock);
    handler->serial = ++bus->next_serial;
    handler->next = bus->handlers;
    if (bus->handlers != NULL) {
        bus->handlers->previous = handler;
    }
    bus->handlers = handler;
    pthread_mutex_unlock(&bus->handlers_lock);
    return handler;
}

void
ftb_bus_unlink_handler(struct ftb_bus *bus, struct ftb_handler *handler)
{
    pthread_mutex_lock(&bus->handlers_lock);
    if (handler->next != NULL) {
        handler->next->previous = handler->previous;
    }
    if (handler->previous != NULL) {
        handler->previous->next = handler->next;
    } else {
        bus->handlers = handler->next;
    }
    pthread_mutex_unlock(&bus->handlers_lock);
}

/* Publish a snapshot (or NULL) in the place of the topic's, and retire that. */
static void
snapshot_replace_locked(struct ftb_topic *topic, struct ftb_snapshot *fresh)
{
    struct ftb_snapshot *old = ftb_exchange_seq_cst(&topic->snapshot, fresh); /* (6) */
    uint64_t before = old != NULL ? old->n : 0, after = fresh != NULL ? fresh->n : 0;
    /* relaxed: a figure; what goes out of one snapshot was added for an earlier one */
    ftb_add_relaxed(&topic->bus->subscribed, after - before);
    ftb_snapshot_retire(old);
}

enum ftb_result
ftb_topic_add(struct ftb_topic *topic, struct ftb_handler *handler)
{
    struct ftb_bus *bus = topic->bus;
    enum ftb_result result = FTB_CLOSED;
    struct ftb_stripe *stripe = ftb_map_lock(&bus->topics, topic->entry.key.hash);
    /* ftb_bus_clear sets the flag before it takes each stripe's lock: either this sees
     * it, or the clear sees the handler (relaxed: the lock orders them). */
    if (ftb_load_relaxed(&bus->is_closed) == 0) {
        struct ftb_snapshot *old = ftb_load_relaxed(&topic->snapshot); /* locked */
        struct ftb_snapshot *room =
            ftb_snapshot_reserve((old != NULL ? (size_t)old->n : 0) + 1);
        result = room != NULL ? FTB_OK : FTB_NOMEM;
        if (room != NULL) {
            snapshot_replace_locked(
                topic, ftb_snapshot_fill(room, topic, old, handler));
        }
    }
    ftb_map_unlock(stripe);
    return result;
}

static bool
has_match(
    struct ftb_snapshot *snapshot,
    bool (*match)(const struct ftb_handler *handler, void *context), void *context)
{
    struct ftb_handler **handlers = ftb_snapshot_handlers(snapshot);
    uint32_t i = 0;
    while (i < snapshot->n && match != NULL && !match(handlers[i], context)) {
        i++;
    }
    return i < snapshot->n;
}

static size_t
handlers_cancel_locked(
    struct ftb_snapshot *snapshot,
    bool (*match)(const struct ftb_handler *handler, void *context), void *context)
{
    size_t removed_n = 0;
    struct ftb_handler **handlers = ftb_snapshot_handlers(snapshot);
    for (uint32_t i = 0; i < snapshot->n; i++) {
        if (match == NULL || match(handlers[i], context)) {
            /* Release: pairs with the acquire in an emit that is under way. */
            uint32_t was =
                ftb_exchange_acq_rel(&handlers[i]->state, FTB_HANDLER_CANCELLED);
            removed_n += was == FTB_HANDLER_ACTIVE || was == FTB_HANDLER_RESERVED;
        }
    }
    return removed_n;
}

enum ftb_result
ftb_topic_remove(
    struct ftb_topic *topic,
    bool (*match)(const struct ftb_handler *handler, void *context), void *context,
    size_t *removed_n)
{
    enum ftb_result result = FTB_OK;
    *removed_n = 0;
    struct ftb_stripe *stripe =
        ftb_map_lock(&topic->bus->topics, topic->entry.key.hash);
    struct ftb_snapshot *old = ftb_load_relaxed(&topic->snapshot); /* locked */
    if (old != NULL && has_match(old, match, context)) {
        struct ftb_snapshot *room = ftb_snapshot_reserve(old->n);
        result = room != NULL ? FTB_OK : FTB_NOMEM;
        if (room != NULL) {
            *removed_n = handlers_cancel_locked(old, match, context);
            snapshot_replace_locked(topic, ftb_snapshot_fill(room, topic, old, NULL));
        }
    }
    ftb_map_unlock(stripe);
    return result;
}

uint16_t
ftb_topic_flags(const struct ftb_topic *topic)
{
    uint32_t flags = topic->entry.key.kind == FTB_KEY_CLASS ? FTB_SNAPSHOT_CLASS : 0;
    enum ftb_timing timing = ftb_topic_timing(topic);
    flags |= timing == FTB_TIMING_SAMPLED ? FTB_SNAPSHOT_SAMPLED : 0;
    flags |= timing == FTB_TIMING_ALL ? FTB_SNAPSHOT_TIMED : 0;
    /* ftb_bus_set_observed sets it before it takes each stripe's lock: either this sees
     * it, or that sees the snapshot (relaxed: the lock orders them). */
    return (uint16_t)(flags | ftb_load_relaxed(&topic->bus->is_observed));
}

/* Publish the same handlers under the topic's flags as they are now. */
static enum ftb_result
topic_refresh_locked(struct ftb_topic *topic)
{
    struct ftb_snapshot *old = ftb_load_relaxed(&topic->snapshot); /* locked */
    struct ftb_snapshot *room = old != NULL ? ftb_snapshot_reserve(old->n) : NULL;
    if (room != NULL) {
        snapshot_replace_locked(topic, ftb_snapshot_fill(room, topic, old, NULL));
    }
    return old != NULL && room == NULL ? FTB_NOMEM : FTB_OK;
}

enum ftb_result
ftb_topic_set_timing(struct ftb_topic *topic, enum ftb_timing timing)
{
    struct ftb_bus *bus = topic->bus;
    pthread_mutex_lock(&bus->handlers_lock);
    struct ftb_timing_choice *choice = ftb_load_relaxed(&bus->choices); /* locked */
    while (choice != NULL && choice->topic != topic) {
        choice = choice->next;
    }
    bool is_new = choice == NULL;
    if (is_new) {
        choice = ftb_alloc(sizeof *choice);
    }
    if (choice != NULL) {
        ftb_store_relaxed(&choice->timing, timing); /* relaxed: a hint, or released: */
        if (is_new) {
            choice->topic = topic;
            choice->next = ftb_load_relaxed(&bus->choices); /* locked */
            ftb_store_release(&bus->choices, choice); /* pairs with ftb_topic_timing */
        }
    }
    pthread_mutex_unlock(&bus->handlers_lock);
    if (choice == NULL) {
        return FTB_NOMEM;
    }
    struct ftb_stripe *stripe = ftb_map_lock(&bus->topics, topic->entry.key.hash);
    enum ftb_result result = topic_refresh_locked(topic);
    ftb_map_unlock(stripe);
    return result;
}

static void
observe_locked(struct ftb_entry *entry, void *context)
{
    enum ftb_result *result = context;
    if (topic_refresh_locked((struct ftb_topic *)(void *)entry) != FTB_OK) {
        *result = FTB_NOMEM;
    }
}

enum ftb_result
ftb_bus_set_observed(struct ftb_bus *bus, bool is_observed)
{
    enum ftb_result result = FTB_OK;
    ftb_store_seq_cst(&bus->is_observed, is_observed ? FTB_SNAPSHOT_OBSERVED : 0u);
    ftb_map_each(&bus->topics, observe_locked, &result);
    return result;
}

static void
topic_clear_locked(struct ftb_entry *entry, void *unused)
{
    (void)unused;
    struct ftb_topic *topic = (struct ftb_topic *)(void *)entry;
    struct ftb_snapshot *old = ftb_load_relaxed(&topic->snapshot); /* locked */
    if (old != NULL) {
        handlers_cancel_locked(old, NULL, NULL);
        snapshot_replace_locked(topic, NULL);
    }
}

void
ftb_bus_clear(struct ftb_bus *bus)
{
    ftb_store_seq_cst(&bus->is_closed, 1);
    ftb_map_each(&bus->topics, topic_clear_locked, NULL);
}

void
ftb_bus_after_fork_child(struct ftb_bus *bus)
{
    ftb_map_after_fork_child(&bus->topics);
    pthread_mutex_init(&bus->handlers_lock, NULL);
    pthread_mutex_init(&bus->index_lock, NULL);
    struct ftb_handler *previous =
        NULL; /* the chain of `next` is whole at every moment */
    for (struct ftb_handler *h = bus->handlers; h != NULL; h = h->next) {
        h->previous = previous;
        previous = h;
    }
}

#include "ftb_topic_index.h"

#include <stdlib.h>

static void
index_free(struct ftb_topic_index *index)
{
    if (index != NULL) {
        ftb_free(index->topics);
        ftb_free(index->ids);
        ftb_free(index);
    }
}

/* Returns what is to be freed, without the lock, if this was the last reference. */
static struct ftb_topic_index *
index_drop_locked(struct ftb_topic_index *index)
{
    return index != NULL && --index->refs == 0 ? index : NULL;
}

void
ftb_topic_index_give(struct ftb_bus *bus, struct ftb_topic_index *index)
{
    pthread_mutex_lock(&bus->index_lock);
    struct ftb_topic_index *unused = index_drop_locked(index);
    pthread_mutex_unlock(&bus->index_lock);
    index_free(unused);
}

bool
ftb_topic_index_is_whole(const struct ftb_topic_index *index, struct ftb_bus *bus)
{
    return index->n == ftb_map_len(&bus->topics);
}

static struct ftb_topic_index *
index_new(size_t room)
{
    struct ftb_topic_index *index = ftb_alloc(sizeof *index);
    if (index == NULL) {
        return NULL;
    }
    index->refs = 1;
    index->topics = ftb_alloc(room * sizeof(struct ftb_topic *));
    index->ids = ftb_alloc(room * sizeof *index->ids);
    if (index->topics == NULL || index->ids == NULL) {
        index_free(index);
        return NULL;
    }
    return index;
}

struct walk {
    struct ftb_topic_index *index;
    size_t room;
};

static void
topic_add(struct ftb_entry *entry, void *context)
{
    struct walk *walk = context;
    size_t place = walk->index->n++;
    if (place < walk->room) {
        walk->index->topics[place] = (struct ftb_topic *)(void *)entry;
    }
}

static int
compare_ids(const void *a, const void *b)
{
    uint32_t x = ftb_topic_id(*(struct ftb_topic *const *)a);
    uint32_t y = ftb_topic_id(*(struct ftb_topic *const *)b);
    return (x > y) - (x < y);
}

static struct ftb_topic_index *
index_make(struct ftb_bus *bus)
{
    size_t room = ftb_map_len(&bus->topics) + 8; /* some may come */
    struct ftb_topic_index *index = index_new(room);
    while (index != NULL) {
        struct walk walk = {index, room};
        ftb_map_each(&bus->topics, topic_add, &walk);
        if (index->n <= room) {
            break;
        }
        /* So many came meanwhile that it may be an older one that had no place. */
        room = 2 * index->n;
        index_free(index);
        index = index_new(room);
    }
    if (index == NULL) {
        return NULL;
    }
    qsort(index->topics, index->n, sizeof(struct ftb_topic *), compare_ids);
    for (size_t i = 0; i < index->n; i++) {
        index->ids[i] = ftb_topic_id(index->topics[i]);
    }
    return index;
}

/* The kept index, or `fresh` in its place if that has more; one reference. NULL: there is
 * none, or it is too short. As many topics need not be the same ones: of two walks, each
 * may have met a newcomer that the other passed too early. So who walked itself gets its
 * own, which has all that there was when it began, unless the kept one is whole. */
static struct ftb_topic_index *
index_choose(struct ftb_bus *bus, struct ftb_topic_index *fresh)
{
    struct ftb_topic_index *unused = fresh, *index = NULL;
    pthread_mutex_lock(&bus->index_lock);
    if (fresh != NULL && (bus->index == NULL || fresh->n > bus->index->n)) {
        unused = index_drop_locked(bus->index);
        bus->index = fresh; /* whose one reference this is */
    }
    if (bus->index != NULL
        && (bus->index == fresh || ftb_topic_index_is_whole(bus->index, bus))) {
        index = bus->index;
        index->refs++;
    } else if (fresh != NULL) {
        index = fresh;
        unused = NULL;
    }
    pthread_mutex_unlock(&bus->index_lock);
    index_free(unused);
    return index;
}

struct ftb_topic_index *
ftb_topic_index_get(struct ftb_bus *bus)
{
    struct ftb_topic_index *index = index_choose(bus, NULL);
    if (index == NULL) {
        index = index_make(bus);
        index = index != NULL ? index_choose(bus, index) : NULL;
    }
    return index;
}

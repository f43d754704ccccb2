/* All topics of a bus in the order of their counters' ids, for whoever reads them all.
 *
 * Cells of neighbouring ids are neighbours in memory. Topics live as long as their bus and
 * only ever come, so an index is good for as long as the bus has as many of them: it is
 * made once and kept, not by those who emit or subscribe but by the reader that finds it
 * too short. */
#ifndef FTB_TOPIC_INDEX_H
#define FTB_TOPIC_INDEX_H

#include "ftb_topic.h"

/* Never changed once it is made, but for refs. */
struct ftb_topic_index {
    uint32_t refs; /* guarded by the bus's index_lock; the bus itself has one */
    size_t n;
    struct ftb_topic **topics;
    uint32_t *ids; /* theirs, ascending */
};

/* The topics that there are now; one reference. Any thread. NULL: no memory. */
FTB_MUST_USE struct ftb_topic_index *ftb_topic_index_get(struct ftb_bus *bus);

/* Whether no topic came since. Any thread. */
bool ftb_topic_index_is_whole(const struct ftb_topic_index *index, struct ftb_bus *bus);

/* Drop a reference; NULL is allowed. */
void ftb_topic_index_give(struct ftb_bus *bus, struct ftb_topic_index *index);

#endif

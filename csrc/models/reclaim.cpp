/* ftb_reclaim.h: readers in sections and slots, a writer that unlinks, waits and frees.
 *
 * A link leads through a table to a thing, as a look-up in ftb_map.h does: the section
 * protects the table, the slot the thing. Whatever is freed too early is a use of freed
 * memory here, whatever is read unpublished a data race. The numbers are those of
 * ftb_reclaim.c. Four models:
 *
 * reclaim: one reader, one writer, small enough for a deep search.
 * reclaim nested: a reader nests two slots, another registers while the writer scans.
 * reclaim reuse: two readers use one record in turn.
 * reclaim find: a third thread looks into what it finds in slots (ftb_hazard_find). */
#define FTB_DEPTH_MAX 2
#define FTB_SECTION_SPINS 3

#include "model.h"

#include "ftb_reclaim.h"

struct thing {
    ftb_plain(uint32_t) number;
    thing *next_retired;
};

struct table {
    ftb_atomic(thing *) slot;
    ftb_plain(uint32_t) number;
};

static thing *
thing_new(uint32_t number)
{
    thing *made = new thing;
    ftb_plain_set(&made->number, number);
    made->next_retired = NULL;
    return made;
}

static table *
table_new(thing *in_it)
{
    table *made = new table;
    ftb_init(&made->slot, in_it);
    ftb_plain_set(&made->number, 1);
    return made;
}

struct shared {
    ftb_threads threads;
    ftb_thread records[2];
    ftb_atomic(table *) link;

    /* The writer's own. */
    thing *retired;
    uint32_t made_n;

    void init()
    {
        ftb_init(&threads.head, (ftb_thread *)NULL);
        for (int i = 0; i < 2; i++) {
            ftb_init(&records[i].seq, 0);
            ftb_init(&records[i].depth_peak, 0);
            ftb_init(&records[i].in_use, 0);
            ftb_init(&records[i].next, (ftb_thread *)NULL);
            records[i].depth = 0;
            for (int k = 0; k < FTB_DEPTH_MAX; k++) {
                ftb_init(&records[i].hazard[k], 0);
            }
        }
        retired = NULL;
        made_n = 1;
        ftb_init(&link, table_new(thing_new(1)));
    }

    void fini()
    {
        table *last = ftb_load_relaxed(&link);
        delete ftb_load_relaxed(&last->slot);
        delete last;
        while (retired != NULL) {
            thing *next = retired->next_retired;
            delete retired;
            retired = next;
        }
    }

    /* What an emit does; more: handlers that emit again. */
    void read(ftb_thread *thread, int more)
    {
        uint64_t odd = ftb_section_enter(thread);
        table *in_table = ftb_load_seq_cst(&link); /* (2) */
        RL_ASSERT(ftb_plain_get(&in_table->number) == 1);
        thing *found = ftb_load_seq_cst(&in_table->slot); /* (2) */
        ftb_hazard_hold(thread, found);
        ftb_section_leave(thread, odd);
        RL_ASSERT(ftb_plain_get(&found->number) != 0);
        if (more > 0) {
            read(thread, more - 1);
        }
        RL_ASSERT(ftb_plain_get(&found->number) != 0);
        ftb_hazard_drop(thread);
    }

    void replace_thing()
    {
        table *in_table = ftb_load_relaxed(&link);
        thing *old =
            ftb_exchange_seq_cst(&in_table->slot, thing_new(++made_n)); /* (6) */
        old->next_retired = retired;
        retired = old;
    }

    /* As a rehash does: the new table leads to the same thing. Returns the old one. */
    table *replace_table()
    {
        table *old = ftb_load_relaxed(&link);
        ftb_store_seq_cst(&link, table_new(ftb_load_relaxed(&old->slot))); /* (6) */
        return old;
    }

    static bool is_other(const void *object, void *context)
    {
        return object != context;
    }

    bool is_held(thing *object)
    {
        ftb_thread *thread = ftb__threads_first(&threads);
        for (; thread != NULL; thread = ftb_load_relaxed(&thread->next)) {
            if (!ftb__hazards_each(thread, is_other, object)) {
                return true;
            }
        }
        return false;
    }

    /* Free what nobody can see; old_table may be NULL. Returns whether that went too. */
    bool reclaim(table *old_table)
    {
        if (!ftb__sections_closed(&threads)) {
            return false;
        }
        thing *kept = NULL;
        while (retired != NULL) {
            thing *next = retired->next_retired;
            if (is_held(retired)) {
                retired->next_retired = kept;
                kept = retired;
            } else {
                ftb_plain_set(&retired->number, 0);
                delete retired;
            }
            retired = next;
        }
        retired = kept;
        if (old_table != NULL) {
            ftb_plain_set(&old_table->number, 0);
            delete old_table;
        }
        return true;
    }
};

struct reclaim_model : rl::test_suite<reclaim_model, 2> {
    shared all;
    table *left;

    void before()
    {
        all.init();
        left = NULL;
        ftb__threads_push(&all.threads, &all.records[0]);
    }

    void thread(unsigned ix)
    {
        if (ix == 0) {
            all.read(&all.records[0], 0);
            all.read(&all.records[0], 0);
        } else {
            all.replace_thing();
            left = all.replace_table();
            if (all.reclaim(left)) {
                left = NULL;
            }
        }
    }

    void after()
    {
        delete left;
        all.fini();
    }
};

struct nested_model : rl::test_suite<nested_model, 3> {
    shared all;

    void before()
    {
        all.init();
        ftb__threads_push(&all.threads, &all.records[0]);
    }

    void thread(unsigned ix)
    {
        if (ix == 0) {
            all.read(&all.records[0], 1);
        } else if (ix == 1) {
            ftb__threads_push(&all.threads, &all.records[1]);
            all.read(&all.records[1], 0);
        } else {
            all.replace_thing();
            all.reclaim(NULL);
            all.replace_thing();
            all.reclaim(NULL);
        }
    }

    void after()
    {
        all.fini();
    }
};

struct reuse_model : rl::test_suite<reuse_model, 3> {
    shared all;
    ftb_plain(uint32_t) owners_own; /* as the record's front cache is */

    void before()
    {
        all.init();
        ftb_plain_set(&owners_own, 0);
        ftb__threads_push(&all.threads, &all.records[0]);
    }

    void thread(unsigned ix)
    {
        if (ix == 2) {
            all.replace_thing();
            all.reclaim(NULL);
            return;
        }
        ftb_thread *record = &all.records[0];
        while (!ftb__thread_try_own(record)) {
            ftb_relax();
        }
        RL_ASSERT(record->depth == 0);
        ftb_plain_set(&owners_own, ftb_plain_get(&owners_own) + 1);
        all.read(record, 0);
        ftb__thread_disown(record);
    }

    void after()
    {
        RL_ASSERT(ftb_plain_get(&owners_own) == 2);
        all.fini();
    }
};

struct find_model : rl::test_suite<find_model, 3> {
    shared all;
    rl::mutex reclaim_lock;

    void before()
    {
        all.init();
        ftb__threads_push(&all.threads, &all.records[0]);
    }

    static bool look_into(const void *object, void *context)
    {
        RL_ASSERT(ftb_plain_get(&((thing *)object)->number) != 0);
        return true;
    }

    void thread(unsigned ix)
    {
        if (ix == 0) {
            all.read(&all.records[0], 0);
            all.read(&all.records[0], 0);
        } else if (ix == 1) {
            all.replace_thing();
            reclaim_lock.lock($);
            all.reclaim(NULL);
            reclaim_lock.unlock($);
        } else {
            reclaim_lock.lock($);
            if (ftb__sections_closed(&all.threads)) {
                ftb__hazards_each(&all.records[0], look_into, NULL);
            }
            reclaim_lock.unlock($);
        }
    }

    void after()
    {
        all.fini();
    }
};

int
main(int argc, char **argv)
{
    return run_model<reclaim_model>(argc, argv, "reclaim", 500000, 3)
           || run_model<nested_model>(argc, argv, "reclaim nested", 500000, 1)
           || run_model<reuse_model>(argc, argv, "reclaim reuse", 200000, 2)
           || run_model<find_model>(argc, argv, "reclaim find", 200000, 2);
}

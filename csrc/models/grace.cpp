/* ftb_grace.h: a reader takes its own reference inside a section, without a slot.
 *
 * The entry and its value are those of py/striped_map_core.c: a slot leads to the entry,
 * the entry to the value, whose count is shared by the map and the readers. One thread
 * reads, one swaps the value inside a section of its own, one removes the entry. Whoever
 * unlinks something notes the open sections and drops it once they are closed. A value or
 * entry freed too early is a use of freed memory here, and a reader that raises a count
 * from zero fails. */
#define FTB_DEPTH_MAX 1
#define FTB_SECTION_SPINS 3

#include "model.h"

#include "ftb_grace.h"

struct value {
    ftb_atomic(int) refs;
    ftb_plain(int) number;
};

struct entry {
    ftb_plain(int) key;
    ftb_atomic(value *) now;
};

static value *
value_new(int number)
{
    value *made = new value;
    ftb_init(&made->refs, 1);
    ftb_plain_set(&made->number, number);
    return made;
}

static void
value_drop(value *self)
{
    if (ftb_sub_acq_rel(&self->refs, 1) == 1) {
        RL_ASSERT(ftb_plain_get(&self->number) > 0);
        ftb_plain_set(&self->number, 0);
        delete self;
    }
}

struct grace_model : rl::test_suite<grace_model, 3> {
    ftb_threads threads;
    ftb_thread records[3];
    ftb_atomic(entry *) slot;

    /* What each thread unlinked and could not drop in time. */
    value *left_value[3];
    entry *left_entry[3];

    void before()
    {
        ftb_init(&threads.head, (ftb_thread *)NULL);
        for (int i = 0; i < 3; i++) {
            ftb_init(&records[i].seq, 0);
            ftb_init(&records[i].depth_peak, 0);
            ftb_init(&records[i].in_use, 1);
            ftb_init(&records[i].next, (ftb_thread *)NULL);
            records[i].depth = 0;
            ftb_init(&records[i].hazard[0], 0);
            left_value[i] = NULL;
            left_entry[i] = NULL;
        }
        entry *made = new entry;
        ftb_plain_set(&made->key, 7);
        ftb_init(&made->now, value_new(1));
        ftb_init(&slot, made);
    }

    void after()
    {
        for (int i = 0; i < 3; i++) {
            if (left_value[i] != NULL) {
                value_drop(left_value[i]);
            }
            delete left_entry[i];
        }
        RL_ASSERT(ftb_load_relaxed(&slot) == NULL);
    }

    entry *find()
    {
        entry *found = ftb_load_seq_cst(&slot); /* (2) */
        RL_ASSERT(found == NULL || ftb_plain_get(&found->key) == 7);
        return found;
    }

    void read(ftb_thread *thread)
    {
        uint64_t odd = ftb_section_enter(thread);
        entry *found = find();
        value *seen = found != NULL ? ftb_load_seq_cst(&found->now) : NULL; /* (2) */
        if (seen != NULL) {
            int before = ftb_add_relaxed(&seen->refs, 1);
            RL_ASSERT(before > 0);
        }
        ftb_section_leave(thread, odd);
        if (seen != NULL) {
            RL_ASSERT(ftb_plain_get(&seen->number) > 0);
            value_drop(seen);
        }
    }

    /* The value that was swapped out for `fresh`, or NULL. */
    value *swap(ftb_thread *thread, value *fresh)
    {
        uint64_t odd = ftb_section_enter(thread);
        entry *found = find();
        value *old = found != NULL ? ftb_load_seq_cst(&found->now) : NULL; /* (2) */
        if (old != NULL && !ftb_cas_seq_cst(&found->now, &old, fresh)) {   /* (6) */
            old = NULL;
        }
        ftb_section_leave(thread, odd);
        return old;
    }

    /* Drop what thread ix unlinked, unless that takes too long: then it is left. */
    void drop(unsigned ix, value *old, entry *removed)
    {
        ftb_blocker blockers[3];
        int blockers_n = 0;
        ftb_thread *thread = ftb__threads_first(&threads);
        for (; thread != NULL; thread = ftb_load_relaxed(&thread->next)) {
            blockers_n += ftb_blocker_note(&blockers[blockers_n], thread);
        }
        for (int spins = 0; spins < FTB_SECTION_SPINS && blockers_n > 0; spins++) {
            if (ftb_blocker_is_gone(&blockers[blockers_n - 1])) {
                blockers_n--;
            }
            ftb_relax();
        }
        if (blockers_n > 0) {
            left_value[ix] = old;
            left_entry[ix] = removed;
            return;
        }
        value_drop(old);
        if (removed != NULL) {
            ftb_plain_set(&removed->key, 0);
            delete removed;
        }
    }

    void thread(unsigned ix)
    {
        ftb_thread *self = &records[ix];
        ftb__threads_push(&threads, self);
        if (ix == 0) {
            read(self);
            read(self);
        } else if (ix == 1) {
            value *fresh = value_new(2);
            value *old = swap(self, fresh);
            if (old != NULL) {
                drop(ix, old, NULL);
            } else {
                value_drop(fresh);
            }
        } else {
            entry *removed = ftb_load_relaxed(&slot);
            ftb_store_seq_cst(&slot, (entry *)NULL);                         /* (6) */
            value *old = ftb_exchange_seq_cst(&removed->now, (value *)NULL); /* (6) */
            RL_ASSERT(
                ftb_plain_get(&old->number) > 0); /* pop() gives it to its caller */
            drop(ix, old, removed);
        }
    }
};

int
main(int argc, char **argv)
{
    return run_model<grace_model>(argc, argv, "grace", 500000, 2);
}

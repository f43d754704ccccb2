/* ftb_turn.h as ftb_reclaim.c uses it: threads give slots back, retire and reclaim, and go
 * away if another is at it. In the end, without one more reclaim, everything retired has
 * been freed, nothing before its last use. Two rounds at most, so that a third thread that
 * asks finds one in its last. Sections, slots, retiring and the turn are the real ones; the
 * kept list is split here, as kept_split_locked does.
 *
 * The lock is relacy's mutex and its attempts all succeed in the end: the turn needs no
 * more of it, and nothing is assumed of one that fails. Two models:
 *
 * reclaim asked: two threads hold one thing, a third replaces it.
 * reclaim found: one holds, one replaces, a third looks into slots (ftb_hazard_find). */
#define FTB_DEPTH_MAX 1
#define FTB_SECTION_SPINS 3
#define FTB_TURN_ROUNDS_MAX 2

#include "model.h"

#include "ftb_reclaim.h"
#include "ftb_turn.h"

static const int HOLDERS_MAX = 2;

struct thing {
    ftb_retired retired;
    ftb_plain(uint32_t) number;
};

struct shared {
    ftb_threads threads;
    ftb_thread records[HOLDERS_MAX];
    ftb_atomic(thing *) link;
    ftb_atomic(ftb_retired *) retired;
    ftb_turn turn;
    ftb_plain(ftb_retired *) kept; /* guarded by the turn's lock */
    int retired_n, freed_n;        /* for the model's eyes only */

    thing *thing_new(uint32_t number)
    {
        thing *made = new thing;
        ftb_plain_set(&made->number, number);
        return made;
    }

    void init()
    {
        ftb_init(&threads.head, (ftb_thread *)NULL);
        for (int i = 0; i < HOLDERS_MAX; i++) {
            ftb_init(&records[i].seq, 0);
            ftb_init(&records[i].depth_peak, 0);
            ftb_init(&records[i].hazard[0], 0);
            ftb_init(&records[i].next, (ftb_thread *)NULL);
            records[i].depth = 0;
        }
        ftb_init(&link, thing_new(1));
        ftb_init(&retired, (ftb_retired *)NULL);
        ftb_init(&turn.state, FTB_TURN_FREE);
        ftb_plain_set(&kept, (ftb_retired *)NULL);
        retired_n = 0;
        freed_n = 0;
    }

    /* A thread in the middle of an emit. */
    void hold(ftb_thread *thread)
    {
        ftb__threads_push(&threads, thread);
        uint64_t odd = ftb_section_enter(thread);
        ftb_hazard_hold(thread, ftb_load_seq_cst(&link));
        ftb_section_leave(thread, odd);
    }

    void drop(ftb_thread *thread)
    {
        thing *held = (thing *)ftb_load_relaxed(&thread->hazard[0]);
        RL_ASSERT(ftb_plain_get(&held->number) == 1);
        ftb_hazard_drop(thread);
    }

    void retire(thing *old)
    {
        old->retired.object = old;
        retired_n++;
        ftb__retired_push(&retired, &old->retired);
    }

    void replace()
    {
        retire(ftb_exchange_seq_cst(&link, (thing *)NULL));
    }

    static bool is_other(const void *object, void *context)
    {
        return object != context;
    }

    bool is_held(const ftb_retired *object)
    {
        ftb_thread *thread = ftb__threads_first(&threads);
        for (; thread != NULL; thread = ftb_load_relaxed(&thread->next)) {
            if (!ftb__hazards_each(thread, is_other, (void *)object->object)) {
                return true;
            }
        }
        return false;
    }

    struct scans {
        shared *all;
        ftb_retired *free_list;
    };

    void keep(ftb_retired *list)
    {
        while (list != NULL) {
            ftb_retired *next = list->next;
            list->next = ftb_plain_get(&kept);
            ftb_plain_set(&kept, list);
            list = next;
        }
    }

    static void scan(void *context)
    {
        scans *self = (scans *)context;
        shared *all = self->all;
        all->keep(ftb__retired_take(&all->retired));
        ftb_retired *list = ftb_plain_get(&all->kept);
        if (list == NULL || !ftb__sections_closed(&all->threads)) {
            return;
        }
        ftb_plain_set(&all->kept, (ftb_retired *)NULL);
        while (list != NULL) {
            ftb_retired *next = list->next;
            if (all->is_held(list)) {
                list->next = NULL;
                all->keep(list);
            } else {
                list->next = self->free_list;
                self->free_list = list;
            }
            list = next;
        }
    }

    void reclaim()
    {
        scans self = {this, NULL};
        if (!ftb_turn_run(&turn, scan, &self)) {
            return;
        }
        while (self.free_list != NULL) {
            thing *freed = (thing *)self.free_list->object;
            self.free_list = self.free_list->next;
            ftb_plain_set(&freed->number, 0);
            delete freed;
            freed_n++;
        }
    }

    static bool look_into(const void *object, void *context)
    {
        RL_ASSERT(ftb_plain_get(&((thing *)object)->number) == 1);
        return true;
    }

    void find()
    {
        ftb_mutex_lock(&turn.lock);
        if (ftb__sections_closed(&threads)) {
            ftb__hazards_each(&records[0], look_into, NULL);
        }
        ftb_mutex_unlock(&turn.lock);
    }

    void check_all_freed()
    {
        RL_ASSERT(ftb_load_relaxed(&turn.state) == FTB_TURN_FREE);
        RL_ASSERT(freed_n == retired_n);
    }
};

struct asked_model : rl::test_suite<asked_model, 3> {
    shared all;

    void before()
    {
        all.init();
        all.hold(&all.records[0]);
        all.hold(&all.records[1]);
    }

    void thread(unsigned ix)
    {
        if (ix == 2) {
            all.replace();
        } else {
            all.drop(&all.records[ix]);
        }
        if (ix == 1) {
            all.retire(all.thing_new(2)); /* as a handler that cancels does */
        }
        all.reclaim();
    }

    void after()
    {
        all.check_all_freed();
    }
};

struct found_model : rl::test_suite<found_model, 3> {
    shared all;

    void before()
    {
        all.init();
        all.hold(&all.records[0]);
    }

    void thread(unsigned ix)
    {
        if (ix == 2) {
            all.find();
            return;
        }
        if (ix == 0) {
            all.drop(&all.records[0]);
        } else {
            all.replace();
        }
        all.reclaim();
    }

    void after()
    {
        all.check_all_freed();
    }
};

int
main(int argc, char **argv)
{
    return run_model<asked_model>(argc, argv, "reclaim asked", 500000, 2)
           || run_model<found_model>(argc, argv, "reclaim found", 200000, 3);
}

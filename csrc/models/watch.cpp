/* ftb_offer.h, ftb_idle.h and ftb_park.h together, in the order in which ftb_pool_offer.c
 * calls them: a worker offers a batch whose first event ends only when the second has
 * run, so that one of the others has to take it. An open batch that nobody watches leaves
 * a sleeper behind, which relacy reports as a deadlock. What a watcher's deadline does,
 * a look does here: every batch is old enough, and a pause is over at once.
 *
 * The first of the others watches at the start, as after an earlier batch; and one of them
 * is claimed for an event that takes it out of the game. */
#define FTB_IDLE_MAX 2u
#define FTB_IDLE_WORD_BITS 1u

#include "model.h"

#include "ftb_idle.h"
#include "ftb_offer.h"
#include "ftb_park.h"

static const unsigned OTHERS_N = 2;

struct watch_model : rl::test_suite<watch_model, OTHERS_N + 2> {
    ftb_offer offer;
    ftb_item items[2];
    ftb_idle idle;
    ftb_parker parkers[OTHERS_N];
    ftb_atomic(uint32_t) watchers_n;
    ftb_atomic(uint32_t) has_run; /* the second event */
    ftb_atomic(uint32_t)
        has_posted; /* an event that keeps a worker busy till the end */

    void before()
    {
        ftb_init(&offer.word, 0);
        ftb_init(&offer.since_ns, 0);
        ftb_plain_set(&offer.items, (const ftb_item *)0);
        ftb_idle_init(&idle, OTHERS_N);
        for (unsigned i = 0; i < OTHERS_N; i++) {
            ftb_init(&parkers[i].state, FTB_PARKER_EMPTY);
        }
        ftb_init(&watchers_n, 1);
        ftb_init(&has_run, 0);
        ftb_init(&has_posted, 0);
    }

    void wake()
    {
        int32_t ix = ftb_idle_claim(&idle, 0);
        if (ix >= 0) {
            ftb_parker_unpark(&parkers[ix]);
        }
    }

    void end()
    {
        ftb_store_seq_cst(&has_run, 1);
        for (unsigned i = 0; i < OTHERS_N; i++) {
            ftb_parker_unpark(&parkers[i]);
        }
    }

    /* ftb_pool_offer, and the event that waits. */
    void own()
    {
        ftb_offer_open_local(&offer, items, 2, 0);
        if (ftb_load_seq_cst(&watchers_n) == 0) { /* O2 */
            wake();
        }
        while (ftb_load_acquire(&has_run) == 0) {
            ftb_relax();
        }
    }

    bool take()
    {
        uint64_t word = ftb_offer_look(&offer);
        const ftb_item *taken;
        uint32_t first;
        if (!ftb_offer_is_open(word)
            || ftb_offer_try_take(&offer, word, 1, &taken, &first) == 0) {
            return false;
        }
        ftb_offer_copied(&offer);
        end();
        return true;
    }

    /* ftb__pool_sleep. A pause that is over goes round again, up to twice: then something
     * has to happen, and without a successor it does not. */
    void sleep(unsigned ix, bool *watches)
    {
        for (int pauses_n = 0;; pauses_n++) {
            bool is_open = ftb_offer_is_open(ftb_offer_look(&offer)); /* W2 */
            if (is_open && pauses_n > 0) {
                return; /* old by now */
            }
            if (*watches && !is_open) {
                *watches = false;
                ftb_sub_seq_cst(&watchers_n, 1); /* V2 */
                continue;
            }
            if (!*watches && is_open && ftb_load_seq_cst(&watchers_n) == 0) { /* W3 */
                *watches = true;
                ftb_add_seq_cst(&watchers_n, 1);
            }
            if (!*watches) {
                RL_ASSERT(ftb_parker_wait(&parkers[ix], FTB_FOREVER) == FTB_OK);
                return;
            }
            if (ftb_parker_take_note_local(&parkers[ix])) {
                return;
            }
            ftb_relax();
        }
    }

    void work(unsigned ix)
    {
        bool watches = ix == 0;
        while (ftb_load_acquire(&has_run) == 0) {
            uint32_t posted = 1;
            if (!watches && ftb_cas_acquire(&has_posted, &posted, 2)) {
                if (ftb_idle_has_any(&idle)                      /* R1 */
                    && ftb_offer_is_open(ftb_offer_look(&offer)) /* R2 */
                    && ftb_load_seq_cst(&watchers_n) == 0) {     /* R3 */
                    wake();
                }
                while (ftb_load_acquire(&has_run) == 0) {
                    ftb_relax();
                }
                break;
            }
            if (!watches && take()) {
                break;
            }
            ftb_idle_set(&idle, ix);
            if (ftb_load_seq_cst(&has_posted) != 1) {
                sleep(ix, &watches);
            }
            ftb_idle_clear(&idle, ix);
            if (watches) {
                ftb_sub_seq_cst(&watchers_n, 1); /* V2 */
                watches = false;
            }
        }
    }

    void thread(unsigned ix)
    {
        if (ix < OTHERS_N) {
            work(ix);
        } else if (ix == OTHERS_N) {
            own();
        } else {
            ftb_store_seq_cst(&has_posted, 1);
            wake();
        }
    }

    void after()
    {
        RL_ASSERT(ftb_load_relaxed(&has_run) == 1);
    }
};

int
main(int argc, char **argv)
{
    return run_model<watch_model>(argc, argv, "watch", 1000000, 2);
}

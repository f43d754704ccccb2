/* ftb_fan.h: an owner that opens twice and two claimers. Every index is run once, with the
 * work of its own opening, and exactly one thread is the last of each. */
#include "model.h"

#include "ftb_fan.h"

static const uint32_t OPENINGS_N = 2;
static const uint32_t HANDLERS_N = 2;
static const int TRIES_N = 3;

struct fan_model : rl::test_suite<fan_model, 3> {
    ftb_fan fan;
    /* What the two openings hand over; the last of each gives it up. */
    rl::var<unsigned> content[OPENINGS_N];
    unsigned ran[OPENINGS_N][HANDLERS_N];
    unsigned last_n[OPENINGS_N];
    unsigned opened_n;

    void before()
    {
        ftb_init(&fan.claim, 0);
        ftb_init(&fan.left_n, 0);
        ftb_plain_set(&fan.work, (void *)0);
        std::memset(ran, 0, sizeof ran);
        std::memset(last_n, 0, sizeof last_n);
        opened_n = 0;
    }

    bool claim_once()
    {
        uint32_t ix;
        void *work;
        bool is_last_claim;
        if (!ftb_fan_try_claim(&fan, &ix, &work, &is_last_claim)) {
            return false;
        }
        unsigned opening = (unsigned)((rl::var<unsigned> *)work - content);
        RL_ASSERT(opening < OPENINGS_N && ix < HANDLERS_N);
        RL_ASSERT(is_last_claim == (ix + 1 == HANDLERS_N));
        RL_ASSERT(content[opening]($) == opening + 1);
        RL_ASSERT(++ran[opening][ix] == 1);
        if (ftb_fan_done(&fan)) {
            content[opening]($) = 100; /* a race, if another still reads it */
            RL_ASSERT(++last_n[opening] == 1);
        }
        return true;
    }

    void thread(unsigned ix)
    {
        for (int i = 0; i < TRIES_N; i++) {
            if (ix == 0 && opened_n < OPENINGS_N && ftb_fan_is_free_local(&fan)) {
                content[opened_n]($) = opened_n + 1;
                ftb_fan_open_local(&fan, &content[opened_n], HANDLERS_N);
                opened_n++;
            }
            if (!claim_once()) {
                ftb_relax();
            }
        }
    }

    void after()
    {
        while (claim_once()) {
        }
        RL_ASSERT(ftb_fan_is_free_local(&fan) && !ftb_fan_is_open(&fan));
        for (unsigned i = 0; i < opened_n; i++) {
            RL_ASSERT(last_n[i] == 1);
            for (unsigned j = 0; j < HANDLERS_N; j++) {
                RL_ASSERT(ran[i][j] == 1);
            }
        }
    }
};

int
main(int argc, char **argv)
{
    return run_model<fan_model>(argc, argv, "fan", 300000, 2);
}

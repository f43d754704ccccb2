/* ftb_offer.h: an owner that opens twice and two thieves. Every event goes to one thread,
 * which copies what its own opening offers, and close counts who took how many. */
#include "model.h"

#include "ftb_offer.h"

static const uint32_t OPENINGS_N = 2;
static const uint32_t EVENTS_N = 4;
static const int TRIES_N = 2;

struct offer_model : rl::test_suite<offer_model, 3> {
    ftb_offer offer;
    ftb_item items[EVENTS_N];
    /* What the array holds; the owner writes it anew for each opening. */
    rl::var<unsigned> content[EVENTS_N];
    unsigned ran[OPENINGS_N][EVENTS_N];
    unsigned stolen[OPENINGS_N];

    void before()
    {
        ftb_init(&offer.word, 0);
        ftb_init(&offer.since_ns, 0);
        ftb_plain_set(&offer.items, (const ftb_item *)0);
        std::memset(ran, 0, sizeof ran);
        std::memset(stolen, 0, sizeof stolen);
    }

    void run(uint32_t ix)
    {
        unsigned opening = content[ix]($);
        RL_ASSERT(opening < OPENINGS_N && ++ran[opening][ix] == 1);
    }

    void steal()
    {
        uint64_t word = ftb_offer_look(&offer);
        uint32_t first;
        const ftb_item *taken;
        if (!ftb_offer_is_open(word)) {
            ftb_relax();
            return;
        }
        uint32_t taken_n = ftb_offer_try_take(&offer, word, 2, &taken, &first);
        for (uint32_t i = 0; i < taken_n; i++) {
            RL_ASSERT(taken == items);
            unsigned opening = content[first + i]($);
            RL_ASSERT(opening + 1 == (unsigned)(word / FTB_OFFER_OPENING_ONE));
            stolen[opening]++;
            run(first + i);
        }
        if (taken_n > 0) {
            ftb_offer_copied(&offer);
        }
    }

    void offer_once(unsigned opening)
    {
        uint32_t ix, stolen_n;
        for (uint32_t i = 0; i < EVENTS_N; i++) {
            content[i]($) = opening;
        }
        ftb_offer_open_local(&offer, items, EVENTS_N, 0);
        run(0);
        if (opening == 1) {
            ftb_offer_keep_local(&offer);
        }
        while (ftb_offer_claim_local(&offer, &ix)) {
            run(ix);
        }
        while (!ftb_offer_try_close_local(&offer, &stolen_n)) {
            ftb_relax();
        }
        RL_ASSERT(stolen_n == stolen[opening]);
        for (uint32_t i = 0; i < EVENTS_N; i++) {
            RL_ASSERT(ran[opening][i] == 1);
        }
    }

    void thread(unsigned ix)
    {
        for (unsigned i = 0; ix == 0 && i < OPENINGS_N; i++) {
            offer_once(i);
        }
        for (int i = 0; ix != 0 && i < TRIES_N; i++) {
            steal();
        }
    }
};

int
main(int argc, char **argv)
{
    return run_model<offer_model>(argc, argv, "offer", 300000, 2);
}

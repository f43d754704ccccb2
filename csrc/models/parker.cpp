/* ftb_parker alone: two wakers that hand something over, one owner. A lost notification is
 * a deadlock, a missing order is a race on what is handed over. */
#include "model.h"

#include "ftb_park.h"

static const unsigned WAKERS_N = 2;

struct parker_model : rl::test_suite<parker_model, WAKERS_N + 1> {
    ftb_parker parker;
    rl::var<uint64_t> gifts[WAKERS_N];
    /* For the model's eyes only: relacy does not see it, so it orders nothing. */
    bool has_unparked[WAKERS_N];

    void before()
    {
        ftb_init(&parker.state, FTB_PARKER_EMPTY);
        for (unsigned i = 0; i < WAKERS_N; i++) {
            gifts[i]($) = 0;
            has_unparked[i] = false;
        }
    }

    void wait_and_look()
    {
        /* Two notes may come as one, and then this one note must order both gifts. */
        bool is_both = has_unparked[0] && has_unparked[1];
        RL_ASSERT(ftb_parker_wait(&parker, FTB_FOREVER) == FTB_OK);
        if (!is_both && (!with_deadlines || ftb_parker_wait(&parker, 0) != FTB_OK)) {
            return; /* one note, of an unknown waker */
        }
        RL_ASSERT(gifts[0]($) == 7 && gifts[1]($) == 7);
    }

    void thread(unsigned ix)
    {
        if (ix == WAKERS_N) {
            wait_and_look();
            return;
        }
        gifts[ix]($) = 7;
        ftb_parker_unpark(&parker);
        has_unparked[ix] = true;
    }
};

int
main(int argc, char **argv)
{
    return run_model<parker_model>(argc, argv, "parker", 1000000, 5);
}

/* ftb_quiet.h: which waits are refused. Threads do not really wait here: what they hold and
 * what they would wait for is all that is looked at. */
#include "fakes.h"

#include "ftb_quiet.h"

enum { THREADS_N = 5 };

struct waiter {
    struct ftb_topic *topic;
    struct fake fake;
    struct ftb_handler *handler;
    struct ftb_quiet_wait wait;
};

struct scene {
    struct waiter waiters[THREADS_N];
    int waits_for[THREADS_N]; /* -1: this one does not wait */
    bool is_refused[THREADS_N];
    pthread_barrier_t step;
    int waiters_n;
    struct ftb_bus *bus;
};

/* In turn: thread i runs its own handler, and begins to wait for another one's. */
static void
scene_body(int ix, void *context)
{
    struct scene *scene = context;
    struct ftb_thread *thread = ftb_thread_current();
    struct waiter *own = &scene->waiters[ix];
    CHECK(ftb_topic_hold(thread, own->topic) != NULL);
    pthread_barrier_wait(&scene->step);
    for (int turn = 0; turn < scene->waiters_n; turn++) {
        if (turn == ix && scene->waits_for[ix] >= 0) {
            struct waiter *other = &scene->waiters[scene->waits_for[ix]];
            cancel(other->handler);
            scene->is_refused[ix] = !ftb_quiet_begin(&own->wait, other->handler);
        }
        pthread_barrier_wait(&scene->step);
    }
    if (scene->waits_for[ix] >= 0 && !scene->is_refused[ix]) {
        ftb_quiet_end(&own->wait);
    }
    ftb_hazard_drop(thread);
}

static void
scene_run(struct scene *scene, int waiters_n)
{
    scene->bus = bus_new();
    scene->waiters_n = waiters_n;
    pthread_barrier_init(&scene->step, NULL, (unsigned)waiters_n);
    for (int i = 0; i < waiters_n; i++) {
        char name[2] = {(char)('a' + i), 0};
        struct waiter *waiter = &scene->waiters[i];
        scene->is_refused[i] = false;
        fake_init(&waiter->fake);
        waiter->topic = topic_of(scene->bus, name);
        waiter->handler = subscribe(waiter->topic, &waiter->fake, 0, 0);
    }
    run_threads(waiters_n, scene_body, scene);
    for (int i = 0; i < waiters_n; i++) {
        ftb_handler_release(scene->waiters[i].handler);
    }
    pthread_barrier_destroy(&scene->step);
    bus_end(scene->bus);
}

/* Bug hunted: a circle that is not seen, or seen by more than who closes it. */
static void
test_circles_are_refused(void)
{
    for (int n = 2; n <= THREADS_N; n++) {
        struct scene scene;
        for (int i = 0; i < n; i++) {
            scene.waits_for[i] = (i + 1) % n;
        }
        scene_run(&scene, n);
        for (int i = 0; i < n; i++) {
            CHECK(scene.is_refused[i] == (i == n - 1));
        }
    }
}

/* The same with the waits begun in the opposite direction. */
static void
test_circles_are_refused_backwards(void)
{
    for (int n = 2; n <= THREADS_N; n++) {
        struct scene scene;
        for (int i = 0; i < n; i++) {
            scene.waits_for[i] = (i + n - 1) % n;
        }
        scene_run(&scene, n);
        for (int i = 0; i < n; i++) {
            CHECK(scene.is_refused[i] == (i == n - 1));
        }
    }
}

/* Bug hunted: a wait that would end, refused: for one's own handler, at the end of a
 * chain, for a handler whose thread is in somebody else's circle, or that has waited. */
static void
test_what_ends_is_not_refused(void)
{
    struct scene chain = {.waits_for = {1, 2, 3, -1, 0}};
    scene_run(&chain, 5);
    struct scene own = {.waits_for = {0, 0, 1, 2, -1}};
    scene_run(&own, 5);
    struct scene others = {.waits_for = {1, 0, 1, 1, 0}};
    scene_run(&others, 5);
    for (int i = 0; i < 5; i++) {
        CHECK(!chain.is_refused[i]);
        CHECK(!own.is_refused[i]);
        CHECK(others.is_refused[i] == (i == 1));
    }
}

/* Bug hunted: waits that have ended, or were refused, and are still looked at. */
static void
test_waits_that_ended_are_forgotten(void)
{
    for (int n = 0; n < 3; n++) {
        struct scene forth = {.waits_for = {1, -1}};
        scene_run(&forth, 2);
        struct scene back = {.waits_for = {-1, 0}};
        scene_run(&back, 2);
        struct scene both = {.waits_for = {1, 0}};
        scene_run(&both, 2);
        CHECK(!forth.is_refused[0] && !back.is_refused[1] && both.is_refused[1]);
    }
}

struct inner {
    struct ftb_topic *topics[2];
    struct ftb_handler *handlers[2];
    pthread_barrier_t step;
};

static void
inner_body(int ix, void *context)
{
    struct inner *inner = context;
    struct ftb_thread *thread = ftb_thread_current();
    struct ftb_quiet_wait wait;
    if (ix == 0) {
        /* Waits for the other; then a signal handler emits. */
        struct ftb_topic *outer = topic_of(inner->topics[0]->bus, "outer");
        struct fake fake;
        fake_init(&fake);
        struct ftb_handler *handler = subscribe(outer, &fake, 0, 0);
        CHECK(ftb_topic_hold(thread, outer) != NULL);
        CHECK(ftb_quiet_begin(&wait, inner->handlers[1]));
        CHECK(ftb_topic_hold(thread, inner->topics[0]) != NULL);
        pthread_barrier_wait(&inner->step);
        pthread_barrier_wait(&inner->step);
        ftb_hazard_drop(thread);
        ftb_quiet_end(&wait);
        ftb_hazard_drop(thread);
        cancel(handler);
        ftb_handler_release(handler);
        while (ftb_load_acquire(&fake.released_n) == 0) {
            ftb_reclaim();
        }
    } else {
        CHECK(ftb_topic_hold(thread, inner->topics[1]) != NULL);
        pthread_barrier_wait(&inner->step);
        CHECK(ftb_quiet_begin(&wait, inner->handlers[0]));
        ftb_quiet_end(&wait);
        pthread_barrier_wait(&inner->step);
        ftb_hazard_drop(thread);
    }
}

/* Bug hunted: what runs in a signal handler taken for what its thread waits in. */
static void
test_what_began_within_a_wait_does_not_count(void)
{
    struct ftb_bus *bus = bus_new();
    struct inner inner = {.topics = {topic_of(bus, "a"), topic_of(bus, "b")}};
    struct fake fakes[2];
    for (int i = 0; i < 2; i++) {
        fake_init(&fakes[i]);
        inner.handlers[i] = subscribe(inner.topics[i], &fakes[i], 0, 0);
    }
    pthread_barrier_init(&inner.step, NULL, 2);
    run_threads(2, inner_body, &inner);
    pthread_barrier_destroy(&inner.step);
    ftb_handler_release(inner.handlers[0]);
    ftb_handler_release(inner.handlers[1]);
    bus_end(bus);
}

/* Bug hunted: a child of a fork that looks at waits of threads which it does not have. */
static void
test_fork_forgets_the_waits(void)
{
    struct ftb_bus *bus = bus_new();
    struct ftb_topic *topic = topic_of(bus, "a");
    struct fake fake;
    fake_init(&fake);
    struct ftb_handler *handler = subscribe(topic, &fake, 0, 0);
    struct ftb_thread *thread = ftb_thread_current();
    struct ftb_quiet_wait wait, later;
    CHECK(ftb_quiet_begin(&wait, handler)); /* this thread runs nothing */
    CHECK(wait.thread == NULL);
    ftb_quiet_end(&wait);
    CHECK(ftb_topic_hold(thread, topic) != NULL);
    CHECK(ftb_quiet_begin(&wait, handler));
    CHECK(wait.thread == thread && wait.depth == 1);
    CHECK(ftb_quiet_begin(&later, handler)); /* in a signal handler: still its own */
    CHECK(later.next == &wait);
    ftb_quiet_end(&later);
    ftb_quiet_after_fork_child();
    CHECK(ftb_quiet_begin(&later, handler));
    CHECK(later.next == NULL);
    ftb_quiet_end(&wait); /* which is in no list any more */
    ftb_quiet_end(&later);
    ftb_hazard_drop(thread);
    ftb_handler_release(handler);
    bus_end(bus);
}

int
main(void)
{
    fakes_begin();
    RUN(test_circles_are_refused);
    RUN(test_circles_are_refused_backwards);
    RUN(test_what_ends_is_not_refused);
    RUN(test_waits_that_ended_are_forgotten);
    RUN(test_what_began_within_a_wait_does_not_count);
    RUN(test_fork_forgets_the_waits);
    return 0;
}

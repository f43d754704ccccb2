"""Guarantee: an emit sees one set of handlers, whoever subscribes meanwhile.

Hunts for a snapshot that is freed under a reader, for one that is changed, and for
handlers that outlive their subscription; above all with PYTHONMALLOC=mimalloc_debug or
under AddressSanitizer.
Mutants: topic-frees-at-once.
"""

import gc
import random
import threading
import weakref
from operator import ge

import pytest
from stressing import WAIT, fresh_seed, scaled

from ftbus import EventBus
from ftbus.testing import eventually, run_threads

EMITTERS = 3
CHURNERS = 2
KEYS = 50


type Event = tuple[int, int]  # the emitter, and which of its emits


class Story:
    """What one pair of handlers saw, and what it had to see; it outlives them."""

    def __init__(self, key: int) -> None:
        self.key = key
        self.runs: tuple[list[Event], list[Event]] = ([], [])
        self.whole: list[range] = []  # of each emitter: begun and ended meanwhile


class Owner:
    """Its two handlers are subscribed together and cancelled together."""

    def __init__(self, story: Story) -> None:
        self.story = story

    def first(self, event: Event) -> None:
        self.story.runs[0].append(event)

    def second(self, event: Event) -> None:
        self.story.runs[1].append(event)


def assert_one_set_each(stories: list[Story], keys_of: list[list[int]]) -> int:
    """Check that no handler ran twice for an event, nor missed one that it lived for.

    Return how many events were emitted while both handlers of a pair lived.
    """
    lived_n = 0
    for story in stories:
        lived = {
            (index, n)
            for index, whole in enumerate(story.whole)
            for n in whole
            if keys_of[index][n] == story.key
        }
        lived_n += len(lived)
        for runs in story.runs:
            assert len(runs) == len(set(runs)), "a handler ran twice for an event"
            assert lived <= set(runs), "an emit passed a handler by"
    return lived_n


@pytest.mark.parametrize("keys", [1, KEYS])
def test_storm_of_subscriptions_during_emits(keys: int, seed: int) -> None:
    drawn = fresh_seed(seed)
    references: list[weakref.ref[Owner]] = []
    stories: list[Story] = []
    keys_of: list[list[int]] = [[] for _ in range(EMITTERS)]  # grow before each emit
    ended = [0] * EMITTERS
    done = threading.Event()
    left = [CHURNERS]
    lock = threading.Lock()
    with EventBus() as bus:
        steady = [0] * EMITTERS

        def always(event: Event) -> None:
            steady[event[0]] += 1

        for key in range(keys):
            bus.on(key, always)

        def let_emits_pass() -> None:
            until = [n + 2 * keys for n in ended]
            eventually(lambda: done.is_set() or all(map(ge, ended, until)), WAIT)

        def churn_once(random_: random.Random) -> None:
            story = Story(random_.randrange(keys))
            owner = Owner(story)
            handlers = [owner.first, owner.second]
            subscriptions = [bus.subscribe(story.key, each) for each in handlers]
            begun = [len(emits) for emits in keys_of]
            with lock:
                references.append(weakref.ref(owner))
                stories.append(story)
            del owner, handlers
            if random_.random() < 0.02:
                let_emits_pass()
            if random_.random() < 0.5:
                subscriptions.reverse()
            story.whole = list(map(range, begun, ended))
            for subscription in subscriptions:
                assert subscription.cancel()

        def churn(index: int) -> None:
            random_ = random.Random(drawn + index)
            try:
                for _ in range(scaled(2000)):
                    churn_once(random_)
                    if random_.random() < 0.01:
                        gc.collect()
            finally:
                with lock:
                    left[0] -= 1
                    if left[0] == 0:
                        done.set()

        def emit(index: int) -> None:
            random_ = random.Random(drawn - index)
            try:
                while not done.is_set():
                    key = random_.randrange(keys)
                    keys_of[index].append(key)
                    assert bus.emit(key, (index, ended[index])) >= 1
                    ended[index] += 1
            finally:
                done.set()  # or who waits for this one's emits would wait on

        def run(index: int) -> None:
            if index < EMITTERS:
                emit(index)
            else:
                churn(index)

        run_threads(EMITTERS + CHURNERS, run)
        # The handler that was always there ran once for every emit.
        assert steady == ended
        lived_n = assert_one_set_each(stories, keys_of)
        assert lived_n > 0
        print(f"{lived_n} emits with a pair that lived before, during and after")
        assert bus.stats().failed == 0
        for key in range(keys):
            assert bus.stats().topic(key).handlers == 1
        gc.collect()
        eventually(lambda: all(reference() is None for reference in references))


def test_blocked_handlers_while_subscribers_churn() -> None:
    with EventBus() as bus:
        leave = threading.Event()
        entered = threading.Semaphore(0)

        def blocks(event: object) -> None:
            entered.release()
            assert leave.wait(WAIT)

        bus.on("key", blocks)
        threads = [threading.Thread(target=bus.emit, args=("key",)) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for _ in threads:
                assert entered.acquire(timeout=WAIT)
            bus.off("key", blocks)
            for _ in range(scaled(3000)):
                with bus.subscribe("key", lambda event: None):
                    assert bus.emit("key") == 1
        finally:
            leave.set()
            for thread in threads:
                thread.join()
        assert bus.emit("key") == 0

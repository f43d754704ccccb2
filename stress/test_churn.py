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

import pytest
from stressing import WAIT, fresh_seed, scaled

from ftbus import EventBus
from ftbus.testing import eventually, run_threads

EMITTERS = 3
CHURNERS = 2
KEYS = 50


class Owner:
    """Its two handlers are subscribed together and cancelled together."""

    def __init__(self, seen: dict[int, int]) -> None:
        self.seen = seen

    def first(self, event: int) -> None:
        self.seen[event] = self.seen.get(event, 0) + 1

    def second(self, event: int) -> None:
        self.seen[event] = self.seen.get(event, 0) - 1


@pytest.mark.parametrize("keys", [1, KEYS])
def test_storm_of_subscriptions_during_emits(keys: int, seed: int) -> None:
    drawn = fresh_seed(seed)
    references: list[weakref.ref[Owner]] = []
    counted = [0] * (EMITTERS + CHURNERS)
    done = threading.Event()
    left = [CHURNERS]
    lock = threading.Lock()
    with EventBus() as bus:
        steady = [0] * EMITTERS

        def always(event: tuple[int, int]) -> None:
            steady[event[0]] += 1

        for key in range(keys):
            bus.on(key, always)

        def churn(index: int) -> None:
            random_ = random.Random(drawn + index)
            for _ in range(scaled(2000)):
                key = random_.randrange(keys)
                owner = Owner({})
                handlers = [owner.first, owner.second]
                subscriptions = [bus.subscribe(key, handle) for handle in handlers]
                with lock:
                    references.append(weakref.ref(owner))
                del owner, handlers
                if random_.random() < 0.5:
                    subscriptions.reverse()
                for subscription in subscriptions:
                    assert subscription.cancel()
                del subscriptions, subscription
                if random_.random() < 0.01:
                    gc.collect()
            with lock:
                left[0] -= 1
                if left[0] == 0:
                    done.set()

        def emit(index: int) -> None:
            random_ = random.Random(drawn - index)
            while not done.is_set():
                ran = bus.emit(random_.randrange(keys), (index, counted[index]))
                counted[index] += 1
                assert ran >= 1

        def run(index: int) -> None:
            if index < EMITTERS:
                emit(index)
            else:
                churn(index)

        run_threads(EMITTERS + CHURNERS, run)
        # The handler that was always there ran once for every emit.
        assert steady == counted[:EMITTERS]
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

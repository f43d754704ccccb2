"""Guarantee: a once-handler runs exactly once, and a cancelled one never again.

Hunts for two emits that both claim a once-handler, for a claim that is lost between a
call and its cancellation, and for a handler that starts after cancel(wait=True) has
returned.
Mutants: py-once-claimed-twice, py-cancel-waits-for-nobody.
"""

import random
import threading

import pytest
from stressing import WAIT, assert_conserved, fresh_seed, scaled

from ftbus import EventBus
from ftbus.testing import run_threads

THREADS = 4


def test_once_runs_exactly_once_whatever_reaches_it(seed: int) -> None:
    random_ = random.Random(fresh_seed(seed))
    for _ in range(scaled(100)):
        lock, runs = threading.Lock(), [0]

        def handler(event: object, runs: list[int] = runs, lock: object = lock) -> None:
            with lock:  # type: ignore[attr-defined]
                runs[0] += 1

        verbs = [random_.choice(["emit", "post", "call"]) for _ in range(THREADS)]
        with EventBus(workers=2) as bus:
            bus.once("key", handler)

            def reach(
                index: int, bus: EventBus = bus, verbs: list[str] = verbs
            ) -> None:
                getattr(bus, verbs[index])("key")

            run_threads(THREADS, reach)
            assert bus.drain(WAIT)
            assert runs == [1], verbs
            assert bus.stats().topic("key").handlers == 0
            assert_conserved(bus)


def test_once_that_is_cancelled_meanwhile_runs_at_most_once(seed: int) -> None:
    random_ = random.Random(fresh_seed(seed))
    ran_n = cancelled_n = 0
    for _ in range(scaled(200)):
        ran: list[object] = []
        with EventBus(workers=2) as bus:
            subscription = bus.subscribe("key", ran.append, once=True)
            verb = random_.choice(["emit", "post", "call"])

            def act(
                index: int,
                bus: EventBus = bus,
                verb: str = verb,
                subscription: object = subscription,
            ) -> object:
                if index == 0:
                    return subscription.cancel()  # type: ignore[attr-defined]
                return getattr(bus, verb)("key")

            was_cancelled = run_threads(2, act)[0]
            assert bus.drain(WAIT)
            # Both may claim to have been first only if the handler was running already.
            assert len(ran) <= 1
            assert ran or was_cancelled
            ran_n += len(ran)
            cancelled_n += bool(was_cancelled)
    print(f"{ran_n} ran, {cancelled_n} were cancelled")


@pytest.mark.parametrize("verb", ["emit", "post"])
def test_nothing_starts_after_cancel_with_wait(verb: str, seed: int) -> None:
    del seed  # nothing is drawn: the threads' timing is the only choice
    with EventBus(workers=2) as bus:
        stop = threading.Event()

        def reach() -> None:
            while not stop.is_set():
                getattr(bus, verb)("key")
                if verb == "post" and bus.stats().pending > 1000:
                    bus.drain(WAIT)

        threads = [threading.Thread(target=reach) for _ in range(2)]
        lates: list[list[int]] = []
        for thread in threads:
            thread.start()
        try:
            for n in range(scaled(300)):
                is_over, late, is_met = [False], [0], threading.Event()
                lates.append(late)  # it may come long after

                def handler(
                    event: object,
                    is_over: list[bool] = is_over,
                    late: list[int] = late,
                    is_met: threading.Event = is_met,
                ) -> None:
                    is_met.set()
                    for _ in range(100):  # long enough to be met in the middle
                        late[0] += is_over[0]

                subscription = bus.subscribe("key", handler)
                if n % 2:  # from then on the threads are in it most of the time
                    assert is_met.wait(WAIT)
                assert subscription.cancel(wait=True)
                is_over[0] = True
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert bus.drain(WAIT)
        assert lates == [[0]] * len(lates)

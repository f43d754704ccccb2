"""One posted event whose handlers idle workers share."""

import contextvars
import threading
import weakref
from typing import Any

import pytest
from dispatching import WAIT

from ftbus import EventBus
from ftbus.testing import eventually


def meet_in_handlers(bus: EventBus, handlers_n: int) -> bool:
    """Post one event; return whether all its handlers were running at once.

    They may not be, if the other workers are not asleep yet.
    """
    barrier = threading.Barrier(handlers_n)
    met: list[bool] = []

    def handler(event: object) -> None:
        try:
            barrier.wait(0.05)
            met.append(True)
        except threading.BrokenBarrierError:
            pass

    subscriptions = [bus.subscribe("meet", handler) for _ in range(handlers_n)]
    bus.post("meet")
    assert bus.drain(WAIT)
    for subscription in subscriptions:
        subscription.cancel()
    return len(met) == handlers_n


@pytest.mark.parametrize("workers", [2, 4])
def test_idle_workers_share_the_handlers_of_one_event(workers: int) -> None:
    with EventBus(workers=workers) as bus:
        bus.post("start")
        eventually(lambda: meet_in_handlers(bus, workers))
        stats = bus.stats().topic("meet")
        assert stats.posted == stats.delivered
        assert stats.handled == stats.posted * workers
        assert stats.failed == 0


def test_handlers_of_an_event_in_a_partition_run_one_after_another() -> None:
    with EventBus(workers=4) as bus:
        running, most = [0], [0]
        lock = threading.Lock()

        def handler(event: object) -> None:
            with lock:
                running[0] += 1
                most[0] = max(most[0], running[0])
            threading.Event().wait(0.0005)
            with lock:
                running[0] -= 1

        for _ in range(4):
            bus.on("key", handler)
        for _ in range(50):
            bus.post("key", partition="one")
        assert bus.drain(WAIT)
        assert most == [1]


def blocked_share(bus: EventBus) -> tuple[threading.Event, threading.Event, Any]:
    """Post an event of two handlers: one has been entered and waits, one is done."""
    entered, leave, done = threading.Event(), threading.Event(), threading.Event()

    def waits(event: object) -> None:
        entered.set()
        assert leave.wait(WAIT)

    first = bus.subscribe("key", waits)
    bus.on("key", lambda event: done.set())
    return entered, leave, (first, done)


def test_event_is_finished_with_its_last_handler() -> None:
    with EventBus(workers=2) as bus:
        eventually(lambda: meet_in_handlers(bus, 2))
        entered, leave, (_, done) = blocked_share(bus)
        bus.post("key")
        try:
            assert entered.wait(WAIT)
            assert not bus.drain(0)
            assert bus.stats().pending == 1
            assert bus.stats().topic("key").delivered == 0
        finally:
            leave.set()
        assert bus.drain(WAIT)
        assert done.is_set()
        assert bus.stats().pending == 0
        assert bus.stats().topic("key").delivered == 1


def test_worker_that_is_done_with_its_share_goes_on() -> None:
    with EventBus(workers=2) as bus:
        eventually(lambda: meet_in_handlers(bus, 2))
        entered, leave, (_, done) = blocked_share(bus)
        other = threading.Event()
        bus.on("other", lambda event: other.set())
        bus.post("key")
        try:
            assert entered.wait(WAIT)
            bus.post("other")
            assert other.wait(WAIT)
        finally:
            leave.set()


def test_cancel_with_wait_waits_for_a_share_that_runs() -> None:
    with EventBus(workers=2) as bus:
        eventually(lambda: meet_in_handlers(bus, 2))
        entered, leave, (subscription, _) = blocked_share(bus)
        bus.post("key")
        waited: list[bool] = []

        def cancel() -> None:
            subscription.cancel(wait=True)
            waited.append(leave.is_set())

        thread = threading.Thread(target=cancel)
        try:
            assert entered.wait(WAIT)
            thread.start()
            eventually(lambda: not subscription.active)
            assert waited == []
        finally:
            leave.set()
        thread.join()
        assert waited == [True]


def test_failures_of_shares_are_reported_each() -> None:
    failed: list[tuple[str, object]] = []

    def on_error(error: BaseException, key: object, handler: object) -> None:
        failed.append((str(error), key))

    with EventBus(workers=3, on_error=on_error) as bus:

        def fails(event: object) -> None:
            raise ValueError(event)

        for _ in range(3):
            bus.on("key", fails)
        for i in range(200):
            bus.post("key", i)
        assert bus.drain(WAIT)
        stats = bus.stats().topic("key")
    assert sorted(failed) == sorted((str(i), "key") for i in range(200) for _ in "abc")
    assert (stats.delivered, stats.handled, stats.failed) == (200, 600, 600)


def test_event_and_handlers_are_let_go_after_the_last_share() -> None:
    class Thing:
        def handle(self, event: object) -> None:
            pass

    with EventBus(workers=3) as bus:
        references = []
        for _ in range(100):
            event, owners = Thing(), [Thing() for _ in range(3)]
            references += [weakref.ref(thing) for thing in (event, *owners)]
            subscriptions = [bus.subscribe("key", owner.handle) for owner in owners]
            bus.post("key", event)
            del event, owners
            assert bus.drain(WAIT)
            for subscription in subscriptions:
                subscription.cancel()
            del subscriptions, subscription
        eventually(lambda: all(reference() is None for reference in references))


def test_handlers_that_drain_do_not_wait_for_each_other() -> None:
    with EventBus(workers=3) as bus:
        drained: list[bool] = []
        for _ in range(3):
            bus.on("key", lambda event: drained.append(bus.drain(WAIT)))
        for _ in range(20):
            bus.post("key")
        assert bus.drain(WAIT)
        assert drained == [True] * 60


def test_shares_see_the_posters_context_variables() -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable")
    with EventBus(workers=3) as bus:
        seen: list[int] = []
        lock = threading.Lock()

        def handler(event: int) -> None:
            with lock:
                seen.append(variable.get() - event)

        for _ in range(3):
            bus.on("key", handler)

        def post_all() -> None:
            for i in range(200):
                variable.set(i)
                bus.post("key", i)

        contextvars.Context().run(post_all)  # the test's own would keep the variable
        assert bus.drain(WAIT)
        assert seen == [0] * 600

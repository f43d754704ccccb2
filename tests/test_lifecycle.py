"""What is collected, let go and allocated, with threads and buses that come and go."""

import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from builds import IS_INSTRUMENTED
from dispatching import WAIT, Owner

from ftbus import EventBus, _core, lifecycle
from ftbus.testing import eventually, no_leaks, run_threads

# Handlers here are closures and bound methods: CPython 3.13t never frees functions and
# classes of a module once a thread was started.


# Collection


def is_dead(reference: Callable[[], object]) -> bool:
    gc.collect()
    return reference() is None


def test_handler_that_refers_to_the_bus_is_collectable_after_off() -> None:
    with EventBus() as bus:
        owner = Owner()
        reference = weakref.ref(owner)
        bus.on("key", lambda event, owner=owner: bus.emit("other", owner))
        del owner
        assert not is_dead(reference)
        bus.off("key")
        assert is_dead(reference)


def test_handler_that_refers_to_the_bus_is_collectable_after_close() -> None:
    bus = EventBus(workers=1)
    owner = Owner()
    reference = weakref.ref(owner)
    subscription = bus.subscribe("key", lambda event, owner=owner: bus.emit("x", owner))
    bus.post("key")
    del owner
    bus.close()
    assert not is_dead(reference)  # by the subscription
    del subscription
    assert is_dead(reference)


def test_bus_and_handlers_are_collectable_as_a_cycle() -> None:
    def make() -> list[Any]:
        bus = EventBus()
        owner = Owner()
        owner.bus = bus  # type: ignore[attr-defined]
        owner.topic = bus.topic("key")  # type: ignore[attr-defined]
        owner.subscription = bus.subscribe(  # type: ignore[attr-defined]
            "key", owner.handle
        )
        bus.on("weak", owner.handle, weak=True)
        bus.once("once", lambda event, owner=owner: owner)
        bus.emit("key")
        cancelled = bus.subscribe("key", lambda event, owner=owner: None)
        owner.cancelled = cancelled  # type: ignore[attr-defined]
        cancelled.cancel()
        return [weakref.ref(bus), weakref.ref(owner), weakref.ref(owner.topic)]  # type: ignore[attr-defined]

    for reference in make():
        assert is_dead(reference)


def test_closed_bus_with_workers_is_collectable() -> None:
    def make() -> Any:
        with EventBus(workers=2) as bus:
            bus.on("key", lambda event: bus.stats())
            bus.post("key")
            return weakref.ref(bus)

    reference = make()
    eventually(lambda: is_dead(reference))


def test_close_lets_every_handler_go() -> None:
    bus = EventBus(workers=1)
    owners = [Owner() for _ in range(20)]
    references = [weakref.ref(owner) for owner in owners]
    for n, owner in enumerate(owners):
        bus.on(n % 5, owner.handle, once=n % 2 == 0)
        bus.topic(n).emit()
    bus.close()
    owners.clear()
    del owner
    gc.collect()
    assert [reference() for reference in references] == [None] * 20


def test_dropped_payloads_are_let_go() -> None:
    gate = threading.Event()
    with EventBus(workers=1, queue_size=2, overflow="drop_oldest") as bus:
        entered = threading.Event()
        bus.on("gate", lambda event: (entered.set(), gate.wait(WAIT)))
        bus.post("gate")
        assert entered.wait(WAIT)
        references = []
        for n in range(10):
            payload = Owner()
            references.append(weakref.ref(payload))
            bus.post("key", payload, partition="p" if n % 2 else None)
        del payload
        gc.collect()
        assert sum(reference() is not None for reference in references) == 2
        gate.set()
        assert bus.drain(WAIT)
        eventually(lambda: all(reference() is None for reference in references))


def test_storm_of_subscriptions_leaves_nothing() -> None:
    with EventBus() as bus, no_leaks():

        def churn(index: int) -> None:
            for n in range(500):
                owner = Owner()
                subscription = bus.subscribe(n % 7, owner.handle, weak=n % 3 == 0)
                bus.on("shared", owner.handle, once=True)
                bus.emit(n % 7, owner)
                bus.emit("shared")
                if n % 2:
                    subscription.cancel()
                else:
                    bus.off(n % 7, owner.handle)

        run_threads(4, churn)
        bus.off("shared")
        for n in range(7):
            bus.off(n)


def test_no_leaks_sees_a_handler_that_is_left() -> None:
    with EventBus() as bus:
        with pytest.raises(AssertionError, match="1 handlers"), no_leaks(within=0):
            bus.on("key", lambda event: None)
        with pytest.raises(LookupError), no_leaks(within=0):
            bus.on("key", lambda event: None)
            raise LookupError


def test_live_handlers_counts_all_buses() -> None:
    with no_leaks():
        before = _core.live_handlers()
        with EventBus() as one, EventBus() as two:
            for bus in (one, two):
                bus.on("key", lambda event: None)
            assert _core.live_handlers() >= before + 2


# Allocation and threads


@pytest.mark.thread_unsafe(reason="starts a process")
def test_emit_allocates_no_objects(python: Any) -> None:
    done = python(
        """
import gc, sys, ftbus
bus = ftbus.EventBus()
class Event: pass
bus.on("key", lambda event: None)
bus.on("key", [].__contains__)
bus.on(Event, lambda event: None)
topic, event, shared = bus.topic("key"), Event(), object()
def steady():
    for _ in range(100_000):
        bus.emit("key", shared)
    for _ in range(10_000):
        topic.emit(shared)
        bus.emit(event)
        bus.emit("nobody")
    gc.collect()
steady()
before = sys.getallocatedblocks()
steady()
print(abs(sys.getallocatedblocks() - before))
bus.close()
"""
    )
    assert done.returncode == 0, done.stderr
    # CPython's free lists make some of difference; one object per emit makes 10,000.
    assert int(done.stdout) < 100


def test_records_of_short_threads_are_used_again() -> None:
    with EventBus() as bus:
        bus.on("key", lambda event: None)

        def emit_once() -> None:
            thread = threading.Thread(target=bus.emit, args=("key",))
            thread.start()
            thread.join()

        def churn(index: int) -> None:
            for _ in range(250):
                emit_once()

        run_threads(4, churn)
        assert bus.stats().handled == 1000


@pytest.mark.thread_unsafe(reason="reads the memory of the process")
def test_thread_churn_does_not_grow() -> None:
    psutil = pytest.importorskip("psutil")
    with EventBus() as bus:
        bus.on("key", lambda event: None)

        def churn(n: int) -> int:
            for _ in range(n):
                thread = threading.Thread(target=bus.emit, args=("key",))
                thread.start()
                thread.join()
            gc.collect()
            return psutil.Process().memory_info().rss

        churn(100)
        before = churn(100)
        grown = churn(500) - before
        assert IS_INSTRUMENTED or grown < 4 << 20


def test_many_buses_come_and_go() -> None:
    def work(index: int) -> None:
        for n in range(30):
            with EventBus(workers=1) as bus:
                bus.on("key", lambda event: None)
                assert bus.emit("key") == 1
                if n % 5 == 0:
                    bus.post("key")

    before = len(lifecycle.buses.live())
    run_threads(4, work)
    gc.collect()
    eventually(lambda: len(lifecycle.buses.live()) <= before)

"""Cancelling while the handler runs, and who lets go of what."""

import gc
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from dispatching import WAIT, Owner

from ftbus import EventBus
from ftbus.testing import eventually


@contextmanager
def blocked_handler(bus: EventBus) -> Iterator[tuple[Any, threading.Event]]:
    """Subscribe a handler that has been entered by an emit and waits for the event."""
    entered, leave, left = threading.Event(), threading.Event(), threading.Event()

    def handler(event: object) -> None:
        entered.set()
        assert leave.wait(WAIT)
        left.set()

    subscription = bus.subscribe("key", handler)
    thread = threading.Thread(target=bus.emit, args=("key",))
    thread.start()
    try:
        assert entered.wait(WAIT)
        yield subscription, left
    finally:
        leave.set()
        thread.join()
        assert left.is_set()


def test_cancel_without_wait_returns_while_the_handler_runs() -> None:
    with EventBus() as bus, blocked_handler(bus) as (subscription, left):
        assert subscription.cancel()
        assert not left.is_set()
        assert bus.emit("key") == 0


@pytest.mark.parametrize("verb", ["emit", "post", "call"])
def test_cancel_with_wait_returns_after_the_last_call(verb: str) -> None:
    with EventBus(workers=2) as bus:
        for _ in range(20):
            running = [0]
            lock = threading.Lock()
            entered = threading.Event()

            def handler(
                event: object, lock: Any = lock, running: Any = running
            ) -> None:
                with lock:
                    running[0] += 1
                entered.set()
                threading.Event().wait(0.001)
                with lock:
                    running[0] -= 1

            subscription = bus.subscribe("key", handler)
            stop = threading.Event()

            def fire(index: int, stop: Any = stop) -> None:
                while not stop.is_set():
                    result = getattr(bus, verb)("key")
                    if verb == "call":
                        result.result(WAIT)

            threads = [threading.Thread(target=fire, args=(n,)) for n in range(2)]
            for thread in threads:
                thread.start()
            assert entered.wait(WAIT)
            assert subscription.cancel(wait=True)
            ran_on = running[0]
            stop.set()
            for thread in threads:
                thread.join()
            assert ran_on == 0
            assert bus.drain(WAIT)
            assert running[0] == 0


def test_cancel_with_wait_waits_for_the_call_that_runs() -> None:
    with EventBus() as bus, blocked_handler(bus) as (subscription, left):
        waited: list[bool] = []

        def cancel() -> None:
            subscription.cancel(wait=True)
            waited.append(left.is_set())

        thread = threading.Thread(target=cancel)
        thread.start()
        eventually(lambda: not subscription.active)
        assert waited == []
    thread.join()
    assert waited == [True]


def test_cancel_with_wait_is_not_held_up_by_other_keys_and_later_emits() -> None:
    with EventBus() as bus, blocked_handler(bus):
        other = bus.subscribe("other", lambda event: None)
        bus.emit("other")
        assert other.cancel(wait=True)


def test_blocked_handler_holds_up_only_what_it_may_still_use() -> None:
    with EventBus() as bus:
        first = Owner()
        bus.on("key", first.handle)
        kept = weakref.ref(first)
        del first
        with blocked_handler(bus) as (subscription, _):
            references = []
            for _ in range(1000):  # each replaces the snapshot that the next emit sees
                owner = Owner()
                references.append(weakref.ref(owner))
                with bus.subscribe("key", owner.handle):
                    pass
                del owner
            eventually(lambda: all(reference() is None for reference in references))
            bus.off("key")
            assert kept() is not None  # in the snapshot that the blocked emit walks
            assert not subscription.active
        eventually(lambda: kept() is None)


def test_handler_may_cancel_itself_with_wait() -> None:
    with EventBus() as bus:
        own = bus.subscribe("key", lambda event: own.cancel(wait=True))
        assert bus.emit("key") == 1
        assert not own.active


def test_cancelled_handler_is_let_go_when_the_last_emit_ends() -> None:
    with EventBus() as bus:
        owner = Owner()
        reference = weakref.ref(owner)
        own = bus.subscribe("key", owner.handle)
        bus.on("key", lambda event: own.cancel(), priority=1)  # noqa: F821 (del below)
        bus.emit("key")
        del owner, own
        gc.collect()
        assert reference() is None


def test_handler_that_refers_to_its_own_subscription_is_collectable() -> None:
    with EventBus() as bus:
        owner = Owner()
        reference = weakref.ref(owner)

        def handler(event: object, owner: Owner = owner) -> None:
            own.cancel()  # noqa: F821 (del below)

        own = bus.subscribe("key", handler)
        bus.emit("key")
        del owner, own, handler
        gc.collect()
        assert reference() is None


def test_payload_is_let_go_with_its_last_handler() -> None:
    with EventBus(workers=1) as bus:
        bus.on("key", lambda event: None)
        for use in (bus.emit, bus.post, bus.call):
            payload = Owner()
            reference = weakref.ref(payload)
            result = use("key", payload)
            del payload, result
            assert bus.drain(WAIT)
            eventually(lambda reference=reference: reference() is None)

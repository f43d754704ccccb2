"""Subscriptions: once, weak, cancelling while they run, and async handlers."""

import asyncio
import functools
import gc
import operator
import threading
import types
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ftbus import (
    CodecError,
    EventBus,
    HandlerErrors,
    HandlerTypeError,
    InvalidOptionError,
    handlers,
)
from ftbus.testing import eventually, run_threads

WAIT = 30  # seconds; only a hang takes that long


class Owner:
    """An object with a handler; made in the tests, so that it can die."""

    def __init__(self) -> None:
        self.seen: list[object] = []

    def handle(self, event: object) -> None:
        self.seen.append(event)


# once


def test_once_runs_once() -> None:
    with EventBus() as bus:
        seen: list[object] = []
        subscription = bus.subscribe("key", seen.append, once=True)
        assert bus.emit("key", 1) == 1
        assert not subscription.active
        assert bus.emit("key", 2) == 0
        assert not subscription.cancel()
        assert bus.off("key") == 0
        assert seen == [1]


@pytest.mark.parametrize("verb", ["emit", "post", "call", "mixed"])
def test_once_runs_exactly_once_across_threads(verb: str) -> None:
    with EventBus(workers=3) as bus:
        rounds = 50
        seen: list[tuple[int, int]] = []
        bus.on("key", lambda event: None)

        def fire(index: int, number: int) -> None:
            event = (index, number)
            chosen = ("emit", "post", "call")[index % 3] if verb == "mixed" else verb
            result = getattr(bus, chosen)("key", event)
            if chosen == "call":
                result.result(WAIT)

        for number in range(rounds):
            bus.once("key", seen.append)
            bus.on("key", lambda event: None, once=True, priority=1)
            run_threads(4, lambda index, number=number: fire(index, number))
            assert bus.drain(WAIT)
            assert len(seen) == number + 1
            assert bus.stats().topic("key").handlers == 1


def test_once_that_fails_is_spent() -> None:
    with EventBus() as bus:

        @bus.once("key")
        def fail(event: object) -> None:
            raise ValueError

        with pytest.raises(HandlerErrors):
            bus.emit("key")
        assert bus.emit("key") == 0


def test_once_that_emits_its_own_key_runs_once() -> None:
    with EventBus() as bus:
        seen: list[object] = []

        @bus.once("key")
        def again(event: int) -> None:
            seen.append(event)
            bus.emit("key", event + 1)

        bus.emit("key", 1)
        assert seen == [1]


def test_once_that_could_not_be_encoded_for_waits_for_the_next_event() -> None:
    with EventBus() as bus:
        seen: list[bytes] = []
        bus.once("key", lambda event: seen.append(bytes(event)), encoded=True)
        for use in (bus.emit, bus.call):
            with pytest.raises((HandlerErrors, CodecError)):
                use("key", object())
        assert bus.emit("key", [1]) == 1
        assert seen == [b"[1]"]


def test_once_is_let_go_after_it_ran() -> None:
    with EventBus() as bus:
        owner = Owner()
        reference = weakref.ref(owner)
        bus.once("key", owner.handle)
        del owner
        assert reference() is not None
        bus.emit("key")
        gc.collect()
        assert reference() is None


# weak


def test_weak_method_does_not_keep_its_object() -> None:
    with EventBus() as bus:
        owner = Owner()
        subscription = bus.subscribe("key", owner.handle, weak=True)
        assert subscription.handler == owner.handle
        assert bus.emit("key", 1) == 1
        assert owner.seen == [1]
        del owner
        gc.collect()
        assert bus.emit("key", 2) == 0
        assert subscription.handler is None
        assert not subscription.active
        assert bus.stats().topic("key").handlers == 0


def test_weak_callable_object_may_die() -> None:
    class Function:
        def __call__(self, event: object) -> None:
            seen.append(event)

    with EventBus() as bus:
        seen: list[object] = []
        function = Function()
        bus.on("key", function, weak=True)
        bus.emit("key", 1)
        assert bus.off("key", function) == 1
        bus.on("key", function, weak=True)
        del function
        gc.collect()
        assert bus.emit("key", 2) == 0
        assert seen == [1]


def test_weak_handler_is_kept_while_it_runs() -> None:
    class Suicidal:
        def handle(self, event: object) -> None:
            owners.clear()
            gc.collect()
            seen.append(self.name)

        name = "alive"

    with EventBus() as bus:
        seen: list[str] = []
        owners = [Suicidal()]
        bus.on("key", owners[0].handle, weak=True)
        assert bus.emit("key") == 1
        assert bus.emit("key") == 0
        assert seen == ["alive"]


def test_off_finds_weak_handlers_by_identity() -> None:
    with EventBus() as bus:
        one, two = Owner(), Owner()
        bus.on("key", one.handle, weak=True)
        bus.on("key", two.handle, weak=True)
        bus.on("key", one.handle)
        assert bus.off("key", one.handle) == 2
        assert bus.emit("key", 1) == 1
        assert two.seen == [1]


def test_weak_and_once_together() -> None:
    with EventBus(workers=1) as bus:
        owner = Owner()
        bus.on("key", owner.handle, weak=True, once=True)
        assert bus.emit("key", 1) == 1
        assert bus.emit("key", 2) == 0
        bus.on("key", owner.handle, weak=True, once=True)
        assert bus.call("key", 3).result(WAIT) == [None]
        assert bus.call("key", 4).result(WAIT) == []
        assert owner.seen == [1, 3]


@pytest.mark.parametrize(
    "handler",
    [
        lambda event: None,
        [].append,
        types.SimpleNamespace(a=lambda event: None).a,
        int.__add__.__get__(1),
    ],
    ids=["lambda", "builtin method", "lambda in object", "slot wrapper"],
)
def test_weak_refuses_what_nothing_else_keeps(handler: Any) -> None:
    with EventBus() as bus:
        with pytest.raises(InvalidOptionError) as caught:
            bus.on("key", handler, weak=True)
        assert caught.value.option == "weak"
        assert caught.value.value is handler
        assert bus.stats().topic("key").handlers == 0


def test_weak_refuses_objects_without_weak_references() -> None:
    class Slotted:
        __slots__ = ()

        def handle(self, event: object) -> None:
            pass

    with EventBus() as bus, pytest.raises(InvalidOptionError, match="Slotted"):
        bus.on("key", Slotted().handle, weak=True)


def test_weak_objects_that_die_while_others_emit_and_look_for_them() -> None:
    """Their callbacks take the lock under which off() compares: no deadlock."""
    with EventBus() as bus:
        stop = threading.Event()
        kept = Owner()

        def die(index: int) -> None:
            for _ in range(400):
                owners = [Owner() for _ in range(4)]
                for owner in owners:
                    bus.on("key", owner.handle, weak=True)
            stop.set()

        def look(index: int) -> None:
            while not stop.is_set():
                bus.emit("key", index)
                assert bus.off("key", kept.handle) == 0

        run_threads(4, lambda index: die(index) if index < 2 else look(index))
        gc.collect()
        assert bus.emit("key") == 0


# cancel(wait=True)


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


# What is no handler


@pytest.mark.parametrize("handler", [1, "print", object(), []])
@pytest.mark.parametrize("weak", [False, True])
def test_handler_that_cannot_be_called_is_refused(handler: Any, weak: bool) -> None:
    with EventBus() as bus:
        for use in (bus.on, bus.subscribe, bus.once):
            with pytest.raises(HandlerTypeError) as caught:
                use("key", handler, weak=weak)
            assert caught.value.handler is handler
            assert caught.value.key == "key"
            assert isinstance(caught.value, TypeError)
        assert bus.emit("key") == 0


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("priority", 2**31),
        ("priority", -(2**31) - 1),
        ("priority", 2**100),
        ("priority", 1.5),
        ("priority", "1"),
        ("priority", None),
        ("priority", True),
        ("loop", 5),
    ],
)
def test_invalid_options_of_subscribe_are_refused(option: str, value: Any) -> None:
    async def coroutine(event: object) -> None:
        pass

    handler = coroutine if option == "loop" else print
    with EventBus() as bus:
        with pytest.raises(InvalidOptionError) as caught:
            bus.subscribe("key", handler, **{option: value})
        assert caught.value.option == option
        assert caught.value.value is value
        assert bus.stats().topic("key").handlers == 0


def test_all_kinds_of_callables_are_handlers() -> None:
    class Static:
        @staticmethod
        def static(event: object) -> None:
            seen.append("static")

        @classmethod
        def of_class(cls, event: object) -> None:
            seen.append("class")

        def __call__(self, event: object) -> None:
            seen.append("call")

    @functools.singledispatch
    def by_type(event: object) -> None:
        raise AssertionError("the event is a str")

    @by_type.register
    def _(event: str) -> None:
        seen.append("text")

    with EventBus() as bus:
        seen: list[Any] = []
        for handler in (
            Static().static,
            Static.of_class,
            Static(),
            functools.partial(seen.append),
            seen.append,
            types.MethodType(list.append, seen),
            lambda *events: seen.append(len(events)),
            by_type,
            operator.itemgetter(0),
            len,
            Owner,  # whose __init__ takes nothing
        ):
            bus.on("key", handler)
            assert bus.off("key", handler) == 1
            bus.on("key", handler)
        with pytest.raises(HandlerErrors) as caught:
            bus.emit("key", "event")
        assert [type(error) for error in caught.value.exceptions] == [TypeError]
        assert "Owner" in str(caught.value.exceptions[0])
        assert caught.value.ran == 11
        assert seen == ["static", "class", "call", *["event"] * 3, 1, "text"]


def test_method_of_an_object_that_nothing_else_keeps_is_a_handler() -> None:
    with EventBus() as bus:
        owner = Owner()
        reference, seen = weakref.ref(owner), owner.seen
        bus.on("key", owner.handle)
        del owner
        bus.emit("key", 1)
        assert seen == [1]
        assert reference() is not None
        bus.off("key")
        assert reference() is None


def test_method_may_be_removed_by_the_object_that_dies_in_it() -> None:
    with EventBus() as bus:
        seen: list[object] = []

        class Last:
            def handle(self, event: object) -> None:
                bus.off("key")
                seen.append(event)

            def __del__(self) -> None:
                seen.append(bus.emit("key"))

        bus.on("key", Last().handle)
        assert bus.emit("key", "event") == 1
        assert seen == ["event", 0]


# async


def test_async_handler_runs_on_the_loop_it_was_registered_from() -> None:
    with EventBus(workers=2) as bus:
        seen: list[tuple[object, bool]] = []

        async def main() -> None:
            loop, done = asyncio.get_running_loop(), asyncio.Event()

            @bus.on("key")
            async def handler(event: int) -> None:
                seen.append((event, asyncio.get_running_loop() is loop))
                if len(seen) == 6:
                    done.set()

            assert bus.emit("key", 0) == 1
            bus.post("key", 1)
            await asyncio.to_thread(run_threads, 4, lambda n: bus.emit("key", n + 2))
            await asyncio.wait_for(done.wait(), WAIT)

        asyncio.run(main())
        assert sorted(seen) == [(n, True) for n in range(6)]


def test_async_handlers_share_one_wake_up() -> None:
    with EventBus() as bus:
        wakes = [0]

        class Loop(asyncio.SelectorEventLoop):
            def call_soon_threadsafe(self, *args: Any, **kwargs: Any) -> Any:
                wakes[0] += 1
                return super().call_soon_threadsafe(*args, **kwargs)

        async def main() -> list[int]:
            seen: list[int] = []

            async def handler(event: int) -> None:
                seen.append(event)

            bus.on("key", handler)
            for n in range(500):  # without giving the loop a chance
                bus.emit("key", n)
            while len(seen) < 500:
                await asyncio.sleep(0)
            return seen

        with asyncio.Runner(loop_factory=Loop) as runner:
            seen = runner.run(main())
        assert seen == list(range(500))
        assert wakes[0] <= 3


def test_async_handler_takes_a_loop() -> None:
    with EventBus() as bus:
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        seen: list[object] = []

        async def handler(event: object) -> None:
            seen.append((event, threading.current_thread() is thread))

        bus.on("key", handler, loop=loop)
        bus.emit("key", 1)
        eventually(lambda: seen == [(1, True)])
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_async_handler_without_a_loop_is_refused() -> None:
    async def handler(event: object) -> None:
        pass

    with EventBus() as bus:
        with pytest.raises(InvalidOptionError) as caught:
            bus.on("key", handler)
        assert caught.value.option == "loop"
        loop = asyncio.new_event_loop()
        with pytest.raises(InvalidOptionError):
            bus.on("key", handler, loop=loop, weak=True)
        with pytest.raises(InvalidOptionError):
            bus.on("key", print, loop=loop)
        loop.close()


def test_async_callable_object_and_partial_are_async_handlers() -> None:
    class Function:
        async def __call__(self, event: object) -> None:
            seen.append(("object", event))

    async def function(prefix: str, event: object) -> None:
        seen.append((prefix, event))

    seen: list[object] = []
    with EventBus() as bus:

        async def main() -> None:
            bus.on("key", Function())
            bus.on("key", functools.partial(function, "partial"))
            assert bus.emit("key", 1) == 2
            while len(seen) < 2:
                await asyncio.sleep(0)

        asyncio.run(main())
    assert seen == [("object", 1), ("partial", 1)]


def test_async_handler_on_a_closed_loop_is_a_failure_each_time() -> None:
    async def handler(event: object) -> None:
        pass

    with EventBus() as bus:
        loop = asyncio.new_event_loop()
        bus.on("key", handler, loop=loop)
        bus.emit("key")  # waits for a loop that never runs
        loop.close()
        for _ in range(3):
            with pytest.raises(HandlerErrors) as caught:
                bus.emit("key")
            assert isinstance(caught.value.exceptions[0], RuntimeError)
        assert bus.off("key", handler) == 1


def test_async_handler_failure_goes_to_on_error() -> None:
    errors: list[tuple[Any, Any, Any]] = []
    with EventBus(on_error=lambda *args: errors.append(args)) as bus:

        async def handler(event: object) -> None:
            raise ValueError(event)

        async def main() -> None:
            bus.on("key", handler)
            assert bus.emit("key", 5) == 1
            while not errors:
                await asyncio.sleep(0)

        asyncio.run(main())
    ((error, key, function),) = errors
    assert isinstance(error, ValueError)
    assert error.args == (5,)
    assert key == "key"
    assert function is handler


@pytest.mark.thread_unsafe(reason="calls what a fork's child calls")
def test_fork_child_can_put_to_a_loop_whose_lock_was_held() -> None:
    loop = asyncio.new_event_loop()
    inbox = handlers._inbox_of(loop)
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with inbox._lock:
            entered.set()
            assert leave.wait(WAIT)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert entered.wait(WAIT)
        inbox.after_fork_child()
        assert inbox._lock.acquire(blocking=False)
        inbox._lock.release()
    finally:
        leave.set()
        thread.join()
        loop.close()


def test_loop_is_let_go_with_its_handlers() -> None:
    with EventBus() as bus:

        async def main() -> "weakref.ref[Any]":
            async def handler(event: object) -> None:
                pass

            bus.on("key", handler)
            bus.emit("key")
            await asyncio.sleep(0)
            bus.off("key")
            return weakref.ref(asyncio.get_running_loop())

        reference = asyncio.run(main())
        gc.collect()
        assert reference() is None


# Encoded


def test_encoded_event_is_made_once_for_all_handlers() -> None:
    with EventBus() as bus:
        seen: list[Any] = []
        for _ in range(4):
            bus.on("key", seen.append, encoded=True)
        bus.on("key", seen.append)
        event = {"x": [1, 2]}
        assert bus.emit("key", event) == 5
        assert all(item is seen[0] for item in seen[:4])
        assert bytes(seen[0]) == b'{"x":[1,2]}'
        assert seen[4] is event
        assert bus.stats().topic("key").encoded == 1
        seen.clear()


def test_encoded_bytes_are_passed_as_they_are() -> None:
    with EventBus() as bus:
        seen: list[Any] = []
        bus.on("key", seen.append, encoded=True)
        event = b"already bytes"
        bus.emit("key", event)
        assert seen[0] is event
        assert bus.stats().encoded == 0


def test_event_that_cannot_be_encoded_fails_for_those_who_want_bytes_only() -> None:
    with EventBus() as bus:
        seen: list[Any] = []
        bus.on("key", seen.append, encoded=True)
        bus.on("key", seen.append, encoded=True)
        bus.on("key", seen.append)
        event = object()
        with pytest.raises(HandlerErrors) as caught:
            bus.emit("key", event)
        assert caught.value.ran == 3
        assert len(caught.value.exceptions) == 2
        assert seen == [event]
        assert bus.stats().failed == 2

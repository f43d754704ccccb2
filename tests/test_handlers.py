"""Subscriptions: once, weak, encoded; what may be a handler."""

import functools
import gc
import operator
import threading
import types
import weakref
from typing import Any

import pytest
from dispatching import WAIT, Owner

from ftbus import (
    CodecError,
    EventBus,
    HandlerErrors,
    HandlerTypeError,
    InvalidOptionError,
)
from ftbus.testing import run_threads

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

"""emit: what is called with what, in which order, and what an emit sees."""

import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from ftbus import EventBus, Subscription, Topic
from ftbus.testing import run_threads

# Emitting


def test_emit_calls_the_handler_with_the_event() -> None:
    with EventBus() as bus:
        seen: list[object] = []
        bus.on("chat", seen.append)
        event = object()
        assert bus.emit("chat", event) == 1
        assert len(seen) == 1
        assert seen[0] is event


def test_emit_without_an_event_passes_none() -> None:
    with EventBus() as bus:
        seen: list[object] = []
        bus.on("tick", seen.append)
        bus.emit("tick")
        bus.topic("tick").emit()
        assert seen == [None, None]


def test_emit_without_handlers_returns_zero() -> None:
    with EventBus() as bus:
        assert bus.emit("nobody", 1) == 0
        assert bus.topic("nobody").emit(1) == 0
        assert bus.emit("nobody") == 0


def test_emit_returns_how_many_handlers_ran() -> None:
    with EventBus() as bus:
        for n in range(1, 20):
            bus.on("key", lambda event: None)
            assert bus.emit("key", None) == n


def test_emit_ignores_what_handlers_return() -> None:
    with EventBus() as bus:
        bus.on("key", lambda event: NotImplemented)
        bus.on("key", lambda event: event.pop())
        assert bus.emit("key", [object()]) == 2


@pytest.mark.parametrize("arguments", [(), ("a", 1, 2)])
def test_emit_takes_a_key_and_an_event(arguments: tuple[Any, ...]) -> None:
    with EventBus() as bus:
        with pytest.raises(TypeError, match="emit"):
            bus.emit(*arguments)
        with pytest.raises(TypeError, match="emit"):
            bus.emit("a", wrong=1)
        with pytest.raises(TypeError, match="emit"):
            bus.emit("a", 1, event=2)
        with pytest.raises(TypeError, match="emit"):
            bus.topic("a").emit(1, 2)


def test_emit_takes_keywords_as_its_signature_says() -> None:
    with EventBus() as bus:
        seen: list[object] = []
        bus.on("key", seen.append)
        assert bus.emit(key="key", event=1) == 1
        assert bus.emit("key", event=2) == 1
        assert bus.topic("key").emit(event=3) == 1
        assert seen == [1, 2, 3]


def test_emit_many_emits_each_and_counts_the_calls() -> None:
    with EventBus() as bus:
        seen: list[int] = []
        bus.on("key", seen.append)
        bus.on("key", lambda event: None)
        assert bus.emit_many("key", (n for n in range(100))) == 200
        assert bus.topic("key").emit_many([100, 101]) == 4
        assert bus.emit_many("key", []) == 0
        assert bus.emit_many("other", range(5)) == 0
        assert seen == list(range(102))


def test_emit_many_stops_at_the_first_that_fails() -> None:
    with EventBus() as bus:
        seen: list[int] = []

        def handler(event: int) -> None:
            seen.append(event)
            if event == 2:
                raise ValueError(event)

        bus.on("key", handler)
        with pytest.raises(ExceptionGroup):
            bus.emit_many("key", range(5))
        assert seen == [0, 1, 2]


def test_emit_many_passes_on_what_the_iterable_raises() -> None:
    with EventBus() as bus:
        seen: list[int] = []
        bus.on("key", seen.append)

        def events() -> Any:
            yield 1
            raise LookupError("no more")

        with pytest.raises(LookupError, match="no more"):
            bus.emit_many("key", events())
        with pytest.raises(TypeError, match="iterable"):
            bus.emit_many("key", 5)  # type: ignore[arg-type]
        assert seen == [1]


def test_topic_and_bus_are_two_ways_to_one_key() -> None:
    with EventBus() as bus:
        seen: list[tuple[str, object]] = []
        topic = bus.topic("key")

        @topic.on
        def first(event: object) -> None:
            seen.append(("topic", event))

        bus.on(topic.key, lambda event: seen.append(("bus", event)))
        assert topic.emit(1) == bus.emit("key", 1) == 2
        assert seen == [("topic", 1), ("bus", 1)] * 2
        assert topic.key == "key"
        assert topic.bus is bus
        assert repr(topic) == "<Topic 'key' of 'ftbus'>"
        assert bus.off("key", first) == 1
        assert isinstance(topic.subscribe(first, priority=3), Subscription)
        assert topic.emit(2) == 2


def test_topic_is_made_for_one_bus() -> None:
    with EventBus() as bus, EventBus() as other:
        bus.on("key", lambda event: None)
        assert other.emit("key") == 0
        assert Topic(bus, "key").emit() == 1
        with pytest.raises(TypeError):
            Topic(object(), "key")  # type: ignore[arg-type]


def test_topic_may_be_shared_between_threads() -> None:
    with EventBus() as bus:
        topic = bus.topic("key")
        bus.on("key", lambda event: None)
        rounds = 2000

        def emit(index: int) -> int:
            return sum(topic.emit(index) for _ in range(rounds))

        assert sum(run_threads(4, emit)) == 4 * rounds
        assert bus.stats().topic("key").handled == 4 * rounds


# Order


def test_handlers_run_by_priority_then_by_registration() -> None:
    with EventBus() as bus:
        seen: list[str] = []

        def handler(name: str) -> Callable[[object], None]:
            return lambda event: seen.append(name)

        bus.on("key", handler("c"))
        bus.on("key", handler("a"), priority=10)
        bus.on("key", handler("f"), priority=-5)
        bus.on("key", handler("d"), priority=0)
        bus.on("key", handler("b"), priority=10)
        bus.on("key", handler("g"), priority=-5)
        bus.on("key", handler("e"))
        bus.emit("key")
        assert "".join(seen) == "abcdefg"


def test_priority_has_the_whole_range_of_32_bits() -> None:
    with EventBus() as bus:
        seen: list[int] = []
        low, high = -(2**31), 2**31 - 1
        for priority in (0, low, high, -1, 1):
            bus.on("key", lambda event, p=priority: seen.append(p), priority=priority)
        bus.emit("key")
        assert seen == [high, 1, 0, -1, low]


def test_order_holds_after_removals_and_additions(seed: int) -> None:
    import random

    choices = random.Random(seed)
    with EventBus() as bus:
        model: list[tuple[int, int, Subscription]] = []
        seen: list[int] = []
        for age in range(200):
            if model and choices.random() < 0.4:
                _, _, gone = model.pop(choices.randrange(len(model)))
                assert gone.cancel()
            else:
                priority = choices.randint(-3, 3)
                subscription = bus.subscribe(
                    "key", lambda event, age=age: seen.append(age), priority=priority
                )
                model.append((-priority, age, subscription))
                model.sort(key=lambda row: row[:2])
            seen.clear()
            assert bus.emit("key") == len(model)
            assert seen == [age for _, age, _ in model]


# What an emit sees


def test_handler_added_during_an_emit_does_not_run_in_it() -> None:
    with EventBus() as bus:
        seen: list[str] = []

        def adder(event: object) -> None:
            seen.append("adder")
            bus.on("key", lambda event: seen.append("late"), priority=-1)
            bus.on("key", lambda event: seen.append("early"), priority=1)

        bus.once("key", adder)
        assert bus.emit("key") == 1
        assert seen == ["adder"]
        assert bus.emit("key") == 2
        assert seen == ["adder", "early", "late"]


def test_handler_removed_during_an_emit_starts_in_no_later_one() -> None:
    with EventBus() as bus:
        seen: list[str] = []
        last = bus.subscribe("key", lambda event: seen.append("last"), priority=-1)

        def remover(event: object) -> None:
            seen.append("remover")
            last.cancel()

        bus.on("key", remover)
        assert bus.emit("key") in (1, 2)
        assert bus.emit("key") == 1
        assert seen.count("last") <= 1
        assert seen[-1] == "remover"


def test_handler_may_remove_itself_and_everything() -> None:
    with EventBus() as bus:
        seen: list[str] = []

        def function(event: object) -> None:
            seen.append("ran")
            assert own.cancel()
            assert not own.cancel(wait=True)
            bus.off("key")

        own = bus.subscribe("key", function)
        assert bus.emit("key") == 1
        assert bus.emit("key") == 0
        assert seen == ["ran"]


def test_emit_sees_one_set_of_handlers_while_others_change_it() -> None:
    """A pair is added and removed by turns: none may be seen freed, or twice."""
    type Seen = list[tuple[int, int]]
    with EventBus() as bus:
        stop = threading.Event()

        def change(index: int) -> list[Seen]:
            stories: list[Seen] = []
            while not stop.is_set():
                own = (index, len(stories))
                one: Seen = []
                two: Seen = []
                first = bus.subscribe("key", lambda event, seen=one: seen.append(event))
                other = bus.subscribe("key", lambda event, seen=two: seen.append(event))
                assert bus.emit("key", own) >= 2
                assert first.cancel(wait=index == 0)
                assert other.cancel()
                assert one.count(own) == two.count(own) == 1
                stories += [one, two]
            return stories

        def emit(index: int) -> list[Seen]:
            ran: Seen = []
            bus.on("key", ran.append)
            try:
                for n in range(3000):
                    assert bus.emit("key", (index, n)) >= 1
            finally:
                stop.set()
            bus.off("key", ran.append)
            assert [n for who, n in ran if who == index] == list(range(3000))
            return [ran]

        results = run_threads(4, lambda i: change(i) if i < 2 else emit(i))
        for seen in (seen for stories in results for seen in stories):
            assert len(seen) == len(set(seen))
        assert bus.emit("key") == 0


def test_emit_from_a_handler_runs_nested() -> None:
    with EventBus() as bus:
        seen: list[str] = []

        def outer(event: int) -> None:
            seen.append(f"outer {event}")
            if event:
                assert bus.emit("key", event - 1) == 2
                bus.emit("inner", event)

        bus.on("key", outer)
        bus.on("key", lambda event: seen.append(f"after {event}"))
        bus.on("inner", lambda event: seen.append(f"inner {event}"))
        bus.emit("key", 1)
        assert seen == ["outer 1", "outer 0", "after 0", "inner 1", "after 1"]


def test_finalizers_may_use_the_bus() -> None:
    with EventBus() as bus:
        seen: list[str] = []
        bus.on("died", seen.append)

        class Payload:
            def __init__(self, subscription: Subscription) -> None:
                self.subscription = subscription

            def __del__(self) -> None:
                bus.emit("died", "payload")
                self.subscription.cancel()

        for _ in range(50):
            payload = Payload(bus.subscribe("key", lambda event: None))
            bus.emit("key", payload)
            del payload
        assert seen == ["payload"] * 50
        assert bus.emit("key") == 0


def test_weakref_callbacks_may_use_the_bus() -> None:
    with EventBus() as bus:
        seen: list[str] = []
        bus.on("died", seen.append)

        class Payload:
            pass

        subscription = bus.subscribe("key", lambda event: None)

        def died(reference: object) -> None:
            subscription.cancel()
            bus.emit("died", "callback")

        payload = Payload()
        reference = weakref.ref(payload, died)
        bus.emit("key", payload)
        del payload
        assert reference() is None
        assert seen == ["callback"]
        assert not subscription.active

"""EventBus and Topic: subscribing, emitting, and what an emit sees."""

import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from ftbus import BusClosedError, EventBus, Key, Subscription, Topic
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


# on, once, off


def test_on_is_a_decorator_that_returns_the_function() -> None:
    with EventBus() as bus:

        def function(event: object) -> str:
            return "unchanged"

        assert bus.on("a")(function) is function
        assert bus.on("b", function) is function
        assert bus.once("c")(function) is function
        assert bus.once("d", function) is function
        assert bus.topic("e").on()(function) is function
        assert [bus.emit(key) for key in "abcde"] == [1] * 5
        assert [bus.emit(key) for key in "abcde"] == [1, 1, 0, 0, 1]


def test_decorator_takes_the_options_of_subscribe() -> None:
    with EventBus() as bus:
        seen: list[str] = []

        @bus.on("key")
        def second(event: object) -> None:
            seen.append("second")

        @bus.on("key", priority=1, once=True)
        def first(event: object) -> None:
            seen.append("first")

        bus.emit("key")
        bus.emit("key")
        assert seen == ["first", "second", "second"]
        with pytest.raises(TypeError):
            bus.on("key", first, unknown=1)


def test_one_function_registered_twice_runs_twice() -> None:
    with EventBus() as bus:
        seen: list[int] = []
        bus.on("key", seen.append)
        bus.on("key", seen.append)
        assert bus.emit("key", 1) == 2
        assert bus.off("key", seen.append) == 2


def test_off_removes_one_handler_or_all_and_is_idempotent() -> None:
    with EventBus() as bus:

        def one(event: object) -> None:
            pass

        def two(event: object) -> None:
            pass

        bus.on("key", one)
        bus.on("key", two)
        bus.on("other", one)
        assert bus.off("key", one) == 1
        assert bus.off("key", one) == 0
        assert bus.emit("key") == 1
        assert bus.off("key") == 1
        assert bus.off("key") == 0
        assert bus.off("never used") == 0
        assert bus.off("key", handler=two) == 0
        assert bus.off("key", None) == 0
        assert bus.emit("other") == 1


def test_off_finds_a_bound_method_and_nothing_that_is_only_equal() -> None:
    class Equal:
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

        def method(self, event: object) -> None:
            pass

        def __call__(self, event: object) -> None:
            pass

    with EventBus() as bus:
        one, two = Equal(), Equal()
        bus.on("key", one.method)
        bus.on("key", one)
        assert bus.off("key", two.method) == 0
        assert bus.off("key", two) == 0
        assert bus.off("key", one.method) == 1
        assert bus.off("key", one) == 1


def test_subscription_says_what_it_is() -> None:
    with EventBus() as bus:

        def function(event: object) -> None:
            pass

        subscription = bus.subscribe(Key("a.b"), function)
        assert subscription.active
        assert subscription.key == "a.b"
        assert subscription.handler is function
        assert "active" in repr(subscription)
        assert subscription.cancel()
        assert not subscription.active
        assert subscription.handler is function
        assert "cancelled" in repr(subscription)
        assert not subscription.cancel()
        assert not subscription.cancel(wait=True)
        with pytest.raises(TypeError):
            Subscription()  # type: ignore[call-arg]


def test_leaving_a_subscription_cancels_it() -> None:
    with EventBus() as bus:
        with bus.subscribe("key", lambda event: None) as subscription:
            assert bus.emit("key") == 1
        assert not subscription.active
        assert bus.emit("key") == 0
        with pytest.raises(LookupError), bus.subscribe("key", lambda event: None):
            raise LookupError
        assert bus.emit("key") == 0


def test_dropping_a_subscription_does_not_cancel_it() -> None:
    with EventBus() as bus:
        bus.subscribe("key", lambda event: None)
        gc.collect()
        assert bus.emit("key") == 1


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
    with EventBus() as bus:
        stop = threading.Event()

        def change(index: int) -> int:
            rounds = 0
            while not stop.is_set():
                seen: list[int] = []
                one = bus.subscribe("key", lambda event, s=seen: s.append(event))
                two = bus.subscribe(index, lambda event, s=seen: s.append(event))
                assert one.cancel(wait=index == 0)
                assert two.cancel()
                rounds += 1
            return rounds

        def emit(index: int) -> int:
            ran = [0]

            def count(event: object) -> None:
                ran[0] += 1

            bus.on("key", count)
            try:
                for n in range(3000):
                    assert bus.emit("key", n) >= 1
                    bus.emit(index, n)
            finally:
                stop.set()
            bus.off("key", count)
            return ran[0]

        results = run_threads(4, lambda i: change(i) if i < 2 else emit(i))
        assert results[2] >= 3000
        assert results[3] >= 3000
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


# Closing and pinning


@pytest.mark.parametrize(
    ("use", "doing"),
    [
        (lambda bus: bus.emit("key"), "emit"),
        (lambda bus: bus.emit("other", 1), "emit"),
        (lambda bus: bus.topic("key").emit(1), "emit"),
        (lambda bus: bus.emit_many("key", [1]), "emit"),
        (lambda bus: bus.emit(object), "emit"),
        (lambda bus: bus.post("key", 1), "post"),
        (lambda bus: bus.post_many("key", [1]), "post"),
        (lambda bus: bus.post("key", 1, partition="a"), "post"),
        (lambda bus: bus.topic("key").post(1), "post"),
        (lambda bus: bus.call("key", 1), "call"),
        (lambda bus: bus.topic("key").call(1), "call"),
        (lambda bus: bus.subscribe("key", print), "subscribe"),
        (lambda bus: bus.on("key", print), "subscribe"),
        (lambda bus: bus.topic("key").on(print), "subscribe"),
    ],
)
@pytest.mark.parametrize("has_workers", [False, True])
def test_closed_bus_refuses_and_says_so(
    use: Callable[[EventBus], object], doing: str, has_workers: bool
) -> None:
    bus = EventBus(workers=1, name="done")
    bus.on("key", lambda event: None)
    if has_workers:
        bus.post("key")
    assert bus.close() == 0
    with pytest.raises(BusClosedError, match="done") as caught:
        use(bus)
    assert caught.value.bus is bus
    assert caught.value.doing == doing
    assert isinstance(caught.value, RuntimeError)
    assert bus.closed


def test_closed_bus_may_still_be_looked_at() -> None:
    bus = EventBus(workers=1)
    topic = bus.topic("key")
    subscription = bus.subscribe("key", lambda event: None)
    topic.emit()
    bus.close()
    assert not subscription.active
    assert not subscription.cancel()
    assert bus.off("key") == 0
    assert bus.stats().handled == 1
    assert "handler calls" in bus.report()
    assert "closed" in repr(bus)
    assert topic.stats().handled == 1
    assert bus.drain() is True


def test_emit_in_one_thread_while_another_closes() -> None:
    for _ in range(50):
        bus = EventBus()
        bus.on("key", lambda event: None)

        def emit(index: int, bus: EventBus = bus) -> int:
            ran = 0
            try:
                while index or not bus.close():
                    ran += bus.emit("key")
            except BusClosedError:
                return ran
            raise AssertionError("a closed bus took an event")

        run_threads(3, emit)


def test_context_manager_closes_also_when_the_block_raises() -> None:
    with pytest.raises(LookupError), EventBus() as bus:
        raise LookupError
    assert bus.closed


def test_repr_says_name_and_state() -> None:
    with EventBus(workers=3, name="game") as bus:
        assert repr(bus) == "<EventBus 'game', 3 workers>"
    assert repr(bus) == "<EventBus 'game', closed>"


def test_pinned_bus_works_and_lets_its_handlers_go() -> None:
    class Payload:
        pass

    with EventBus(workers=1) as bus:
        assert bus.pin() is bus
        assert bus.pin() is bus
        topic = bus.topic("key")
        assert bus.topic("key") is topic
        seen: list[object] = []
        payload = Payload()
        reference = weakref.ref(payload)
        bus.on("key", lambda event, kept=payload: seen.append(event))
        del payload
        gc.collect()
        run_threads(3, lambda index: topic.emit(index))
        bus.post("key", 3)
        assert bus.drain(30)
        assert sorted(map(str, seen)) == ["0", "1", "2", "3"]
    gc.collect()
    assert reference() is None
    with pytest.raises(BusClosedError):
        topic.emit()


def test_subclass_may_add_attributes_and_methods() -> None:
    class GameBus(EventBus):
        def __init__(self, world: str) -> None:
            super().__init__(name=world)
            self.world = world

        def tick(self) -> int:
            return self.emit("tick", self.world)

    with GameBus("earth") as bus:
        seen: list[object] = []
        bus.on("tick", seen.append)
        assert bus.tick() == 1
        assert seen == ["earth"]


def test_bus_that_was_never_initialised_fails_without_a_crash() -> None:
    class Forgetful(EventBus):
        def __init__(self) -> None:
            pass

    bus = Forgetful()
    bus._subscribe("key", len, 0, 4, len)  # 4: wants the event encoded
    for use in (
        lambda: bus.emit("key", {}),
        lambda: bus.post("key"),
        lambda: bus.call("key"),
        lambda: repr(bus),
        lambda: bus.drain(),
        lambda: bus.stats(),
    ):
        try:
            use()
        except Exception as error:
            assert not isinstance(error, SystemError), error
    bus._clear_handlers()

"""on, once, off; closing and pinning."""

import gc
import weakref
from collections.abc import Callable

import pytest

from ftbus import BusClosedError, EventBus, Key, Subscription
from ftbus.testing import run_threads

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

"""Observers: told of every call, whatever makes it; what they raise stops nothing."""

import gc
import sys
import threading
import weakref
from typing import Any

import pytest

from ftbus import EventBus, HandlerErrors, InvalidOptionError
from ftbus.testing import run_threads

WAIT = 30  # seconds; only a hang takes that long


class Recorder:
    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def started(self, key: object, handler: object, event: object) -> None:
        self.heard.append(("started", key, handler, event))

    def finished(self, key: object, handler: object, event: object) -> None:
        self.heard.append(("finished", key, handler, event))

    def failed(
        self, key: object, handler: object, event: object, error: BaseException
    ) -> None:
        self.heard.append(("failed", key, handler, event, type(error)))

    def dropped(self, key: object, event: object) -> None:
        self.heard.append(("dropped", key, event))


def good(event: object) -> None: ...


def bad(event: object) -> None:
    raise LookupError("on purpose")


@pytest.fixture
def unraisable(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    seen: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)
    return seen


@pytest.mark.parametrize("timing", ["off", "all"])
def test_emits_are_observed(timing: Any) -> None:
    with EventBus(timing=timing) as bus:
        recorder = Recorder()
        bus.on("before", good)
        bus.add_observer(recorder)
        bus.on("key", good)
        bus.on("key", bad)
        with pytest.raises(HandlerErrors):
            bus.emit("key", 1)
        bus.topic("before").emit(2)
        assert recorder.heard == [
            ("started", "key", good, 1),
            ("finished", "key", good, 1),
            ("started", "key", bad, 1),
            ("failed", "key", bad, 1, LookupError),
            ("started", "before", good, 2),
            ("finished", "before", good, 2),
        ]
        assert bus.remove_observer(recorder)
        assert not bus.remove_observer(recorder)
        assert bus.emit("before") == 1
        assert len(recorder.heard) == 6


@pytest.mark.parametrize("verb", ["post", "call", "partition"])
def test_posts_and_calls_are_observed(verb: str) -> None:
    with EventBus(workers=1, on_error=lambda *_: None) as bus:
        recorder = Recorder()
        bus.add_observer(recorder)
        bus.on("key", good)
        bus.on("key", bad)
        if verb == "call":
            with pytest.raises(HandlerErrors):
                bus.call("key", 1).result(WAIT)
        else:
            bus.post("key", 1, partition="a" if verb == "partition" else None)
        assert bus.drain(WAIT)
        assert recorder.heard == [
            ("started", "key", good, 1),
            ("finished", "key", good, 1),
            ("started", "key", bad, 1),
            ("failed", "key", bad, 1, LookupError),
        ]


def test_special_handlers_are_observed() -> None:
    class Event:
        pass

    with EventBus() as bus:
        recorder = Recorder()
        bus.add_observer(recorder)
        bus.once("key", good)
        bus.on("bytes", good, encoded=True)
        bus.on(Event, good, weak=True)
        event = Event()
        for _ in range(2):
            bus.emit("key", 1)
        bus.emit("bytes", 2)
        bus.emit(event)
        calls = [heard[1:] for heard in recorder.heard if heard[0] == "finished"]
        assert [call[0] for call in calls] == ["key", "bytes", Event]
        assert calls[1][2] == 2  # the event itself, not its bytes
        assert len(recorder.heard) == 6


def test_drops_are_observed() -> None:
    entered, leave = threading.Semaphore(0), threading.Event()

    def block(event: object) -> None:
        entered.release()
        assert leave.wait(WAIT)

    for overflow in ("drop_newest", "drop_oldest"):
        leave.clear()
        bus = EventBus(workers=1, queue_size=1, overflow=overflow)  # type: ignore[arg-type]
        recorder = Recorder()
        bus.add_observer(recorder)
        bus.on("key", block)
        try:
            bus.post("key", 0)
            assert entered.acquire(timeout=WAIT)
            bus.post("key", 1)
            bus.post("key", 2)
            lost = 2 if overflow == "drop_newest" else 1
            assert ("dropped", "key", lost) in recorder.heard
        finally:
            threading.Timer(0.05, leave.set).start()
            bus.close(drain=False)
        dropped = [heard[2] for heard in recorder.heard if heard[0] == "dropped"]
        assert sorted(dropped) == [1, 2]  # one by the policy, one by close
        assert bus.stats().dropped == 2


def test_what_an_observer_raises_stops_nothing(unraisable: list[Any]) -> None:
    class Broken:
        def started(self, key: object, handler: object, event: object) -> None:
            raise ZeroDivisionError

        def failed(self, *arguments: object) -> None:
            raise KeyError

    with EventBus() as bus:
        recorder = Recorder()
        bus.add_observer(Broken())
        bus.add_observer(recorder)
        bus.on("key", bad)
        with pytest.raises(HandlerErrors) as caught:
            bus.emit("key")
        assert [type(error) for error in caught.value.exceptions] == [LookupError]
        assert [heard[0] for heard in recorder.heard] == ["started", "failed"]
        assert [each.exc_type for each in unraisable] == [ZeroDivisionError, KeyError]
        assert all("observer" in each.err_msg for each in unraisable)
        assert bus.stats().failed == 1


def test_methods_are_optional_but_not_all() -> None:
    class OnlyFailed:
        def __init__(self) -> None:
            self.errors: list[object] = []

        def failed(self, *arguments: object) -> None:
            self.errors.append(arguments[-1])

    with EventBus() as bus:
        observer = OnlyFailed()
        bus.add_observer(observer)  # type: ignore[arg-type]
        bus.add_observer(observer)  # type: ignore[arg-type]
        bus.on("key", bad)
        with pytest.raises(HandlerErrors):
            bus.emit("key")
        assert len(observer.errors) == 1
        with pytest.raises(InvalidOptionError, match="observer"):
            bus.add_observer(object())  # type: ignore[arg-type]


def test_calls_are_counted_the_same_while_observed() -> None:
    with EventBus() as bus:
        bus.on("key", good)
        recorder = Recorder()
        for _ in range(3):
            bus.emit("key")
            bus.add_observer(recorder)
            bus.emit("key")
            bus.remove_observer(recorder)
        stats = bus.stats()
        assert stats.handlers[0].calls == stats.emitted == stats.handled == 6
        assert len(recorder.heard) == 6


def test_observers_come_and_go_while_threads_emit() -> None:
    with EventBus() as bus:
        for key in range(5):
            bus.on(key, good)
        is_over = threading.Event()

        def work(index: int) -> int:
            if index == 0:
                for _ in range(50):
                    recorder = Recorder()
                    bus.add_observer(recorder)
                    bus.remove_observer(recorder)
                    kinds = [heard[0] for heard in recorder.heard]
                    assert set(kinds) <= {"started", "finished"}
                is_over.set()
                return 0
            n = 0
            while not is_over.is_set():
                n += bus.emit(n % 5)
            return n

        assert bus.stats().handled == 0
        assert sum(run_threads(3, work)) == bus.stats().handled
        assert bus.stats().handled == bus.stats().emitted
        assert sum(row.calls for row in bus.stats().handlers) == bus.stats().handled


def test_an_observer_is_let_go_of() -> None:
    with EventBus() as bus:
        recorder = Recorder()
        reference = weakref.ref(recorder)
        bus.add_observer(recorder)
        bus.remove_observer(recorder)
        del recorder
        gc.collect()
        assert reference() is None

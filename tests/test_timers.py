"""post_later and every, mostly by a clock that the tests turn."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar
from typing import Any

import pytest
from dispatching import WAIT, Gate, check_conservation, held_bus

from ftbus import (
    BusClosedError,
    EventBus,
    InvalidOptionError,
    QueueFullError,
    Timer,
    UnsupportedKeyError,
)
from ftbus.testing import eventually, run_threads
from ftbus.timers import Timers


class Clock:
    """A clock that stands still until it is turned."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.waits = 0
        self._changed: threading.Condition | None = None

    def now(self) -> float:
        return self.time

    def wait(self, changed: threading.Condition, seconds: float | None) -> None:
        assert seconds is None or seconds > 0
        self._changed = changed
        self.waits += 1
        changed.wait(WAIT)

    def turn(self, seconds: float) -> None:
        """Go on, and come back when the timers wait again."""
        eventually(lambda: self._changed is not None)
        assert self._changed is not None
        with self._changed:
            before = self.waits
            self.time += seconds
            self._changed.notify()
        eventually(lambda: self.waits > before)


@contextmanager
def clocked_bus(**options: Any) -> Iterator[tuple[EventBus, Clock, list[Any]]]:
    clock = Clock()
    with EventBus(workers=1, **options) as bus:
        bus._timers = Timers(bus, clock)
        seen: list[Any] = []
        bus.on("key", seen.append)
        yield bus, clock, seen


def test_post_later_posts_once_when_the_time_has_come() -> None:
    with clocked_bus() as (bus, clock, seen):
        timer = bus.post_later(2.0, "key", "event")
        assert isinstance(timer, Timer)
        assert (timer.active, timer.when) == (True, 1002.0)
        assert "in 2.000 s" in repr(timer)
        clock.turn(1.9)
        assert bus.drain(WAIT)
        assert seen == []
        clock.turn(0.2)
        assert bus.drain(WAIT)
        assert seen == ["event"]
        assert not timer.active
        assert "done" in repr(timer)
        assert timer.cancel() is False
        clock.turn(100)
        assert bus.drain(WAIT)
        assert seen == ["event"]
        check_conservation(bus.stats())


def test_timers_of_a_topic() -> None:
    with clocked_bus() as (bus, clock, seen):
        topic = bus.topic("key")
        variable: ContextVar[int] = ContextVar("variable", default=0)
        context = Context()
        context.run(variable.set, 7)
        topic.on(lambda event: seen.append(variable.get()), priority=-1)
        topic.post_later(1.0, "once", partition="p", context=context)
        again = topic.every(2.0, factory=lambda: "again", partition="p")
        assert again.when == 1002.0
        clock.turn(5.0)
        assert bus.drain(WAIT)
        assert seen == ["once", 7, "again", 0]
        assert again.cancel()
        with pytest.raises(InvalidOptionError):
            topic.post_later(-1)
        with pytest.raises(InvalidOptionError):
            topic.every(1.0, "event", factory=list)


def test_timers_happen_in_order_whatever_the_order_they_were_set_in() -> None:
    with clocked_bus() as (bus, clock, seen):
        delays = [5, 1, 3, 3, 2, 4, 0.5]
        for n, delay in enumerate(delays):
            bus.post_later(delay, "key", (delay, n), partition="p")
        clock.turn(10)
        assert bus.drain(WAIT)
        assert seen == sorted((delay, n) for n, delay in enumerate(delays))


def test_every_does_not_drift() -> None:
    with clocked_bus() as (bus, clock, seen):
        timer = bus.every(1.0, "key", 1)
        whens = []
        for late in (0.3, 0.0, 0.9, 0.1):
            clock.turn(timer.when + late - clock.time)
            whens.append(timer.when)
        assert whens == [1002.0, 1003.0, 1004.0, 1005.0]
        assert bus.drain(WAIT)
        assert seen == [1] * 4
        assert timer.missed == 0
        assert "every 1.0 s" in repr(timer)
        assert timer.cancel() is True
        assert timer.cancel() is False
        clock.turn(5)
        assert bus.drain(WAIT)
        assert seen == [1] * 4


def test_every_leaves_out_missed_ticks_and_counts_them() -> None:
    with clocked_bus() as (bus, clock, seen):
        timer = bus.every(1.0, "key", 1)
        clock.turn(3.5)
        assert timer.missed == 2
        assert timer.when == 1004.0
        clock.turn(0.5)
        assert bus.drain(WAIT)
        assert seen == [1, 1]
        assert timer.missed == 2


def test_every_with_a_factory() -> None:
    errors: list[tuple[Any, ...]] = []
    with clocked_bus(on_error=lambda *e: errors.append(e)) as (bus, clock, seen):
        numbers = iter(range(2))

        def factory() -> int:
            return next(numbers)

        timer = bus.every(1.0, "key", factory=factory)
        for _ in range(3):
            clock.turn(1)
        assert bus.drain(WAIT)
        assert seen == [0, 1]
        ((error, key, source),) = errors
        assert isinstance(error, StopIteration)
        assert (key, source) == ("key", factory)
        assert timer.active


def test_what_a_full_queue_refuses_is_reported() -> None:
    errors: list[tuple[Any, ...]] = []
    with held_bus(queue_size=1, on_error=lambda *e: errors.append(e)) as (bus, gate):
        clock = Clock()
        bus._timers = Timers(bus, clock)
        bus.post("key")
        bus.post_later(1, "key", "refused")
        clock.turn(2)
        ((error, key, source),) = errors
        assert isinstance(error, QueueFullError)
        assert key == "key"
        assert repr(source) == "<timer for 'key'>"
        gate.open()
        assert bus.drain(WAIT)
        stats = bus.stats()
        assert stats.rejected == 1
        check_conservation(stats)
        errors.clear()


def test_cancelled_timers_do_not_pile_up() -> None:
    with clocked_bus() as (bus, clock, seen):
        kept = bus.post_later(5, "key", "kept")
        for _ in range(1000):
            assert bus.post_later(10, "key").cancel()
        assert bus._timers is not None
        assert len(bus._timers._heap) < 200
        assert kept.active
        clock.turn(20)
        assert bus.drain(WAIT)
        assert seen == ["kept"]


def test_partition_context_and_class_events() -> None:
    variable: ContextVar[str] = ContextVar("variable", default="unset")

    class Event:
        pass

    with clocked_bus() as (bus, clock, seen):
        bus.on(Event, lambda event: seen.append((type(event), variable.get())))
        chosen = Context()
        chosen.run(variable.set, "chosen")

        def set_timers() -> None:
            variable.set("mine")
            bus.post_later(1, Event(), partition="p")
            bus.post_later(2, Event, Event(), partition=7, context=chosen)
            variable.set("too late")

        Context().run(set_timers)
        clock.turn(3)
        assert bus.drain(WAIT)
        assert seen == [(Event, "mine"), (Event, "chosen")]


def test_close_cancels_timers() -> None:
    with clocked_bus() as (bus, clock, seen):
        timers = [bus.post_later(1, "key"), bus.every(1, "key")]
        assert bus._timers is not None
        thread = bus._timers._thread
        assert thread is not None
        assert thread.name == "ftbus-timers"
        bus.close()
        assert not thread.is_alive()
        assert [timer.active for timer in timers] == [False, False]
        assert [timer.cancel() for timer in timers] == [False, False]
        for use in (bus.post_later, bus.every):
            with pytest.raises(BusClosedError):
                use(1, "key")
        assert seen == []


def test_factory_may_close_the_bus_that_it_makes_events_for() -> None:
    bus = EventBus(workers=1)
    left: list[int] = []
    closed = threading.Event()

    def factory() -> None:
        left.append(bus.close())
        closed.set()

    timer = bus.every(0.001, "key", factory=factory)
    assert bus._timers is not None
    thread = bus._timers._thread
    assert thread is not None
    assert closed.wait(WAIT)
    thread.join(WAIT)
    assert not thread.is_alive()
    assert left == [0]
    assert not timer.active
    stats = bus.stats()
    assert (stats.posted, stats.rejected) == (1, 1)  # the event it made


@pytest.mark.parametrize("value", [-1, "1", None, float("nan"), float("inf"), True, 1j])
def test_invalid_times_are_refused(value: Any) -> None:
    with EventBus() as bus:
        with pytest.raises(InvalidOptionError) as caught:
            bus.post_later(value, "key")
        assert caught.value.option == "delay_s"
        with pytest.raises(InvalidOptionError) as caught:
            bus.every(value, "key")
        assert caught.value.option == "interval_s"
        assert bus._timers is None


def test_other_invalid_arguments_are_refused_at_once() -> None:
    with EventBus() as bus:
        with pytest.raises(InvalidOptionError):
            bus.every(0, "key")
        with pytest.raises(InvalidOptionError):
            bus.every(1, "key", 1, factory=list)
        with pytest.raises(InvalidOptionError):
            bus.every(1, "key", factory=5)  # type: ignore[arg-type]
        with pytest.raises(InvalidOptionError):
            bus.post_later(1, "key", context=5)  # type: ignore[arg-type]
        for key in (1.5, [], None):
            with pytest.raises(UnsupportedKeyError):
                bus.post_later(1, key)
            if key is not None:
                with pytest.raises(UnsupportedKeyError):
                    bus.every(1, "key", partition=key)
        assert bus._timers is None


# By the real clock


def test_real_timers_are_never_early() -> None:
    with EventBus(workers=2) as bus:
        times: list[float] = []
        bus.on("key", lambda when: times.append(time.monotonic()))
        start = time.monotonic()
        timers = [bus.post_later(n / 200, "key") for n in (3, 1, 2, 0)]
        eventually(lambda: len(times) == 4)
        assert all(now - start >= n / 200 for n, now in enumerate(sorted(times), 0))
        assert not any(timer.active for timer in timers)
        gate = Gate()
        bus.on("tick", gate)
        gate.open()
        tick = bus.every(0.001, "tick")
        eventually(lambda: len(gate.seen) >= 5)
        tick.cancel()


def test_timers_set_and_cancelled_in_many_threads() -> None:
    with EventBus(workers=2) as bus:
        seen: list[object] = []
        bus.on("key", seen.append)

        def work(index: int) -> int:
            cancelled = 0
            for n in range(200):
                timer = bus.post_later(n % 5 / 1000, "key", n)
                if n % 2:
                    cancelled += timer.cancel()
            return cancelled

        cancelled = sum(run_threads(4, work))
        assert bus._timers is not None
        eventually(lambda: not bus._timers._heap)  # type: ignore[union-attr]
        eventually(lambda: bus.stats().posted == 800 - cancelled)
        assert bus.drain(WAIT)
        assert len(seen) == 800 - cancelled


@pytest.mark.thread_unsafe(reason="forks")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_timers_stay_with_the_parent_process() -> None:
    with clocked_bus() as (bus, clock, seen):
        timer = bus.post_later(1, "key", "parent")
        child = os.fork()
        if child == 0:
            code = 1
            try:
                assert not timer.active
                assert timer.cancel() is False
                assert bus._timers is not None
                assert bus._timers._thread is None
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        clock.turn(2)
        assert bus.drain(WAIT)
        assert seen == ["parent"]


def test_interpreter_exit_with_timers_and_batches(python: Any) -> None:
    done = python(
        """
import ftbus
bus = ftbus.EventBus(workers=2)
ticks = bus.every(0.001, "tick")
late = bus.post_later(3600, "late")
bus.on("late", print)
bus.on("batch", print, batch=(100, 3600.0))
bus.on("latest", print, latest=True)
bus.emit_many("batch", range(3))
bus.emit("latest", "newest")
"""
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.splitlines()) == ["[0, 1, 2]", "newest"]


class ClockWithoutMemory(Clock):
    """Fails in one look at the time, and in one wait."""

    def __init__(self) -> None:
        super().__init__()
        self.fails = [False, False]

    def now(self) -> float:
        if threading.current_thread().name.endswith("-timers") and self.fails[0]:
            self.fails[0] = False
            raise MemoryError("now")
        return super().now()

    def wait(self, changed: threading.Condition, seconds: float | None) -> None:
        if self.fails[1]:
            self.fails[1] = False
            raise MemoryError("wait")
        super().wait(changed, seconds)


def test_timers_survive_that_their_thread_has_no_memory() -> None:
    told: list[object] = []
    with EventBus(workers=1, on_error=lambda *args: told.append(args[:2])) as bus:
        clock = ClockWithoutMemory()
        bus._timers = Timers(bus, clock)
        seen: list[Any] = []
        bus.on("key", seen.append)
        bus.every(1.0, "key", "tick")
        for n, at in enumerate([0, 1] * 2):
            eventually(lambda: clock.waits > 0)
            clock.fails[at] = True
            clock.turn(1.0)
            eventually(lambda n=n: len(told) == n + 1)
            assert bus.drain(WAIT)
            assert seen == ["tick"] * (n + 1)
        assert [repr(error) for error, _ in told] == [
            "MemoryError('now')",
            "MemoryError('wait')",
        ] * 2


def test_timer_that_cannot_go_on_for_lack_of_memory_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[object] = []
    with clocked_bus(on_error=lambda *args: told.append(args[0])) as (bus, clock, seen):
        push, fails = Timers._push, [True]

        def push_or_fail(timers: Timers, timer: Timer) -> None:
            if fails and timer._ticks == 2:  # not when it is set
                fails.clear()
                raise MemoryError("push")
            push(timers, timer)

        monkeypatch.setattr(Timers, "_push", push_or_fail)
        bus.every(1.0, "key", "tick")
        for n in range(3):
            clock.turn(1.0)
            assert bus.drain(WAIT)
            assert seen == ["tick"] * (n + 1)
        assert [repr(error) for error in told] == ["MemoryError('push')"]

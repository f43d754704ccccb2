"""Times: what is timed, how much of it, and where it is counted."""

import threading
from typing import Any

import pytest

from ftbus import EventBus, HandlerErrors, Histogram, InvalidOptionError
from ftbus.testing import eventually, run_threads

WAIT = 30  # seconds; only a hang takes that long


class Event:
    pass


def counts(bus: EventBus, key: object) -> tuple[int, int, int, int]:
    """Return how many emits, waits, handler calls and encodings of a key were timed."""
    times = bus.stats().topic(key).times
    return times.emit.count, times.wait.count, times.handler.count, times.encode.count


def is_sane(histogram: Histogram) -> bool:
    return 0 < histogram.min_ns <= histogram.p50_ns <= histogram.max_ns


@pytest.mark.parametrize("key", ["key", Event])
def test_all_events_are_timed_if_asked_for(key: Any) -> None:
    with EventBus(workers=1, timing="all") as bus:
        bus.on(key, lambda event: sum(range(500)))
        bus.on(key, lambda event: None)
        event: Any = Event() if key is Event else 1
        for _ in range(10):
            bus.emit(key, event)
        bus.emit_many(key, [event] * 10)
        assert counts(bus, key) == (20, 0, 40, 0)
        bus.post(key, event)
        bus.post_many(key, [event] * 4)
        assert bus.drain(WAIT)
        assert counts(bus, key) == (20, 5, 50, 0)
        bus.call(key, event).result(WAIT)
        assert counts(bus, key) == (20, 5, 52, 0)
        row = bus.stats().topic(key)
        assert row.timing == "all"
        assert is_sane(row.times.emit)
        assert is_sane(row.times.wait)
        assert is_sane(row.times.handler)
        # An emit takes as long as its handlers, which the stamps are chained to.
        assert row.times.emit.min_ns > 0
        slow, fast = bus.stats().handlers_of(key)
        assert slow.calls == fast.calls == slow.time.count == fast.time.count == 26
        merged = slow.time.merged(fast.time)
        assert merged == row.times.handler == bus.stats().times.handler


def test_the_stamps_are_chained() -> None:
    """No time between two handlers is lost, or counted twice."""
    with EventBus(timing="all") as bus:
        for _ in range(5):
            bus.on("key", lambda event: None)
        for _ in range(100):
            bus.emit("key")
        times = bus.stats().topic("key").times
        assert times.emit.sum_ns == times.handler.sum_ns


def test_nothing_is_timed_when_off() -> None:
    with EventBus(workers=1, timing="off") as bus:
        bus.on("key", lambda event: None)
        bus.on("key", lambda event: None, encoded=True)
        for _ in range(100):
            bus.emit("key", 1)
        bus.post_many("key", range(100))
        bus.call("key", 1).result(WAIT)
        assert bus.drain(WAIT)
        assert counts(bus, "key") == (0, 0, 0, 0)
        assert bus.stats().topic("key").timing == "off"
        assert [row.calls for row in bus.stats().handlers] == [201, 201]


def test_about_one_event_in_so_many_is_sampled() -> None:
    n, interval = 40_000, 20
    with EventBus(timing_interval=interval) as bus:
        bus.on("key", lambda event: None)
        bus.on("other", lambda event: None)
        for _ in range(n):
            bus.emit("key")
            bus.emit("other")
        # The gaps are drawn from 1 to 2 * interval - 1: each key gets its share even if
        # they take turns. 6 standard deviations of the sum of n / interval gaps.
        expected = n / interval
        margin = 6 * (expected / 3) ** 0.5 + 6 * expected**0.5
        for key in ("key", "other"):
            emits, _, handlers, _ = counts(bus, key)
            assert abs(emits - expected) < margin
            assert handlers == emits
        assert bus.stats().topic("key").emitted == n


def test_an_interval_of_one_times_everything() -> None:
    with EventBus(timing_interval=1) as bus:
        bus.on("key", lambda event: None)
        for _ in range(50):
            bus.emit("key")
        assert counts(bus, "key") == (50, 0, 50, 0)


def test_a_key_may_have_a_timing_of_its_own() -> None:
    with EventBus(workers=1, timing="off") as bus:
        for key in ("timed", "untimed"):
            bus.on(key, lambda event: None)
        bus.set_timing("timed", "all")
        bus.set_timing("later", "all")
        bus.on("later", lambda event: None)
        for key in ("timed", "untimed", "later"):
            bus.emit(key)
            bus.post(key)
        assert bus.drain(WAIT)
        assert counts(bus, "timed") == counts(bus, "later") == (1, 1, 2, 0)
        assert counts(bus, "untimed") == (0, 0, 0, 0)
        bus.set_timing("timed", "off")
        bus.emit("timed")
        assert counts(bus, "timed") == (1, 1, 2, 0)
        assert bus.stats().topic("timed").timing == "off"
        assert bus.stats().handlers_of("timed")[0].calls == 3


def test_encoding_is_timed_apart_from_the_handler_that_wants_it() -> None:
    with EventBus(workers=1, timing="all") as bus:
        for _ in range(3):
            bus.on("key", lambda event: None, encoded=True)
        bus.emit("key", list(range(1000)))
        bus.post("key", list(range(1000)))
        assert bus.drain(WAIT)
        bus.call("key", list(range(1000))).result(WAIT)
        row = bus.stats().topic("key")
        assert counts(bus, "key") == (1, 1, 9, 3)
        assert (row.encoded, row.shared) == (3, 6)
        # In the emit the first handler's time begins when the bytes are there.
        assert row.times.encode.max_ns > row.times.handler.min_ns


def test_failing_and_special_handlers_are_timed_too() -> None:
    with EventBus(timing="all") as bus:

        def fail(event: object) -> None:
            raise ValueError

        class Listener:
            def handle(self, event: object) -> None: ...

        listener = Listener()
        bus.on("key", fail)
        bus.once("key", listener.handle)
        bus.on("key", listener.handle, weak=True)
        with pytest.raises(HandlerErrors):
            bus.emit("key")
        assert counts(bus, "key") == (1, 0, 3, 0)
        failing, weak = bus.stats().handlers_of("key")
        assert (failing.calls, failing.failed, failing.time.count) == (1, 1, 1)
        assert (weak.calls, weak.failed) == (1, 0)


def test_waits_of_partitions_are_kept_together() -> None:
    with EventBus(workers=2, timing="all") as bus:
        bus.on("key", lambda event: None)
        for n in range(30):
            bus.post("key", n, partition=n % 3)
        bus.post("key")
        assert bus.drain(WAIT)
        partitions = bus.stats().partitions
        assert (partitions.posted, partitions.queued, partitions.busy) == (30, 0, 0)
        assert partitions.groups == 1 << 20
        assert partitions.wait.count == 30
        assert bus.stats().times.wait.count == 31


def test_partitions_that_wait_are_counted_as_queued() -> None:
    entered, leave = threading.Semaphore(0), threading.Event()
    with EventBus(workers=1) as bus:

        def block(event: object) -> None:
            entered.release()
            assert leave.wait(WAIT)

        bus.on("key", block)
        for _ in range(4):
            bus.post("key", partition="a")
        assert entered.acquire(timeout=WAIT)
        try:
            partitions = bus.stats().partitions
            assert (partitions.busy, partitions.queued, partitions.posted) == (1, 3, 4)
        finally:
            leave.set()
        assert bus.drain(WAIT)
        eventually(lambda: bus.stats().partitions.busy == 0)
    assert bus.stats().partitions.queued == 0


def test_handlers_shared_out_to_idle_workers_are_timed() -> None:
    with EventBus(workers=2, timing="all") as bus:

        def meet() -> bool:
            """Post one event; return whether both handlers ran at once."""
            barrier, met = threading.Barrier(2), []  # type: ignore[var-annotated]
            barriers[:] = [barrier, met]
            bus.post("key")
            assert bus.drain(WAIT)
            return len(met) == 2

        def handler(event: object) -> None:
            try:
                barriers[0].wait(0.05)
                barriers[1].append(True)
            except threading.BrokenBarrierError:
                pass

        barriers: list[Any] = []
        for _ in range(2):
            bus.on("key", handler)
        eventually(meet)
        row = bus.stats().topic("key")
        assert row.handled == row.times.handler.count == 2 * row.posted
        assert [each.calls for each in bus.stats().handlers] == [row.posted] * 2


@pytest.mark.parametrize("timing", ["off", "all"])
def test_calls_are_right_whatever_the_handlers_do_meanwhile(timing: Any) -> None:
    """Subscribing and cancelling under an emit, and emits nested in it."""
    with EventBus(timing=timing) as bus:
        seen: list[str] = []

        def outer(event: int) -> None:
            seen.append("outer")
            if event > 0:
                subscription = bus.subscribe("key", inner)
                bus.emit("key", event - 1)
                subscription.cancel()

        def inner(event: int) -> None:
            seen.append("inner")

        def last(event: int) -> None:
            seen.append("last")

        bus.on("key", outer, priority=1)
        bus.on("key", last, priority=-1)
        for event in range(6):
            bus.emit("key", event)
            bus.emit("key", 0)
        rows = {row.name.rpartition(".")[2]: row for row in bus.stats().handlers}
        assert rows["outer"].calls == seen.count("outer")
        assert rows["last"].calls == seen.count("last")
        assert "inner" not in rows
        assert bus.stats().handled == len(seen)


def test_calls_of_many_threads_add_up_while_handlers_come_and_go() -> None:
    n, threads = 500, 4
    with EventBus() as bus:
        bus.on("key", lambda event: None)

        def work(index: int) -> None:
            for k in range(n):
                if index == 0 and k % 10 == 0:
                    with bus.subscribe("key", lambda event: None):
                        bus.emit("key")
                else:
                    bus.emit("key")

        run_threads(threads, work)
        [row] = bus.stats().handlers
        assert row.calls == bus.stats().emitted == n * threads
        bus.reset_stats()
        bus.emit("key")
        assert bus.stats().handlers[0].calls == 1


@pytest.mark.parametrize(
    "options",
    [
        {"timing": "some"},
        {"timing": None},
        {"timing_interval": 0},
        {"timing_interval": True},
        {"timing_interval": 1 << 30},
        {"stats": 1},
    ],
)
def test_other_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOptionError):
        EventBus(**options)


def test_other_timings_of_a_key_are_refused() -> None:
    with EventBus() as bus, pytest.raises(InvalidOptionError, match="one of"):
        bus.set_timing("key", "some")  # type: ignore[arg-type]
    with EventBus(stats=False) as bus, pytest.raises(InvalidOptionError, match="stats"):
        bus.set_timing("key", "all")


def test_without_stats_only_conservation_is_counted() -> None:
    with EventBus(workers=1, stats=False, timing="all") as bus:

        def fail(event: object) -> None:
            raise ValueError

        bus.on("key", lambda event: None)
        assert bus.emit("key") == 1
        assert bus.emit_many("key", range(5)) == 5
        assert bus.emit("nothing") == 0
        bus.post_many("key", range(10))
        assert bus.drain(WAIT)
        bus.on("key", fail)
        with pytest.raises(HandlerErrors):
            bus.emit("key")
        bus.off("key", fail)
        with bus.subscribe("key", lambda event: bus.off("key")):
            assert bus.emit("key") >= 1
        stats = bus.stats()
        assert not stats.counting
        assert stats.timing == "off"
        assert (stats.posted, stats.delivered, stats.pending) == (10, 10, 0)
        assert (stats.emitted, stats.handled, stats.failed, stats.unheard) == (0,) * 4
        assert stats.times.emit.count == stats.times.handler.count == 0
        assert stats.workers[0].taken == 10

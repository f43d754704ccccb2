"""post and post_many: what reaches the workers, and how they behave."""

import collections
import contextvars
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from dispatching import WAIT, check_conservation

from ftbus import BusClosedError, EventBus
from ftbus.testing import run_threads


def test_post_runs_handlers_on_the_workers() -> None:
    with EventBus(workers=2, name="pool") as bus:
        seen: list[tuple[object, str]] = []
        bus.on("key", lambda e: seen.append((e, threading.current_thread().name)))
        assert bus.post("key", 1) is True
        assert bus.topic("key").post(2) is True
        assert bus.post("key") is True
        assert bus.topic("key").post() is True
        assert bus.post(key="key", event=3) is True
        assert bus.drain(WAIT)
        assert sorted(map(str, (event for event, _ in seen))) == [
            "1",
            "2",
            "3",
            "None",
            "None",
        ]
        assert all(name.startswith("pool-worker-") for _, name in seen)


def test_post_without_handlers_is_delivered() -> None:
    with EventBus(workers=1) as bus:
        assert bus.post("nobody", 1)
        assert bus.drain(WAIT)
        assert bus.stats().delivered == 1


def test_post_many_posts_each() -> None:
    with EventBus(workers=2) as bus:
        seen: list[int] = []
        bus.on("key", seen.append)
        assert bus.post_many("key", range(1000)) == 1000
        assert bus.topic("key").post_many(iter([1000])) == 1
        assert bus.post_many("key", []) == 0
        assert bus.drain(WAIT)
        assert sorted(seen) == list(range(1001))


@pytest.mark.parametrize("partition", [None, "p"])
def test_post_many_passes_on_what_the_iterable_raises(partition: Any) -> None:
    with EventBus(workers=1) as bus:
        seen: list[int] = []
        bus.on("key", seen.append)

        def events() -> Iterator[int]:
            yield from range(100)
            raise LookupError("no more")

        with pytest.raises(LookupError, match="no more"):
            bus.post_many("key", events(), partition=partition)
        with pytest.raises(TypeError):
            bus.post_many("key", 5)  # type: ignore[arg-type]
        assert bus.drain(WAIT)
        assert seen == list(range(100))
        check_conservation(bus.stats())


def test_post_many_with_a_partition_function() -> None:
    with EventBus(workers=3) as bus:
        seen: dict[str, list[int]] = {"even": [], "odd": []}
        bus.on("key", lambda n: seen["odd" if n % 2 else "even"].append(n))
        posted = bus.post_many(
            "key", range(2000), partition=lambda n: "odd" if n % 2 else "even"
        )
        assert posted == 2000
        assert bus.drain(WAIT)
        assert seen["even"] == list(range(0, 2000, 2))
        assert seen["odd"] == list(range(1, 2000, 2))

        def fail(event: int) -> str:
            if event == 3:
                raise LookupError(event)
            return "p"

        with pytest.raises(LookupError):
            bus.post_many("key", range(5), partition=fail)
        assert bus.drain(WAIT)
        assert bus.stats().posted == 2003


def test_posted_events_fan_out_over_idle_workers() -> None:
    with EventBus(workers=3) as bus:
        meeting = threading.Barrier(3)
        bus.on("key", lambda event: meeting.wait(WAIT))
        for _ in range(3):
            bus.post("key")
        assert bus.drain(WAIT)
        assert bus.stats().failed == 0


def test_events_behind_a_blocked_one_run_on_the_other_worker() -> None:
    """However many the blocked worker had grown used to taking at once."""
    with EventBus(workers=2) as bus:
        bus.on("quick", lambda event: None)
        bus.post_many("quick", range(20000))
        assert bus.drain(WAIT)
        for _ in range(20):
            done = threading.Event()
            late: list[int] = []

            def handler(event: int, done: Any = done, late: Any = late) -> None:
                if event:
                    done.set()
                elif not done.wait(2):
                    late.append(event)

            bus.on("key", handler)
            bus.post_many("key", range(8))
            assert bus.drain(WAIT)
            bus.off("key")
            assert late == []


def test_workers_survive_every_exception() -> None:
    errors: list[BaseException] = []
    raised = [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit, BaseException]
    with EventBus(workers=2, on_error=lambda e, k, h: errors.append(e)) as bus:

        @bus.on("key")
        def handler(event: type[BaseException]) -> None:
            raise event

        for kind in raised * 10:
            bus.post("key", kind)
        assert bus.drain(WAIT)
        assert all(thread.is_alive() for thread in bus._threads)
        assert collections.Counter(map(type, errors)) == dict.fromkeys(raised, 10)
        stats = bus.stats()
        assert stats.failed == stats.handled == stats.delivered == 50


def test_workers_do_not_keep_the_context_of_the_first_poster() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    with EventBus(workers=1) as bus:
        seen: list[str] = []
        bus.on("key", lambda event: seen.append(variable.get("unset")))

        def post() -> None:
            variable.set("set by the poster")
            bus.post("key")

        contextvars.Context().run(post)
        contextvars.Context().run(bus.post, "key")
        assert bus.drain(WAIT)
        assert seen == ["set by the poster", "unset"]


def test_workers_start_with_the_first_post_and_once() -> None:
    with EventBus(workers=3) as bus:
        assert bus._threads == []
        run_threads(4, lambda index: bus.post("key"))
        assert len(bus._threads) == 3
        assert bus.drain(WAIT)


@pytest.mark.thread_unsafe(reason="replaces threading.Thread.start")
def test_post_can_be_tried_again_when_no_thread_could_be_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start, calls = threading.Thread.start, [0]

    def failing(thread: threading.Thread) -> None:
        calls[0] += 1
        if calls[0] in (1, 3):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", failing)
    with EventBus(workers=2) as bus:
        seen: list[int] = []
        bus.on("key", seen.append)
        for n in range(2):
            with pytest.raises(RuntimeError, match="new thread"):
                bus.post("key", n)
        assert bus.post("key", 2)
        assert bus.drain(WAIT)
        assert seen == [2]
        assert len(bus._threads) == 2


def test_post_on_a_bus_that_was_closed_before_its_first_is_counted() -> None:
    bus = EventBus()
    bus.on("key", lambda event: None)
    bus.close()
    for _ in range(3):
        with pytest.raises(BusClosedError):
            bus.post("key")
    stats = bus.stats()
    assert (stats.posted, stats.rejected, stats.pending) == (3, 3, 0)


@pytest.mark.parametrize("has_pool", [False, True], ids=["before", "after"])
def test_first_post_may_be_interrupted_around_the_start(has_pool: bool) -> None:
    """A pool without workers would keep all that is posted, for ever."""
    interrupts = [KeyboardInterrupt]

    class Bus(EventBus):
        def _start_pool(self, cache_of: bytes | None, node_of: bytes | None, /) -> None:
            if has_pool or not interrupts:
                super()._start_pool(cache_of, node_of)
            if interrupts:
                raise interrupts.pop()

    with Bus(workers=2) as bus:
        seen: list[int] = []
        bus.on("key", seen.append)
        with pytest.raises(KeyboardInterrupt):
            bus.post("key", 1)
        assert len(bus._threads) == 2 * has_pool
        bus.post("key", 2)
        assert bus.drain(WAIT)
        assert seen == [2]
        assert len(bus._threads) == 2
        assert len(bus.stats().workers) == 2

"""Forks while everything is at work."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

import pytest
from builds import TSAN
from dispatching import WAIT

from ftbus import BusForkedError, EventBus, dispatch


def fork_and(function: Callable[[], None]) -> int:
    """Run the function in a fork's child; return its status. Kills what hangs."""
    child = os.fork()
    if child == 0:
        end_with(function)
    return status_of(child)


def end_with(function: Callable[[], None]) -> NoReturn:
    """Run the function, and end the process."""
    status = 1
    try:
        function()
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


def status_of(child: int) -> int:
    """Wait for a process that was forked. Kills what hangs."""
    deadline = time.monotonic() + WAIT
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise AssertionError("the child hangs")
        threading.Event().wait(0.002)


@pytest.mark.thread_unsafe(reason="forks")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.skipif(TSAN, reason="ThreadSanitizer ends such children")
@pytest.mark.parametrize("has_workers", [False, True])
def test_child_of_a_fork(has_workers: bool) -> None:
    seen: list[object] = []
    with EventBus(workers=2) as bus:
        bus.on("key", seen.append)
        if has_workers:
            bus.post("key", "before")
            assert bus.drain(WAIT)

        def child() -> None:
            assert bus.emit("key", "child") == 1
            assert bus.topic("key").emit("child") == 1
            bus.on("new", lambda event: None)
            assert bus.emit("new") == 1
            assert bus.off("new") == 1
            for use in (
                lambda: bus.post("key"),
                lambda: bus.post_many("key", [1, 2]),
                lambda: bus.post("key", partition="p"),
                lambda: bus.topic("key").post(1),
                lambda: bus.call("key"),
            ):
                if not has_workers:
                    use()  # starts workers of its own
                    continue
                try:
                    use()
                except BusForkedError as error:
                    assert error.bus is bus
                    assert "fork" in str(error)
                else:
                    raise AssertionError("no BusForkedError")
            bus.drain(WAIT)
            assert bus.stats().topic("key").handled >= 2
            bus.report()
            assert bus.close() == 0
            with EventBus(workers=1) as own:
                own.on("key", seen.append)
                own.post("key", "own")
                assert own.drain(WAIT)
                assert own.call("key", 1).result(WAIT) == [None]

        assert fork_and(child) == 0
        before = len(seen)
        assert bus.emit("key", "after") == 1
        bus.post("key", "after")
        assert bus.drain(WAIT)
        assert seen[before:] == ["after"] * 2


class ForksOnceItHasAPool(EventBus):
    """Has a child as soon as its pool is there."""

    status: int | None = None
    queued_before = ("queued before the fork",)

    def _start_pool(self, *groups: Any) -> None:
        super()._start_pool(*groups)
        self.post_many("key", self.queued_before)
        self.status = fork_and(self._be_a_child)

    def _be_a_child(self) -> None:
        with pytest.raises(BusForkedError):
            self.post_later(0, "key")
        with pytest.raises(BusForkedError):
            self.post("key")
        assert self.close() == 0  # the parent handles it


class ForksBeforeItHasAPool(EventBus):
    """Has a child while the threads of its workers are there, and its pool is not."""

    status: int | None = None
    queued_before = ()

    def _start_pool(self, *groups: Any) -> None:
        if self.status is None:
            self.status = -1
            self.status = fork_and(self._be_a_child)
        super()._start_pool(*groups)

    def _be_a_child(self) -> None:
        self.post("key", "the child's own")
        assert self.drain(WAIT)
        assert self.close() == 0


@pytest.mark.thread_unsafe(reason="forks")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.skipif(TSAN, reason="ThreadSanitizer ends such children")
@pytest.mark.parametrize("kind", [ForksOnceItHasAPool, ForksBeforeItHasAPool])
def test_fork_while_the_first_post_starts_the_workers(kind: Any) -> None:
    seen: list[object] = []
    with kind(workers=1) as bus:
        bus.on("key", seen.append)
        bus.post("key", "after the fork")
        assert bus.status == 0
        assert bus.drain(WAIT)
    assert seen == [*kind.queued_before, "after the fork"]


@pytest.mark.thread_unsafe(reason="forks")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.skipif(TSAN, reason="ThreadSanitizer ends such children")
def test_fork_by_the_thread_that_starts_the_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a finalizer may that runs there; both processes then finish the start."""
    start, children = dispatch._start_with_stack, []

    def start_and_fork(thread: threading.Thread) -> None:
        start(thread)
        if thread.name.endswith("-worker-1"):
            children.append(os.fork())

    def be_a_child() -> None:
        assert isinstance(error, BusForkedError)
        with pytest.raises(BusForkedError):
            bus.call("key")
        assert bus.drain(WAIT)
        assert bus.close() == 0

    monkeypatch.setattr(dispatch, "_start_with_stack", start_and_fork)
    with EventBus(workers=2) as bus:
        bus.on("key", lambda event: None)
        error: BaseException | None = None
        try:
            bus.post("key")
        except BaseException as raised:
            error = raised
        if children == [0]:
            end_with(be_a_child)
        assert status_of(children[0]) == 0
        assert error is None
        assert bus.drain(WAIT)
        assert bus.stats().handled == 1


@pytest.mark.thread_unsafe(reason="forks")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.skipif(TSAN, reason="ThreadSanitizer ends such children")
def test_forks_while_everything_is_at_work() -> None:
    stop = threading.Event()
    with EventBus(workers=2, queue_size=64) as bus:
        bus.on("key", lambda event: None)

        def work(index: int) -> None:
            n = 0
            while not stop.is_set():
                n += 1
                bus.emit("key", n)
                bus.post("key", n, partition=index if n % 2 else None)
                bus.subscribe(n % 10, lambda event: None).cancel()
                bus.topic(f"{index}.{n % 100}")

        threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
        for thread in threads:
            thread.start()

        def child() -> None:
            assert bus.emit("key") == 1
            bus.on("child", lambda event: None)
            assert bus.emit("child") == 1
            bus.on("1.5", lambda event: None)
            assert bus.emit("1.5") == 1
            with contextlib.suppress(BusForkedError):
                bus.post("key")
            bus.stats()
            bus.close()

        try:
            for _ in range(15):
                assert fork_and(child) == 0
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert bus.drain(WAIT)
        stats = bus.stats()
        assert stats.posted == stats.delivered


@pytest.mark.thread_unsafe(reason="starts a process")
@pytest.mark.skipif(TSAN, reason="ThreadSanitizer ends such children")
def test_pool_of_forked_processes_uses_buses_of_its_own(python: Any) -> None:
    done = python(
        """
import multiprocessing, ftbus
bus = ftbus.EventBus(workers=1)
def work(n):
    with ftbus.EventBus(workers=1) as own:
        own.on("key", lambda event: event * 2)
        return own.call("key", n).result(30)[0], ftbus.Key("a").hash64
bus.on("key", print)
bus.post("key", "parent")
assert bus.drain(30)
with multiprocessing.get_context("fork").Pool(2) as pool:
    rows = pool.map(work, range(4))
assert rows == [(n * 2, ftbus.Key("a").hash64) for n in range(4)]
bus.close()
""",
        "-W",
        "ignore::DeprecationWarning",
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "parent\n")

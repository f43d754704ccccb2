"""bus.executor(): the interface of concurrent.futures on a bus's workers."""

import asyncio
import concurrent.futures
import gc
import os
import sys
import threading
import weakref
from concurrent.futures.thread import BrokenThreadPool
from typing import Any

import pytest
from dispatching import WAIT, Gate, check_conservation, held_bus

from ftbus import (
    BusClosedError,
    EventBus,
    EventDroppedError,
    ExecutorBrokenError,
    ExecutorShutdownError,
    InvalidOptionError,
    QueueFullError,
)
from ftbus.testing import eventually, run_threads


def test_submit_runs_on_the_workers() -> None:
    with EventBus(workers=2, name="bus") as bus, bus.executor() as executor:

        def function(*args: object, **kwargs: object) -> Any:
            return args, kwargs, threading.current_thread().name

        future = executor.submit(function, 1, fn=2, self=3, timeout=4)
        args, kwargs, name = future.result(WAIT)
        assert (args, kwargs) == ((1,), {"fn": 2, "self": 3, "timeout": 4})
        assert name.startswith("bus-worker-")
        assert isinstance(executor, concurrent.futures.Executor)
        assert isinstance(future, concurrent.futures.Future)
        with pytest.raises(ZeroDivisionError):
            executor.submit(divmod, 1, 0).result(WAIT)
        with pytest.raises(TypeError):
            executor.submit(5)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_every_exception_goes_to_the_future(kind: type[BaseException]) -> None:
    with EventBus(workers=1) as bus, bus.executor() as executor:

        def function() -> None:
            raise kind

        assert type(executor.submit(function).exception(WAIT)) is kind
        assert executor.submit(abs, -1).result(WAIT) == 1


@pytest.mark.parametrize("chunksize", [1, 2, 3, 100])
def test_map_returns_results_in_order(chunksize: int) -> None:
    with EventBus(workers=2) as bus, bus.executor() as executor:
        results = executor.map(pow, range(20), range(25), chunksize=chunksize)
        assert list(results) == [n**n for n in range(20)]
        assert list(executor.map(abs, [], chunksize=chunksize)) == []
        failing = executor.map(divmod, [1, 1, 1], [1, 0, 1], chunksize=chunksize)
        with pytest.raises(ZeroDivisionError):
            list(failing)


def test_map_makes_one_task_of_a_chunk() -> None:
    with EventBus(workers=1) as bus, bus.executor() as executor:
        assert list(executor.map(abs, range(10), chunksize=4)) == list(range(10))
        assert bus.drain(WAIT)
        assert bus.stats().posted == 3
        for chunksize in (0, -1):
            with pytest.raises(InvalidOptionError):
                executor.map(abs, [1], chunksize=chunksize)


@pytest.mark.parametrize("chunksize", [1, 2])
def test_map_with_timeout_cancels_the_rest(chunksize: int) -> None:
    with held_bus() as (bus, gate):
        seen: list[int] = []
        results = bus.executor().map(
            seen.append, range(6), timeout=0, chunksize=chunksize
        )
        with pytest.raises(TimeoutError):
            next(results)
        gate.open()
        assert bus.drain(WAIT)
        assert seen == []


@pytest.mark.skipif(sys.version_info < (3, 14), reason="buffersize is new in 3.14")
def test_map_with_a_buffer_size_submits_no_more_than_that() -> None:
    with EventBus(workers=1) as bus, bus.executor() as executor:
        taken: list[int] = []

        def numbers() -> Any:
            for n in range(10):
                taken.append(n)
                yield n

        results = executor.map(abs, numbers(), buffersize=2)
        assert next(results) == 0
        assert len(taken) == 3
        assert list(results) == list(range(1, 10))


@pytest.mark.parametrize("workers", [1, 2])
def test_submits_nested_deeper_than_there_are_workers(workers: int) -> None:
    with EventBus(workers=workers) as bus, bus.executor() as executor:

        def fibonacci(n: int) -> int:
            if n < 2:
                return n
            futures = [executor.submit(fibonacci, n - i) for i in (1, 2)]
            return sum(future.result(WAIT) for future in futures)

        assert executor.submit(fibonacci, 10).result(WAIT) == 55

        def total(depth: int) -> int:
            return sum(executor.map(total, [depth - 1] * 2)) + 1 if depth else 1

        assert executor.submit(total, 4).result(WAIT) == 31
        assert bus.drain(WAIT)
        check_conservation(bus.stats())


def test_submits_and_calls_wait_for_each_other() -> None:
    with EventBus(workers=1) as bus, bus.executor() as executor:

        @bus.on("key")
        def handler(n: int) -> int:
            return executor.submit(function, n - 1).result(WAIT) + 1 if n else 0

        def function(n: int) -> int:
            return bus.call("key", n - 1).result(WAIT)[0] + 1 if n > 0 else 0

        assert executor.submit(function, 9).result(WAIT) == 9


def test_cancel_until_it_starts() -> None:
    with held_bus() as (bus, gate):
        executor = bus.executor()
        running = Gate()
        seen: list[int] = []
        first = executor.submit(running, 1)
        second = executor.submit(seen.append, 2)
        assert second.cancel()
        done, waiting = concurrent.futures.wait([second], timeout=WAIT)
        assert (done, waiting) == ({second}, set())
        gate.open()
        running.wait_entered()
        assert first.running()
        assert not first.cancel()
        running.open()
        assert first.result(WAIT) is None
        assert bus.drain(WAIT)
        assert seen == []


def test_cancel_races_with_the_start() -> None:
    with EventBus(workers=2) as bus, bus.executor() as executor:
        ran: list[int] = []
        futures = []
        for n in range(500):
            future = executor.submit(ran.append, n)
            future.cancel()
            futures.append(future)
        concurrent.futures.wait(futures)
        assert sorted(ran) == [n for n, f in enumerate(futures) if not f.cancelled()]


# shutdown


def test_shutdown_waits_and_leaves_the_bus_open() -> None:
    with EventBus(workers=2) as bus:
        seen: list[int] = []
        with bus.executor() as executor:
            for n in range(200):
                executor.submit(seen.append, n)
        assert sorted(seen) == list(range(200))
        with pytest.raises(ExecutorShutdownError, match="after shutdown") as caught:
            executor.submit(abs, 1)
        assert caught.value.executor is executor
        assert isinstance(caught.value, RuntimeError)
        with pytest.raises(RuntimeError):
            executor.map(abs, [1])
        executor.shutdown()
        assert bus.executor().submit(abs, -1).result(WAIT) == 1
        assert not executor._unfinished
        assert repr(executor) == "<BusExecutor of 'ftbus', shut down>"


def test_shutdown_without_waiting_runs_what_was_submitted() -> None:
    with held_bus() as (bus, gate):
        executor = bus.executor()
        future = executor.submit(abs, -1)
        executor.shutdown(wait=False)
        assert not future.done()
        gate.open()
        assert future.result(WAIT) == 1


def test_shutdown_that_cancels() -> None:
    with held_bus() as (bus, gate):
        executor = bus.executor()
        futures = [executor.submit(abs, n) for n in range(5)]
        executor.shutdown(cancel_futures=True)
        assert all(future.cancelled() for future in futures)
        gate.open()


@pytest.mark.parametrize("workers", [1, 2])
def test_shutdown_from_a_function_that_runs_there(workers: int) -> None:
    with EventBus(workers=workers) as bus:
        executor = bus.executor()
        seen: list[int] = []

        def function() -> list[int]:
            for n in range(5):
                executor.submit(seen.append, n)
            executor.shutdown()
            return sorted(seen)

        assert executor.submit(function).result(WAIT) == list(range(5))


def test_submit_races_with_shutdown() -> None:
    for _ in range(20):
        with EventBus(workers=2) as bus:
            executor = bus.executor()
            ran: list[int] = []

            def work(index: int) -> int:
                if index == 0:
                    executor.shutdown()
                    return len(ran) and 0
                n = 0
                try:
                    while n < 1000:
                        executor.submit(ran.append, n)
                        n += 1
                except ExecutorShutdownError:
                    pass
                return n

            submitted = sum(run_threads(3, work))
            executor.shutdown()
            assert len(ran) == submitted


def test_executor_that_nobody_holds_finishes_its_work() -> None:
    with held_bus() as (bus, gate):
        executor = bus.executor()
        gone = weakref.ref(executor)
        future = executor.submit(abs, -1)
        del executor
        gate.open()
        assert future.result(WAIT) == 1
        eventually(lambda: (gc.collect() and False) or gone() is None)


# The queue


def test_full_queue_blocks_refuses_or_drops() -> None:
    with held_bus(queue_size=1, overflow="raise") as (bus, gate):
        executor = bus.executor()
        executor.submit(abs, 1)
        with pytest.raises(QueueFullError):
            executor.submit(abs, 2)
        assert len(executor._unfinished) == 1
        gate.open()
    for overflow in ("drop_newest", "drop_oldest"):
        with held_bus(queue_size=1, overflow=overflow) as (bus, gate):
            executor = bus.executor()
            futures = [executor.submit(abs, n) for n in range(3)]
            gate.open()
            executor.shutdown()
            errors = [future.exception(WAIT) for future in futures]
            dropped = [error for error in errors if error is not None]
            assert len(dropped) == 2
            for error in dropped:
                assert isinstance(error, EventDroppedError)
                assert error.what is abs
            assert bus.drain(WAIT)
            check_conservation(bus.stats())


def test_closing_the_bus_ends_every_future() -> None:
    with held_bus() as (bus, gate):
        executor = bus.executor()
        futures = [executor.submit(abs, n) for n in range(5)]
        closer = threading.Thread(target=bus.close, kwargs={"drain": False})
        closer.start()
        for future in futures:
            with pytest.raises(concurrent.futures.CancelledError):
                future.result(WAIT)
        gate.open()
        closer.join(WAIT)
        with pytest.raises(BusClosedError):
            executor.submit(abs, 1)
        executor.shutdown()


# Initializers


def test_initializer_runs_once_in_each_worker() -> None:
    with EventBus(workers=3) as bus:
        local = threading.local()
        calls: list[tuple[int, str]] = []

        def initializer(value: int) -> None:
            local.value = value
            calls.append((value, threading.current_thread().name))

        executor = bus.executor(initializer=initializer, initargs=(7,))
        assert calls == []
        meeting = threading.Barrier(3)

        def function() -> int:
            meeting.wait(WAIT)
            return int(local.value)

        for _ in range(3):
            futures = [executor.submit(function) for _ in range(3)]
            assert [future.result(WAIT) for future in futures] == [7] * 3
        assert len(calls) == len(set(calls)) == 3
        other = bus.executor(initializer=initializer, initargs=(8,))
        assert other.submit(lambda: local.value).result(WAIT) == 8
        executor.shutdown()


def test_failing_initializer_breaks_the_executor_only() -> None:
    errors: list[tuple[BaseException, object, object]] = []
    with EventBus(workers=1, on_error=lambda *e: errors.append(e)) as bus:
        gate = Gate()
        bus.on("key", gate)
        bus.post("key")
        gate.wait_entered()
        raised = LookupError("no")

        def initializer() -> None:
            raise raised

        executor = bus.executor(initializer=initializer)
        futures = [executor.submit(abs, n) for n in range(5)]
        gate.open()
        for future in futures:
            with pytest.raises(ExecutorBrokenError, match="LookupError") as caught:
                future.result(WAIT)
            assert caught.value.executor is executor
            assert caught.value.error is raised
        with pytest.raises(BrokenThreadPool):
            executor.submit(abs, 1)
        eventually(lambda: errors)
        assert errors == [(raised, None, initializer)]
        executor.shutdown()
        assert "broken" in repr(executor)
        assert bus.executor().submit(abs, -1).result(WAIT) == 1
        raised.__traceback__ = None


@pytest.mark.parametrize("initializer", [5, "print"])
def test_initializer_must_be_callable(initializer: Any) -> None:
    with EventBus() as bus, pytest.raises(InvalidOptionError):
        bus.executor(initializer=initializer)


# asyncio


def test_run_in_executor() -> None:
    with EventBus(workers=2) as bus, bus.executor() as executor:

        async def main() -> None:
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(WAIT):
                runs = (loop.run_in_executor(executor, pow, n, 2) for n in range(20))
                assert await asyncio.gather(*runs) == [n * n for n in range(20)]
                with pytest.raises(ZeroDivisionError):
                    await loop.run_in_executor(executor, divmod, 1, 0)

        asyncio.run(main())


# The end of the process


PROGRAM = """
import atexit, os, threading
import ftbus
bus = ftbus.EventBus(workers=2)
executor = bus.executor()
"""


def test_interpreter_exit_runs_what_was_submitted(python: Any) -> None:
    done = python(
        PROGRAM
        + """
end = threading.Event()
def last(n):
    end.wait()
    os.write(1, b"%d\\n" % n)  # at once: several print at the same time
for n in range(4):
    executor.submit(last, n)
executor.shutdown(wait=False)
threading.Timer(1.5, end.set).start()  # longer than a bus has to close
"""
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.split()) == ["0", "1", "2", "3"]


def test_submit_after_interpreter_exit_is_refused(python: Any) -> None:
    done = python(
        PROGRAM
        + """
executor.submit(abs, 1).result()
@atexit.register
def late():
    try:
        executor.submit(abs, 1)
    except RuntimeError as error:
        print(type(error).__name__)
"""
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["ExecutorShutdownError"]


@pytest.mark.thread_unsafe(reason="forks")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork_while_something_runs() -> None:
    with held_bus() as (bus, gate):
        executor = bus.executor()
        executor.submit(abs, 1)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                executor.submit(abs, 1)
            except BusClosedError:  # BusForkedError
                executor.shutdown()
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        gate.open()
        executor.shutdown()

"""Collection, allocation, threads, fork, signals, subinterpreters, interpreter exit."""

import contextlib
import gc
import os
import signal
import sys
import sysconfig
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from ftbus import BusForkedError, EventBus, _core, lifecycle
from ftbus.testing import eventually, no_leaks, run_threads

WAIT = 30  # seconds; only a hang takes that long

# Handlers here are closures and bound methods: CPython 3.13t never frees functions and
# classes of a module once a thread was started.


class Owner:
    def handle(self, event: object) -> None:
        pass


# Collection


def is_dead(reference: Callable[[], object]) -> bool:
    gc.collect()
    return reference() is None


def test_handler_that_refers_to_the_bus_is_collectable_after_off() -> None:
    with EventBus() as bus:
        owner = Owner()
        reference = weakref.ref(owner)
        bus.on("key", lambda event, owner=owner: bus.emit("other", owner))
        del owner
        assert not is_dead(reference)
        bus.off("key")
        assert is_dead(reference)


def test_handler_that_refers_to_the_bus_is_collectable_after_close() -> None:
    bus = EventBus(workers=1)
    owner = Owner()
    reference = weakref.ref(owner)
    subscription = bus.subscribe("key", lambda event, owner=owner: bus.emit("x", owner))
    bus.post("key")
    del owner
    bus.close()
    assert not is_dead(reference)  # by the subscription
    del subscription
    assert is_dead(reference)


def test_bus_and_handlers_are_collectable_as_a_cycle() -> None:
    def make() -> list[Any]:
        bus = EventBus()
        owner = Owner()
        owner.bus = bus  # type: ignore[attr-defined]
        owner.topic = bus.topic("key")  # type: ignore[attr-defined]
        owner.subscription = bus.subscribe(  # type: ignore[attr-defined]
            "key", owner.handle
        )
        bus.on("weak", owner.handle, weak=True)
        bus.once("once", lambda event, owner=owner: owner)
        bus.emit("key")
        cancelled = bus.subscribe("key", lambda event, owner=owner: None)
        owner.cancelled = cancelled  # type: ignore[attr-defined]
        cancelled.cancel()
        return [weakref.ref(bus), weakref.ref(owner), weakref.ref(owner.topic)]  # type: ignore[attr-defined]

    for reference in make():
        assert is_dead(reference)


def test_closed_bus_with_workers_is_collectable() -> None:
    def make() -> Any:
        with EventBus(workers=2) as bus:
            bus.on("key", lambda event: bus.stats())
            bus.post("key")
            return weakref.ref(bus)

    reference = make()
    eventually(lambda: is_dead(reference))


def test_close_lets_every_handler_go() -> None:
    bus = EventBus(workers=1)
    owners = [Owner() for _ in range(20)]
    references = [weakref.ref(owner) for owner in owners]
    for n, owner in enumerate(owners):
        bus.on(n % 5, owner.handle, once=n % 2 == 0)
        bus.topic(n).emit()
    bus.close()
    owners.clear()
    del owner
    gc.collect()
    assert [reference() for reference in references] == [None] * 20


def test_dropped_payloads_are_let_go() -> None:
    gate = threading.Event()
    with EventBus(workers=1, queue_size=2, overflow="drop_oldest") as bus:
        entered = threading.Event()
        bus.on("gate", lambda event: (entered.set(), gate.wait(WAIT)))
        bus.post("gate")
        assert entered.wait(WAIT)
        references = []
        for n in range(10):
            payload = Owner()
            references.append(weakref.ref(payload))
            bus.post("key", payload, partition="p" if n % 2 else None)
        del payload
        gc.collect()
        assert sum(reference() is not None for reference in references) == 2
        gate.set()
        assert bus.drain(WAIT)
        eventually(lambda: all(reference() is None for reference in references))


def test_storm_of_subscriptions_leaves_nothing() -> None:
    with EventBus() as bus, no_leaks():

        def churn(index: int) -> None:
            for n in range(500):
                owner = Owner()
                subscription = bus.subscribe(n % 7, owner.handle, weak=n % 3 == 0)
                bus.on("shared", owner.handle, once=True)
                bus.emit(n % 7, owner)
                bus.emit("shared")
                if n % 2:
                    subscription.cancel()
                else:
                    bus.off(n % 7, owner.handle)

        run_threads(4, churn)
        bus.off("shared")
        for n in range(7):
            bus.off(n)


def test_no_leaks_sees_a_handler_that_is_left() -> None:
    with EventBus() as bus:
        with pytest.raises(AssertionError, match="1 handlers"), no_leaks(within=0):
            bus.on("key", lambda event: None)
        with pytest.raises(LookupError), no_leaks(within=0):
            bus.on("key", lambda event: None)
            raise LookupError


def test_live_handlers_counts_all_buses() -> None:
    with no_leaks():
        before = _core.live_handlers()
        with EventBus() as one, EventBus() as two:
            for bus in (one, two):
                bus.on("key", lambda event: None)
            assert _core.live_handlers() >= before + 2


# Allocation and threads


@pytest.mark.thread_unsafe(reason="starts a process")
def test_emit_allocates_no_objects(python: Any) -> None:
    done = python(
        """
import gc, sys, ftbus
bus = ftbus.EventBus()
class Event: pass
bus.on("key", lambda event: None)
bus.on("key", [].__contains__)
bus.on(Event, lambda event: None)
topic, event, shared = bus.topic("key"), Event(), object()
def steady():
    for _ in range(100_000):
        bus.emit("key", shared)
    for _ in range(10_000):
        topic.emit(shared)
        bus.emit(event)
        bus.emit("nobody")
    gc.collect()
steady()
before = sys.getallocatedblocks()
steady()
print(abs(sys.getallocatedblocks() - before))
bus.close()
"""
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 10


def test_records_of_short_threads_are_used_again() -> None:
    with EventBus() as bus:
        bus.on("key", lambda event: None)

        def emit_once() -> None:
            thread = threading.Thread(target=bus.emit, args=("key",))
            thread.start()
            thread.join()

        def churn(index: int) -> None:
            for _ in range(250):
                emit_once()

        run_threads(4, churn)
        assert bus.stats().handled == 1000


@pytest.mark.thread_unsafe(reason="reads the memory of the process")
def test_thread_churn_does_not_grow() -> None:
    psutil = pytest.importorskip("psutil")
    with EventBus() as bus:
        bus.on("key", lambda event: None)

        def churn(n: int) -> int:
            for _ in range(n):
                thread = threading.Thread(target=bus.emit, args=("key",))
                thread.start()
                thread.join()
            gc.collect()
            return psutil.Process().memory_info().rss

        churn(100)
        before = churn(100)
        assert churn(500) - before < 4 << 20


def test_many_buses_come_and_go() -> None:
    def work(index: int) -> None:
        for n in range(30):
            with EventBus(workers=1) as bus:
                bus.on("key", lambda event: None)
                assert bus.emit("key") == 1
                if n % 5 == 0:
                    bus.post("key")

    before = len(lifecycle.live_buses())
    run_threads(4, work)
    gc.collect()
    eventually(lambda: len(lifecycle.live_buses()) <= before)


# Fork


def fork_and(function: Callable[[], None]) -> int:
    """Run the function in a fork's child; return its status. Kills what hangs."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            function()
            status = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)
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


TSAN = "-fsanitize=thread" in str(sysconfig.get_config_var("PY_CFLAGS"))


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


# Signals


@pytest.mark.thread_unsafe(reason="starts a process")
@pytest.mark.parametrize(
    "wait",
    [
        "bus.drain()",
        "bus.close()",
        'bus.post("key")',
        "subscription.cancel(wait=True)",
    ],
)
def test_interrupt_during_a_wait_is_heard_promptly(python: Any, wait: str) -> None:
    done = python(
        f"""
import os, signal, threading, time, ftbus
bus = ftbus.EventBus(workers=1, queue_size=1)
entered, leave = threading.Event(), threading.Event()
@bus.on("key")
def handler(event):
    entered.set()
    leave.wait(30)
subscription = bus.subscribe("key", handler)
bus.post("key")
entered.wait(30)
bus.post("key")
def interrupt():
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt).start()
start = time.monotonic()
try:
    {wait}
except KeyboardInterrupt:
    print("interrupted")
assert time.monotonic() - start < 10
leave.set()
assert bus.close(timeout=30) == 0
assert bus.stats().pending == 0
"""
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "interrupted\n"


@pytest.mark.thread_unsafe(reason="starts a process")
def test_timer_signals_lose_no_wake_up(python: Any) -> None:
    done = python(
        """
import signal, ftbus
ticks = []
signal.signal(signal.SIGALRM, lambda *args: ticks.append(1))
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
with ftbus.EventBus(workers=2, queue_size=8) as bus:
    seen = []
    bus.on("key", seen.append)
    for round in range(20):
        bus.post_many("key", range(100))
        for n in range(100):
            bus.post("key", n, partition=n % 3)
        assert bus.drain(30)
        assert bus.call("key").result(30) == [None]
    assert len(seen) == 20 * 201
signal.setitimer(signal.ITIMER_REAL, 0)
assert ticks
"""
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.thread_unsafe(reason="starts a process")
def test_signal_handler_may_close_the_bus(python: Any) -> None:
    done = python(
        """
import os, signal, ftbus
bus = ftbus.EventBus(workers=1)
bus.on("key", lambda event: os.kill(os.getpid(), signal.SIGTERM))
signal.signal(signal.SIGTERM, lambda *args: print("left", bus.close()))
bus.post("key")
while not bus.closed:
    try:
        bus.drain(1)
        bus.emit("other")
    except ftbus.BusClosedError:
        pass
"""
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "left 0\n"


# Interpreter exit

EXITS = {
    "pending queue": """
bus.on("key", lambda event: None)
bus.post_many("key", range(50_000))
""",
    "sleeping handler": """
entered = threading.Event()
bus.on("key", lambda event: (entered.set(), time.sleep(60)))
bus.post("key")
entered.wait(30)
bus.post_many("key", range(100))
""",
    "two buses with sleeping handlers": """
buses = [ftbus.EventBus(workers=1) for _ in range(4)]
entered = threading.Semaphore(0)
for each in buses:
    each.on("key", lambda event: (entered.release(), time.sleep(60)))
    each.post("key")
for each in buses:
    entered.acquire(timeout=30)
""",
    "bus in a global": """
bus.on("key", lambda event: bus)
bus.post("key")
""",
    "bus in a cycle": """
class Owner:
    def handle(self, event): pass
owner = Owner()
owner.bus, owner.topic = bus, bus.topic("key")
owner.subscription = bus.subscribe("key", owner.handle)
bus.post("key")
del owner, bus
""",
    "emit in atexit": """
import atexit
@atexit.register
def last():
    try:
        bus.emit("key")
    except ftbus.BusClosedError:
        pass
bus.on("key", lambda event: None)
bus.post("key")
""",
    "emit in a finalizer": """
class Late:
    def __del__(self, closed=ftbus.BusClosedError):
        try:
            self.bus.emit("key")
            self.bus.post("key")
        except closed:
            pass
late = Late()
late.bus = bus
bus.on("key", lambda event: None)
bus.post("key")
""",
    "pinned bus": """
bus.pin()
topic = bus.topic("key")
topic.on(lambda event: topic)
topic.post()
""",
    "emitting daemon threads": """
topic = bus.topic("key")
topic.on(lambda event: None)
def endless():
    try:
        while True:
            topic.emit()
            bus.post("key")
    except ftbus.BusClosedError:
        pass
for _ in range(2):
    threading.Thread(target=endless, daemon=True).start()
bus.post("key")
""",
    "call under way": """
bus.on("key", lambda event: time.sleep(60))
future = bus.call("key")
""",
    "system exit in the main thread": """
bus.on("key", lambda event: None)
bus.post("key")
sys.exit(0)
""",
}


@pytest.mark.thread_unsafe(reason="starts a process")
@pytest.mark.parametrize("program", EXITS.values(), ids=EXITS.keys())
def test_interpreter_exits_quietly_and_soon(python: Any, program: str) -> None:
    prologue = """
import sys, threading, time, ftbus
bus = ftbus.EventBus(workers=2)
"""
    done = python(prologue + program, within=20)  # the handlers sleep for 60 s
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")


@pytest.mark.thread_unsafe(reason="starts a process")
def test_interpreter_exits_soon_although_a_bus_cannot_be_closed(python: Any) -> None:
    done = python(
        """
import ftbus
class Stubborn(ftbus.EventBus):
    def close(self, **options):
        raise LookupError("not me")
buses = [Stubborn(workers=2), ftbus.EventBus(workers=2), Stubborn(workers=2)]
for bus in buses:
    bus.post("key")
    bus.drain()
raise SystemExit(3)
"""
    )
    assert done.returncode == 3
    assert "not me" in done.stderr


@pytest.mark.thread_unsafe(reason="starts a process")
def test_queued_events_are_handled_at_exit(python: Any) -> None:
    done = python(
        """
import ftbus
bus = ftbus.EventBus(workers=1)
bus.on("key", lambda event: print(event, flush=True))
bus.post_many("key", range(100))
"""
    )
    assert done.stdout.split() == [str(n) for n in range(100)]


# Subinterpreters


@pytest.mark.thread_unsafe(reason="starts a process")
def test_subinterpreter_gets_a_clean_import_error(python: Any) -> None:
    done = python(
        """
import _interpreters, ftbus
other = _interpreters.create()
for _ in range(3):
    error = _interpreters.run_string(other, '''
try:
    import ftbus
except ImportError as error:
    assert "subinterpreters" in str(error), error
else:
    raise AssertionError("imported")
''')
    assert error is None, error
_interpreters.destroy(other)
with ftbus.EventBus() as bus:
    bus.on("key", lambda event: None)
    assert bus.emit("key") == 1
""",
        "-W",
        "ignore",
    )
    assert (done.returncode, done.stderr) == (0, "")

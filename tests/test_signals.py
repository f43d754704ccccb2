"""Signals during waits, and handlers of signals that use the bus."""

from typing import Any

import pytest


@pytest.mark.thread_unsafe(reason="starts a process")
@pytest.mark.parametrize(
    "heard",
    [
        "os.kill(os.getpid(), signal.SIGINT)",
        # By this thread: the main thread's sleep does not end, as if the signal had
        # come just before.
        "signal.pthread_kill(threading.get_ident(), signal.SIGINT)",
    ],
    ids=["at once", "later"],
)
@pytest.mark.parametrize(
    "wait",
    [
        "bus.drain()",
        "bus.close(timeout=600)",
        "other.close(drain=False, timeout=600)",
        'bus.post("key")',
        "subscription.cancel(wait=True)",
        "called.result()",
        "called.exception(600)",
        "submitted.result()",
        "executor.shutdown()",
        "ftbus.testing.run_threads(1, lambda index: leave.wait())",
    ],
)
def test_interrupt_during_a_wait_is_heard_promptly(
    python: Any, wait: str, heard: str
) -> None:
    done = python(
        f"""
import os, signal, threading, time, ftbus, ftbus.testing
bus = ftbus.EventBus(workers=1, queue_size=1)
entered, leave = threading.Event(), threading.Event()
@bus.on("key")
def handler(event):
    entered.set()
    leave.wait()  # what is not interrupted waits for ever
subscription = bus.subscribe("key", handler)
bus.post("key")
entered.wait(30)
bus.post("key")
other = ftbus.EventBus(workers=1)
called_in = threading.Event()
other.on("key", lambda event: (called_in.set(), leave.wait()))
called = other.call("key")
called_in.wait(30)  # or close(drain=False) has nothing to wait for
executor = other.executor()
submitted = executor.submit(leave.wait)
begun = []
def is_asleep():
    with open(f"/proc/self/task/{{os.getpid()}}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "S"
def interrupt():
    while not (begun and is_asleep()):
        time.sleep(0.001)
    {heard}
threading.Thread(target=interrupt).start()
try:
    begun.append(True)
    {wait}
except KeyboardInterrupt:
    print("interrupted")
leave.set()
other.close(timeout=30)
assert bus.close(timeout=30) == 0
assert bus.stats().pending == other.stats().pending == 0
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

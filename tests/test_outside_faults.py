"""Faults injected from outside: thrown exceptions, no memory, foreign threads."""

import threading
from typing import Any

import pytest

from ftbus import EventBus, HandlerErrors


@pytest.mark.thread_unsafe(reason="starts a process")
def test_exceptions_thrown_into_emitting_threads_leave_the_bus_usable(
    python: Any, seed: int
) -> None:
    done = python(
        f"""
import ctypes, random, threading, ftbus
choices = random.Random({seed})
throw = ctypes.pythonapi.PyThreadState_SetAsyncExc
class Shot(Exception): pass
bus = ftbus.EventBus(workers=2, queue_size=64, on_error=lambda e, k, h: None)
handled = [0] * 5
def handler(event, index):
    for _ in range(5):
        handled[index]  # a few places to be hit at
for index in range(3):
    bus.on("key", lambda event, index=index: handler(event, index))
stop = False
shots_in = [0] * 3
def work(index):
    while not stop:
        bus.emit("key", 1)
        bus.post("key", 1, partition=index)
        with bus.subscribe("other", print):
            pass
        bus.call("key")
        bus.once("key", lambda event: None)
def start(index):
    thread = threading.Thread(target=work, args=(index,))
    thread.start()
    return thread
others = []  # that killed a thread
def note(args):
    error = args.exc_value
    is_group = isinstance(error, ExceptionGroup) and error.subgroup(Shot)
    if not is_group and not isinstance(error, Shot):
        others.append(error)
threading.excepthook = note
threads = [start(index) for index in range(3)]
pause = threading.Event()
hits = 0
for shot in range(300):
    index = choices.randrange(3)
    hits += throw(ctypes.c_ulong(threads[index].ident), ctypes.py_object(Shot))
    pause.wait(choices.random() * 0.004)
    if not threads[index].is_alive():
        threads[index] = start(index)
stop = True
for thread in threads:
    thread.join()
assert others == [], others
assert hits > 200, hits
assert bus.drain(30)
stats = bus.stats()
assert stats.posted == stats.delivered + stats.dropped + stats.rejected, stats
assert all(thread.is_alive() for thread in bus._threads)
bus.off("key")
seen = []
bus.on("key", seen.append)
bus.post("key", 1)
assert bus.emit("key", 2) == 1 and bus.drain(30) and sorted(seen) == [1, 2]
assert bus.call("key", 3).result(30) == [None]
assert bus.close() == 0
print("good")
""",
        "-W",
        "ignore",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "good\n"


def test_foreign_threads_errors_do_not_mix() -> None:
    """Errors of one thread's emit never show up in another's."""
    from ftbus.testing import run_threads

    with EventBus() as bus:

        @bus.on("key")
        def handler(event: int) -> None:
            raise ValueError(event)

        def emit(index: int) -> None:
            for _ in range(300):
                with pytest.raises(HandlerErrors) as caught:
                    bus.emit("key", index)
                assert [e.args for e in caught.value.exceptions] == [(index,)]

        run_threads(4, emit)
        assert bus.stats().failed == 1200


def test_error_raised_before_an_emit_is_kept() -> None:
    """An emit in an except or finally block does not disturb what is being handled."""
    with EventBus() as bus:
        bus.once("key", lambda event: None)
        with pytest.raises(LookupError) as caught:
            try:
                raise LookupError
            finally:
                bus.emit("key")
        assert caught.value.__context__ is None
        assert threading.current_thread().is_alive()

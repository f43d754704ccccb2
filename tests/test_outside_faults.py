"""Faults injected from outside: thrown exceptions, no memory, foreign threads."""

import sysconfig
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


NOMEMORY = """
import contextvars, gc, os, sys
import _testcapi
import ftbus
from ftbus import _core

def quiet(args):
    if not isinstance(args.exc_value, MemoryError):
        sys.__unraisablehook__(args)
sys.unraisablehook = quiet

class Event: pass
class Owner:
    def handle(self, event): pass
owner = Owner()
number = 0
seen = []
def collect(event): seen.append(event)
def fail(event): raise ValueError
def emit_failing():
    try:
        bus.emit("raises", 1)
    except ExceptionGroup as group:
        if not group.subgroup(ValueError):
            raise

context = contextvars.Context()
context.run(contextvars.ContextVar("variable").set, 1)
bus = ftbus.EventBus(workers=1, codec="raw", on_error=lambda e, k, h: None)
bus.on("raises", fail)
bus.on("encoded", lambda event: None, encoded=True)
bus.on("steady", lambda event: None)
bus.post("steady")
bus.drain()

def sweep(once):
    global number
    once()
    failures = 0
    for first in range(50):
        number += 1
        _testcapi.set_nomemory(first, first + 1)
        try:
            once()
        except MemoryError:
            failures += 1
        except RuntimeError as error:  # CPython's own
            _testcapi.remove_mem_hooks()
            assert str(error) == "can't allocate lock", error
        except ExceptionGroup as group:
            _testcapi.remove_mem_hooks()
            # CPython 3.13 itself loses it when there is no memory for a traceback.
            lost = "NULL without an exception"
            assert group.subgroup(
                lambda e: isinstance(e, MemoryError) or lost in str(e)
            )
            failures += 1
        finally:
            _testcapi.remove_mem_hooks()
        # Still usable, and consistent:
        seen.clear()
        probe = bus.subscribe("probe", collect)
        assert bus.emit("probe", first) == 1, first
        assert probe.cancel(), first
        assert seen == [first], first
    assert failures

gc.collect()
gc.disable()
sweep(lambda: {use})
gc.enable()
assert bus.drain(30)
stats = bus.stats()
assert stats.posted == stats.delivered + stats.dropped + stats.rejected, stats
bus.close()
gc.collect()
_core.reclaim()
assert _core.live_handlers() == 0, _core.live_handlers()
os._exit(0)  # CPython 3.13t itself may hang in its allocator after such failures
"""


@pytest.mark.thread_unsafe(reason="starts a process")
@pytest.mark.skipif(
    not sysconfig.get_config_var("Py_GIL_DISABLED"),
    reason="where code objects are counted, CPython 3.13 itself drops that of a lambda "
    "twice if it has no memory for the function",
)
@pytest.mark.parametrize(
    "uses",
    [
        [
            'bus.subscribe(f"key{number}", lambda event: None).cancel()',
            'bus.on("key", lambda event: None), bus.off("key")',
            'bus.once("key", collect), bus.emit("key", 1)',
            "bus.on(Event, owner.handle, weak=True), bus.off(Event)",
        ],
        [
            'bus.emit(f"new{number}", bytes(number))',
            "bus.emit(Event())",
            "emit_failing()",
            'bus.emit("encoded", bytearray(8))',
            'bus.topic(f"key{number}").emit(1)',
        ],
        [
            'ftbus.Key(f"key{number}").segments',
            'bus.post("steady", bytes(number)), bus.drain()',
            'bus.post("steady", 1, partition=f"{number}"), bus.drain()',
            'bus.post_many("steady", range(70)), bus.drain()',
            'bus.post("steady", 1, context=context), bus.drain()',
            'bus.post_many("steady", range(70), context=context), bus.drain()',
            'bus.call("steady", 1), bus.drain()',
            "bus.stats()",
            "ftbus.EventBus().close()",
        ],
    ],
    ids=["subscribe", "emit", "post"],
)
def test_allocation_failures_leave_the_bus_usable(python: Any, uses: list[str]) -> None:
    pytest.importorskip("_testcapi")
    sweeps = "\n".join(f"sweep(lambda: ({use},))" for use in uses)
    done = python(NOMEMORY.replace("sweep(lambda: {use})", sweeps))
    assert (done.returncode, done.stderr) == (0, "")


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

"""What handlers raise and where it goes; recursion; faults injected from outside."""

import copy
import logging
import pickle
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

import ftbus
from ftbus import (
    BusClosedError,
    BusForkedError,
    CodecError,
    EmitDepthError,
    EventBus,
    FtbusError,
    HandlerErrors,
    HandlerTypeError,
    InvalidOptionError,
    QueueFullError,
    UnknownCodecError,
    UnsupportedKeyError,
    _core,
)

WAIT = 30  # seconds; only a hang takes that long


def failing(error: BaseException) -> Callable[[object], None]:
    """Make a handler that raises the error.

    In one thread at a time: raising adds to the traceback of an exception, without a
    lock in CPython.
    """
    lock = threading.RLock()

    def fail(event: object) -> None:
        with lock:
            raise error

    return fail


def leaves(error: BaseException) -> list[BaseException]:
    """Return the exceptions in a group of groups."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for part in error.exceptions for leaf in leaves(part)]
    return [error]


# emit with errors="raise"


def test_all_handlers_run_and_their_errors_come_as_one_group() -> None:
    with EventBus() as bus:
        seen: list[object] = []
        one, two = ValueError(1), KeyError(2)
        bus.on("key", failing(one))
        bus.on("key", seen.append)
        bus.on("key", failing(two))
        bus.on("key", seen.append)
        with pytest.raises(HandlerErrors) as caught:
            bus.emit("key", "event")
        assert seen == ["event"] * 2
        assert caught.value.exceptions == (one, two)
        assert caught.value.key == "key"
        assert caught.value.ran == 4
        assert str(caught.value).startswith("2 of 4 handler calls for 'key' failed")
        stats = bus.stats()
        assert (stats.emitted, stats.handled, stats.failed) == (1, 4, 2)


def test_notes_say_which_handler_of_which_key() -> None:
    with EventBus() as bus:
        handler = failing(ValueError())
        bus.on("player.moved", handler)
        with pytest.raises(HandlerErrors) as caught:
            bus.emit("player.moved")
        (note,) = caught.value.exceptions[0].__notes__
        assert "'player.moved'" in note
        assert "fail" in note


def test_group_works_with_except_star_and_split() -> None:
    with EventBus() as bus:
        bus.on("key", failing(ValueError(1)))
        bus.on("key", failing(KeyError(2)))
        values: list[BaseException] = []
        others: list[BaseException] = []
        try:
            try:
                bus.emit("key")
            except* ValueError as group:
                assert isinstance(group, HandlerErrors)
                assert (group.key, group.ran) == ("key", 2)
                values += group.exceptions
        except* KeyError as group:
            others += leaves(group)
        assert [type(e) for e in values + others] == [ValueError, KeyError]
        with pytest.raises(HandlerErrors) as caught:
            bus.emit("key")
        match, rest = caught.value.split(ValueError)
        assert isinstance(match, HandlerErrors)
        assert isinstance(rest, HandlerErrors)
        assert match.key == rest.key == "key"
        assert caught.value.subgroup(LookupError).exceptions == rest.exceptions


def test_group_survives_pickle_and_copy() -> None:
    with EventBus() as bus:
        bus.on("key", failing(ValueError(1)))
        with pytest.raises(HandlerErrors) as caught:
            bus.emit("key")
        caught.value.add_note("a note of the group")
        for twin in (pickle.loads(pickle.dumps(caught.value)), copy.copy(caught.value)):
            assert type(twin) is HandlerErrors
            assert str(twin) == str(caught.value)
            assert (twin.key, twin.ran) == ("key", 1)
            assert repr(twin.exceptions) == "(ValueError(1),)"
            assert twin.exceptions[0].__notes__ == caught.value.exceptions[0].__notes__
            assert twin.__notes__ == ["a note of the group"]


def test_cause_and_traceback_of_the_failure_are_kept() -> None:
    with EventBus() as bus:

        @bus.on("key")
        def handler(event: object) -> None:
            try:
                raise LookupError("cause")
            except LookupError as error:
                raise ValueError("effect") from error

        with pytest.raises(HandlerErrors) as caught:
            bus.emit("key")
        (error,) = caught.value.exceptions
        assert isinstance(error.__cause__, LookupError)
        assert error.__traceback__ is not None
        assert error.__traceback__.tb_frame.f_code.co_name == "handler"


def test_one_exception_object_raised_by_two_handlers() -> None:
    with EventBus() as bus:
        error = ValueError()
        bus.on("key", failing(error))
        bus.on("key", failing(error))
        with pytest.raises(HandlerErrors) as caught:
            bus.emit("key")
        assert caught.value.exceptions == (error, error)


def test_group_raised_by_a_handler_is_one_failure() -> None:
    with EventBus() as bus:
        bus.on("inner", failing(ValueError()))
        bus.on("outer", lambda event: bus.emit("inner"))
        with pytest.raises(HandlerErrors) as caught:
            bus.emit("outer")
        (inner,) = caught.value.exceptions
        assert isinstance(inner, HandlerErrors)
        assert inner.key == "inner"


@pytest.mark.parametrize("errors", ["raise", "log"])
@pytest.mark.parametrize(
    "kind", [KeyboardInterrupt, SystemExit, GeneratorExit, BaseException]
)
def test_interrupts_pass_at_once_and_the_counters_stay_right(
    kind: type[BaseException], errors: Any
) -> None:
    with EventBus(errors=errors, on_error=lambda e, k, h: None) as bus:
        seen: list[object] = []
        error = kind("stop")
        bus.on("key", failing(ValueError()), priority=2)
        bus.on("key", failing(error), priority=1)
        bus.on("key", seen.append)
        for use in (bus.emit, bus.topic("key").emit):
            with pytest.raises(kind) as caught:
                use(*("key",) * (use == bus.emit))
            assert caught.value is error
        assert seen == []
        stats = bus.stats()
        assert (stats.emitted, stats.handled, stats.failed) == (2, 4, 4)
        bus.off("key")
        assert bus.emit("key") == 0


def test_group_with_an_interrupt_in_it_passes_at_once() -> None:
    with EventBus() as bus:
        group = BaseExceptionGroup("mixed", [KeyboardInterrupt(), ValueError()])
        bus.on("key", failing(group))
        with pytest.raises(BaseExceptionGroup) as caught:
            bus.emit("key")
        assert caught.value is group


def test_failure_under_a_class_key() -> None:
    class Event:
        pass

    class Special(Event):
        pass

    with EventBus() as bus:
        bus.on(Event, failing(ValueError("base")))
        bus.on(Special, failing(ValueError("own")))
        with pytest.raises(HandlerErrors) as caught:
            bus.emit(Special())
        assert [e.args for e in caught.value.exceptions] == [("own",), ("base",)]
        assert caught.value.key is Special
        assert caught.value.ran == 2


def test_hostile_exceptions_and_handlers_are_contained() -> None:
    class NoNotes(Exception):
        @property
        def add_note(self) -> None:  # type: ignore[override]
            raise LookupError("no notes")

        def __repr__(self) -> str:
            raise LookupError("no repr")

        __str__ = __repr__

    class Handler:
        def __call__(self, event: object) -> None:
            raise NoNotes

        def __repr__(self) -> str:
            raise KeyboardInterrupt("in repr")

    with EventBus() as bus:
        bus.on("key", Handler())
        with pytest.raises(HandlerErrors) as caught:
            bus.emit("key")
        assert type(caught.value.exceptions[0]) is NoNotes


# errors="log", on_error


@pytest.mark.thread_unsafe(reason="the log is one for the process")
def test_failures_are_logged_when_nobody_else_hears_of_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.clear()
    with EventBus(workers=1, errors="log") as bus:
        bus.on("key", failing(ValueError("oops")))
        bus.on("key", lambda event: None)
        assert bus.emit("key") == 2
        bus.post("key")
        assert bus.drain(WAIT)
    records = [record for record in caplog.records if record.name == "ftbus"]
    assert len(records) == 2
    for record in records:
        assert record.levelno == logging.ERROR
        assert "'key'" in record.getMessage()
        assert record.exc_info is not None
        assert isinstance(record.exc_info[1], ValueError)


@pytest.mark.parametrize("verb", ["emit", "post"])
def test_on_error_gets_every_failure_once(verb: str) -> None:
    calls: list[tuple[Any, Any, Any]] = []
    with EventBus(
        workers=2, errors="log", on_error=lambda *args: calls.append(args)
    ) as bus:
        handlers = [failing(ValueError(n)) for n in range(3)]
        for handler in handlers:
            bus.on("key", handler)
        for _ in range(10):
            getattr(bus, verb)("key")
        assert bus.drain(WAIT)
        assert len(calls) == 30 == bus.stats().failed
        assert {(e.args[0], k, handlers.index(h)) for e, k, h in calls} == {
            (n, "key", n) for n in range(3)
        }


def test_on_error_is_not_asked_when_the_caller_hears_of_it() -> None:
    calls: list[object] = []
    with EventBus(on_error=lambda *args: calls.append(args)) as bus:
        bus.on("key", failing(ValueError()))
        with pytest.raises(HandlerErrors):
            bus.emit("key")
    assert calls == []


@pytest.mark.thread_unsafe(reason="replaces sys.unraisablehook")
@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
def test_on_error_that_raises_itself_harms_nobody(
    kind: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[Any] = []
    monkeypatch.setattr(
        sys, "unraisablehook", lambda args: lost.append(type(args.exc_value))
    )

    def on_error(error: object, key: object, handler: object) -> None:
        raise kind("from on_error")

    with EventBus(workers=1, errors="log", on_error=on_error) as bus:
        seen: list[object] = []
        bus.on("key", failing(LookupError()))
        bus.on("key", seen.append)
        for n in range(5):
            bus.post("key", n)
        assert bus.drain(WAIT)
        assert bus.emit("key", 5) == 2
        assert all(thread.is_alive() for thread in bus._threads)
    assert seen == list(range(6))
    assert lost == [kind] * 6


def test_on_error_may_use_the_bus() -> None:
    errors: list[object] = []

    def on_error(error: object, key: object, handler: object) -> None:
        bus.post("failed", (key, str(error)))
        bus.off("key")

    with EventBus(workers=1, on_error=on_error) as bus:
        bus.on("key", failing(ValueError("oops")))
        bus.on("failed", errors.append)
        bus.post("key")
        assert bus.drain(WAIT)
        assert errors == [("key", "oops")]
        assert bus.emit("key") == 0


# Recursion


def test_emit_without_end_is_stopped_with_an_error() -> None:
    with EventBus() as bus:
        depth = [0]

        def handler(event: object) -> None:
            depth[0] += 1
            bus.emit("key", event)

        bus.on("key", handler)
        for _ in range(3):
            depth[0] = 0
            with pytest.raises(HandlerErrors) as caught:
                bus.emit("key", 1)
            (error,) = leaves(caught.value)
            assert isinstance(error, EmitDepthError)
            assert isinstance(error, RecursionError)
            assert error.bus is bus
            assert error.key == "key"
            assert error.limit == depth[0] == _core.DEPTH_MAX
        bus.off("key")
        assert bus.emit("key") == 0


@pytest.mark.parametrize("errors", ["raise", "log"])
def test_several_handlers_without_end_are_stopped_soon(errors: Any) -> None:
    """Not after 2 ** 64 calls: the error passes through the nested emits at once."""
    reported: list[BaseException] = []
    with EventBus(errors=errors, on_error=lambda e, k, h: reported.append(e)) as bus:
        calls = [0]

        def handler(event: object) -> None:
            calls[0] += 1
            assert calls[0] < 1000, "endless"
            bus.emit("key", event)

        for _ in range(3):
            bus.on("key", lambda event: handler(event))
        if errors == "raise":
            with pytest.raises(HandlerErrors) as caught:
                bus.emit("key", 1)
            reported = list(caught.value.exceptions)
        else:
            bus.emit("key", 1)
        assert [type(error) for error in reported] == [EmitDepthError] * 3
        assert calls[0] == 3 * _core.DEPTH_MAX


def test_emit_may_nest_up_to_the_limit() -> None:
    with EventBus() as bus:
        seen: list[int] = []

        def handler(event: int) -> None:
            seen.append(event)
            if event:
                bus.emit("key", event - 1)

        bus.on("key", handler)
        assert bus.emit("key", _core.DEPTH_MAX - 1) == 1
        assert len(seen) == _core.DEPTH_MAX


@pytest.mark.parametrize("verb", ["emit", "call"])
def test_recursion_on_a_worker_is_a_failure_like_others(verb: str) -> None:
    errors: list[BaseException] = []
    with EventBus(workers=1, on_error=lambda e, k, h: errors.append(e)) as bus:

        def handler(event: object) -> None:
            if verb == "emit":
                bus.emit("key", event)
            else:
                bus.emit("call", event)

        bus.on("key", handler)
        bus.on("call", lambda event: bus.call("key") and bus.emit("call", event))
        bus.post("key" if verb == "emit" else "call")
        bus.off("key") if verb == "call" else None
        assert bus.drain(WAIT)
        assert any(
            isinstance(leaf, EmitDepthError) for e in errors for leaf in leaves(e)
        )
        bus.off("key")
        bus.off("call")
        seen: list[object] = []
        bus.on("key", seen.append)
        bus.post("key", 1)
        assert bus.drain(WAIT)
        assert seen == [1]


@pytest.mark.thread_unsafe(reason="starts a process")
@pytest.mark.parametrize("stack_kib", [64, 256])
def test_recursion_on_small_stacks_is_stopped_without_a_crash(
    python: Any, stack_kib: int
) -> None:
    done = python(
        f"""
import threading, ftbus
bus = ftbus.EventBus(workers=1, on_error=lambda e, k, h: reported.append(e))
reported = []
def leaves(error):
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
bus.on("key", lambda event: bus.emit("key", event))
def run():
    try:
        bus.emit("key")
    except ExceptionGroup as group:
        print(type(leaves(group)).__name__)
threading.stack_size({stack_kib} * 1024)
thread = threading.Thread(target=run)
thread.start()
thread.join()
bus.post("key")  # the worker's stack is large enough whatever is set
bus.drain()
print(type(leaves(reported[0])).__name__)
bus.close()
"""
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["EmitDepthError"] * 2


# Our exceptions


SPECIMENS: list[FtbusError] = [
    UnsupportedKeyError(1.5),
    HandlerTypeError("key", 5),
    InvalidOptionError("workers", 0, "1 or more"),
    CodecError("json", object, "no"),
    UnknownCodecError("yaml", ["json"]),
]


@pytest.mark.parametrize("error", SPECIMENS, ids=lambda e: type(e).__name__)
def test_our_exceptions_survive_pickle_and_copy(error: FtbusError) -> None:
    error.add_note("note")
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert vars(twin) == vars(error)


def test_our_exceptions_have_one_base_and_the_expected_built_in_ones() -> None:
    kinds = {
        BusClosedError: RuntimeError,
        BusForkedError: BusClosedError,
        CodecError: ValueError,
        EmitDepthError: RecursionError,
        HandlerTypeError: TypeError,
        InvalidOptionError: ValueError,
        QueueFullError: RuntimeError,
        UnknownCodecError: LookupError,
        UnsupportedKeyError: TypeError,
        ftbus.ArenaLimitError: MemoryError,
    }
    for kind, base in kinds.items():
        assert issubclass(kind, FtbusError)
        assert issubclass(kind, base)
    assert issubclass(HandlerErrors, ExceptionGroup)


def test_messages_cope_with_hostile_and_long_objects() -> None:
    class Hostile:
        def __repr__(self) -> str:
            raise ValueError

    for value in (Hostile(), "x" * 100_000, Hostile):
        for error in (
            UnsupportedKeyError(value),
            HandlerTypeError(value, value),
            InvalidOptionError("option", value, "another"),
            CodecError("json", value, "reason"),
        ):
            assert len(str(error)) < 1000


# Faults from outside


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

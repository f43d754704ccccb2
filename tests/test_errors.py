"""What handlers raise and where it goes; our own exceptions."""

import copy
import logging
import pickle
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from dispatching import WAIT, leaves

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
)


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


def failing_anew(value: object) -> Callable[[object], None]:
    """Make a handler that raises a ValueError of its own each time, in any threads."""

    def fail(event: object) -> None:
        raise ValueError(value)

    return fail


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
        handlers = [failing_anew(n) for n in range(3)]
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

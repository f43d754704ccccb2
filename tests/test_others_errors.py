"""Errors of other threads and of the caller, which must not mix with an emit's."""

import threading

import pytest

from ftbus import EventBus, HandlerErrors


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

"""Fork and interpreter exit: no bus survives either by accident."""

from __future__ import annotations

import os
import threading
import time
import weakref
from typing import TYPE_CHECKING

from ftbus import _core, executor, handlers

if TYPE_CHECKING:
    from ftbus.bus import EventBus

_EXIT_TIMEOUT_S = 1.0

# By id. Not a WeakSet, which other threads' collections may change while it is walked.
_buses: dict[int, weakref.ref[EventBus]] = {}
_lock = threading.RLock()


def register(bus: EventBus) -> None:
    """Remember a bus for as long as it lives."""
    name = id(bus)
    reference = weakref.ref(bus, lambda reference: _forget(name))
    with _lock:
        _buses[name] = reference


def _forget(name: int) -> None:
    _buses.pop(name, None)


def live_buses() -> list[EventBus]:
    """Return the buses that exist, closed ones included."""
    with _lock:
        references = list(_buses.values())
    return [bus for reference in references if (bus := reference()) is not None]


def _close_all() -> None:
    """Finish, for a second at most, what is queued when the interpreter exits.

    What was submitted to an executor is finished first, however long that takes.
    """
    errors: list[BaseException] = []
    try:
        executor.finish_all()
    except BaseException as error:
        errors.append(error)
    deadline = time.monotonic() + _EXIT_TIMEOUT_S
    for bus in live_buses():
        try:
            bus.close(timeout=max(0.0, deadline - time.monotonic()))
        except BaseException as error:
            errors.append(error)
            bus._stop_pool()  # at the least: its workers must not be waited for
    if errors:
        raise errors[0]


def _after_fork_child() -> None:
    """Make the buses usable where only the forking thread is left."""
    global _lock
    _lock = threading.RLock()
    _core.after_fork_child()
    handlers.after_fork_child()
    for bus in live_buses():
        bus._lock = threading.RLock()
        bus._closers = set()
        if bus._timers is not None:
            bus._timers.after_fork_child()
        bus._is_forked = bus._after_fork_child()
        if not bus._is_forked:
            bus._threads = []  # those that were being started are the parent's


# The lock is held over the fork, so that no other thread is at the table just then.
os.register_at_fork(
    before=lambda: _lock.acquire(),
    after_in_parent=lambda: _lock.release(),
    after_in_child=_after_fork_child,
)

# Before threads are joined, as concurrent.futures does it: the plain atexit module runs
# after that, which is too late for workers that wait.
threading._register_atexit(_close_all)  # type: ignore[attr-defined]

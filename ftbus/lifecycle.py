"""Fork and interpreter exit: no bus survives either by accident."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

from ftbus import _core, executor, handlers
from ftbus.registry import Registry

if TYPE_CHECKING:
    from ftbus.bus import EventBus

_EXIT_TIMEOUT_S = 1.0

buses: Registry[EventBus] = Registry()  # closed ones included


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
    for bus in buses.live():
        try:
            bus.close(timeout=max(0.0, deadline - time.monotonic()))
        except BaseException as error:
            errors.append(error)
            bus._stop_pool()  # at the least: its workers must not be waited for
    if errors:
        raise errors[0]


def _after_fork_child() -> None:
    """Make the buses usable where only the forking thread is left."""
    _core.after_fork_child()
    handlers.after_fork_child()
    for bus in buses.live():
        bus._lock = threading.RLock()
        bus._closers = set()
        if bus._timers is not None:
            bus._timers.after_fork_child()
        bus._is_forked = bus._after_fork_child()
        if not bus._is_forked:
            bus._threads = []  # those that were being started are the parent's


os.register_at_fork(after_in_child=_after_fork_child)

# Before threads are joined, as concurrent.futures does it: the plain atexit module runs
# after that, which is too late for workers that wait.
threading._register_atexit(_close_all)  # type: ignore[attr-defined]

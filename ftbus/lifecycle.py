"""Fork and interpreter exit: no bus survives either by accident."""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING

from ftbus import _core

if TYPE_CHECKING:
    from ftbus.bus import EventBus

_EXIT_TIMEOUT_S = 1.0

_buses: weakref.WeakSet[EventBus] = weakref.WeakSet()
_lock = threading.RLock()


def register(bus: EventBus) -> None:
    """Remember a bus for as long as it lives."""
    with _lock:
        _buses.add(bus)


def live_buses() -> list[EventBus]:
    """Return the buses that exist, closed ones included."""
    with _lock:
        return list(_buses)


def _close_all() -> None:
    """Finish, for a second at most, what is queued when the interpreter exits."""
    with _lock:
        buses = list(_buses)
    for bus in buses:
        bus.close(timeout=_EXIT_TIMEOUT_S)


def _after_fork_child() -> None:
    """Make the buses usable where only the forking thread is left."""
    global _lock
    _lock = threading.RLock()
    _core.after_fork_child()
    for bus in list(_buses):
        bus._lock = threading.RLock()
        bus._after_fork_child()


os.register_at_fork(after_in_child=_after_fork_child)

# Before threads are joined, as concurrent.futures does it: the plain atexit module runs
# after that, which is too late for workers that wait.
threading._register_atexit(_close_all)  # type: ignore[attr-defined]

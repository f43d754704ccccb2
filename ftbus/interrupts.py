"""Waits that Ctrl-C ends."""

from __future__ import annotations

import threading
import time

# CPython runs the handlers of signals in the main thread, between two instructions. A
# signal that arrives when it has looked and not yet gone to sleep does not wake it, so
# it must not sleep for long.
SLICE_S = 0.05


def slice_s() -> float | None:
    """Return how long this thread may wait at a time, in seconds; None for any time."""
    is_main = threading.current_thread() is threading.main_thread()
    return SLICE_S if is_main else None


def join(thread: threading.Thread, seconds: float) -> None:
    """Wait at most so long for a thread to end."""
    deadline = time.monotonic() + seconds
    while thread.is_alive() and (left := deadline - time.monotonic()) > 0:
        thread.join(min(left, SLICE_S))

"""What the stress tests share: their size, and the law that no event is lost."""

from __future__ import annotations

import os
import random
import threading
from collections import Counter

from ftbus import BusStats, EventBus
from ftbus.testing import eventually

WAIT = 300  # seconds; only a hang takes that long
SCALE = float(os.environ.get("FTB_SCALE", "1"))


def scaled(n: int) -> int:
    """Return n stretched by FTB_SCALE, at least 1."""
    return max(1, int(n * SCALE))


class Counts:
    """What the tests did: counts_plugin.py tells the sums at the end. Thread-safe.

    Events that were emitted, posted or called, threads that were started, faults that
    were injected. Handlers that failed are faults.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: Counter[str] = Counter()

    def add(self, *, events: int = 0, threads: int = 0, faults: int = 0) -> None:
        """Add to the sums: what a test knows of itself and of its processes."""
        with self._lock:
            self._sums.update(events=events, threads=threads, faults=faults)

    def take(self) -> dict[str, int]:
        """Return the sums since the last time."""
        with self._lock:
            taken, self._sums = self._sums, Counter()
        return dict(taken)


counts = Counts()


def fresh_seed(seed: int) -> int:
    """Draw a seed that differs from one repetition (--count) to the next.

    It follows from FTB_SEED and is printed, so that a failure can be replayed: with
    FTB_SEED and -k for the one test.
    """
    drawn = random.Random(seed + fresh_seed.calls).getrandbits(32)
    fresh_seed.calls += 1
    print(f"seed {drawn}")
    return drawn


fresh_seed.calls = 0  # type: ignore[attr-defined]


def assert_conserved(bus: EventBus) -> BusStats:
    """Check posted == delivered + dropped + rejected once the bus is quiet."""
    eventually(lambda: bus.stats().pending == 0)
    stats = bus.stats()
    done = stats.delivered + stats.dropped + stats.rejected
    assert stats.posted == done, stats
    return stats

"""Monitor: what a bus knows of itself beyond the core's counters."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from ftbus import _core
from ftbus.buffers import default_pool
from ftbus.errors import InvalidOptionError
from ftbus.failures import Failures, name_of
from ftbus.histograms import EMPTY, Histogram
from ftbus.observers import Observers
from ftbus.stats import (
    NO_TIMES,
    WINDOWS_S,
    Baseline,
    BusStats,
    Counters,
    HandlerStats,
    LookupStats,
    PartitionStats,
    RateStats,
    TopicStats,
    WorkerStats,
    busiest_first,
    slowest_first,
)

if TYPE_CHECKING:
    from ftbus.bus import EventBus

TIMINGS = ("off", "sampled", "all")
_INTERVAL_MAX = 1 << 29
_SPACING_S = 0.25  # between two snapshots that are kept for the rates
_KEPT_FOR_S = 2 * WINDOWS_S[-1]
_RATED = ("emitted", "posted", "delivered", "handled", "failed", "dropped")
_KEPT_WHEN_UNCOUNTED = ("posted", "delivered", "dropped", "rejected")

_core.set_row_types(TopicStats, NO_TIMES, EMPTY, TIMINGS)


def timing_options(timing: object, interval: object, counting: object) -> int:
    """Check the options of EventBus; return the core's number for the timing.

    Raises InvalidOptionError.
    """
    if timing not in TIMINGS:
        raise InvalidOptionError("timing", timing, f"one of {TIMINGS}")
    if type(interval) is not int or not 1 <= interval <= _INTERVAL_MAX:
        raise InvalidOptionError("timing_interval", interval, f"1 to {_INTERVAL_MAX}")
    if not isinstance(counting, bool):
        raise InvalidOptionError("stats", counting, "True or False")
    if not counting:
        return 0
    # One thread has one countdown: with an interval of 1 it must not be asked.
    every = timing == "sampled" and interval == 1
    return TIMINGS.index("all" if every else timing)


class Monitor:
    """The monitoring of one bus; any thread."""

    __slots__ = (
        "_baseline",
        "_lock",
        "_past",
        "_started_s",
        "counting",
        "failures",
        "interval",
        "observers",
        "timing",
    )

    def __init__(self, timing: str, interval: int, counting: bool) -> None:
        self.timing = timing if counting else "off"
        self.interval = interval
        self.counting = counting
        self.failures = Failures()
        self.observers = Observers()
        self._started_s = time.monotonic()
        self._baseline: Baseline | None = None
        self._lock = threading.RLock()  # a finalizer may run while it is held
        # (seconds, the counters that have rates), oldest first.
        self._past: deque[tuple[float, tuple[int, ...]]] = deque()
        self._past.append((self._started_s, _rated(Counters())))

    def stats(
        self,
        bus: EventBus,
        exact: bool,
        max_keys: int | None,
        keys: tuple[object, ...],
        details: bool = True,
    ) -> BusStats:
        """Return the figures since the start, or the baseline.

        Without details, rows of keys have counters only, and handlers have no rows.
        """
        now = self._collect(bus, exact, max_keys, keys, details)
        baseline = self._baseline
        return now if baseline is None else baseline.to(now)

    def reset(self, bus: EventBus) -> None:
        """Let stats() count from here."""
        self._baseline = Baseline(self._collect(bus, False, None, (), True))

    def _collect(
        self,
        bus: EventBus,
        exact: bool,
        max_keys: int | None,
        keys: tuple[object, ...],
        details: bool,
    ) -> BusStats:
        """Sum what every thread has counted."""
        topics, total, own, row_handlers = bus._figures(
            exact, -1 if max_keys is None else max_keys, keys, details
        )
        if not self.counting:
            topics, total = list(map(_uncounted, topics)), _uncounted(total)
        handlers = [self._handler_row(*row) for row in row_handlers]
        pool = bus._pool_stats()
        now_s = time.monotonic()
        return BusStats(
            **total.to_counts(),
            name=bus.name,
            uptime_s=now_s - self._started_s,
            counted_s=now_s - self._started_s,
            timing=self.timing,
            timing_interval=self.interval,
            counting=self.counting,
            max_keys=max_keys,
            # Not the pool's own figure, which includes the whole batch of a busy
            # worker.
            pending=max(
                0, total.posted - total.delivered - total.dropped - total.rejected
            ),
            queued=pool["queued"],
            queued_max=pool["queued_max"],
            queue_size=bus._queue_size,
            times=total.times,
            lookups=_lookups(own, total),
            partitions=_partitions(own, pool),
            topics=busiest_first(topics),
            handlers=slowest_first(handlers),
            workers=tuple(WorkerStats(**worker) for worker in pool["workers"]),
            errors=self.failures.rows(),
            rates=self._rates(now_s, total),
            buffers=default_pool.stats(),
        )

    def _handler_row(
        self,
        key: object,
        handler: object,
        serial: int,
        calls: int,
        failed: int,
        time: Histogram,
    ) -> HandlerStats:
        if not self.counting:
            calls = failed = 0
        name = name_of(handler) if handler is not None else "(gone)"
        return HandlerStats(key, name, serial, calls, failed, time)

    def _rates(self, now_s: float, total: Counters) -> tuple[RateStats, ...]:
        """Return the rates up to now, and keep the counters for later ones."""
        now = _rated(total)
        with self._lock:
            past = list(self._past)
            if now_s - self._past[-1][0] >= _SPACING_S:
                self._past.append((now_s, now))
            # One that is older than every window stays, to reach back to.
            while len(self._past) > 1 and self._past[1][0] < now_s - _KEPT_FOR_S:
                self._past.popleft()
        rates = []
        for window_s in WINDOWS_S:
            then_s, then = next(
                (one for one in reversed(past) if one[0] <= now_s - window_s), past[0]
            )
            rates.append(_rate(window_s, now_s - then_s, then, now))
        return tuple(rates)


def _rated(counters: Counters) -> tuple[int, ...]:
    return tuple(getattr(counters, name) for name in _RATED)


def _rate(
    window_s: int, seconds: float, then: tuple[int, ...], now: tuple[int, ...]
) -> RateStats:
    per_s = {
        name: max(0, late - early) / seconds if seconds > 0 else 0.0
        for name, early, late in zip(_RATED, then, now, strict=True)
    }
    return RateStats(window_s, seconds, **per_s)


def _uncounted(row: TopicStats) -> TopicStats:
    kept = {name: getattr(row, name) for name in _KEPT_WHEN_UNCOUNTED}
    return TopicStats(**kept, key=row.key, handlers=row.handlers, timing=row.timing)


def _lookups(own: Counters, total: Counters) -> LookupStats:
    hits, misses = own.emitted, own.unheard
    return LookupStats(hits, misses, max(0, total.emitted - hits - misses))


def _partitions(own: TopicStats, pool: dict[str, Any]) -> PartitionStats:
    return PartitionStats(
        groups=pool["groups"],
        busy=pool["groups_busy"],
        queued=max(0, own.posted - own.delivered - own.dropped),
        posted=own.posted,
        wait=own.times.wait,
    )

"""What the servers send: bus.stats() as JSON, with a bounded number of rows.

A snapshot is shared by all who ask within a moment of it, and the moments are as long
as snapshots are expensive: asking more often costs a bus nothing.
"""

from __future__ import annotations

import heapq
import json
import os
import sys
import sysconfig
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import ftbus
from ftbus.labels import OTHER, label
from ftbus.stats import TopicStats, merge_counters, merge_times, plain

if TYPE_CHECKING:
    from ftbus.bus import EventBus
    from ftbus.stats import BusStats, Counters, HandlerStats

VERSION: Final = 1
ROWS_DEFAULT: Final = 100

_AGE_S_MIN: Final = 0.05
_SHARE: Final = 4  # snapshots take at most a fifth of the time of one thread


class Snapshots:
    """The newest snapshot of a bus, as a line of JSON. Any thread.

    rows: how many keys, and how many handlers, have a row of their own.
    """

    def __init__(self, rows: int = ROWS_DEFAULT) -> None:
        self._rows = rows
        self._turn = threading.Lock()
        self._message = b""
        self._stale_s = -1.0  # by time.monotonic(), when a new one may be taken

    def message(self, bus: EventBus) -> bytes:
        """Return the newest statistics.

        {"version": 1, "time_s": seconds since the epoch, "process": {...}, "stats":
        BusStats.to_dict()}, where keys are what label() says, rows of keys and handlers
        have no buckets, and what is left out of them is summed in the key "(other)".
        """
        with self._turn:  # no code of the application's runs
            if time.monotonic() >= self._stale_s:
                self._take(bus)
            return self._message

    def _take(self, bus: EventBus) -> None:
        began_s = time.monotonic()
        tree = to_dict(bounded(bus.stats(max_keys=self._rows), self._rows))
        message = {
            "version": VERSION,
            "time_s": time.time(),
            "process": describe_process(),
            "stats": tree,
        }
        self._message = json.dumps(message, separators=(",", ":")).encode()
        now_s = time.monotonic()
        self._stale_s = now_s + max(_AGE_S_MIN, _SHARE * (now_s - began_s))


def describe_process() -> dict[str, Any]:
    """Return what tells this process from others; nothing of its arguments."""
    program = Path(sys.argv[0]) if sys.argv else Path()
    if program.name == "__main__.py":  # python -m PACKAGE
        program = program.parent
    is_free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    return {
        "pid": os.getpid(),
        "program": program.name or "python",
        "python": "{}.{}.{}".format(*sys.version_info) + "t" * is_free_threaded,
        "gil": sys._is_gil_enabled(),
        "ftbus": ftbus.__version__,
        "cores": os.process_cpu_count() or 1,
        "cpu_s": time.process_time(),
    }


def traffic(row: Counters) -> int:
    """Return what rows are ranked by: events offered, and handler calls."""
    return row.emitted + row.posted + row.handled


def other(rows: list[TopicStats]) -> TopicStats:
    """Return the sum of rows, as one of no key."""
    return TopicStats(
        **merge_counters(rows).to_counts(),
        handlers=sum(row.handlers for row in rows),
        times=merge_times(row.times for row in rows),
    )


def bounded(stats: BusStats, rows: int) -> BusStats:
    """Return stats(max_keys=rows) with at most that many rows of handlers too.

    Of these the slowest stay, and those called most. Keys of one label become one row.
    Those with the most traffic come first, what has no row last.
    """
    named: dict[str, list[TopicStats]] = {}
    for row in stats.topics:
        named.setdefault(label(row.key), []).append(row)
    left = other(named.pop(OTHER, []))
    topics = [
        group[0] if len(group) == 1 else replace(other(group), key=name)
        for name, group in named.items()
    ]
    topics.sort(key=traffic, reverse=True)
    if traffic(left) or left.handlers:
        topics.append(left)
    handlers = _notable(stats.handlers, rows)
    return replace(stats, topics=tuple(topics), handlers=handlers)


def _notable(handlers: tuple[HandlerStats, ...], rows: int) -> tuple[HandlerStats, ...]:
    if len(handlers) <= rows:
        return handlers
    kept = {row.serial: row for row in handlers[: rows // 2]}  # the slowest come first
    for row in heapq.nlargest(rows, handlers, key=lambda row: row.calls):
        if len(kept) == rows:
            break
        kept.setdefault(row.serial, row)
    return tuple(kept.values())


def to_dict(stats: BusStats) -> dict[str, Any]:
    """Return BusStats.to_dict() with labels for keys, and no buckets in its rows.

    It runs no code of the application's, unlike the repr of a key.
    """
    return plain(stats, label, row_buckets=False)

"""What happened: frozen snapshots of the counters, and the report for people."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Self

from ftbus._core import Key

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ftbus.bus import EventBus


@dataclass(frozen=True, slots=True)
class Counters:
    """Events and handler calls, all counted since the start or the last reset.

    posted == delivered + dropped + rejected + pending, exactly, at any quiet moment.
    """

    emitted: int = 0
    """Events emitted here and now."""
    posted: int = 0
    """Events offered to the queue, accepted or not."""
    delivered: int = 0
    """Posted events whose handlers have run."""
    dropped: int = 0
    """Posted events given up under an overflow policy or by close."""
    rejected: int = 0
    """Posted events refused with an exception."""
    handled: int = 0
    """Handler calls."""
    failed: int = 0
    """Handler calls that raised."""
    encoded: int = 0
    """Events encoded into bytes; each at most once, however many handlers."""

    def _combined(self, other: Counters, sign: int) -> dict[str, int]:
        return {
            field.name: getattr(self, field.name) + sign * getattr(other, field.name)
            for field in fields(Counters)
        }


@dataclass(frozen=True, slots=True)
class TopicStats(Counters):
    """The counters of one key."""

    key: object = None
    """The key; None for the row of keys that were never named, and of tasks."""
    handlers: int = 0
    """Handlers subscribed now."""

    def since(self, earlier: TopicStats) -> Self:
        """Return what was counted after `earlier`."""
        return type(self)(
            **self._combined(earlier, -1), key=self.key, handlers=self.handlers
        )


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """What one worker thread did."""

    taken: int
    """Events taken from the queue, stolen ones included."""
    stolen: int
    """Events that lay in another worker's ring."""
    batches: int
    """Batches they came in."""
    parks: int
    """Times the worker went to sleep."""
    busy_ns: int
    """Nanoseconds between taking and finishing batches."""

    def since(self, earlier: WorkerStats) -> Self:
        """Return what was counted after `earlier`."""
        return type(self)(
            *(getattr(self, f.name) - getattr(earlier, f.name) for f in fields(self))
        )


@dataclass(frozen=True, slots=True)
class BusStats(Counters):
    """The counters of a bus, with a row per key and per worker."""

    name: str = ""
    """The bus's name."""
    pending: int = 0
    """Posted events not yet handled: queued, being handled, or waiting for space."""
    queued_max: int = 0
    """The most events seen waiting at once."""
    topics: tuple[TopicStats, ...] = ()
    """One row per key, busiest first."""
    workers: tuple[WorkerStats, ...] = ()
    """One row per worker; empty before the first post."""

    def topic(self, key: object) -> TopicStats:
        """Return the row of a key; zeros if it was never used."""
        for row in self.topics:
            if _is_same_key(row.key, key):
                return row
        return TopicStats(key=key)

    def since(self, earlier: BusStats) -> Self:
        """Return what was counted after `earlier`."""
        before = {id(row.key): row for row in earlier.topics}
        topics = [
            row.since(before[id(row.key)]) if id(row.key) in before else row
            for row in self.topics
        ]
        workers = tuple(
            now.since(then)
            for now, then in zip(self.workers, earlier.workers, strict=False)
        )
        return type(self)(
            **self._combined(earlier, -1),
            name=self.name,
            pending=self.pending,
            queued_max=self.queued_max,
            topics=_busiest_first(topics),
            workers=workers or self.workers,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return nested dicts and lists, keys as their repr, ready for JSON."""
        tree = asdict(self)
        for row in tree["topics"]:
            row["key"] = repr(row["key"])
        return tree


def _is_same_key(one: object, two: object) -> bool:
    """Return whether two keys name one topic; runs no method of theirs."""
    if one is two:
        return True
    one, two = (key.value if isinstance(key, Key) else key for key in (one, two))
    return type(one) is type(two) and type(one) in (str, bytes, int) and one == two


def _busiest_first(rows: Iterable[TopicStats]) -> tuple[TopicStats, ...]:
    return tuple(sorted(rows, key=lambda row: row.handled, reverse=True))


def collect(bus: EventBus) -> BusStats:
    """Sum the counters of every thread."""
    topics = [
        TopicStats(**counters, key=key, handlers=handlers)
        for key, handlers, counters in bus._topics()
    ]
    total = Counters()
    for row in topics:
        total = Counters(**total._combined(row, 1))
    pool = bus._pool_stats()
    return BusStats(
        **asdict(total),
        name=bus.name,
        # Not the pool's own figure, which includes the whole batch of a busy worker.
        pending=max(0, total.posted - total.delivered - total.dropped - total.rejected),
        queued_max=pool["queued_max"],
        topics=_busiest_first(topics),
        workers=tuple(WorkerStats(**worker) for worker in pool["workers"]),
    )


_COLUMNS = (
    "handlers",
    "emitted",
    "posted",
    "delivered",
    "handled",
    "failed",
    "dropped",
)
_ROWS_MAX = 20


def report(stats: BusStats) -> str:
    """Return a table: totals, the busiest keys, the workers."""
    lines = [
        f"{stats.name}: {stats.emitted} emitted, {stats.posted} posted, "
        f"{stats.handled} handler calls, {stats.failed} failed, "
        f"{stats.dropped} dropped, {stats.rejected} rejected, {stats.pending} pending"
    ]
    rows = [
        (
            repr(row.key) if row.key is not None else "(other)",
            *(str(getattr(row, column)) for column in _COLUMNS),
        )
        for row in stats.topics[:_ROWS_MAX]
    ]
    lines += _table(("key", *_COLUMNS), rows)
    if len(stats.topics) > _ROWS_MAX:
        lines.append(f"... and {len(stats.topics) - _ROWS_MAX} more keys")
    total = sum(worker.taken for worker in stats.workers) or 1
    for index, worker in enumerate(stats.workers):
        lines.append(
            f"worker {index}: {worker.taken} events "
            f"({100 * worker.taken / total:.0f} %), {worker.stolen} stolen, "
            f"{worker.batches} batches, {worker.parks} parks, "
            f"{worker.busy_ns / 1e6:.1f} ms busy"
        )
    return "\n".join(lines)


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return [
        row[0].ljust(widths[0])
        + "".join(
            cell.rjust(width + 2)
            for cell, width in zip(row[1:], widths[1:], strict=True)
        )
        for row in (header, *rows)
    ]

"""What happened: frozen snapshots of the counters, times, rates and failures.

Every figure is a sum over counters that one thread each writes; reading takes no lock
that a handler could wait for. Times are of sampled events, see BusStats.timing.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal, Self

from ftbus._core import Key
from ftbus.buffers import PoolStats
from ftbus.histograms import EMPTY, Histogram, merge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

type Timing = Literal["off", "sampled", "all"]

WINDOWS_S = (1, 10, 60)


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
    shared: int = 0
    """Handler calls that got bytes which were there already: encoded for an earlier
    handler of the same event, or an event that came as bytes."""
    unheard: int = 0
    """Events, emitted or delivered, for which no handler ran."""

    def to_counts(self) -> dict[str, Any]:
        """Return the counters alone, by name."""
        return {name: getattr(self, name) for name in _COUNTER_NAMES}

    def merged(self, other: Counters) -> Counters:
        """Return the counters of both."""
        return Counters(**self._combined(other, 1))

    def _combined(self, other: Counters, sign: int) -> dict[str, int]:
        return {
            name: getattr(self, name) + sign * getattr(other, name)
            for name in _COUNTER_NAMES
        }


_COUNTER_NAMES = tuple(each.name for each in fields(Counters))


@dataclass(frozen=True, slots=True)
class Times:
    """Durations of sampled events, in nanoseconds."""

    emit: Histogram = EMPTY
    """One emit, from the call to its return, handlers included."""
    wait: Histogram = EMPTY
    """A posted event in the queue, from post to the start of its first handler."""
    handler: Histogram = EMPTY
    """One handler call; of emitted and posted events."""
    encode: Histogram = EMPTY
    """Turning one event into bytes."""

    def merged(self, other: Times) -> Self:
        """Return the times of both, exactly."""
        return type(self)(
            *(getattr(self, n).merged(getattr(other, n)) for n in _TIME_NAMES)
        )

    def since(self, earlier: Times) -> Self:
        """Return what was recorded after `earlier`."""
        return type(self)(
            *(getattr(self, n).since(getattr(earlier, n)) for n in _TIME_NAMES)
        )


_TIME_NAMES = tuple(each.name for each in fields(Times))

NO_TIMES = Times()


def merge_counters(rows: Iterable[Counters]) -> Counters:
    """Return the counters of all, in one pass."""
    read = attrgetter(*_COUNTER_NAMES)
    sums = map(sum, zip(*map(read, rows), strict=True))
    return Counters(*sums)


def merge_times(rows: Iterable[Times]) -> Times:
    """Return the times of all, in one pass."""
    full = [row for row in rows if any(getattr(row, n).count for n in _TIME_NAMES)]
    return Times(*(merge(getattr(row, n) for row in full) for n in _TIME_NAMES))


@dataclass(frozen=True, slots=True)
class HandlerStats:
    """One handler that is subscribed now."""

    key: object = None
    """The key it is subscribed to."""
    name: str = ""
    """The qualified name of the function or class, with its module."""
    serial: int = 0
    """Tells subscriptions of one bus apart; later ones have larger numbers."""
    calls: int = 0
    """Times it was called, whatever called it."""
    failed: int = 0
    """Calls that raised."""
    time: Histogram = EMPTY
    """Nanoseconds of its sampled calls."""

    def since(self, earlier: HandlerStats) -> Self:
        """Return what was counted after `earlier`."""
        return type(self)(
            self.key,
            self.name,
            self.serial,
            self.calls - earlier.calls,
            self.failed - earlier.failed,
            self.time.since(earlier.time),
        )


@dataclass(frozen=True, slots=True)
class TopicStats(Counters):
    """The counters and times of one key."""

    key: object = None
    """The key; None for the row of keys that were never named, and of tasks; it is
    also that of the keys without a row, see BusStats.max_keys."""
    handlers: int = 0
    """Handlers subscribed now, with a row or not."""
    timing: str = "off"
    """Which of its events are timed: "off", "sampled" or "all"."""
    times: Times = NO_TIMES
    """How long its emits, waits, handlers and encodings took."""

    def since(self, earlier: TopicStats) -> Self:
        """Return what was counted after `earlier`."""
        return type(self)(
            **self._combined(earlier, -1),
            key=self.key,
            handlers=self.handlers,
            timing=self.timing,
            times=self.times.since(earlier.times),
        )


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """What one worker thread did."""

    taken: int = 0
    """Events of finished batches, stolen ones included."""
    stolen: int = 0
    """Events that lay in another worker's ring."""
    batches: int = 0
    """Batches they came in."""
    parks: int = 0
    """Times the worker went to sleep."""
    busy_ns: int = 0
    """Nanoseconds between taking and finishing batches."""
    wakes: int = 0
    """Times the worker was woken from sleep by an event."""

    def since(self, earlier: WorkerStats) -> Self:
        """Return what was counted after `earlier`."""
        return type(self)(
            *(getattr(self, f.name) - getattr(earlier, f.name) for f in fields(self))
        )


@dataclass(frozen=True, slots=True)
class PartitionStats:
    """Posted events that have a partition; those of one group run one at a time."""

    groups: int = 0
    """Groups (strands) there are: partitions are spread over them by hash."""
    busy: int = 0
    """Groups in which events wait or run now."""
    queued: int = 0
    """Events with a partition that wait now."""
    posted: int = 0
    """Events with a partition that were queued since the start."""
    wait: Histogram = EMPTY
    """Nanoseconds from post to handler start, of sampled events with a partition."""

    def since(self, earlier: PartitionStats) -> Self:
        """Return what was counted after `earlier`."""
        return type(self)(
            self.groups,
            self.busy,
            self.queued,
            self.posted - earlier.posted,
            self.wait.since(earlier.wait),
        )


@dataclass(frozen=True, slots=True)
class LookupStats:
    """How keys of emitted events were found."""

    hits: int = 0
    """Look-ups in the map that found the key."""
    misses: int = 0
    """Look-ups in the map of a key that nobody ever named."""
    avoided: int = 0
    """Emitted events that needed no look-up: through a Topic, or a key in the
    thread's front cache. Derived: emitted - hits - misses."""

    def since(self, earlier: LookupStats) -> Self:
        """Return what was counted after `earlier`."""
        return type(self)(
            self.hits - earlier.hits,
            self.misses - earlier.misses,
            self.avoided - earlier.avoided,
        )


@dataclass(frozen=True, slots=True)
class ErrorStats:
    """Failures of one exception type."""

    type: str = ""
    """The qualified name of the exception's class, with its module."""
    count: int = 0
    """How many handler calls, tasks and encodings raised it."""
    key: str = ""
    """The repr of the key whose handler raised it last."""
    handler: str = ""
    """The name of the handler that raised it last."""
    traceback: str = ""
    """The text of the last one's traceback."""


@dataclass(frozen=True, slots=True)
class RateStats:
    """Events per second over one window, from the snapshots that stats() took.

    No thread samples: a window reaches back to the newest snapshot that is at least as
    old as asked for, else to the oldest there is; `seconds` says how far that is.
    """

    window_s: int = 0
    """The window asked for: 1, 10 or 60 seconds."""
    seconds: float = 0.0
    """The time that was really covered."""
    emitted: float = 0.0
    """Emitted events per second."""
    posted: float = 0.0
    """Posted events per second."""
    delivered: float = 0.0
    """Delivered events per second."""
    handled: float = 0.0
    """Handler calls per second."""
    failed: float = 0.0
    """Failed handler calls per second."""
    dropped: float = 0.0
    """Dropped events per second."""


@dataclass(frozen=True, slots=True)
class BusStats(Counters):
    """The counters and times of a bus, with a row per key, handler and worker."""

    name: str = ""
    """The bus's name."""
    uptime_s: float = 0.0
    """Seconds since the bus was made."""
    counted_s: float = 0.0
    """Seconds these figures cover: since the start or the last reset_stats()."""
    timing: str = "off"
    """Which events are timed, unless their key says otherwise: "off", "sampled" (one
    in timing_interval on average, at random) or "all"."""
    timing_interval: int = 0
    """The mean number of events per sampled one."""
    counting: bool = True
    """False if the bus was made with stats=False: then only what conservation needs
    (posted, delivered, dropped, rejected, pending) and the workers are counted."""
    max_keys: int | None = None
    """How many keys have a row, besides those asked for; None: all. Then what has none
    is summed in the row of no key."""
    pending: int = 0
    """Posted events not yet handled: queued, being handled, or waiting for space."""
    queued: int = 0
    """Events in the queue now."""
    queued_max: int = 0
    """The most events seen waiting at once."""
    queue_size: int = 0
    """How many the queue holds."""
    times: Times = NO_TIMES
    """How long emits, waits, handlers and encodings took, over all keys."""
    lookups: LookupStats = LookupStats()
    """How keys were found."""
    partitions: PartitionStats = PartitionStats()
    """The events with a partition."""
    topics: tuple[TopicStats, ...] = ()
    """One row per key, busiest first; see max_keys."""
    handlers: tuple[HandlerStats, ...] = ()
    """One row per handler that is subscribed now, slowest 99th percentile first; with
    max_keys not all of them."""
    workers: tuple[WorkerStats, ...] = ()
    """One row per worker; empty before the first post."""
    errors: tuple[ErrorStats, ...] = ()
    """One row per exception type, most frequent first."""
    rates: tuple[RateStats, ...] = ()
    """Events per second over about 1, 10 and 60 seconds."""
    buffers: PoolStats | None = None
    """The pool that the bus encodes into, with its size classes. Other buses and the
    program's own buffers share it; it is not affected by reset_stats()."""

    def topic(self, key: object) -> TopicStats:
        """Return the row of a key; zeros if it was never used, or has none."""
        for row in self.topics:
            if _is_same_key(row.key, key):
                return row
        return TopicStats(key=key)

    def handlers_of(self, key: object) -> tuple[HandlerStats, ...]:
        """Return the rows of a key's handlers, in the order of their subscription."""
        rows = [row for row in self.handlers if _is_same_key(row.key, key)]
        return tuple(sorted(rows, key=lambda row: row.serial))

    def since(self, earlier: BusStats) -> Self:
        """Return what was counted after `earlier`.

        If either has not a row for every key (see max_keys), a key has one here if what
        it counted is known; all else is in the row of no key, and the sums are exact.
        """
        return self._since(Baseline(earlier))

    def _since(self, baseline: Baseline) -> Self:
        earlier = baseline.stats
        times = self.times.since(earlier.times)
        counters = self._combined(earlier, -1)
        topics = self._topics_since(baseline, Counters(**counters), times)
        workers = tuple(
            now.since(then)
            for now, then in zip(self.workers, earlier.workers, strict=False)
        )
        called, raised = baseline.handlers, baseline.errors
        return type(self)(
            **counters,
            name=self.name,
            uptime_s=self.uptime_s,
            counted_s=self.uptime_s - earlier.uptime_s,
            timing=self.timing,
            timing_interval=self.timing_interval,
            counting=self.counting,
            max_keys=self.max_keys if self.max_keys is not None else earlier.max_keys,
            pending=self.pending,
            queued=self.queued,
            queued_max=self.queued_max,
            queue_size=self.queue_size,
            times=times,
            lookups=self.lookups.since(earlier.lookups),
            partitions=self.partitions.since(earlier.partitions),
            topics=busiest_first(topics),
            handlers=slowest_first(
                row.since(called[row.serial]) if row.serial in called else row
                for row in self.handlers
                if row.serial in called or earlier.max_keys is None
            ),
            workers=workers or self.workers,
            errors=tuple(
                replace(row, count=row.count - raised.get(row.type, 0))
                for row in self.errors
                if row.count > raised.get(row.type, 0)
            ),
            rates=self.rates,
            buffers=self.buffers,
        )

    def _topics_since(
        self, baseline: Baseline, total: Counters, times: Times
    ) -> list[TopicStats]:
        """Return the rows of since(), of which the sums are given."""
        earlier, before = baseline.stats, baseline.topics
        is_complete = self.max_keys is None and earlier.max_keys is None
        rows, unknown = [], 0
        other = None
        for row in self.topics:
            if row.key is None and not is_complete:
                other = row
            elif id(row.key) in before:
                rows.append(row.since(before[id(row.key)]))
            elif earlier.max_keys is None:
                rows.append(row)  # there was none
            else:
                unknown += row.handlers
        if other is not None:
            # What is left: other's own difference, and that of keys that have a row in
            # one of the two only.
            known = merge_counters([Counters(), *rows])
            rest = TopicStats(
                **total._combined(known, -1),
                key=None,
                handlers=other.handlers + unknown,
                timing=other.timing,
                times=times.since(merge_times(row.times for row in rows)),
            )
            rows.append(rest)
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Return nested dicts and lists, keys as their repr, ready for JSON.

        A histogram is what Histogram.to_dict() returns: percentiles and buckets.
        """
        return plain(self)


class Baseline:
    """A reading that others are compared with, its rows by what they are of."""

    __slots__ = ("errors", "handlers", "stats", "topics")

    def __init__(self, stats: BusStats) -> None:
        self.stats = stats
        self.topics = {id(row.key): row for row in stats.topics}
        self.handlers = {row.serial: row for row in stats.handlers}
        self.errors = {row.type: row.count for row in stats.errors}

    def to(self, now: BusStats) -> BusStats:
        """Return what was counted from here to `now`."""
        return now._since(self)


def plain(
    value: Any, text_of: Callable[[object], str] = repr, *, row_buckets: bool = True
) -> dict[str, Any]:
    """Return a dataclass as nested dicts and lists, ready for JSON.

    text_of: makes a text of a key.
    row_buckets: give the histograms of rows with their buckets.
    """
    tree: dict[str, Any] = {}
    for name in value.__dataclass_fields__:
        each = getattr(value, name)
        if isinstance(each, tuple):
            rows = [plain(row, text_of, row_buckets=row_buckets) for row in each]
            tree[name] = rows
        elif isinstance(each, Histogram):
            tree[name] = each.to_dict(row_buckets)
        elif name == "times":
            has_buckets = row_buckets or isinstance(value, BusStats)
            tree[name] = plain(each, row_buckets=has_buckets)
        else:
            tree[name] = plain(each) if is_dataclass(each) else each
    if isinstance(value, TopicStats | HandlerStats):
        tree["key"] = text_of(value.key)
    return tree


def _is_same_key(one: object, two: object) -> bool:
    """Return whether two keys name one topic; runs no method of theirs."""
    if one is two:
        return True
    one, two = (key.value if isinstance(key, Key) else key for key in (one, two))
    return type(one) is type(two) and type(one) in (str, bytes, int) and one == two


def busiest_first(rows: Iterable[TopicStats]) -> tuple[TopicStats, ...]:
    """Return the rows by handler calls, most first."""
    return tuple(sorted(rows, key=lambda row: row.handled, reverse=True))


def slowest_first(rows: Iterable[HandlerStats]) -> tuple[HandlerStats, ...]:
    """Return the rows by 99th percentile, slowest first."""
    return tuple(
        sorted(rows, key=lambda row: (row.time.p99_ns, row.calls), reverse=True)
    )

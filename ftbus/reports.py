"""The report for people: what needs care first, in tables."""

from __future__ import annotations

from importlib.util import find_spec
from io import StringIO
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from ftbus.stats import BusStats, TopicStats

_ROWS_MAX = 20
_SLOWEST_MAX = 10
_RICH_COLUMNS = 200


class _Table(NamedTuple):
    """The first `texts` columns are text, the others figures."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    texts: int = 1
    left_out: int = 0


def report(stats: BusStats, *, rich: bool | None = None) -> str:
    """Return tables: slowest handlers, queues, failures, losses, keys, workers.

    rich: draw them with the package of that name; None does if it is installed.
    """
    draw: Callable[[_Table], Iterable[str]] = _plain
    if rich if rich is not None else find_spec("rich") is not None:
        draw = _rich
    return "\n".join(_lines(stats, draw))


def _lines(stats: BusStats, draw: Callable[[_Table], Iterable[str]]) -> Iterator[str]:
    yield _headline(stats)
    yield _sampling(stats)
    for table in _tables(stats):
        if table.rows:
            yield ""
            yield from draw(table)
            if table.left_out:
                yield f"... and {table.left_out} more"


def _headline(stats: BusStats) -> str:
    return (
        f"{stats.name}: {stats.emitted} emitted, {stats.posted} posted, "
        f"{stats.handled} handler calls, {stats.failed} failed, "
        f"{stats.dropped} dropped, {stats.rejected} rejected, "
        f"{stats.pending} pending, {stats.unheard} unheard "
        f"in {stats.counted_s:.1f} s"
    )


def _sampling(stats: BusStats) -> str:
    if not stats.counting:
        return "stats=False: only what keeps posted events accounted for is counted"
    own = sum(row.timing != stats.timing for row in stats.topics)
    exceptions = f"; {own} keys have a timing of their own" if own else ""
    if stats.timing == "sampled":
        share = f"about 1 event in {stats.timing_interval}, at random"
    else:
        share = {"off": "none", "all": "every event"}[stats.timing]
    return f"timed: {share}{exceptions}; percentiles are within 3.1 %"


def _tables(stats: BusStats) -> Iterator[_Table]:
    timed = [row for row in stats.handlers if row.time.count]
    yield _Table(
        "slowest handlers, by 99th percentile",
        ("handler", "key", "calls", "failed", "timed", "p50", "p99", "max"),
        [
            (
                row.name,
                repr(row.key),
                str(row.calls),
                str(row.failed),
                str(row.time.count),
                _ns(row.time.p50_ns),
                _ns(row.time.p99_ns),
                _ns(row.time.max_ns),
            )
            for row in timed[:_SLOWEST_MAX]
        ],
        texts=2,
        left_out=max(0, len(timed) - _SLOWEST_MAX),
    )
    yield _queues(stats)
    yield _Table(
        "failures, by type",
        ("exception", "last in", "key", "count"),
        [(row.type, row.handler, row.key, str(row.count)) for row in stats.errors],
        texts=3,
    )
    lost = [row for row in stats.topics if row.dropped or row.rejected]
    lost.sort(key=lambda row: row.dropped + row.rejected, reverse=True)
    yield _Table(
        "dropped and rejected",
        ("key", "dropped", "rejected", "posted"),
        [
            (_key(row.key), str(row.dropped), str(row.rejected), str(row.posted))
            for row in lost[:_ROWS_MAX]
        ],
        left_out=max(0, len(lost) - _ROWS_MAX),
    )
    yield _busiest(stats)
    yield _workers(stats)


def _queues(stats: BusStats) -> _Table:
    waits = [row for row in stats.topics if row.times.wait.count]
    waits.sort(key=lambda row: row.times.wait.p99_ns, reverse=True)
    return _Table(
        "queue, longest waits first",
        ("queued for", "now", "most", "limit", "wait p50", "wait p99"),
        tuple(_queue_rows(stats, waits[:_SLOWEST_MAX])) if stats.posted else (),
        left_out=max(0, len(waits) - _SLOWEST_MAX),
    )


def _queue_rows(
    stats: BusStats, waits: Iterable[TopicStats]
) -> Iterator[tuple[str, ...]]:
    yield (
        "(all keys)",
        str(stats.queued),
        str(stats.queued_max),
        str(stats.queue_size),
        _ns(stats.times.wait.p50_ns),
        _ns(stats.times.wait.p99_ns),
    )
    groups = stats.partitions
    if groups.posted:
        yield (
            f"(partitions, {groups.busy} of {groups.groups} groups busy)",
            str(groups.queued),
            "",
            "",
            _ns(groups.wait.p50_ns),
            _ns(groups.wait.p99_ns),
        )
    for row in waits:
        yield (
            _key(row.key),
            str(row.posted - row.delivered - row.dropped - row.rejected),
            "",
            "",
            _ns(row.times.wait.p50_ns),
            _ns(row.times.wait.p99_ns),
        )


def _busiest(stats: BusStats) -> _Table:
    return _Table(
        "busiest keys",
        (
            "key",
            "handlers",
            "emitted",
            "posted",
            "delivered",
            "handled",
            "failed",
            "emit p50",
            "emit p99",
        ),
        [
            (
                _key(row.key),
                str(row.handlers),
                str(row.emitted),
                str(row.posted),
                str(row.delivered),
                str(row.handled),
                str(row.failed),
                _ns(row.times.emit.p50_ns),
                _ns(row.times.emit.p99_ns),
            )
            for row in stats.topics[:_ROWS_MAX]
        ],
        left_out=max(0, len(stats.topics) - _ROWS_MAX),
    )


def _workers(stats: BusStats) -> _Table:
    total = sum(worker.taken for worker in stats.workers) or 1
    return _Table(
        "workers",
        ("worker", "events", "share", "stolen", "batches", "parks", "wakes", "busy"),
        [
            (
                str(index),
                str(worker.taken),
                f"{100 * worker.taken / total:.0f} %",
                str(worker.stolen),
                str(worker.batches),
                str(worker.parks),
                str(worker.wakes),
                _ns(worker.busy_ns),
            )
            for index, worker in enumerate(stats.workers)
        ],
    )


def _key(key: object) -> str:
    return repr(key) if key is not None else "(other)"


def _ns(ns: float) -> str:
    """Return a duration with three digits and a unit."""
    if not ns:
        return "-"
    units = ((1, "ns"), (1e3, "us"), (1e6, "ms"), (1e9, "s"))
    size, unit = next((one for one in reversed(units) if ns >= one[0]), units[0])
    return f"{ns / size:.3g} {unit}"


def _plain(table: _Table) -> Iterator[str]:
    rows = tuple(chain((table.header,), table.rows))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    yield table.title
    for row in rows:
        cells = [
            cell.ljust(width) if place < table.texts else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def _rich(table: _Table) -> list[str]:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=table.title, title_justify="left", box=box.SIMPLE_HEAD)
    for place, name in enumerate(table.header):
        drawn.add_column(
            name, justify="left" if place < table.texts else "right", no_wrap=True
        )
    for row in table.rows:
        drawn.add_row(*map(Text, row))  # not markup: keys may have brackets
    out = StringIO()
    Console(file=out, width=_RICH_COLUMNS, color_system=None).print(drawn)
    return [line.rstrip() for line in out.getvalue().rstrip("\n").splitlines()]

"""What `top` draws of two snapshots: figures, workers, handlers, keys, exceptions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from rich.box import SIMPLE_HEAD
from rich.columns import Columns
from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import RenderableType

_ROWS_ONCE: Final = 20  # where the height of the terminal sets no limit
_HEADS: Final = 12  # lines that are no rows, at the most, without the exceptions
_WORKERS_MAX: Final = 8
_ERRORS_MAX: Final = 3
_NARROW: Final = 90
_FIGURE: Final = 25  # characters that a figure takes, at the most
_FIGURE_LINES: Final = 4

type _Row = dict[str, Any]


def view(before: _Row, now: _Row, width: int, height: int | None) -> RenderableType:
    """Return the picture of now, and of the time since before.

    before, now: messages of StatsClient.stats().
    width, height: of the terminal, in characters; no height is no limit.
    """
    stats, then = now["stats"], before["stats"]
    seconds = stats["uptime_s"] - then["uptime_s"]
    if seconds <= 0 or now["process"]["pid"] != before["process"]["pid"]:
        seconds, then = 0.0, stats
    workers = min(len(stats["workers"]), _WORKERS_MAX)
    errors = min(len(stats["errors"]), _ERRORS_MAX)
    rows = _ROWS_ONCE
    if height is not None:
        free = height - _HEADS - workers - (errors + 3 if errors else 0)
        rows = max(2, free // 2)
    parts: list[RenderableType] = [
        _headline(now),
        _figures(then, stats, seconds, before, now, width),
        "",
        _workers(then, stats, seconds),
        "",
        _handlers(then, stats, seconds, rows, width),
        "",
        _keys(then, stats, seconds, rows, width),
    ]
    if errors:
        parts += ["", _errors(stats)]
    return Group(*parts)


def _headline(now: _Row) -> RenderableType:
    process, stats = now["process"], now["stats"]
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append_text(printable(stats["name"]))
    text.stylize("bold")
    text.append(
        f"  {printable(process['program'])}, process {process['pid']}, "
        f"up {duration(stats['uptime_s'] * 1e9)}, Python {process['python']}, "
        f"GIL {'on' if process['gil'] else 'off'}",
        "dim",
    )
    return text


def _figures(
    then: _Row, stats: _Row, seconds: float, before: _Row, now: _Row, width: int
) -> RenderableType:
    def per_second(*names: str) -> str:
        grown = sum(_growth(then[name], stats[name]) for name in names)
        return f"{count(grown / seconds)}/s" if seconds else "-"

    cores = _growth(before["process"]["cpu_s"], now["process"]["cpu_s"])
    pending, size = stats["pending"], stats["queue_size"]
    lost = per_second("dropped", "rejected")
    failed = per_second("failed")
    pairs = [
        ("emitted", per_second("emitted"), ""),
        ("delivered", per_second("delivered"), ""),
        ("handler calls", per_second("handled"), ""),
        ("queue", f"{count(pending)} of {count(size)}", _mood(pending / max(size, 1))),
        ("failed", failed, "" if failed in ("0/s", "-") else "red"),
        ("dropped", lost, "" if lost in ("0/s", "-") else "red"),
        ("cores", f"{cores / seconds:.2f}" if seconds else "-", ""),
    ]
    times = stats["times"]
    for name in ("emit", "wait", "handler"):
        if times[name]["count"]:
            p99 = duration(times[name]["p99_ns"])
            pairs.append((f"{name} p99", p99, ""))
    texts = [
        Text.assemble((f"{name} ", "dim"), (value, style or "bold"))
        for name, value, style in pairs
    ]
    fit = max(1, width // _FIGURE) * _FIGURE_LINES
    return Columns(texts[:fit], padding=(0, 3))


def _workers(then: _Row, stats: _Row, seconds: float) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    for index, worker in enumerate(stats["workers"][:_WORKERS_MAX]):
        old = then["workers"][index] if index < len(then["workers"]) else worker
        busy = _growth(old["busy_ns"], worker["busy_ns"]) / 1e9
        share = min(1.0, busy / seconds) if seconds else 0.0
        table.add_row(
            Text(f"worker {index}", "dim"),
            ProgressBar(total=1.0, completed=share, width=24),
            Text(f"{share:4.0%}"),
            Text(f"{count(worker['taken'])} events", "dim"),
            Text(f"{count(worker['stolen'])} stolen", "dim"),
        )
    left = len(stats["workers"]) - _WORKERS_MAX
    if left > 0:
        table.add_row(Text(f"{left} more", "dim"))
    return table


def _handlers(
    then: _Row, stats: _Row, seconds: float, rows: int, width: int
) -> RenderableType:
    old = {row["serial"]: row for row in then["handlers"]}
    is_wide = width >= _NARROW
    table = _table("slowest handlers", is_wide and "key")
    for name in ("calls/s", "mean", "p99", "max", "failed"):
        table.add_column(name, justify="right", no_wrap=True)
    handlers = sorted(stats["handlers"], key=lambda row: -row["time"]["p99_ns"])
    for row in handlers[:rows]:
        was = old.get(row["serial"], row)
        time = row["time"]
        calls = _growth(was["calls"], row["calls"]) / seconds if seconds else None
        table.add_row(
            printable(row["name"]),
            *([printable(row["key"])] if is_wide else []),
            count(calls),
            *(
                duration(time[name] if time["count"] else None)
                for name in ("mean_ns", "p99_ns", "max_ns")
            ),
            _failures(row["failed"]),
        )
    return table


def _keys(
    then: _Row, stats: _Row, seconds: float, rows: int, width: int
) -> RenderableType:
    old = {row["key"]: row for row in then["topics"]}
    names = ["emitted", "posted", "delivered", "handled"]
    if width < _NARROW:
        names = names[:2]
    table = _table("busiest keys", None)
    for name in names:
        table.add_column(f"{name}/s", justify="right", no_wrap=True)
    table.add_column("waiting", justify="right", no_wrap=True)
    table.add_column("failed", justify="right", no_wrap=True)
    table.add_column("dropped", justify="right", no_wrap=True)

    def rate(row: _Row, name: str) -> float:
        was = old.get(row["key"], row)
        return _growth(was[name], row[name]) / seconds if seconds else 0.0

    def traffic(row: _Row) -> tuple[float, int]:
        now = rate(row, "emitted") + rate(row, "posted")
        return now, row["emitted"] + row["posted"]

    topics = sorted(stats["topics"], key=traffic, reverse=True)
    for row in topics[:rows]:
        done = row["delivered"] + row["dropped"] + row["rejected"]
        table.add_row(
            printable(row["key"]),
            *(count(rate(row, name) if seconds else None) for name in names),
            count(max(0, row["posted"] - done)),
            _failures(row["failed"]),
            _failures(row["dropped"] + row["rejected"]),
        )
    return table


def _errors(stats: _Row) -> RenderableType:
    table = _table("exceptions", "last in")
    table.add_column("times", justify="right", no_wrap=True)
    for error in stats["errors"][:_ERRORS_MAX]:
        table.add_row(
            printable(error["type"]),
            printable(error["handler"]),
            Text(count(error["count"]), "red"),
        )
    return table


def _table(first: str, second: str | bool | None) -> Table:
    table = Table(box=SIMPLE_HEAD, expand=True, padding=(0, 1), show_edge=False)
    table.add_column(first, no_wrap=True, overflow="ellipsis", ratio=3)
    if second:
        table.add_column(str(second), no_wrap=True, overflow="ellipsis", ratio=2)
    return table


def _failures(n: int) -> Text:
    return Text(count(n), "red" if n else "dim")


def _mood(share: float) -> str:
    return "red" if share > 0.9 else "yellow" if share > 0.5 else ""


def _growth(then: float, now: float) -> float:
    """Return what a counter grew by; after reset_stats() it counts from nothing."""
    return now - then if now >= then else now


def printable(text: str) -> Text:
    """Return a name of the process's as it may be shown: no terminal commands."""
    unknown = "\N{REPLACEMENT CHARACTER}"
    return Text("".join(c if c.isprintable() else unknown for c in text))


def count(value: float | None) -> str:
    """Return a number in three digits, with k, M or G."""
    if value is None:
        return "-"
    for unit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit * 0.9995:
            return f"{_digits(value / unit)}{suffix}"
    return f"{value:.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


def duration(ns: float | None) -> str:
    """Return nanoseconds in three digits and the unit that fits."""
    if ns is None:
        return "-"
    if ns >= 60e9:
        minutes, seconds = divmod(int(ns / 1e9), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
    for unit, name in ((1e9, "s"), (1e6, "ms"), (1e3, "us")):
        if ns >= unit * 0.9995:
            return f"{_digits(ns / unit)} {name}"
    return f"{ns:.0f} ns"


def _digits(value: float) -> str:
    decimals = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{decimals}f}"

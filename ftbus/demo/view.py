"""The live view: a table that rich redraws, or a line a second where it cannot."""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from types import TracebackType

    from rich.table import Table

    from ftbus.demo.reading import Rates, Reading


class View(Protocol):
    """Something that shows how a match goes. A context manager: it ends with it."""

    interval_s: float
    """How often show() wants to be called."""

    def __enter__(self) -> Self:
        """Begin to show."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the last state on the screen."""

    def show(self, reading: Reading, rates: Rates) -> None:
        """Show a moment, and the rates of the time since the last one."""


def for_terminal(title: str) -> View:
    """Return the best view that this standard output can have."""
    if sys.stdout.isatty() and importlib.util.find_spec("rich") is not None:
        return RichView(title)
    return PlainView(title)


def rows_of(reading: Reading, rates: Rates) -> list[tuple[str, str]]:
    """Return (name, value) of everything that the view shows."""
    shares = "  ".join(f"{share:4.0%}" for share in rates.worker_shares)
    return [
        ("inputs/s", f"{rates.inputs_per_s:,.0f}"),
        ("events/s", f"{rates.events_per_s:,.0f}"),
        ("input to ack, p50", f"{rates.ack_p50_us / 1000:.2f} ms"),
        ("input to ack, p99", f"{rates.ack_p99_us / 1000:.2f} ms"),
        ("queue depth", f"{reading.bus.pending:,} (most {reading.bus.queued_max:,})"),
        ("workers' shares", shares or "-"),
        ("cores used", f"{rates.cores_used:.2f}"),
        ("snapshots", f"{reading.snapshots:,} ({reading.crowd.snapshots:,} received)"),
        ("snapshot lag", f"{reading.snapshot_lag:.0f} ticks"),
        ("players", f"{reading.crowd.alive}"),
        ("resent", f"{reading.crowd.resent:,}"),
        ("datagrams refused", f"{reading.refused:,}"),
        (
            "reordered, undecoded",
            f"{reading.crowd.reordered}, {reading.crowd.undecoded}",
        ),
    ]


class PlainView:
    """One line a second, for logs and pipes."""

    interval_s = 1.0

    def __init__(self, title: str) -> None:
        """Remember what to print first."""
        self._title = title

    def __enter__(self) -> Self:
        """Print the title."""
        print(self._title, flush=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Do nothing: every line is printed already."""

    def show(self, reading: Reading, rates: Rates) -> None:
        """Print one line."""
        shares = " ".join(f"{share:.0%}" for share in rates.worker_shares)
        print(
            f"{rates.inputs_per_s:8,.0f} inputs/s {rates.events_per_s:8,.0f} events/s  "
            f"ack p50 {rates.ack_p50_us / 1000:6.2f} "
            f"p99 {rates.ack_p99_us / 1000:6.2f} ms  "
            f"queue {reading.bus.pending:4d}  workers {shares or '-'}  "
            f"cores {rates.cores_used:.2f}  players {reading.crowd.alive}  "
            f"refused {reading.refused}",
            flush=True,
        )


class RichView:
    """A table that is redrawn in place."""

    interval_s = 0.5

    def __init__(self, title: str) -> None:
        """Prepare an empty table; rich is imported here, not before."""
        from rich.live import Live

        self._title = title
        self._live = Live(self._table([]), auto_refresh=False)

    def __enter__(self) -> Self:
        """Begin to draw."""
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the last table on the screen."""
        self._live.stop()

    def show(self, reading: Reading, rates: Rates) -> None:
        """Redraw the table."""
        rows = rows_of(reading, rates)
        self._live.update(self._table(rows), refresh=True)

    def _table(self, rows: list[tuple[str, str]]) -> Table:
        from rich.table import Table

        table = Table(title=self._title, show_header=False, title_justify="left")
        table.add_column(style="dim")
        table.add_column(justify="right", min_width=24)
        for name, value in rows:
            table.add_row(name, value)
        return table

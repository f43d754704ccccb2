"""The end of a match: figures, what is wrong with them, and the exit status."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Report:
    """What a match did. The rates are those of the time under load."""

    gil: str
    """ "on" or "off"."""
    players: int
    workers: int
    tick_hz: float
    seconds: float
    """Time under load."""
    interrupted: bool
    """Ended by Ctrl-C or SIGTERM before its time."""

    inputs_per_s: float
    events_per_s: float
    """Events emitted, or posted and delivered."""
    handler_calls_per_s: float
    ack_p50_us: float
    """From sending an input to its ack, resends included."""
    ack_p99_us: float
    cores_used: float
    """By the server process; the players are not in it."""
    worker_shares: tuple[float, ...]
    queued_max: int
    """The most events that waited at once."""

    inputs: int
    """Inputs that the players sent, resends not counted."""
    resent: int
    duplicates: int
    """Resent inputs that the server had applied already."""
    speeding: int
    """Inputs that were applied without their move, which was too fast."""
    tags: int
    snapshots: int
    encodes: int
    """How often a snapshot was encoded."""
    snapshots_received: int
    """By the players; UDP may lose some."""
    replay_bytes: int
    late_ticks: int

    lost: int
    """Inputs never acknowledged, and events that came to no handler."""
    reordered: int
    """Acks that left out, repeated or went behind an input."""
    undecoded: int
    """Datagrams that no player, and replayed snapshots that we, could decode."""
    live_buffers: int
    """Pooled buffers not given back."""
    failed_handlers: int
    first_failure: str | None

    players_died: int
    refused: dict[str, int]
    """Datagrams that the server did not act on, by reason."""
    port: int
    port_in_use: int | None
    """The port that was asked for, if something else had it."""

    def problems(self) -> list[str]:
        """Return what makes the exit status 1, a sentence for each."""
        problems = [
            f"{count} {what}"
            for count, what in (
                (self.lost, "inputs or events were lost"),
                (self.reordered, "acks were out of order, or not exactly once"),
                (self.undecoded, "datagrams could not be decoded"),
                (self.live_buffers, "pooled buffers leaked"),
                (self.failed_handlers, "handler calls failed"),
            )
            if count
        ]
        if self.inputs == 0 and not self.interrupted:
            problems.append("no player sent anything")
        if self.encodes != self.snapshots:
            problems.append(f"{self.snapshots} snapshots took {self.encodes} encodes")
        if self.first_failure is not None:
            problems.append(f"the first failure was in {self.first_failure}")
        return problems

    def incidents(self) -> list[str]:
        """Return what went wrong outside, and was lived with."""
        incidents = [f"{n} datagrams refused: {why}" for why, n in self.refused.items()]
        if self.players_died:
            incidents.append(f"{self.players_died} player processes died")
        if self.port_in_use is not None:
            incidents.append(f"port {self.port_in_use} was in use, used {self.port}")
        if self.late_ticks:
            incidents.append(f"{self.late_ticks} ticks came too late and were skipped")
        if self.interrupted:
            incidents.append(f"interrupted after {self.seconds:.1f} s")
        return incidents

    def to_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        return {
            **asdict(self),
            "problems": self.problems(),
            "python": platform.python_version(),
        }

    def text(self) -> str:
        """Return the report for people."""
        shares = " ".join(f"{share:.0%}" for share in self.worker_shares)
        lines = [
            f"{self.players} players, {self.workers} workers ({shares or '-'}), "
            f"GIL {self.gil}, {self.seconds:.1f} s under load",
            f"  inputs/s         {self.inputs_per_s:12,.0f}",
            f"  events/s         {self.events_per_s:12,.0f}",
            f"  handler calls/s  {self.handler_calls_per_s:12,.0f}",
            f"  input to ack     {self.ack_p50_us / 1000:12.2f} ms p50"
            f" {self.ack_p99_us / 1000:8.2f} ms p99",
            f"  cores used       {self.cores_used:12.2f} by the server",
            f"  snapshots        {self.snapshots:12,} in {self.encodes:,} encodes, "
            f"{self.snapshots_received:,} received, replay {self.replay_bytes:,} bytes",
            f"  inputs           {self.inputs:12,} and {self.resent:,} resends, "
            f"{self.duplicates:,} duplicates, {self.tags:,} tags",
            f"  lost {self.lost}, reordered {self.reordered}, undecoded "
            f"{self.undecoded}, live buffers {self.live_buffers}, failed handlers "
            f"{self.failed_handlers}",
        ]
        lines += [f"  note: {incident}" for incident in self.incidents()]
        lines += [f"  PROBLEM: {problem}" for problem in self.problems()]
        return "\n".join(lines)

    @property
    def exit_status(self) -> int:
        """0 if nothing was lost, reordered, leaked, undecoded or failed; else 1."""
        return 1 if self.problems() else 0


def write_json(path: Path, tree: dict[str, Any]) -> None:
    """Write figures to a file; raises OSError if that cannot be done."""
    path.write_text(json.dumps(tree, indent=2) + "\n")

"""What is counted at one moment, and what two such moments say of the time between."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from ftbus.demo import board as boards

if TYPE_CHECKING:
    import ftbus
    from ftbus.demo.board import Board, Totals
    from ftbus.demo.server import GameServer


@dataclass(frozen=True, slots=True)
class Reading:
    """The counters of a match at one moment."""

    at_s: float
    cpu_s: float
    """Processor time of the server, all threads."""
    bus: ftbus.BusStats
    crowd: Totals
    snapshots: int
    snapshot_lag: float
    """Ticks from the newest snapshot to the one that the median player has."""
    refused: int
    """Datagrams that the server did not act on."""

    @classmethod
    def take(cls, server: GameServer, board: Board) -> Self:
        """Read all counters now."""
        return cls(
            at_s=time.perf_counter(),
            cpu_s=time.process_time(),
            bus=server.bus.stats(),
            crowd=board.totals(),
            snapshots=server.snapshots,
            snapshot_lag=server.snapshot_lag(),
            refused=server.refused().total(),
        )


@dataclass(frozen=True, slots=True)
class Rates:
    """What happened between two readings."""

    seconds: float
    inputs_per_s: float
    """Inputs acknowledged."""
    events_per_s: float
    """Events emitted, or posted and delivered."""
    handler_calls_per_s: float
    ack_p50_us: float
    """From sending an input first to its ack, as the players see it."""
    ack_p99_us: float
    cores_used: float
    """By the server process; the players are not in it."""
    worker_shares: tuple[float, ...]
    """Of the events taken from the queue, 0.0 to 1.0."""

    @classmethod
    def between(cls, before: Reading, after: Reading) -> Self:
        """Compare two readings of one match."""
        seconds = max(after.at_s - before.at_s, 1e-9)
        bus = after.bus.since(before.bus)
        latencies = tuple(
            now - then
            for now, then in zip(
                after.crowd.latencies, before.crowd.latencies, strict=True
            )
        )
        taken = [worker.taken for worker in bus.workers]
        return cls(
            seconds=seconds,
            inputs_per_s=(after.crowd.acked - before.crowd.acked) / seconds,
            events_per_s=(bus.emitted + bus.delivered) / seconds,
            handler_calls_per_s=bus.handled / seconds,
            ack_p50_us=boards.percentile_us(latencies, 0.50),
            ack_p99_us=boards.percentile_us(latencies, 0.99),
            cores_used=(after.cpu_s - before.cpu_s) / seconds,
            worker_shares=tuple(n / max(sum(taken), 1) for n in taken),
        )


def gil_state() -> str:
    """Return "on" or "off": whether this interpreter's threads take turns."""
    return "on" if sys._is_gil_enabled() else "off"

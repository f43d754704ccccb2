"""One match: a server, its players, and the time between start and report."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import ftbus
from ftbus.demo import board as boards
from ftbus.demo import protocol, view
from ftbus.demo.board import Board
from ftbus.demo.reading import Rates, Reading, gil_state
from ftbus.demo.report import Report
from ftbus.demo.server import GameServer

if TYPE_CHECKING:
    from types import FrameType

_BEGIN_S: Final = 60.0  # for all players to get their first ack
_FINISH_S: Final = 5.0  # for all players to end; they give up after 2 s themselves
_LOOK_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Options:
    """What a match is to be like."""

    seconds: float = 10.0
    """Time under load."""
    players: int = 64
    workers: int | None = None
    """Threads that run handlers; None for one per core."""
    tick_hz: float = 30.0
    window: int = 2
    """Inputs that each player keeps in flight."""
    port: int = 0
    """0 lets the kernel pick one."""
    replay: Path | None = None
    """Where to keep the snapshots."""
    dashboard: int | None = None
    """The port of the page that shows the bus; 0 for any, None for no page."""

    def to_argv(self) -> list[str]:
        """Return the command line that says the same."""
        named = {
            "--seconds": self.seconds,
            "--players": self.players,
            "--workers": self.workers,
            "--tick": self.tick_hz,
            "--window": self.window,
            "--port": self.port,
            "--replay": self.replay,
            "--dashboard": self.dashboard,
        }
        pairs = [(name, str(v)) for name, v in named.items() if v is not None]
        return [word for pair in pairs for word in pair]


class Interrupt:
    """Take Ctrl-C and SIGTERM as a wish to end; a context manager."""

    def __init__(self) -> None:
        """Expect no wish yet."""
        self.is_wanted = False

    def __enter__(self) -> Interrupt:
        """Take over the signals."""
        self._handlers = {
            number: signal.signal(number, self._note)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *_: object) -> None:
        """Give the signals back."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self.is_wanted = True


class Match:
    """A server and its players in other processes."""

    def __init__(self, options: Options) -> None:
        """Open the port and the board; nothing runs yet.

        Raises OSError if there is no port to be had, or no place for the replay.
        """
        self.options = options
        self._live_before = ftbus.default_pool.live
        self.server = GameServer(
            players=options.players,
            port=options.port,
            workers=options.workers,
            tick_hz=options.tick_hz,
            replay=options.replay,
        )
        self.board = Board.create(
            players=options.players,
            port=self.server.port,
            token=self.server.token,
            window=options.window,
        )
        self._launcher: subprocess.Popen[bytes] | None = None

    def run(self, interrupt: Interrupt) -> Report:
        """Play until the time is over or an interrupt is wanted; return the report."""
        self.server.start()
        begin = end = Reading.take(self.server, self.board)
        try:
            self._show_outside()
            self._launcher = self._launch()
            if self._wait_for_players(interrupt):
                begin, end = self._watch(interrupt)
        finally:
            self._finish()
            left = self.server.stop()
        return self._report(begin, end, left, interrupt)

    def _show_outside(self) -> None:
        """Let `python -m ftbus top`, and a browser, see the bus until it is closed.

        Raises OSError if the page's port cannot be had.
        """
        with contextlib.suppress(OSError):  # no folder for sockets: then without
            self.server.bus.serve_stats()
        if self.options.dashboard is not None:
            page = self.server.bus.serve_dashboard(self.options.dashboard)
            print(f"dashboard: {page.url}", flush=True)

    def _launch(self) -> subprocess.Popen[bytes]:
        """Start the players. Without our GIL setting: they are not what is measured."""
        environment = {k: v for k, v in os.environ.items() if k != "PYTHON_GIL"}
        root = str(Path(ftbus.__file__).parents[1])
        path = [root, environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
        return subprocess.Popen(
            [sys.executable, "-m", "ftbus.demo.players", str(self.board.fd)],
            stdin=subprocess.PIPE,
            env=environment,
            pass_fds=[self.board.fd],
        )

    def _is_over(self) -> bool:
        """Return whether all players have ended, or their launcher has."""
        return self._launcher is None or self._launcher.poll() is not None

    def _wait_for_players(self, interrupt: Interrupt) -> bool:
        """Wait until every player that lives got an ack; return whether to go on."""
        deadline_s = time.perf_counter() + _BEGIN_S
        slots = [self.board.slot(player) for player in range(self.options.players)]
        while not all(
            slot[boards.ACKED] or slot[boards.LIFE] == boards.DIED for slot in slots
        ):
            if interrupt.is_wanted or self._is_over():
                return False
            if time.perf_counter() > deadline_s:
                break
            time.sleep(_LOOK_S)
        return True

    def _watch(self, interrupt: Interrupt) -> tuple[Reading, Reading]:
        """Show the match for its time under load; return the first and last reading.

        What is shown last is the whole time.
        """
        options = self.options
        title = (
            f"ftbus demo: {options.players} players, port {self.server.port}, "
            f"{options.tick_hz:g} Hz, GIL {gil_state()}"
        )
        with view.for_terminal(title) as screen:
            begin = last = Reading.take(self.server, self.board)
            end_s = begin.at_s + options.seconds
            while not (interrupt.is_wanted or self._is_over()):
                now_s = time.perf_counter()
                if now_s >= end_s:
                    break
                if now_s >= last.at_s + screen.interval_s:
                    now = Reading.take(self.server, self.board)
                    screen.show(now, Rates.between(last, now))
                    last = now
                time.sleep(min(_LOOK_S, end_s - now_s))
            end = Reading.take(self.server, self.board)
            screen.show(end, Rates.between(begin, end))
        return begin, end

    def _finish(self) -> None:
        """Let the players get their last acks and end; end those that do not."""
        if self._launcher is None:
            return
        self.board.words[boards.PHASE] = boards.FINISHING
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._launcher.wait(_FINISH_S)
        self._launcher.communicate()  # closes its input: now all must end

    def _report(
        self, begin: Reading, end: Reading, left: int, interrupt: Interrupt
    ) -> Report:
        """Check what must be, count what is left, and close everything."""
        options, server = self.options, self.server
        rates = Rates.between(begin, end)
        bus = server.bus.stats()
        crowd = self.board.totals()
        undecoded, replay_bytes = self._check_replay()
        lost = crowd.lost + self._unequal() + left + (bus.posted - bus.delivered)
        self.board.close()
        gc.collect()  # what is garbage is no leak
        return Report(
            gil=gil_state(),
            players=options.players,
            workers=len(bus.workers),
            tick_hz=options.tick_hz,
            seconds=rates.seconds,
            interrupted=interrupt.is_wanted,
            inputs_per_s=rates.inputs_per_s,
            events_per_s=rates.events_per_s,
            handler_calls_per_s=rates.handler_calls_per_s,
            ack_p50_us=rates.ack_p50_us,
            ack_p99_us=rates.ack_p99_us,
            cores_used=rates.cores_used,
            worker_shares=rates.worker_shares,
            queued_max=bus.queued_max,
            inputs=crowd.sent,
            resent=crowd.resent,
            duplicates=sum(player.duplicates for player in server.players),
            speeding=sum(player.speeding for player in server.players),
            tags=sum(player.tags_taken for player in server.players),
            snapshots=server.snapshots,
            encodes=bus.encoded,
            snapshots_received=crowd.snapshots,
            replay_bytes=replay_bytes,
            late_ticks=server.late_ticks,
            lost=lost,
            reordered=crowd.reordered,
            undecoded=crowd.undecoded + undecoded,
            live_buffers=server.pool.live + ftbus.default_pool.live - self._live_before,
            failed_handlers=bus.failed,
            first_failure=server.first_failure,
            players_died=options.players - crowd.done,
            refused=dict(server.refused()),
            port=server.port,
            port_in_use=server.port_in_use,
        )

    def _unequal(self) -> int:
        """Return by how many inputs and tags one side's count differs from the other's.

        Of the players that ended as they should: what the server applied is what they
        sent. Of all: every tag that was made was taken.
        """
        difference = 0
        for player in self.server.players:
            slot = self.board.slot(player.id)
            if slot[boards.LIFE] == boards.DONE:
                difference += abs(player.inputs.applied - slot[boards.ACKED])
        made = sum(player.tags_made for player in self.server.players)
        taken = sum(player.tags_taken for player in self.server.players)
        return difference + abs(made - taken)

    def _check_replay(self) -> tuple[int, int]:
        """Read the replay back; return (snapshots missing or undecoded, bytes)."""
        decoded = size = 0
        for snapshot in self.server.replay.snapshots():
            size += len(snapshot)
            try:
                tick, _, _ = protocol.decode_snapshot(snapshot)
            except protocol.DatagramError:
                continue
            decoded += tick == decoded + 1
        self.server.replay.close()
        return self.server.snapshots - decoded, size

"""The players: one process and one socket each, playing until the server says stop.

``python -m ftbus.demo.players FD`` is the launcher: it opens the board behind the file
descriptor, forks the players, which share its loaded interpreter, and buries them. They
all end when its standard input closes, so none outlives the server. A player plays
closed-loop: it sends the next input when an earlier one was acknowledged, and checks
everything that the server says.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
import select
import signal
import socket
import struct
import sys
import time
from typing import Final

from ftbus.demo import board as boards
from ftbus.demo import protocol
from ftbus.demo.netcode import SEQUENCES, SendWindow, distance
from ftbus.demo.protocol import HOST, DatagramError

GRACE_NS: Final = 2_000_000_000  # for the last acks, resends included
_POLL_S: Final = 0.05
_LAST_WARNING_S: Final = 2.0  # from the end of everything to killing who is left
_POLL_TIMEVAL: Final = struct.pack("@ll", 0, 50_000)
_INBOX_BYTES: Final = 65536
_TURN_EVERY: Final = 32  # inputs
_DURATION_US_MAX: Final = 100_000


class Bot:
    """One player: its socket, its window of inputs in flight, its slot on the board."""

    def __init__(self, board: boards.Board, player: int) -> None:
        """Connect to the server's port."""
        self.player = player
        self.players = board.words[boards.PLAYERS]
        self.token = board.words[boards.TOKEN]
        self.slot = board.slot(player)
        limit = board.words[boards.WINDOW]
        self.window = SendWindow(limit)
        # One datagram for each input in flight, to send again as it was.
        self.outbox = [bytearray(protocol.INPUT_BYTES) for _ in range(limit)]
        self.inbox = bytearray(_INBOX_BYTES)
        self.view = memoryview(self.inbox).toreadonly()
        self.tick = 0
        self.ack_number = 0  # of the newest ack
        self.applied = 0  # what that ack said
        self.place = (0.0, 0.0)
        self.heading = player * 37 % 256
        self.sent_ns = time.perf_counter_ns()
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.connect((HOST, board.words[boards.PORT]))
        # The kernel's own timeout costs no system call, unlike settimeout().
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _POLL_TIMEVAL)

    def play(self, phase: memoryview[int]) -> bool:
        """Play until the phase changes, then until every input is acknowledged.

        Gives up GRACE_NS after that. Returns False if the launcher is gone: then so
        may be the server, and what is not acknowledged says nothing.
        """
        parent = os.getppid()
        give_up_ns: int | None = None
        while phase[0] != boards.OVER:
            if phase[0] == boards.PLAYING:
                while self.window.has_room():
                    self.send_next()
            elif self.window.sent == self.window.acked:
                return True
            length = self.receive()
            now_ns = time.perf_counter_ns()
            if length >= 0:
                self.take(length, now_ns)
            elif os.getppid() != parent:
                return False
            for number in self.window.overdue(now_ns):
                self.slot[boards.RESENT] += 1
                self.send(number)
            if phase[0] == boards.FINISHING:
                give_up_ns = give_up_ns or now_ns + GRACE_NS
                if now_ns > give_up_ns:
                    return True
        return True

    def receive(self) -> int:
        """Return the length of the next datagram, or -1 if none came for a while."""
        try:
            return self.socket.recv_into(self.inbox)
        except BlockingIOError:
            return -1
        except ConnectionRefusedError:  # nobody listens on the port (any more)
            time.sleep(_POLL_S)
            return -1

    def send_next(self) -> None:
        """Decide what to do next, and send it."""
        now_ns = time.perf_counter_ns()
        duration_us = min((now_ns - self.sent_ns) // 1000, _DURATION_US_MAX)
        self.sent_ns = now_ns
        sequence = self.window.send(now_ns)
        number = self.window.sent
        self.slot[boards.SENT] = number
        if number % _TURN_EVERY == 0:
            self.heading = (self.heading * 5 + number // _TURN_EVERY + 59) % 256
        buttons = protocol.BUTTON_MOVE
        if number % 4 == 0:
            buttons |= protocol.BUTTON_FIRE
        protocol.pack_input(
            self.outbox[number % self.window.limit],
            player=self.player,
            sequence=sequence,
            token=self.token,
            tick=self.tick,
            duration_us=duration_us,
            heading=self.heading,
            buttons=buttons,
        )
        self.send(number)

    def send(self, number: int) -> None:
        """Send an input that is in the outbox; what cannot be sent now is resent."""
        with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
            self.socket.send(self.outbox[number % self.window.limit])

    def take(self, length: int, now_ns: int) -> None:
        """Check a datagram from the server and act on it."""
        try:
            kind, player, sequence = protocol.read_header(self.view, length, self.token)
            if player != self.player:
                raise DatagramError("foreign")
            if kind == protocol.KIND_ACK:
                self.take_ack(length, sequence, now_ns)
            elif kind == protocol.KIND_SNAPSHOT:
                self.take_snapshot(length, sequence, now_ns)
            else:
                raise DatagramError("malformed")
        except DatagramError:
            self.slot[boards.UNDECODED] += 1

    def take_ack(self, length: int, number: int, now_ns: int) -> None:
        """Check that the server applied our inputs in order, each once."""
        sequence, applied, x, y = protocol.read_ack(self.view, length, self.players)
        if applied % SEQUENCES != sequence or applied > self.window.sent:
            self.slot[boards.REORDERED] += 1  # it left one out, or applied one twice
            return
        if distance(number, self.ack_number) <= 0:
            self.slot[boards.STALE] += 1  # UDP delivered it after a later one
            return
        self.ack_number = number
        if applied < self.applied:
            self.slot[boards.REORDERED] += 1  # it took an earlier one back
            return
        self.applied = applied
        self.acknowledge(sequence, now_ns)
        if (x, y) == self.place:
            self.heading = (self.heading + 96) % 256  # a wall: turn
        self.place = (x, y)

    def take_snapshot(self, length: int, sequence: int, now_ns: int) -> None:
        """Decode the world, which tells of our newest input too."""
        body = self.view[protocol.HEADER.size : length]
        tick, _, records = protocol.decode_snapshot(body)
        if not records or records[-1][0] >= self.players:
            raise DatagramError("malformed")
        self.slot[boards.SNAPSHOTS] += 1
        if tick <= self.tick:
            self.slot[boards.STALE] += 1
            return
        self.tick = tick
        self.acknowledge(sequence, now_ns)

    def acknowledge(self, sequence: int, now_ns: int) -> None:
        """Count what an ack or snapshot acknowledges."""
        try:
            latencies = self.window.acknowledge(sequence, now_ns)
        except ValueError:
            self.slot[boards.REORDERED] += 1
            return
        for latency_ns in latencies:
            boards.count_latency(self.slot, latency_ns)
        self.slot[boards.ACKED] = self.window.acked


def run_player(board: boards.Board, player: int) -> None:
    """Be one player process: play, and leave without the launcher's clean-up."""
    status = 1
    try:
        bot = Bot(board, player)
        bot.slot[boards.LIFE] = boards.ALIVE
        if bot.play(board.words[boards.PHASE : boards.PHASE + 1]):
            bot.slot[boards.LIFE] = boards.DONE
            status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(status)


def bury(board: boards.Board, players: dict[int, int]) -> None:
    """Wait for players (process id to player) that have ended; write down who died."""
    while players:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        player = players.pop(pid)
        if status != 0:
            board.slot(player)[boards.LIFE] = boards.DIED


def main(argv: list[str]) -> int:
    """Launch the players of a board and stay until the last has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server decides when it is over
    board = boards.Board(int(argv[0]))
    gc.freeze()  # so that no collection makes the players copy the launcher's memory
    players: dict[int, int] = {}
    for player in range(board.words[boards.PLAYERS]):
        pid = os.fork()
        if pid == 0:
            run_player(board, player)
        players[pid] = player
    watched = [sys.stdin.fileno()]
    kill_s = math.inf
    while players:
        readable, _, _ = select.select(watched, [], [], _POLL_S)
        if readable:  # end of file: the server is gone, or wants no more of this
            board.words[boards.PHASE] = boards.OVER
            watched = []
            kill_s = time.monotonic() + _LAST_WARNING_S
        bury(board, players)
        if time.monotonic() > kill_s:
            for pid in players:
                os.kill(pid, signal.SIGKILL)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

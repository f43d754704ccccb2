"""UDP in: sockets that share a port, and threads that receive into pooled Buffers."""

from __future__ import annotations

import errno
import socket
import struct
import threading
from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

from ftbus import BusClosedError
from ftbus.demo import protocol
from ftbus.demo.protocol import HOST

if TYPE_CHECKING:
    import ftbus

_POLL_TIMEVAL: Final = struct.pack("@ll", 0, 100_000)
_RECEIVE_BUFFER_BYTES: Final = 1 << 20


class Datagram(NamedTuple):
    """An input as it came in: the event that handlers get."""

    player: int
    sequence: int
    buffer: ftbus.Buffer
    """The bytes; whoever handles the input last releases them."""
    address: tuple[str, int]
    """Where it came from."""
    socket: socket.socket
    """Where it came in, and where the ack goes out."""


def open_sockets(port: int, count: int) -> tuple[list[socket.socket], bool]:
    """Return `count` UDP sockets on one port of this machine, and whether it is `port`.

    The kernel spreads the players over the sockets, each player always to the same one.
    If the port is in use, the kernel picks another, as it does for port 0.
    """
    try:
        return _open_sockets(port, count), True
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        return _open_sockets(0, count), False


def _open_sockets(port: int, count: int) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    try:
        for _ in range(count):
            opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sockets.append(opened)
            # The first binds alone: another server on this port must be noticed.
            if len(sockets) > 1:
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            opened.bind((HOST, port))
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _POLL_TIMEVAL)
            opened.setsockopt(
                socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES
            )
            port = opened.getsockname()[1]
    except OSError:
        for opened in sockets:
            opened.close()
        raise
    return sockets


class Receiver(threading.Thread):
    """Receive inputs on one socket and post them, each player's in order.

    Its counters are written by this thread alone.
    """

    def __init__(
        self,
        source: socket.socket,
        topic: ftbus.Topic,
        pool: ftbus.BufferPool,
        *,
        token: int,
        players: int,
    ) -> None:
        """Prepare to post to a topic what `source` receives for players 0 to players-1.

        token: what every datagram of this match carries.
        """
        super().__init__(name=f"receiver-{source.fileno()}")
        self.received = 0
        """Datagrams, good and bad."""
        self.refused: Counter[str] = Counter()
        """Datagrams that are no input of ours, by reason."""
        self._source = source
        self._topic = topic
        self._pool = pool
        self._token = token
        self._players = players
        self._is_stopping = False

    def stop(self) -> None:
        """Let the thread end within 0.1 s; what it has received is posted."""
        self._is_stopping = True

    def run(self) -> None:
        """Receive until stop() or until the bus is closed."""
        post = self._topic.post
        while not self._is_stopping:
            buffer = self._pool.allocate(protocol.DATAGRAM_BYTES)
            try:
                length, address = self._source.recvfrom_into(buffer)
            except BlockingIOError:  # nothing came for 0.1 s
                continue
            except OSError as error:
                self.refused[errno.errorcode.get(error.errno or 0, "error")] += 1
                continue
            self.received += 1
            try:
                player, sequence = protocol.check_input(
                    buffer, length, self._token, self._players
                )
            except protocol.DatagramError as error:
                self.refused[error.reason] += 1
                buffer.release()
                continue
            datagram = Datagram(
                player, sequence, buffer.freeze(length), address, self._source
            )
            try:
                post(datagram, partition=player)
            except BusClosedError:
                buffer.release()
                return

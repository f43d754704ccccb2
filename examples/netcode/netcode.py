"""Packets from sockets as Buffers: what C received, Python reads without a copy."""

from __future__ import annotations

import os
import socket

from ftbus import Buffer, BufferPool, cabi, default_pool  # says so if cffi cannot run

from _netcode import ffi, lib  # isort: skip - after ftbus.cabi, for its better message

PACKETS = 64  # at most so many for each call into C

if not lib.netcode_use_arena(ffi.cast("void *", cabi.arena_api)):
    raise ImportError("_netcode was compiled for another ftbus: run build.py again")


class ProtocolError(Exception):
    """The peer sent what is no packet; nothing more can be read from it."""


class StreamEndError(EOFError):
    """The peer closed its end."""


class Stream:
    """The packets of one peer; used by one thread at a time.

    payload_limit: bytes; a longer packet is an error, so that no peer decides how
        much memory it gets. A limit of the pool stops all peers together.
    """

    def __init__(
        self, pool: BufferPool = default_pool, payload_limit: int = 1 << 20
    ) -> None:
        self._pool = pool  # has to outlive the stream
        arena = ffi.cast("ftb_arena_t *", cabi.arena_of(pool))
        self._stream = lib.netcode_stream_new(arena, payload_limit)
        if self._stream == ffi.NULL:
            raise MemoryError
        self._stream = ffi.gc(self._stream, lib.netcode_stream_free)
        self._packets = ffi.new("struct netcode_packet[]", PACKETS)
        self._rest = b""  # what feed() was given and could not parse yet

    def feed(self, data: bytes | bytearray | memoryview) -> list[tuple[int, Buffer]]:
        """Return the kind and payload of each packet that these bytes complete.

        Raises ProtocolError, or MemoryError at the pool's limit; if packets were found
        before that, the next call does. After a MemoryError nothing is lost: feed(b"")
        goes on.
        """
        found: list[tuple[int, Buffer]] = []
        data = self._rest + bytes(data) if self._rest else data
        used = ffi.new("size_t *")
        done = 0
        n = PACKETS
        with ffi.from_buffer("unsigned char[]", data) as source:
            while n == PACKETS:
                left = len(source) - done
                n = lib.netcode_feed(
                    self._stream, source + done, left, used, self._packets, PACKETS
                )
                done += used[0]
                found += self._take(max(n, 0))
            self._rest = bytes(ffi.buffer(source + done, len(source) - done))
        if n < 0 and not found:
            raise fault(n)
        return found

    def receive(self, sock: socket.socket) -> list[tuple[int, Buffer]]:
        """Read once from a socket; return what that completes, maybe nothing.

        Raises StreamEndError, ProtocolError, MemoryError (nothing is lost then), and
        OSError (BlockingIOError if a non-blocking socket has nothing).
        """
        n = lib.netcode_receive(self._stream, sock.fileno(), self._packets, PACKETS)
        if n < 0:
            raise fault(n)
        return self._take(n)

    def _take(self, n: int) -> list[tuple[int, Buffer]]:
        found: list[tuple[int, Buffer]] = []
        taken = 0
        try:
            while taken < n:
                packet = self._packets[taken]
                taken += 1  # also if that raises: the handle is used up
                found.append((packet.kind, cabi.buffer_from_handle(packet.handle)))
        finally:
            lib.netcode_drop(self._packets + taken, n - taken)
        return found


def fault(n: int) -> Exception:
    """Return the exception for a fault of netcode.h."""
    if n == lib.NETCODE_BAD_MAGIC:
        return ProtocolError("no packet begins here")
    if n == lib.NETCODE_TOO_LONG:
        return ProtocolError("a payload is longer than payload_limit")
    if n == lib.NETCODE_NO_MEMORY:
        return MemoryError("the pool is at its limit")
    if n == lib.NETCODE_END:
        return StreamEndError("the peer closed its end")
    return OSError(ffi.errno, os.strerror(ffi.errno))

"""Receive packets from several peers, each on a thread, and emit them to handlers."""

from __future__ import annotations

import random
import socket
import struct
import sys
from threading import Thread

from netcode import Stream, StreamEndError

from ftbus import BufferPool, EventBus

PEERS = 4
PACKETS = 5000
MAGIC = 0xF7B5
MOVE, CHAT = 1, 2


def packet(kind: int, payload: bytes) -> bytes:
    return struct.pack(">HHI", MAGIC, kind, len(payload)) + payload


def peer(sock: socket.socket, seed: int) -> None:
    """Send positions and some lines of chat, cut anywhere."""
    rng = random.Random(seed)
    data = b"".join(
        packet(CHAT, bytes(rng.randrange(5000)))
        if rng.random() < 0.1
        else packet(MOVE, struct.pack(">ii", n, -n))
        for n in range(PACKETS)
    )
    with sock:
        while data:
            size = rng.randrange(1, 20_000)
            sock.sendall(data[:size])
            data = data[size:]


def serve(sock: socket.socket, bus: EventBus, pool: BufferPool) -> None:
    """Emit what one peer sends until it ends."""
    stream = Stream(pool)
    with sock:
        while True:
            try:
                for kind, payload in stream.receive(sock):
                    bus.emit(kind, payload)
            except StreamEndError:
                return


def main() -> int:
    pool = BufferPool(limit_bytes=64 << 20, name="netcode")
    with EventBus() as bus:
        moves: list[int] = []
        chat: list[int] = []

        def move(payload) -> None:
            x, y = struct.unpack_from(">ii", payload)  # reads what C received
            assert x == -y
            moves.append(x)

        def say(payload) -> None:
            with memoryview(payload) as text:
                chat.append(len(text))

        bus.on(MOVE, move)
        bus.on(CHAT, say)
        threads = []
        for n in range(PEERS):
            ours, theirs = socket.socketpair()
            threads.append(Thread(target=peer, args=(theirs, n)))
            threads.append(Thread(target=serve, args=(ours, bus, pool)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    stats = pool.stats()
    print(f"{len(moves) + len(chat)} packets, {sum(chat)} bytes of chat")
    print(f"{stats.hit_rate:.1%} of the buffers from the pool, {stats.live} left")
    print(f"GIL {'on' if sys._is_gil_enabled() else 'off'}")
    return 0 if len(moves) + len(chat) == PEERS * PACKETS and stats.live == 0 else 1


if __name__ == "__main__":
    sys.exit(main())

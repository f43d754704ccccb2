"""Feed the parser streams that are cut anywhere, damaged or made up.

Each stream is parsed a second time by a few lines of Python, which have to find the
same packets and the same fault, and all memory has to come back.
"""

from __future__ import annotations

import argparse
import random
import socket
import struct
import sys

from netcode import ProtocolError, Stream, StreamEndError

from ftbus import Buffer, BufferPool
from ftbus.testing import fuzzing

MAGIC = 0xF7B5
LIMIT = 3000  # of a payload, in bytes
Packets = list[tuple[int, bytes]]


def expected(data: bytes) -> tuple[Packets, bool]:
    """Parse as netcode.h says; return the packets and whether a fault follows them."""
    packets = []
    at = 0
    while len(data) - at >= 8:
        magic, kind, length = struct.unpack_from(">HHI", data, at)
        if magic != MAGIC or length > LIMIT:
            return packets, True
        if len(data) - at - 8 < length:
            break
        packets.append((kind, data[at + 8 : at + 8 + length]))
        at += 8 + length
    return packets, False


def make_stream(rng: random.Random) -> bytes:
    """Return packets, in two of four cases with some damage."""
    data = bytearray()
    for _ in range(rng.randrange(200 if rng.random() < 0.1 else 12)):
        size = rng.choice([0, 1, 4, 63, 64, 65, 300, LIMIT, rng.randrange(LIMIT)])
        size = rng.randrange(8) if rng.random() < 0.5 else size
        data += struct.pack(">HHI", MAGIC, rng.getrandbits(16), size)
        data += rng.randbytes(size)
    damage = rng.randrange(4)
    if damage == 1:
        return fuzzing.damaged(bytes(data), rng)
    if damage == 2:
        at = rng.randrange(len(data) + 1)
        huge = rng.choice([LIMIT + 1, 2**31, 2**32 - 1, 2**32 - 8, rng.getrandbits(32)])
        data[at:at] = struct.pack(">HHI", MAGIC, 1, huge)
    return bytes(data)


def drain(held: list[tuple[int, Buffer]], packets: Packets) -> None:
    """Move Buffers to packets, and so give their memory back."""
    packets += [(kind, bytes(memoryview(payload))) for kind, payload in held]
    held.clear()


def feed(
    stream: Stream, data: bytes, held: list[tuple[int, Buffer]], packets: Packets
) -> bool:
    """Feed a stream, give memory back if it is short; return if packets were found."""
    before = len(held)
    try:
        held += stream.feed(data)
    except MemoryError:
        assert held, "a payload alone exceeds the pool"
        drain(held, packets)
        return True
    return len(held) > before


def by_feeding(pieces: list[bytes], pool: BufferPool) -> tuple[Packets, bool]:
    stream = Stream(pool, LIMIT)
    held: list[tuple[int, Buffer]] = []
    packets: Packets = []
    try:
        for piece in pieces:
            feed(stream, piece, held, packets)
        while feed(stream, b"", held, packets):
            pass  # what short memory delayed; at last the fault behind the packets
    except ProtocolError:
        drain(held, packets)
        return packets, True
    drain(held, packets)
    return packets, False


def by_receiving(pieces: list[bytes], pool: BufferPool) -> tuple[Packets, bool]:
    stream = Stream(pool, LIMIT)
    held: list[tuple[int, Buffer]] = []
    packets: Packets = []
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    waiting = list(reversed(pieces))
    with ours, theirs:
        while True:
            try:
                held += stream.receive(ours)
            except MemoryError:
                assert held, "a payload alone exceeds the pool"
                drain(held, packets)
            except BlockingIOError:
                if waiting:
                    theirs.sendall(waiting.pop())
                else:
                    theirs.shutdown(socket.SHUT_WR)
            except (ProtocolError, StreamEndError) as end:
                drain(held, packets)
                return packets, isinstance(end, ProtocolError)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=2000)
    parser.add_argument(
        "--seed", type=int, default=random.SystemRandom().getrandbits(32)
    )
    options = parser.parse_args()
    print(f"--seed {options.seed}", flush=True)
    rng = random.Random(options.seed)
    packets_n = faults_n = 0
    for n in range(options.streams):
        data = make_stream(rng)
        pieces = fuzzing.cut(data, rng)
        pool = BufferPool(limit_bytes=rng.choice([0, 8000, 20_000]), name="fuzz")
        way = rng.choice([by_feeding, by_receiving])
        found = way(pieces, pool)
        assert found == expected(data), f"stream {n}, {way.__name__}"
        assert pool.live == 0, f"stream {n}: {pool.live} buffers left"
        packets_n += len(found[0])
        faults_n += found[1]
    print(f"{options.streams} streams: {packets_n} packets and {faults_n} faults found")
    return 0


if __name__ == "__main__":
    sys.exit(main())

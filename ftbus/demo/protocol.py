"""What goes over the wire: the layouts of input, ack and snapshot, and their checks.

All numbers are little-endian. Every datagram begins with the same header, so whoever
receives one knows from 16 bytes whether it is ours, complete and for whom. Nothing here
copies: the functions read and write any bytes-like object in place, a pooled Buffer for
one. A thread may call any of them at any time.
"""

from __future__ import annotations

import zlib
from struct import Struct, pack
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Buffer as BytesLike
    from collections.abc import Iterable, Sequence

    import ftbus

HOST: Final = "127.0.0.1"
MAGIC: Final = 0xF7B5
VERSION: Final = 1
KIND_INPUT: Final = 1
KIND_ACK: Final = 2
KIND_SNAPSHOT: Final = 3

BUTTON_MOVE: Final = 1
BUTTON_FIRE: Final = 2
BUTTONS_ALL: Final = BUTTON_MOVE | BUTTON_FIRE

PLAYERS_MAX: Final = 1024  # a snapshot of so many is 16 KiB, far from UDP's 64 KiB
SEEN_MAX: Final = 8  # players named in one ack
DATAGRAM_BYTES: Final = 64  # room for an input, and to notice one that is too long

# magic u16, version u8, kind u8, player u16, sequence u16, token u64. The sequence of
# an input is its number; that of an ack the ack's own number; that of a snapshot the
# number of the player's newest input in it.
HEADER: Final = Struct("<HBBHHQ")
# After the header: newest snapshot seen u32, duration in us u32, heading u8 (256 to the
# full turn), buttons u8.
INPUT_BODY: Final = Struct("<IIBB")
# After the header: newest input applied u16, inputs applied so far u32, x f32, y f32,
# score u32, health u8, how many players are seen u8; then the id of each as u16.
ACK_BODY: Final = Struct("<HIffIBB")
# After the header, the same bytes for every player: CRC-32 of what follows it u32, tick
# u32, time since the start in ms u32, records u16, unused u16; then the records.
SNAPSHOT_BODY: Final = Struct("<IIIHH")
# player u16, x f32, y f32, heading u8, health u8, score u32.
RECORD: Final = Struct("<HffBBI")

INPUT_BYTES: Final = HEADER.size + INPUT_BODY.size
ACK_BYTES_MIN: Final = HEADER.size + ACK_BODY.size
SNAPSHOT_BYTES_MIN: Final = HEADER.size + SNAPSHOT_BODY.size

_CRC_BYTES: Final = 4
_ACKS: Final = tuple(
    Struct(HEADER.format + ACK_BODY.format[1:] + f"{n}H") for n in range(SEEN_MAX + 1)
)

type Record = tuple[int, float, float, int, int, int]
"""player, x and y in tiles, heading, health, score."""


class DatagramError(ValueError):
    """A datagram is not what it should be.

    reason: "truncated", "foreign" (not of this game) or "malformed".
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def read_header(datagram: BytesLike, length: int, token: int) -> tuple[int, int, int]:
    """Return (kind, player, sequence) of the first `length` bytes.

    Raises DatagramError for what is too short to have a header or is not of this game.
    """
    if length < HEADER.size:
        raise DatagramError("truncated")
    magic, version, kind, player, sequence, stamp = HEADER.unpack_from(datagram)
    if magic != MAGIC or version != VERSION or stamp != token:
        raise DatagramError("foreign")
    return kind, player, sequence


# Inputs: player to server


def pack_input(
    target: bytearray,
    *,
    player: int,
    sequence: int,
    token: int,
    tick: int,
    duration_us: int,
    heading: int,
    buttons: int,
) -> None:
    """Write a whole input into `target`, which has INPUT_BYTES.

    tick: the newest snapshot that the player has seen, 0 for none.
    """
    HEADER.pack_into(target, 0, MAGIC, VERSION, KIND_INPUT, player, sequence, token)
    INPUT_BODY.pack_into(target, HEADER.size, tick, duration_us, heading, buttons)


def check_input(
    datagram: BytesLike, length: int, token: int, players: int
) -> tuple[int, int]:
    """Return (player, sequence) of an input that is complete and ours.

    Raises DatagramError for everything else.
    """
    kind, player, sequence = read_header(datagram, length, token)
    if kind != KIND_INPUT or player >= players or length > INPUT_BYTES:
        raise DatagramError("malformed")
    if length < INPUT_BYTES:
        raise DatagramError("truncated")
    return player, sequence


def read_input(datagram: BytesLike) -> tuple[int, int, int, int]:
    """Return (tick, duration_us, heading, buttons) of an input that was checked."""
    body: tuple[int, int, int, int] = INPUT_BODY.unpack_from(datagram, HEADER.size)
    return body


# Acks: server to player


def pack_ack(
    *,
    player: int,
    number: int,
    token: int,
    sequence: int,
    applied: int,
    place: tuple[float, float],
    score: int,
    health: int,
    seen: Sequence[int],
) -> bytes:
    """Return an ack.

    number: of this ack, mod 2**16; sequence: of the newest input applied; applied: how
    many were applied in all; place: x and y in tiles; seen: at most SEEN_MAX players.
    """
    return _ACKS[len(seen)].pack(
        *(MAGIC, VERSION, KIND_ACK, player, number, token),
        *(sequence, applied, *place, score, health, len(seen)),
        *seen,
    )


def read_ack(
    datagram: memoryview, length: int, players: int
) -> tuple[int, int, float, float]:
    """Return (sequence, applied, x, y) of an ack whose header was read.

    Raises DatagramError if the length or a player in it cannot be.
    """
    if length < ACK_BYTES_MIN:
        raise DatagramError("truncated")
    seen_n = datagram[ACK_BYTES_MIN - 1]
    if seen_n > SEEN_MAX or length != ACK_BYTES_MIN + 2 * seen_n:
        raise DatagramError("malformed")
    fields = _ACKS[seen_n].unpack_from(datagram)
    sequence, applied, x, y, _score, _health, _, *seen = fields[6:]
    if len(set(seen)) != seen_n or max(seen, default=0) >= players:
        raise DatagramError("malformed")
    return sequence, applied, x, y


# Snapshots: server to all


def encode_snapshot(
    pool: ftbus.BufferPool, tick: int, elapsed_ms: int, records: Sequence[Record]
) -> ftbus.Buffer:
    """Return the part of a snapshot that all players share, in one pooled Buffer."""
    buffer = pool.allocate(SNAPSHOT_BODY.size + RECORD.size * len(records))
    with memoryview(buffer) as view:
        SNAPSHOT_BODY.pack_into(view, 0, 0, tick, elapsed_ms, len(records), 0)
        offset = SNAPSHOT_BODY.size
        for record in records:
            RECORD.pack_into(view, offset, *record)
            offset += RECORD.size
        view[:_CRC_BYTES] = pack("<I", zlib.crc32(view[_CRC_BYTES:]))
    return buffer.freeze()


def pack_snapshot_header(player: int, sequence: int, token: int) -> bytes:
    """Return what precedes the shared part for one player."""
    return HEADER.pack(MAGIC, VERSION, KIND_SNAPSHOT, player, sequence, token)


def decode_snapshot(body: memoryview) -> tuple[int, int, list[Record]]:
    """Return (tick, elapsed_ms, records) of a snapshot's shared part.

    Raises DatagramError unless it is complete, its checksum is right and its players
    are in ascending order.
    """
    if len(body) < SNAPSHOT_BODY.size:
        raise DatagramError("truncated")
    checksum, tick, elapsed_ms, count, _ = SNAPSHOT_BODY.unpack_from(body)
    if len(body) != SNAPSHOT_BODY.size + RECORD.size * count:
        raise DatagramError("truncated")
    if zlib.crc32(body[_CRC_BYTES:]) != checksum:
        raise DatagramError("malformed")
    records: list[Record] = list(RECORD.iter_unpack(body[SNAPSHOT_BODY.size :]))
    if not is_ascending(record[0] for record in records):
        raise DatagramError("malformed")
    return tick, elapsed_ms, records


def is_ascending(numbers: Iterable[int]) -> bool:
    """Return whether each number is greater than the one before."""
    last = -1
    for number in numbers:
        if number <= last:
            return False
        last = number
    return True

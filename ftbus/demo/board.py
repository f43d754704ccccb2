"""What the players count, in memory that they share with the server.

One slot of 64-bit words for each player: counters, and a histogram of the time from
input to ack. Each word has one writer, so nothing is locked, nothing is sent, and what
a player counted is still there after it was killed. A reader sees some recent value,
and the last one once the player has ended.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from dataclasses import dataclass
from typing import Final, Self

# The first words are the server's, for all players.
PHASE, PORT, TOKEN, PLAYERS, WINDOW = range(5)
_HEAD_WORDS: Final = 8

# Phases of a match, in this order.
PLAYING, FINISHING, OVER = range(3)

# Words of a slot, written by its player alone (after its end, LIFE by the launcher).
(LIFE, SENT, ACKED, RESENT, REORDERED, UNDECODED, SNAPSHOTS, STALE) = range(8)
_LATENCIES: Final = 8

# What LIFE says.
UNBORN, ALIVE, DONE, DIED = range(4)

# Latency buckets: exact up to 64 us, then 32 to each power of two, 3 % apart; the last
# one holds everything above 8 s.
_EXACT: Final = 64
_STEPS: Final = 32
BUCKETS: Final = 19 * _STEPS
SLOT_WORDS: Final = _LATENCIES + BUCKETS


def bucket_of(latency_ns: int) -> int:
    """Return the histogram bucket of a latency."""
    us = latency_ns // 1000
    if us < _EXACT:
        return us
    shift = us.bit_length() - 6
    return min(shift * _STEPS + (us >> shift), BUCKETS - 1)


def bucket_us(bucket: int) -> float:
    """Return the middle of a bucket in microseconds."""
    if bucket < _EXACT:
        return bucket + 0.5
    shift, step = divmod(bucket - _STEPS, _STEPS)
    return (step + _STEPS + 0.5) * (1 << shift)


@dataclass(frozen=True, slots=True)
class Totals:
    """All slots together, at one moment."""

    alive: int
    """Players that are playing now."""
    done: int
    """Players that ended as they should."""
    sent: int
    """Inputs, resends not counted."""
    acked: int
    """Inputs acknowledged."""
    resent: int
    """Inputs sent again."""
    lost: int
    """Inputs never acknowledged, of the players that ended as they should."""
    reordered: int
    """Acks that went back, left out or repeated an input."""
    undecoded: int
    """Datagrams from the server that a player could not decode."""
    snapshots: int
    """Snapshots that a player decoded."""
    stale: int
    """Acks and snapshots that were overtaken on their way, as UDP allows."""
    latencies: tuple[int, ...]
    """Inputs in each bucket of latency."""


class Board:
    """The shared memory itself: made by the server, opened by the players."""

    def __init__(self, fd: int) -> None:
        """Map the memory behind a file descriptor, which stays the caller's."""
        self.fd = fd
        self._memory = mmap.mmap(fd, 0)
        self.words = memoryview(self._memory).cast("Q")

    @classmethod
    def create(cls, *, players: int, port: int, token: int, window: int) -> Self:
        """Make the memory for a match; close() gives it back."""
        fd = _anonymous_file()
        os.ftruncate(fd, 8 * (_HEAD_WORDS + players * SLOT_WORDS))
        board = cls(fd)
        board.words[PORT] = port
        board.words[TOKEN] = token
        board.words[PLAYERS] = players
        board.words[WINDOW] = window
        return board

    def slot(self, player: int) -> memoryview[int]:
        """Return the words of one player."""
        begin = _HEAD_WORDS + player * SLOT_WORDS
        return self.words[begin : begin + SLOT_WORDS]

    def totals(self) -> Totals:
        """Sum over all players."""
        slots = [self.slot(player) for player in range(self.words[PLAYERS])]
        lives = [slot[LIFE] for slot in slots]
        sums = [sum(slot[word] for slot in slots) for word in range(_LATENCIES)]
        latencies = [slot[_LATENCIES:].tolist() for slot in slots]
        return Totals(
            alive=lives.count(ALIVE),
            done=lives.count(DONE),
            sent=sums[SENT],
            acked=sums[ACKED],
            resent=sums[RESENT],
            lost=sum(slot[SENT] - slot[ACKED] for slot in slots if slot[LIFE] == DONE),
            reordered=sums[REORDERED],
            undecoded=sums[UNDECODED],
            snapshots=sums[SNAPSHOTS],
            stale=sums[STALE],
            latencies=tuple(map(sum, zip(*latencies, strict=True))),
        )

    def close(self) -> None:
        """Unmap the memory and close the descriptor. Slots must be gone."""
        self.words.release()
        self._memory.close()
        os.close(self.fd)


def _anonymous_file() -> int:
    """Return the descriptor of an empty file that has no name."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("ftbus-demo")
    with tempfile.TemporaryFile() as file:  # macOS
        return os.dup(file.fileno())


def count_latency(slot: memoryview[int], latency_ns: int) -> None:
    """Count one latency in a player's own slot."""
    slot[_LATENCIES + bucket_of(latency_ns)] += 1


def percentile_us(latencies: tuple[int, ...], share: float) -> float:
    """Return the latency that a share (0.0 to 1.0) of the inputs did not exceed.

    0.0 if there were none.
    """
    wanted = share * sum(latencies)
    passed = 0
    for bucket, count in enumerate(latencies):
        passed += count
        if count and passed >= wanted:
            return bucket_us(bucket)
    return 0.0

"""Exactly once and in order over UDP: sequence numbers, windows, the resend timer.

A player keeps up to a window of inputs in flight and sends them again when no ack
comes in time; the server applies number n only after n - 1, and acknowledges the newest
that it applied. A window belongs to one thread, or one partition, at a time.
"""

from __future__ import annotations

from collections import deque
from typing import Final

SEQUENCES: Final = 1 << 16  # numbers wrap around here, as in most game protocols

# What a ReceiveWindow says of an input.
NEXT: Final = "next"
DUPLICATE: Final = "duplicate"
AHEAD: Final = "ahead"

RESEND_NS_FIRST: Final = 250_000_000
RESEND_NS_MIN: Final = 100_000_000
RESEND_NS_MAX: Final = 1_000_000_000


def distance(newer: int, older: int) -> int:
    """Return how far one sequence number is ahead of another, negative if behind.

    Numbers wrap around, so the answer is right up to half of their range.
    """
    half = SEQUENCES // 2
    return (newer - older + half) % SEQUENCES - half


class ReceiveWindow:
    """The server's side for one player: which inputs have been applied."""

    __slots__ = ("applied", "last")

    def __init__(self) -> None:
        """Expect number 1 first."""
        self.last = 0
        """The newest number that was applied."""
        self.applied = 0
        """How many were applied; never wraps."""

    def accept(self, sequence: int) -> str:
        """Return NEXT, and count the input as applied, if it is the one that is due.

        DUPLICATE was applied before: its ack got lost or late. AHEAD of one that got
        lost cannot be applied yet: the player will send both again.
        """
        ahead = distance(sequence, self.last)
        if ahead == 1:
            self.last = sequence
            self.applied += 1
            return NEXT
        return DUPLICATE if ahead <= 0 else AHEAD


class SendWindow:
    """The player's side: what is in flight, since when, and when to send it again.

    limit: inputs in flight at most. Times are nanoseconds of one clock that never goes
    back. The timer follows the measured round trip as TCP's does (RFC 6298).
    """

    __slots__ = (
        "_first_sent_ns",
        "_resend_at_ns",
        "_resend_ns",
        "_resent_to",
        "_round_trip_ns",
        "_variation_ns",
        "acked",
        "limit",
        "sent",
    )

    def __init__(self, limit: int) -> None:
        """Begin with nothing sent."""
        self.limit = limit
        self.sent = 0
        """Inputs sent, resends not counted; the newest has this number, unwrapped."""
        self.acked = 0
        """Inputs acknowledged."""
        self._first_sent_ns: deque[int] = deque()
        self._resend_ns = RESEND_NS_FIRST
        self._resend_at_ns = 0
        self._round_trip_ns = 0
        self._variation_ns = 0
        self._resent_to = 0  # the newest input that was ever sent twice

    def has_room(self) -> bool:
        """Return whether another input may be sent."""
        return self.sent - self.acked < self.limit

    def send(self, now_ns: int) -> int:
        """Note that the next input is sent now; return its sequence number."""
        if self.sent == self.acked:
            self._resend_at_ns = now_ns + self._resend_ns
        self.sent += 1
        self._first_sent_ns.append(now_ns)
        return self.sent % SEQUENCES

    def acknowledge(self, sequence: int, now_ns: int) -> list[int]:
        """Take an ack of everything up to a number; return the latencies in ns.

        One for each input that is acknowledged by it, from when it was first sent;
        nothing for an old ack. Raises ValueError for an input that was never sent.
        """
        newly = distance(sequence, self.acked % SEQUENCES)
        if newly > self.sent - self.acked:
            raise ValueError("an input was acknowledged that was never sent")
        if newly <= 0:
            return []
        self.acked += newly
        latencies = [now_ns - self._first_sent_ns.popleft() for _ in range(newly)]
        if self.acked > self._resent_to:  # else: which copy was answered? (Karn)
            self._measure(latencies[-1])
        self._resend_at_ns = now_ns + self._resend_ns
        return latencies

    def overdue(self, now_ns: int) -> range:
        """Return the unwrapped numbers to send again now: none, or all in flight."""
        if self.sent == self.acked or now_ns < self._resend_at_ns:
            return range(0)
        self._resent_to = self.sent
        self._resend_ns = min(2 * self._resend_ns, RESEND_NS_MAX)
        self._resend_at_ns = now_ns + self._resend_ns
        return range(self.acked + 1, self.sent + 1)

    def _measure(self, round_trip_ns: int) -> None:
        if self._round_trip_ns == 0:
            self._round_trip_ns = round_trip_ns
            self._variation_ns = round_trip_ns // 2
        else:
            error = round_trip_ns - self._round_trip_ns
            self._round_trip_ns += error // 8
            self._variation_ns += (abs(error) - self._variation_ns) // 4
        wanted = self._round_trip_ns + 4 * self._variation_ns
        self._resend_ns = min(max(wanted, RESEND_NS_MIN), RESEND_NS_MAX)

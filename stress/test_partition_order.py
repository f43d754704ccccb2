"""Guarantee: per partition first in, first out, one at a time, and nothing lost.

Hunts for events that overtake each other when a strand moves between workers, for two
workers in one strand, and for events that a close loses between the counters.
FTB_SCALE=500 is ten million events.
Mutants: pool-forgets-partition.
"""

import random
import threading
from typing import Any

import pytest
from stressing import WAIT, assert_conserved, fresh_seed, scaled

from ftbus import BusClosedError, EventBus, QueueFullError
from ftbus.testing import run_threads

PRODUCERS = 4
PARTITIONS = 1000


class Ledger:
    """Checks every event as it arrives; one handler for all partitions.

    An event is one int: (number * PRODUCERS + producer) * PARTITIONS + partition.
    """

    def __init__(self, error_share: int) -> None:
        self.error_share = error_share
        # By partition and producer, written by the one handler at a time that the
        # partition allows; so no lock, on purpose.
        self.last = [-1] * (PARTITIONS * PRODUCERS)
        self.running = [0] * PARTITIONS
        self.seen = [0] * PARTITIONS
        self.failed = [0] * PARTITIONS
        self.faults: list[str] = []

    def handle(self, event: int) -> None:
        rest, partition = divmod(event, PARTITIONS)
        number, producer = divmod(rest, PRODUCERS)
        self.running[partition] += 1
        if self.running[partition] != 1:
            self.faults.append(f"two at once in partition {partition}")
        place = partition * PRODUCERS + producer
        if self.last[place] >= number:
            self.faults.append(f"{number} after {self.last[place]} at {place}")
        self.last[place] = number
        self.seen[partition] += 1
        self.running[partition] -= 1
        if self.error_share and (number * 2654435761 >> 7) % self.error_share == 0:
            self.failed[partition] += 1
            raise ValueError("on purpose")


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("drain", [True, False], ids=["drained", "dropped"])
@pytest.mark.parametrize("overflow", ["block", "raise", "drop_newest", "drop_oldest"])
def test_order_and_conservation_with_errors_and_a_close_in_the_middle(
    overflow: Any, drain: bool, seed: int
) -> None:
    random_ = random.Random(fresh_seed(seed))
    events = scaled(20_000) // PRODUCERS
    ledger = Ledger(error_share=random_.choice([0, 7, 1000]))
    errors: list[None] = []
    bus = EventBus(
        workers=random_.choice([2, 3, 4]),
        queue_size=random_.choice([1, 64, 4096]),
        overflow=overflow,
        latency=random_.choice(["low", "balanced", "cpu"]),
        on_error=lambda *_: errors.append(None),
    )
    bus.on("key", ledger.handle)
    close_after = int(events * random_.uniform(0.3, 0.9))
    may_close = threading.Event()
    outcomes: list[tuple[int, int, int]] = []
    left: list[int] = []

    def produce(producer: int) -> None:
        post, queued, dropped, refused = bus.topic("key").post, 0, 0, 0
        for number in range(events):
            # Steps of a prime: every producer visits the partitions in its own order.
            partition = (number * 7919 + producer * 13) % PARTITIONS
            event = (number * PRODUCERS + producer) * PARTITIONS + partition
            try:
                if post(event, partition=partition):
                    queued += 1
                else:
                    dropped += 1
            except (QueueFullError, BusClosedError):
                refused += 1
            if number == close_after:
                may_close.set()
        outcomes.append((queued, dropped, refused))

    def close() -> None:
        assert may_close.wait(WAIT * scaled(1))  # through a queue of one, it takes time
        left.append(bus.close(drain=drain, timeout=WAIT))

    closer = threading.Thread(target=close)
    closer.start()
    run_threads(PRODUCERS, produce)
    closer.join()

    stats = assert_conserved(bus)
    seen, failed = sum(ledger.seen), sum(ledger.failed)
    queued, dropped, refused = map(sum, zip(*outcomes, strict=True))
    assert ledger.faults == []
    assert stats.posted == PRODUCERS * events == queued + dropped + refused
    assert stats.rejected == refused
    assert stats.delivered == stats.handled == seen
    assert stats.failed == failed == len(errors)
    assert stats.dropped == dropped + (queued - seen)
    if overflow != "drop_oldest":  # there `left` and what made room are both dropped
        assert left == [queued - seen]
    if drain and overflow != "drop_oldest":
        assert left == [0]

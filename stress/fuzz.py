"""Fuzz what of ftbus reads bytes of others, each target for some seconds.

The servers of a bus, which answer, have tests/fuzz_servers.py.

    python stress/fuzz.py [--seconds 10] [--seed N] [TARGET ...]

What is found is written to build/fuzz; put it into stress/corpus when it is fixed.
"""

from __future__ import annotations

import argparse
import os
import random
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ftbus import Buffer, BufferPool, CodecError, EventBus, HandleError, _core, codecs
from ftbus.demo import netcode, protocol, transport
from ftbus.testing import eventually, fuzzing

CORPUS = Path(__file__).parent / "corpus"
TOKEN = 0x0123456789ABCDEF
PLAYERS = 8


class Target(NamedTuple):
    """What is fed, and what it may raise."""

    function: Callable[[bytes], object]
    refuses: tuple[type[Exception], ...]
    folder: str


def read_input(data: bytes) -> None:
    """An input, as the server reads it, into the window of its player."""
    player, sequence = protocol.check_input(data, len(data), TOKEN, PLAYERS)
    assert 0 <= player < PLAYERS
    protocol.read_input(data)
    window = netcode.ReceiveWindow()
    window.accept(1)
    assert window.accept(sequence) in (netcode.NEXT, netcode.DUPLICATE, netcode.AHEAD)


def read_ack(data: bytes) -> None:
    """An ack, as a player reads it, into the window of what it has sent."""
    kind, player, _ = protocol.read_header(data, len(data), TOKEN)
    if kind != protocol.KIND_ACK:
        raise protocol.DatagramError("malformed")
    sequence, applied, _, _ = protocol.read_ack(memoryview(data), len(data), PLAYERS)
    assert 0 <= sequence < netcode.SEQUENCES
    assert applied >= 0
    assert player >= 0
    window = netcode.SendWindow(8)
    for now_ns in range(8):
        window.send(now_ns)
    try:
        window.acknowledge(sequence, 100)
    except ValueError:
        assert sequence > 8
    assert 0 <= window.acked <= window.sent == 8


def read_snapshot(data: bytes) -> None:
    """A snapshot, as a player reads it."""
    kind, _, _ = protocol.read_header(data, len(data), TOKEN)
    if kind != protocol.KIND_SNAPSHOT:
        raise protocol.DatagramError("malformed")
    body = memoryview(data)[protocol.HEADER.size :]
    _, _, records = protocol.decode_snapshot(body)
    assert len(records) * protocol.RECORD.size < len(data)


def decode_json(data: bytes) -> None:
    """Bytes that a handler decodes."""
    with Buffer(data) as buffer:
        buffer.decode("json")


def decode_struct(data: bytes) -> None:
    """The same with a fixed layout."""
    codec = codecs.StructCodec("fuzz", "<Hdd", ("player", "x", "y"))
    with Buffer(data) as buffer:
        buffer.decode(codec)


def take_handle(data: bytes) -> None:
    """An integer that is no handle: it must never be followed."""
    _core.buffer_from_handle(int.from_bytes(data[:8], "little"))


TARGETS = {
    "input": Target(read_input, (protocol.DatagramError,), "datagrams"),
    "ack": Target(read_ack, (protocol.DatagramError,), "datagrams"),
    "snapshot": Target(read_snapshot, (protocol.DatagramError,), "datagrams"),
    "json": Target(decode_json, (CodecError, RecursionError), "json"),
    "struct": Target(decode_struct, (CodecError,), "json"),
    "handle": Target(take_handle, (HandleError,), "datagrams"),
}


def fuzz_receiver(
    seeds: list[bytes], rng: random.Random, datagrams: int
) -> Counter[str]:
    """Send datagrams to a real receiver; return what it made of them.

    Each is an input that is posted, or refused with its reason; none is lost in
    between, and all memory comes back.
    """
    pool = BufferPool(limit_bytes=8 << 20, name="fuzz")
    (source,), _ = transport.open_sockets(0, 1)
    outcomes: Counter[str] = Counter()
    with source, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        with EventBus(workers=1) as bus:

            def handle(datagram: Any) -> None:
                outcomes["posted"] += 1
                protocol.read_input(datagram.buffer)
                datagram.buffer.release()

            bus.on("input", handle)
            receiver = transport.Receiver(
                source, bus.topic("input"), pool, token=TOKEN, players=PLAYERS
            )
            receiver.start()
            try:
                for n in range(datagrams):
                    data = rng.choice(seeds)
                    if n >= len(seeds):
                        data = fuzzing.damaged(data, rng, seeds)
                    sender.sendto(data[:65000], source.getsockname())
                    if n % 64 == 63:  # no more than the socket's buffer holds
                        sent = n + 1
                        eventually(lambda sent=sent: receiver.received == sent, 30)
                eventually(lambda: receiver.received == datagrams, 30)
            finally:
                receiver.stop()
                receiver.join()
            assert bus.drain(30)
            assert bus.stats().failed == 0
        outcomes.update(receiver.refused)
    assert outcomes.total() == datagrams, outcomes
    assert not receiver.is_alive()
    assert pool.live == 0, f"{pool.live} buffers are left"
    return outcomes


def main() -> int:
    """Fuzz the targets that the arguments name; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(TARGETS)}, receiver")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each")
    default = int(os.environ.get("FTB_SEED", random.SystemRandom().getrandbits(32)))
    parser.add_argument("--seed", type=int, default=default)
    options = parser.parse_args()
    print(f"--seed {options.seed}", flush=True)
    wanted = options.targets or [*TARGETS, "receiver"]
    for name in wanted:
        rng = random.Random(f"{options.seed} {name}")
        if name == "receiver":
            seeds = fuzzing.corpus(CORPUS / "datagrams")
            outcomes = fuzz_receiver(seeds, rng, int(options.seconds * 1000))
            print(f"{name:9} {outcomes.total():8} datagrams: {dict(outcomes)}")
            continue
        target = TARGETS[name]
        outcome = fuzzing.fuzz(
            target.function,
            fuzzing.corpus(CORPUS / target.folder),
            rng,
            refuses=target.refuses,
            seconds=options.seconds,
            keep=Path("build/fuzz") / name,
        )
        print(f"{name:9} {outcome.inputs:8} inputs, {outcome.refused} refused")
    assert threading.active_count() == 1, threading.enumerate()
    return 0


if __name__ == "__main__":
    sys.exit(main())

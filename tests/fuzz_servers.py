"""Send mutated requests to the servers of a bus; what they answer must be sound.

tests/test_fuzz_servers.py runs it for some hundred rounds; for longer::

    python tests/fuzz_servers.py --seconds 600 --seed 7
"""

import argparse
import contextlib
import errno
import json
import random
import re
import resource
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from ftbus import EventBus
from ftbus.monitoring.server import Server

CORPUS = Path(__file__).parent / "corpus"
LIMIT_S = 60
TOKEN = "the-token-of-the-fuzzers"
_SIZE_MAX = 1 << 17
_WORDS = [
    *(b"\r\n", b"\n", b"\0", b"\xff", b" ", b":", b"%00", b"..", b"/api/stats"),
    *(b"HTTP/1.1", b"HTTP/0.9", b"HTTP/99999999999.9", b"Host: localhost\r\n"),
    *(b"Content-Length: -1\r\n", b"Content-Length: 99999999999\r\n", b"GET ", b"HEAD "),
    *(b"Authorization: Bearer ", b'"version": 1', b'"request": "stats"', b'"token": '),
    *(b"{", b"}", b"[", b"]", b'"', b"\\u0000", b"\\ud800", b"1e999", b"-0", b"NaN"),
    b"9" * 5000,
]


class Mutator:
    """Makes requests out of those of a corpus, the same ones for the same seed."""

    def __init__(self, name: str, seed: int) -> None:
        self.chance = random.Random(f"{name} {seed}")
        self.corpus = [p.read_bytes() for p in sorted((CORPUS / name).iterdir())]
        assert len(self.corpus) > 5

    def next(self) -> bytes:
        chance = self.chance
        data = bytearray(chance.choice(self.corpus).replace(b"TOKEN", TOKEN.encode()))
        for _ in range(chance.choice((0, 1, 1, 2, 4, 16))):
            at = chance.randrange(len(data) + 1)
            to = min(len(data), at + chance.choice((1, 2, 8, 64)))
            match chance.randrange(7):
                case 0:
                    data[at:at] = chance.randbytes(chance.choice((1, 4, 32)))
                case 1:
                    del data[at:to]
                case 2:
                    data[at:at] = chance.choice(_WORDS)
                case 3:
                    data[at:to] = chance.choice(_WORDS)
                case 4:
                    data[at:at] = data[at:to] * chance.choice((2, 30, 2000))
                case 5:
                    data[at:at] = chance.choice(self.corpus)
                case 6 if at < len(data):
                    data[at] ^= 1 << chance.randrange(8)
        return bytes(data[:_SIZE_MAX])

    def pieces(self, data: bytes) -> list[bytes]:
        """Cut a request as a network might."""
        cuts = sorted(self.chance.randrange(len(data) + 1) for _ in range(2))
        return [data[: cuts[0]], data[cuts[0] : cuts[1]], data[cuts[1] :]]


def exchange(address: object, pieces: list[bytes], *, ends: bool) -> bytes:
    """Send pieces; return all that comes back until the server closes."""
    family = socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX
    answer = bytearray()
    with socket.socket(family) as client:
        client.settimeout(LIMIT_S)
        client.connect(address)
        try:
            for piece in pieces:
                client.sendall(piece)
            if ends:
                client.shutdown(socket.SHUT_WR)
        except OSError as error:
            # A reset is an answer to a request that is too long.
            if error.errno not in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN):
                raise
        if not ends:
            return b""  # a client that goes away in the middle
        with contextlib.suppress(ConnectionError):
            while chunk := client.recv(1 << 16):
                answer += chunk
    return bytes(answer)


def check_stats_answer(request: bytes, answer: bytes) -> None:
    """Check that every line is a reply, and statistics only for who asked well."""
    for line in answer.splitlines():
        reply = json.loads(line)
        assert reply["version"] == 1
        if "error" not in reply:
            assert reply["stats"]["name"] == "fuzzed"
            assert b"stats" in request or b"\\u" in request
            assert b"version" in request or b"\\u" in request


def check_dashboard_answer(request: bytes, answer: bytes) -> None:
    """Check that it is HTTP, with a policy, and data only for who knows the token."""
    if not answer:
        # A line without a word, or no line at all, is no request.
        line, end, _ = request.partition(b"\n")
        assert not line.decode("latin-1").split() or not end
        return
    answer = re.sub(rb"^HTTP/1.1 100 Continue\r\n\r\n", b"", answer)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert re.match(rb"HTTP/1\.[01] [2-5]\d\d ", head), head[:100]
    assert b"Content-Security-Policy: default-src 'none'" in head
    if body and b" 200 " in head.split(b"\r\n")[0]:
        length = re.search(rb"Content-Length: (\d+)", head)
        assert length is not None
        assert len(body) == int(length[1])
    if body.startswith(b"{"):
        assert TOKEN.encode() in request


type Check = Callable[[bytes, bytes], None]


def fuzz(
    server: Server, address: object, name: str, check: Check, seed: int, rounds: int
) -> None:
    """Send so many requests from two threads; raise at the first that is not right."""
    failed: list[BaseException] = []

    def run(number: int) -> None:
        mutator = Mutator(name, seed * 1000 + number)
        for _ in range(rounds // 2):
            if failed:
                return
            data = mutator.next()
            ends = mutator.chance.random() < 0.9
            try:
                answer = exchange(address, mutator.pieces(data), ends=ends)
                if ends:
                    check(data, answer)
                assert not server.closed
            except BaseException as error:
                error.add_note(f"seed {seed}, request {data[:2000]!r}")
                failed.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def run_all(seed: int, rounds: int, folder: Path) -> None:
    """Fuzz the stats server over both kinds of socket, and the dashboard."""
    with EventBus(workers=1, name="fuzzed") as bus:
        bus.on("key", lambda event: None)
        with bus.serve_stats(folder / "fuzzed.sock") as unix:
            fuzz(
                unix,
                str(unix.address),
                "stats_server",
                check_stats_answer,
                seed,
                rounds,
            )
        with bus.serve_stats(0) as tcp:
            fuzz(tcp, tcp.address, "stats_server", _no_stats, seed, rounds)
        with bus.serve_dashboard(token=TOKEN) as page:
            address = "127.0.0.1", page.port
            fuzz(page, address, "dashboard", check_dashboard_answer, seed, rounds)
        bus.emit("key")
        assert bus.stats().emitted == 1


def _no_stats(request: bytes, answer: bytes) -> None:
    """Check that nobody gets anything without the token."""
    check_stats_answer(request, answer)
    assert b'"stats":{' not in answer


def peak_bytes() -> int:
    """Return the most memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Fuzz for some seconds, with a new seed for each few hundred rounds."""
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    options = parser.parse_args()
    end_s = time.monotonic() + options.seconds
    seed = options.seed
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < end_s:
            run_all(seed, 300, Path(folder))
            seed += 1
    n = (seed - options.seed) * 900
    print(
        f"{n} requests, seeds {options.seed} to {seed - 1}: all answered as they should"
    )
    print(
        f"peak memory {peak_bytes() >> 20} MiB, {threading.active_count()} threads left"
    )


if __name__ == "__main__":
    main()

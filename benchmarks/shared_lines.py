"""Count the cache lines that two threads both write: what an emit's scaling hangs on.

python benchmarks/shared_lines.py [--json FILE]

Valgrind's lackey prints every store of a Python process. In it two threads do the same
operation, one after the other, each warmed up; a line that both wrote is shared. Every
store counts, whatever the value: a reference count that goes up and down again shows.
Takes some minutes, most of them for starting Python under Valgrind.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

LINE_BYTES = 64
OPERATIONS = 20  # per phase
CHUNK_BYTES = 1 << 22
CASES = {
    "nothing": "pass",
    "topic.emit bound per thread": "emit(event)",
    "bus.emit shared, pinned": "bus.emit('key', event)",
    "StripedMap pinned: m[k]": "table['key']",
    "pool.allocate, 1 KiB": "allocate(1024)",
    "hand loop": "for handle in handlers['key']: handle(event)",
}

# Each thread warms every case up, then waits for its turns. A store to `marker` says in
# the trace what comes next: an odd number begins a phase, an even one ends it.
PROGRAM = """
import ctypes, sys, threading
import ftbus
marker = ctypes.c_uint64(0)
with open(sys.argv[1], "w") as file:
    file.write(str(ctypes.addressof(marker)))
def handler(event):
    pass
bus = ftbus.EventBus().pin()
bus.subscribe("key", handler)
topic = bus.topic("key")
table = ftbus.StripedMap({"key": 7}).pin()
handlers = {"key": (handler,)}
turns = [threading.Semaphore(0) for _ in range(2)]
done = threading.Semaphore(0)
def work(thread):
    emit, event, allocate = topic.emit, object(), ftbus.default_pool.allocate
    loops = [make(emit, event, allocate) for make in makers]
    for loop in loops:
        loop(50)
    done.release()
    for i, loop in enumerate(loops):
        turns[thread].acquire()
        loop(50)
        marker.value = 4 * i + 2 * thread + 1
        loop(OPERATIONS)
        marker.value = 4 * i + 2 * thread + 2
        done.release()
makers = []
"""
MAKER = """
def make(emit, event, allocate, bus=bus, table=table, handlers=handlers):
    def loop(n):
        for _ in range(n):
            {body}
    return loop
makers.append(make)
"""
RUN = """
threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    done.acquire()
for _ in makers:
    for turn in turns:
        turn.release()
        done.acquire()
for thread in threads:
    thread.join()
"""


def program() -> str:
    makers = [MAKER.format(body=body) for body in CASES.values()]
    return "".join([PROGRAM.replace("OPERATIONS", str(OPERATIONS)), *makers, RUN])


def lines_of(trace: IO[bytes], address_file: Path) -> Iterator[tuple[int, set[int]]]:
    """Yield each phase's number and the lines it wrote, but for the marker's own."""
    address = 0
    lines: set[int] = set()
    is_on = False
    n_marks = 0
    rest = b""
    while chunk := trace.read(CHUNK_BYTES):
        if not address and (text := address_file.read_bytes()):
            address = int(text)
        data = rest + chunk
        if not address or not (is_on or b"%08x," % address in data):
            rest = data[data.rfind(b"\n") + 1 :]
            continue
        *whole, rest = data.split(b"\n")
        for line in whole:
            if line[:2] not in (b" S", b" M"):
                continue
            where, _, size = line[3:].partition(b",")
            start = int(where, 16)
            if start == address:
                is_on = not is_on
                n_marks += 1
                if not is_on:
                    yield n_marks - 1, lines
                lines = set()
            elif is_on:
                end = start + int(size) - 1
                lines.update(range(start // LINE_BYTES, end // LINE_BYTES + 1))
    if is_on:  # so the first mark was none, and what was yielded lay between phases
        raise SystemExit("a phase in the trace has no end")


def count() -> dict[str, int]:
    """Return how many shared lines each case writes; needs Valgrind."""
    if not shutil.which("valgrind"):
        raise SystemExit("this needs valgrind")
    with tempfile.TemporaryDirectory() as folder:
        address_file = Path(folder, "address")
        address_file.touch()
        pipe = Path(folder, "trace")
        os.mkfifo(pipe)
        command = ["valgrind", "--tool=lackey", "--trace-mem=yes", f"--log-file={pipe}"]
        command += [sys.executable, "-S", "-c", program(), str(address_file)]
        path = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        with subprocess.Popen(command, env={**os.environ, **path}) as process:
            with open(pipe, "rb") as trace:
                phases = [lines for _, lines in lines_of(trace, address_file)]
            if process.wait() != 0 or len(phases) != 2 * len(CASES):
                raise SystemExit(f"{len(phases)} of {2 * len(CASES)} phases traced")
    pairs = zip(phases[::2], phases[1::2], strict=True)
    return {name: len(a & b) for name, (a, b) in zip(CASES, pairs, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--json", metavar="FILE", help="write the counts to this file")
    options = parser.parse_args()
    found = count()
    for name, n in found.items():
        print(f"{n:4} shared lines written by {OPERATIONS} x {name}")
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

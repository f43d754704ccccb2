"""Count the cache lines that two threads both write: what an emit's scaling hangs on.

    make shared-lines, which is python benchmarks/shared_lines.py [--json FILE]

The extension is compiled once more, so that each of its stores is a call (gcc's
-fsanitize=thread), and stores.c records them. Two threads, warmed up, do the same
operation in turns; a line that both wrote is shared. A store counts whatever it
writes, so a reference count that goes up and down shows. What the interpreter itself
writes, to run the loop and the handler, is not seen.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import queue
import shlex
import subprocess
import sys
import sysconfig
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
SOURCE = Path(__file__).with_name("stores.c")
BUILD = ROOT / "build" / "stores"
OPERATIONS = 300
WARM_UP = 2000
NONE_SHARED = (
    "topic.emit bound per thread",
    "topic.emit bound per thread, 4 handlers",
    "topic.emit bound per thread, encoded",
    "topic.emit shared, pinned",
    "bus.emit shared, pinned",
    "StripedMap pinned: m[k]",
    "pool.allocate and release",
)
SHARED = ("post, the worker is busy", "post, the worker is woken")


type Burst = Callable[[int], object]


class Store(NamedTuple):
    """A line that was written, and the code that did it."""

    line: int
    code: int


class Found(NamedTuple):
    """What two threads did in OPERATIONS operations each."""

    lines: float
    """Lines that an operation wrote and the other thread wrote too, in some operation
    of its own."""
    stores: float
    """Stores of an operation, to any line."""
    code: list[str]
    """Where the stores to shared lines are, the most frequent first."""


class Recorder:
    """Records the stores of the thread that asks for it."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        self._library.stores_end.restype = ctypes.c_size_t
        self._library.stores_max.restype = ctypes.c_size_t

    def record(self, burst: Burst) -> list[Store]:
        """Run burst(1) in this thread and return what it stored."""
        size = self._library.stores_max()
        memory = (ctypes.c_size_t * (2 * size))()
        begin, end = self._library.stores_begin, self._library.stores_end
        begin(memory)
        burst(1)
        stored = end()
        if stored > size:
            raise RuntimeError(f"{stored} stores in one operation: more than {size}")
        return [Store(*memory[i : i + 2]) for i in range(0, 2 * stored, 2)]


def build() -> Path:
    """Compile the extension and the recorder; return the folder of both."""
    library = BUILD / "lib"
    environment = {**os.environ, "FTBUS_SAN": "stores", "FTBUS_WERROR": "0"}
    command = [sys.executable, "setup.py", "--quiet", "build"]
    command += ["--build-base", str(BUILD), "--build-lib", str(library)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")
    flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    target = library / "stores.so"
    subprocess.run([*compiler, *flags, str(SOURCE), "-o", str(target)], check=True)
    return library


def operations(busy: threading.Event) -> dict[str, Callable[[], Burst]]:
    """Return for each case what makes a thread's burst.

    busy: set it to let a worker go that must not look for work until then.
    """
    import ftbus

    bus = ftbus.EventBus(workers=1, queue_size=8 * (OPERATIONS + WARM_UP)).pin()
    topics = {n: bus.topic(f"{n} handlers") for n in (1, 4)}
    for n, topic in topics.items():
        for _ in range(n):
            topic.subscribe(lambda event: None)
    working = ftbus.EventBus(workers=1, queue_size=8 * (OPERATIONS + WARM_UP)).pin()
    begun = threading.Event()

    def work(event: object) -> None:
        begun.set()
        busy.wait()

    working.subscribe("work", work)
    working.post("work")
    begun.wait()
    encoded = bus.topic("encoded")
    encoded.subscribe(lambda data: None, encoded=True)
    table = ftbus.StripedMap({"key": 7}).pin()

    def emits(bind: Callable[[], Callable[[Any], object]]) -> Any:
        def make() -> Burst:
            emit, event = bind(), {"n": 1}

            def burst(n: int) -> None:
                for _ in range(n):
                    emit(event)

            return burst

        return make

    def reads() -> Burst:
        def burst(n: int) -> None:
            for _ in range(n):
                table["key"]

        return burst

    def allocates() -> Burst:
        def burst(n: int) -> None:
            for _ in range(n):
                ftbus.default_pool.allocate(1024)

        return burst

    shared = topics[1]
    made = (
        emits(lambda: bus.topic("1 handlers").emit),
        emits(lambda: bus.topic("4 handlers").emit),
        emits(lambda: bus.topic("encoded").emit),
        emits(lambda: shared.emit),
        emits(lambda: lambda event: bus.emit("1 handlers", event)),
        reads,
        allocates,
    )
    cases = dict(zip(NONE_SHARED, made, strict=True))
    cases[SHARED[0]] = emits(lambda: lambda event: working.post("nobody", event))
    cases[SHARED[1]] = emits(lambda: lambda event: bus.post("1 handlers", event))
    return cases


class Pair:
    """Two threads that run what they are given, one at a time."""

    def __init__(self) -> None:
        self._inboxes = [queue.SimpleQueue[Callable[[], Any] | None]() for _ in "ab"]
        self._results = queue.SimpleQueue[Any]()
        self._threads = [
            threading.Thread(target=self._serve, args=(inbox,))
            for inbox in self._inboxes
        ]
        for thread in self._threads:
            thread.start()

    def _serve(self, inbox: queue.SimpleQueue[Callable[[], Any] | None]) -> None:
        while (job := inbox.get()) is not None:
            try:
                self._results.put(job())
            except BaseException as error:
                self._results.put(error)

    def run(self, thread: int, job: Callable[[], Any]) -> Any:
        """Run a job in thread 0 or 1; return what it returns, or raise that."""
        self._inboxes[thread].put(job)
        result = self._results.get()
        if isinstance(result, BaseException):
            raise result
        return result

    def close(self) -> None:
        for inbox in self._inboxes:
            inbox.put(None)
        for thread in self._threads:
            thread.join()


def count(recorder: Recorder, make: Callable[[], Burst]) -> Found:
    """Return what two threads both write that do the same in turns."""

    def warmed_up() -> Burst:
        burst = make()
        burst(WARM_UP)
        recorder.record(burst)
        return burst

    with closing(Pair()) as pair:
        records = [partial(recorder.record, pair.run(i, warmed_up)) for i in (0, 1)]
        done: list[list[list[Store]]] = [[], []]
        for _ in range(OPERATIONS):
            for i in (0, 1):
                done[i].append(pair.run(i, records[i]))
    written = [{store.line for store in chain(*each)} for each in done]
    both = written[0] & written[1]
    codes = Counter(store.code for store in chain(*done[0]) if store.line in both)
    lines = [len({store.line for store in each} & both) for each in done[0]]
    return Found(
        sum(lines) / OPERATIONS,
        sum(map(len, done[0])) / OPERATIONS,
        [where(code) for code, _ in codes.most_common(8)],
    )


def where(code: int) -> str:
    """Return function, file and line of an address of code, if they can be told."""
    for row in Path("/proc/self/maps").read_text().splitlines():
        span, _, offset, *_, path = row.split(maxsplit=5)
        low, high = (int(end, 16) for end in span.split("-"))
        if low <= code < high:
            at = hex(code - 1 - low + int(offset, 16))
            command = ["addr2line", "-i", "-f", "-s", "-e", path, at]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            words = done.stdout.split()  # function and place, the innermost first
            pairs = zip(words[::2], words[1::2], strict=True)
            return " < ".join(" ".join(pair) for pair in pairs) or f"{path} {at}"
    return hex(code)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--json", metavar="FILE", help="write the counts to this file")
    options = parser.parse_args()
    library = build()
    sys.path.insert(0, str(library))
    recorder = Recorder(library / "stores.so")
    busy = threading.Event()
    cases = operations(busy)
    try:
        found = {name: count(recorder, make) for name, make in cases.items()}
    finally:
        busy.set()
    print(f"{'per operation':42}{'shared lines':>14}{'stores':>10}")
    for name, one in found.items():
        print(f"{name:42}{one.lines:14.2f}{one.stores:10.1f}")
        for line in one.code:
            print(f"{'':6}{line}")
    if options.json:
        figures = {name: one._asdict() for name, one in found.items()}
        Path(options.json).write_text(json.dumps(figures, indent=1))
    bad = [name for name in NONE_SHARED if found[name].lines]
    bad += [f"{name} must share lines" for name in SHARED if not found[name].lines]
    for name in bad:
        print(f"FAILED: {name}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

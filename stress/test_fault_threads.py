"""Faults: threads that come and go, that are shot at, and that hardly ever run.

Hunts for records of threads that pile up, for a lock, a section or a count that an
asynchronous exception leaves behind, and for a wait that spins away the only processor.
Mutants: topic-frees-at-once.
"""

import gc
import os
import re
import threading
from typing import Any

import pytest
from builds import IS_INSTRUMENTED
from stressing import WAIT, assert_conserved, counts, scaled

from ftbus import EventBus

SHORT_THREADS = 10_000


@pytest.mark.thread_unsafe(reason="reads the memory of the process")
@pytest.mark.timeout(600)
def test_ten_thousand_short_threads_leave_nothing() -> None:
    psutil = pytest.importorskip("psutil")
    process = psutil.Process()
    with EventBus(workers=2) as bus:
        # A bound method: CPython 3.13t keeps a module's functions forever.
        seen: list[None] = []
        lock = threading.Lock()

        def handle(event: object) -> None:
            with lock:
                seen.append(None)

        bus.on("key", handle)

        def work(n: int) -> None:
            bus.emit("key", n)
            if n % 10 == 0:
                bus.post("key", n)

        def churn(threads_n: int) -> int:
            for n in range(0, threads_n, 10):
                threads = [
                    threading.Thread(target=work, args=(n + i,)) for i in range(10)
                ]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            assert bus.drain(WAIT)
            gc.collect()
            return int(process.memory_info().rss)

        total = scaled(SHORT_THREADS) // 10 * 10
        before = churn(max(1000, total // 5) // 10 * 10)
        warm_n = len(seen)
        after = churn(total)
        assert len(seen) - warm_n == total + total // 10
        assert IS_INSTRUMENTED or after - before < 4 << 20
        stats = assert_conserved(bus)
        assert stats.handled == len(seen)


SHOTS = """
import ctypes, random, sys, threading, ftbus
choices = random.Random($seed)
throw = ctypes.pythonapi.PyThreadState_SetAsyncExc
class Shot(Exception): pass
bus = ftbus.EventBus(workers=2, queue_size=64, on_error=lambda e, k, h: None)
shared = ftbus.StripedMap()
def handler(event):
    for _ in range(5):
        event  # a few places to be hit at
for _ in range(3):
    bus.on("key", lambda event: handler(event))
bus.on("encoded", handler, encoded=True)
stop = False
def work(index):
    n = 0
    while not stop:
        n += 1
        bus.emit("key", 1)
        bus.emit("encoded", n)
        bus.post("key", 1, partition=index)
        bus.post_many("key", range(3))
        with bus.subscribe(f"other{n % 9}", print):
            pass
        bus.call("key")
        bus.once("key", lambda event: None)
        shared[n % 50] = n
        shared.pop(n * 7 % 50, None)
        shared.update_with("n", lambda n: n + 1, 0)
        bus.drain(0)
        bus.stats()
def start(index):
    thread = threading.Thread(target=work, args=(index,))
    thread.start()
    return thread
def is_shot(error):
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(Shot) is not None
    while error is not None:
        if isinstance(error, Shot):
            return True
        error = error.__cause__ or error.__context__
    return False
told = []
threading.excepthook = sys.unraisablehook = told.append  # C: no shot hits it
bus.post("key", 0)  # CPython's Thread.start() loses a thread if it is hit
threads = [start(index) for index in range(3)]
pause = threading.Event()
hits = 0
for shot in range($shots):
    index = choices.randrange(3)
    hits += throw(ctypes.c_ulong(threads[index].ident), ctypes.py_object(Shot))
    pause.wait(choices.random() * 0.004)
    if not threads[index].is_alive():
        threads[index] = start(index)
stop = True
for thread in threads:
    thread.join()
others = [args.exc_value for args in told if not is_shot(args.exc_value)]
assert others == [], others
told.clear()
assert hits > $shots * 0.6, hits
assert bus.drain(60)
stats = bus.stats()
assert stats.posted == stats.delivered + stats.dropped + stats.rejected, stats
assert all(thread.is_alive() for thread in bus._threads)
assert shared._is_valid()
bus.off("key")
bus.off("encoded")
seen = []
bus.on("key", seen.append)
bus.post("key", 1)
assert bus.emit("key", 2) == 1 and bus.drain(60) and sorted(seen) == [1, 2]
assert bus.call("key", 3).result(60) == [None]
assert bus.close() == 0
threads.clear()
from ftbus.testing import eventually
import gc
def is_all_let_go():
    gc.collect()
    ftbus._core.reclaim()
    return ftbus.default_pool.live == ftbus._core.live_handlers() == 0
eventually(is_all_let_go, 30)
print(hits)
"""


@pytest.mark.timeout(600)
@pytest.mark.thread_unsafe(reason="starts a process")
def test_a_thousand_asynchronous_exceptions(python: Any, seed: int) -> None:
    program = SHOTS.replace("$seed", str(seed)).replace("$shots", str(scaled(1000)))
    done = python(program, "-W", "ignore", within=300)
    # A shot may hit CPython's own excepthook of a thread that a shot has just ended.
    own = r"Exception in threading\.excepthook:\nTraceback.*?\nShot\n"
    said = re.sub(own, "", done.stderr, flags=re.DOTALL)
    assert (done.returncode, said) == (0, "")
    print(f"{done.stdout.strip()} hits")
    counts.add(faults=int(done.stdout))


STARVED = """
import os, threading, ftbus
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
os.nice(19)
with ftbus.EventBus(workers=4, queue_size=16, latency="$latency") as bus:
    lock, seen = threading.Lock(), [0]
    def handle(event):
        with lock:
            seen[0] += 1
    for key in range(4):
        bus.on(key, handle)
    meeting = threading.Barrier(64)
    def work(index):
        meeting.wait()
        for n in range($events):
            bus.emit(n % 4, n)
            bus.post(n % 4, n, partition=index % 8 if n % 2 else None)
            with bus.subscribe(n % 4, lambda event: None):
                pass
    threads = [threading.Thread(target=work, args=(index,)) for index in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bus.drain(300)
    assert seen[0] == 64 * 2 * $events, seen
    stats = bus.stats()
    assert stats.posted == stats.delivered == 64 * $events, stats
"""


@pytest.mark.timeout(600)
@pytest.mark.thread_unsafe(reason="starts a process")
@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="this system cannot bind a process"
)
@pytest.mark.parametrize("latency", ["low", "cpu"])
def test_progress_of_64_threads_on_one_busy_processor(
    python: Any, latency: str
) -> None:
    program = STARVED.replace("$events", str(scaled(300))).replace("$latency", latency)
    done = python(program, within=300)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")
    counts.add(events=64 * 2 * scaled(300), threads=64)

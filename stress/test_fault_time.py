"""Faults: the system's clock jumps by a year, back by a day, again and again.

Hunts for a timeout, a timer or a latency that is taken from the wall clock. A small
library in front of the C library's pretends the jumps, of CLOCK_REALTIME alone; the
monotonic clock goes on.
Mutants: none, as no clock is read in the C core but the monotonic one, which
tests/test_clint.py sees to.
"""

import subprocess
from pathlib import Path
from typing import Any

import pytest
from builds import IS_INSTRUMENTED
from stressing import counts

pytestmark = pytest.mark.thread_unsafe(reason="starts a process")

# What reads or waits by the wall clock gets a time that is `jump` seconds off.
SHIM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>

static volatile long jump;

void
jump_by(long seconds)
{
    jump += seconds;
}

int
clock_gettime(clockid_t clock, struct timespec *now)
{
    static int (*real)(clockid_t, struct timespec *);
    if (real == NULL) {
        real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    }
    int result = real(clock, now);
    if (clock == CLOCK_REALTIME) {
        now->tv_sec += jump;
    }
    return result;
}

time_t
time(time_t *where)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (where != NULL) {
        *where = now.tv_sec;
    }
    return now.tv_sec;
}

int
gettimeofday(struct timeval *now, void *zone)
{
    struct timespec exact;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}
"""

PROGRAM = """
import ctypes, threading, time, ftbus
jump_by = ctypes.CDLL(None).jump_by
jump_by.argtypes = [ctypes.c_long]
before = time.time()
jump_by(1000)
assert 999 < time.time() - before < 2000, "the shim is not there"

YEAR, DAY = 365 * 86400, 86400
stop = threading.Event()
def jumping():
    global jumps_n
    jumps = [YEAR, -DAY, -YEAR, DAY]
    while not stop.is_set():
        jump_by(jumps[jumps_n % 4])
        jumps_n += 1
        stop.wait(0.005)
jumps_n = 0
thread = threading.Thread(target=jumping)
thread.start()

def took(function):
    start = time.monotonic()
    function()
    return time.monotonic() - start

gate, entered = threading.Event(), threading.Event()
bus = ftbus.EventBus(workers=1, queue_size=1)
def held(event):
    entered.set()
    gate.wait()
bus.on("held", held)
bus.post("held")
entered.wait()
bus.post("held")
def full():
    try:
        bus.post("held", timeout=0.2)
    except ftbus.QueueFullError:
        return
    raise AssertionError("not full")
def late():
    try:
        bus.call("held", timeout=0.2)
    except ftbus.QueueFullError:
        return
    raise AssertionError("not full")
for wait in (lambda: bus.drain(0.2), full, late):
    assert 0.19 <= took(wait) < 60, wait  # not a day, and not at once
stuck = ftbus.EventBus(workers=1)
stuck.on("held", held)
entered.clear()
stuck.post("held")
entered.wait()
assert 0.19 <= took(lambda: stuck.close(timeout=0.2)) < 60
gate.set()
assert bus.drain(60)

ticks = []
ticking = ftbus.EventBus(workers=1)  # with room for the ticks of a slow moment
ticking.on("tick", lambda event: ticks.append(time.monotonic()))
start = time.monotonic()
timer = ticking.every(0.02, "tick")
later = ticking.post_later(0.2, "tick")
while len(ticks) < 20:
    stop.wait(0.01)
timer.cancel()
assert ticking.close(timeout=60) == 0
assert time.monotonic() - start < 60
# None came early: n intervals take n intervals.
assert ticks[-1] - start >= 0.02 * (len(ticks) - 2), ticks
batches = []
bus.subscribe("batch", batches.append, batch=(100, 0.1))
bus.emit("batch", 1)
while not batches:
    stop.wait(0.01)
assert bus.drain(60)
for worker in bus.stats().workers:
    assert 0 <= worker.busy_ns < 600e9, worker
assert bus.close(timeout=60) == 0
stop.set()
thread.join()
print(jumps_n)
"""


@pytest.mark.skipif(
    IS_INSTRUMENTED,
    reason="the sanitizers come first and read the clocks themselves",
)
def test_nothing_waits_by_the_wall_clock(python: Any, tmp_path: Path) -> None:
    source, library = tmp_path / "jump.c", tmp_path / "jump.so"
    source.write_text(SHIM)
    command = ["gcc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source)]
    subprocess.run([*command, "-ldl"], check=True)
    done = python(PROGRAM, LD_PRELOAD=str(library), within=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 100
    counts.add(faults=int(done.stdout))

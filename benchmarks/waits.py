"""How often threads find a lock taken, and how often they sleep for it.

A wrapper around a lock would hold it longer than the lock itself does, and there is
none for the locks of lists and dicts. So the C library's functions that a thread calls
when a lock is taken are counted (waits.c, compiled when needed), in a process of its
own, which is started with them in front of the real ones. Linux only.
"""

from __future__ import annotations

import ctypes
import gc
import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from harness import Burst, Crew

SOURCE = Path(__file__).with_name("waits.c")


class Waits(NamedTuple):
    """What threads did that found a lock taken."""

    found_taken: float
    sleeps: float


def run_counted(arguments: Sequence[str]) -> str:
    """Run this Python with counting functions preloaded; return what it prints.

    Raises CalledProcessError.
    """
    compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "waits.so")
        flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
        subprocess.run(
            [*compiler, *flags, str(SOURCE), "-o", str(library), "-ldl"], check=True
        )
        environment = {**os.environ, "LD_PRELOAD": str(library)}
        environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
        done = subprocess.run(
            [sys.executable, *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return done.stdout


class Reader:
    """Reads the counts of the thread that calls it, without a lock.

    Raises AttributeError where this process was started without run_counted.
    """

    def __init__(self) -> None:
        self._counts = (ctypes.c_ulonglong * 2)()
        self._read = ctypes.CDLL(None).waits_read

    def __call__(self) -> Waits:
        self._read(self._counts)
        return Waits(*self._counts)


def count(crew: Crew, bursts: Sequence[Burst], n: int) -> Waits:
    """Return the waits per operation of bursts that run at once, in the crew's threads.

    The garbage collector, which stops all threads, waits meanwhile.
    """
    barrier = threading.Barrier(len(bursts))
    gc.collect()
    gc.disable()
    try:
        found = crew.each([partial(_counted, barrier, burst, n) for burst in bursts])
    finally:
        gc.enable()
    return Waits(*(sum(each) / (n * len(bursts)) for each in zip(*found, strict=True)))


def _counted(barrier: threading.Barrier, burst: Burst, n: int) -> Waits:
    read = Reader()
    read()
    barrier.wait()
    before = read()
    burst(n)
    after = read()
    return Waits(*(b - a for a, b in zip(before, after, strict=True)))

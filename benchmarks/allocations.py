"""How often a function asks CPython's allocators for memory.

sys.getallocatedblocks() sees only what stays, and tracemalloc only how much there was
at once; what is taken and given back within an event shows in neither. So the
allocators are wrapped by ones that count (allocations.c, compiled on first use). What
CPython takes from its free lists is not counted, for nobody.
"""

from __future__ import annotations

import ctypes
import gc
import shlex
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).with_name("allocations.c")


@cache
def counter() -> ctypes.PyDLL:
    """Compile and load the counting allocators; raises CalledProcessError."""
    compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "allocations.so")
        flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
        include = f"-I{sysconfig.get_path('include')}"
        command = [*compiler, *flags, include, str(SOURCE), "-o", str(library)]
        subprocess.run(command, check=True)
        loaded = ctypes.PyDLL(str(library))
    loaded.allocations_start.restype = None
    loaded.allocations_stop.restype = ctypes.c_ulonglong
    return loaded


def count(burst: Callable[[int], object], n: int) -> float:
    """Return the allocations per operation of burst(n), warmed up.

    The garbage collector waits meanwhile. What burst(0) allocates is taken off.
    """
    library = counter()
    burst(n)
    found = []
    gc.collect()
    gc.disable()
    try:
        for each in (0, n):
            library.allocations_start()
            try:
                burst(each)
            finally:
                found.append(library.allocations_stop())
    finally:
        gc.enable()
    return (found[1] - found[0]) / n

"""Print the path of the Python that ftbus is developed with; build it if need be.

    python3 tools/interpreter.py [--kind ft|gil|debug|tsan]

Looked for in this order: $FTBUS_PYTHON, PATH, the cache of earlier builds, uv, and at
last Debian's source package of CPython. The cache is $FTBUS_CACHE, or else the folder
ftbus in the user's cache folder. Runs on any Python from 3.9.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from build_cpython import build, build_lock
from debian import version_key
from reporter import InterpreterError, say

UV_TIMEOUT_SECONDS = 300
# What the project needs of an interpreter, told by the interpreter itself.
PROBE = """
import os, sys, sysconfig
assert sys.version_info >= (3, 13), "it is older than Python 3.13"
import ctypes, ensurepip, ssl, venv, zlib
header = os.path.join(sysconfig.get_path("include"), "Python.h")
assert os.path.exists(header), "its C headers are not installed"
free = sysconfig.get_config_var("Py_GIL_DISABLED") == 1
debug = hasattr(sys, "gettotalrefcount")
tsan = "-fsanitize=thread" in (sysconfig.get_config_var("PY_CFLAGS") or "")
traits = {"free-threaded": free, "debug": debug, "sanitized": tsan}
print(*(trait for trait, present in traits.items() if present))
"""


@dataclass(frozen=True)
class Kind:
    """A way to build CPython that the project's checks use."""

    traits: str  # what PROBE prints
    configure: tuple[str, ...]
    commands: tuple[str, ...] = ()
    uv_request: str = ""


FREE = "--disable-gil"
# Without the debug information nobody looks at, in half the space and less time.
FAST = "OPT=-DNDEBUG -O3 -Wall"
KINDS = {
    "ft": Kind("free-threaded", (FREE, FAST), ("python3.13t", "python3.14t"), "3.13t"),
    "gil": Kind("", (FAST,), ("python3.13", "python3.14"), "3.13"),
    "debug": Kind("free-threaded debug", (FREE, "--with-pydebug"), ("python3.13td",)),
    "tsan": Kind("free-threaded sanitized", (FREE, "--with-thread-sanitizer")),
}


def main() -> int:
    """Find or make the interpreter and print its path."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kind", choices=KINDS, default="ft")
    kind_name = parser.parse_args().kind
    # Let a termination unwind like Ctrl-C, so that the build's children stop too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        print(find(kind_name))
    except InterpreterError as failure:
        say(f"{Path(__file__).name}: {failure}")
        return 1
    except OSError as error:
        say(f"{Path(__file__).name}: {error}; set FTBUS_CACHE to a usable folder.")
        return 1
    except KeyboardInterrupt:
        say(f"{Path(__file__).name}: interrupted; nothing half-made was kept.")
        return 130
    return 0


def find(kind_name: str) -> str:
    """Return the path of a working interpreter of a kind.

    Raises:
        InterpreterError: there is none and it cannot be built.
    """
    kind = KINDS[kind_name]
    wanted = os.environ.get("FTBUS_PYTHON") if kind_name == "ft" else None
    if wanted:
        reason = fault(wanted, kind)
        if reason:
            raise InterpreterError(f"FTBUS_PYTHON={wanted} cannot be used: {reason}.")
        return shutil.which(wanted) or wanted
    for path in filter(None, map(shutil.which, kind.commands)):
        reason = fault(path, kind)
        if not reason:
            return path
        say(f"{path} is passed over: {reason}.")
    cache = cache_folder()
    return cached(kind_name, cache) or from_uv(kind) or build_once(kind_name, cache)


def fault(python: str, kind: Kind) -> str:
    """Return why an interpreter is of no use for a kind, or nothing."""
    try:
        probe = subprocess.run(
            [python, "-I", "-c", PROBE],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        return f"it does not run ({error.strerror})"
    if probe.returncode:
        last_line = probe.stderr.strip().rpartition("\n")[2]
        name, _, reason = last_line.partition(": ")
        return reason if name.endswith("Error") else "it does not run"
    traits = probe.stdout.strip()
    if traits == kind.traits:
        return ""
    return f"it is a {traits or 'plain'} build, not a {kind.traits or 'plain'} one"


def cache_folder() -> Path:
    """Return the folder of what was built, which is made if it is missing."""
    named = os.environ.get("FTBUS_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    cache = Path(named).absolute() if named else Path(base) / "ftbus"
    cache.mkdir(parents=True, exist_ok=True)
    return cache


def cached(kind_name: str, cache: Path) -> str:
    """Return the newest working build of a kind in the cache, or nothing."""
    found = (cache / "python").glob(f"*-{kind_name}-{platform.machine()}")
    for prefix in sorted(found, key=lambda path: version_key(path.name), reverse=True):
        python = executable(prefix)
        if python and not fault(python, KINDS[kind_name]):
            return python
    return ""


def executable(prefix: Path) -> str:
    """Return the interpreter's path in an installation, or nothing."""
    names = (prefix / "bin").glob("python3.*[!g]")  # all but python3.13-config
    return max(map(str, names), default="")  # python3.13t rather than python3.13


def from_uv(kind: Kind) -> str:
    """Return an interpreter that uv has or can download, or nothing."""
    if not kind.uv_request or not shutil.which("uv"):
        return ""
    try:
        for action in ("install", "find"):
            answer = subprocess.run(
                ["uv", "python", action, kind.uv_request],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
                timeout=UV_TIMEOUT_SECONDS,
            )
    except (OSError, subprocess.SubprocessError):
        say("uv could not provide the interpreter: building it instead.")
        return ""
    python = answer.stdout.strip()
    return "" if fault(python, kind) else python


def build_once(kind_name: str, cache: Path) -> str:
    """Build a kind into the cache, unless another process has just done so.

    Raises:
        InterpreterError: it cannot be built.
    """
    kind = KINDS[kind_name]
    if len(str(cache).split()) > 1:
        raise InterpreterError(
            f"'{cache}' has spaces in its path, which no build stands: set FTBUS_CACHE."
        )
    with build_lock(cache) as lock_fd:
        python = cached(kind_name, cache)
        if python:
            return python
        say(f"Building CPython ({kind_name}) once; it takes some minutes.")
        prefix = build(
            f"{kind_name}-{platform.machine()}",
            kind.configure,
            lambda folder: not fault(executable(folder), kind),
            cache,
            lock_fd,
        )
        return executable(prefix)


if __name__ == "__main__":
    sys.exit(main())

"""`python -m ftbus doctor`: what this interpreter is, and who turned the GIL on."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import platform
import sys
import sysconfig
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import ftbus
from ftbus import codecs

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_NODES = Path("/sys/devices/system/node")
_OPTIONAL = ("rich", "msgspec", "prometheus_client", "opentelemetry-api", "cffi")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the facts; return 0 if ftbus can run in parallel here, else 1.

    argv: names of modules to import too, to find the one that turns the GIL on.
    """
    parser = argparse.ArgumentParser(prog="python -m ftbus doctor", description=__doc__)
    parser.add_argument(
        "modules", nargs="*", metavar="MODULE", help="import this and watch the GIL"
    )
    options = parser.parse_args(argv)
    findings = import_and_watch(options.modules)
    rows = [*facts(), *(("import", finding) for finding in findings)]
    rows.append(("verdict", verdict()))
    width = max(len(name) for name, _ in rows) + 2
    for name, value in rows:
        print(f"{name:<{width}}{value}")
    return 0 if is_parallel() else 1


def is_parallel() -> bool:
    """Return whether handlers can run on several cores at once now."""
    return is_free_threaded() and not sys._is_gil_enabled()


def is_free_threaded() -> bool:
    """Return whether this is a free-threaded build."""
    return bool(sysconfig.get_config_var("Py_GIL_DISABLED"))


def facts() -> Iterable[tuple[str, str]]:
    """Yield (name, value) of the interpreter, the machine and the versions."""
    yield "python", f"{platform.python_version()} at {sys.executable}"
    kind = "free-threaded" if is_free_threaded() else "with the GIL"
    compiler = platform.python_compiler()
    yield "build", f"{kind}, {compiler}, {sysconfig.get_platform()}"
    yield "GIL", gil_state()
    usable, total = os.process_cpu_count(), os.cpu_count()
    yield "cores", f"{usable} usable of {total}"
    yield "NUMA nodes", numa_nodes()
    yield "ftbus", f"{ftbus.__version__} at {Path(ftbus.__file__).parent}"
    yield "codecs", ", ".join(codecs.names())
    for name in _OPTIONAL:
        yield name, version_of(name)


def gil_state() -> str:
    """Say whether the GIL is on, and by whose will."""
    if not is_free_threaded():
        return "on: this build has no other way"
    if not sys._is_gil_enabled():
        return "off"
    return f"on: {culprit()}"


def culprit() -> str:
    """Say what turned the GIL on in this process."""
    option = sys._xoptions.get("gil")
    if option == "1":
        return "asked for by -X gil=1"
    if os.environ.get("PYTHON_GIL") == "1" and not sys.flags.ignore_environment:
        return "asked for by PYTHON_GIL=1"
    return (
        "an imported module does not declare that it can do without; find it with "
        "'python -m ftbus doctor MODULE ...'"
    )


def import_and_watch(names: Iterable[str]) -> list[str]:
    """Import modules one by one; return a line on what each did to the GIL."""
    lines = []
    for name in names:
        was_on = is_free_threaded() and sys._is_gil_enabled()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                importlib.import_module(name)
        except ImportError as error:
            lines.append(f"{name}: {error}")
            continue
        is_on = is_free_threaded() and sys._is_gil_enabled()
        lines.append(f"{name}: {'TURNED THE GIL ON' if is_on and not was_on else 'ok'}")
    return lines


def numa_nodes() -> str:
    """Say how many NUMA nodes the kernel reports."""
    nodes = sorted(node.name for node in _NODES.glob("node[0-9]*"))
    return f"{len(nodes)} ({', '.join(nodes)})" if nodes else "unknown"


def version_of(distribution: str) -> str:
    """Return the installed version of an optional dependency."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def verdict() -> str:
    """Say in one sentence what this interpreter means for ftbus."""
    if is_parallel():
        return "handlers run in parallel"
    if is_free_threaded():
        return f"handlers take turns: the GIL is {gil_state()}"
    return "handlers take turns: use a free-threaded build (python3.13t or later)"

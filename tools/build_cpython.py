"""Compile CPython into a cache folder.

The folder of a finished build appears by one rename, so a failed, interrupted or
killed build leaves nothing that could be mistaken for one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from debian import fetch_source, install_needs, newest_tarball, tarball_version
from reporter import CommandError, InterpreterError, Reporter, say


@contextlib.contextmanager
def build_lock(cache: Path) -> Iterator[int]:
    """Hold the cache's lock and clear what killed builds left behind."""
    with (cache / "lock").open("w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"Another build is using {cache}: waiting for it.")
            fcntl.flock(lock, fcntl.LOCK_EX)
        for leftover in (cache / "work").glob("*"):
            shutil.rmtree(leftover, ignore_errors=True)
        yield lock.fileno()


def build(
    kind: str,
    configure: tuple[str, ...],
    usable: Callable[[Path], bool],
    cache: Path,
    lock_fd: int,
) -> Path:
    """Build CPython into the cache's folder VERSION-KIND; the caller has the lock.

    Raises:
        InterpreterError: something that the build needs is missing, or it failed.
    """
    reporter = Reporter(cache / "build.log")
    (cache / "work").mkdir(exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=cache / "work"))
    try:
        tarball = newest_tarball(cache) or fetch_source(reporter, cache, work)
        install_needs(reporter)
        prefix = cache / "python" / f"{tarball_version(tarball)}-{kind}"
        staged = compile_tree(reporter, tarball, prefix, configure, work, lock_fd)
        if not usable(staged):
            raise InterpreterError(
                "The finished build lacks a module that ftbus needs; "
                f"the log is {reporter.log_path}."
            )
        shutil.rmtree(prefix, ignore_errors=True)  # one that stopped working
        prefix.parent.mkdir(exist_ok=True)
        staged.rename(prefix)
        return prefix
    except CommandError:
        reporter.show_tail()
        raise
    finally:
        reporter.close()
        shutil.rmtree(work, ignore_errors=True)


def compile_tree(
    reporter: Reporter,
    tarball: Path,
    prefix: Path,
    configure: tuple[str, ...],
    work: Path,
    lock_fd: int,
) -> Path:
    """Unpack, configure, compile and install below a staging folder."""
    tree, stage = work / "tree", work / "stage"
    tree.mkdir()
    # The children keep the lock's descriptor: were we killed, the next build
    # would wait until the last of them is gone.
    fds = (lock_fd,)
    jobs = f"-j{os.cpu_count() or 1}"
    with reporter.phase(f"Unpack {tarball.name}"):
        unpack = ["tar", "-xf", str(tarball), "--strip-components=1"]
        reporter.run(unpack, tree, keep_fds=fds)
    with reporter.phase("Configure CPython"):
        script = ["./configure", f"--prefix={prefix}", "--without-ensurepip"]
        reporter.run([*script, *configure], tree, keep_fds=fds)
    with reporter.phase("Compile CPython"):
        reporter.run(["make", jobs], tree, keep_fds=fds)
    with reporter.phase("Install CPython"):
        # Not the whole library three times over: once, and without its tests.
        install = ["make", f"DESTDIR={stage}", "COMPILEALL_OPTS=-j0 -r 0", "install"]
        reporter.run(install, tree, keep_fds=fds)
        compileall = ["./python", "-m", "compileall", "-q", "-j0", "-x", "/test/"]
        final_names = ["-s", str(stage), "-p", "/"]
        reporter.run([*compileall, *final_names, str(stage)], tree, keep_fds=fds)
    return stage / prefix.relative_to(prefix.anchor)

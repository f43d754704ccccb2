"""Run a build's commands, keep their output in a log and show how far they are."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

REPORT_SECONDS = 15.0  # between two progress lines when nobody watches a terminal
LOG_TAIL = 15


class InterpreterError(Exception):
    """One sentence that tells the user what is wrong and what to do about it."""


class CommandError(InterpreterError):
    """A command failed for a reason that only its output tells."""


def say(text: str) -> None:
    """Print progress where it does not mix with the answer on stdout."""
    print(text, file=sys.stderr, flush=True)


class Reporter:
    """Run commands, keep their output in a log and show how far they are."""

    def __init__(self, log_path: Path) -> None:
        """Start an empty log."""
        self.log_path = log_path
        self._log = log_path.open("w", encoding="utf-8")
        self._tty = sys.stderr.isatty()
        self._every = 0.2 if self._tty else REPORT_SECONDS
        self._phase = ""
        self._started = self._shown = time.monotonic()
        self._compiled = 0

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Announce a phase and tell at its end how long it took."""
        self._phase, self._compiled = name, 0
        self._started = self._shown = time.monotonic()
        say(f"{name} ...")
        yield
        clear = "\r\033[K" if self._tty else ""
        say(f"{clear}{name}: {time.monotonic() - self._started:.0f} s")

    def run(
        self,
        argv: Iterable[str],
        cwd: Path | None = None,
        *,
        stoppable: bool = True,
        keep_fds: tuple[int, ...] = (),
    ) -> None:
        """Run a command to its end; a stoppable one dies with us, whole tree.

        Raises:
            CommandError: the command failed.
            InterpreterError: it could not even start.
        """
        argv = list(argv)
        print("$", *argv, file=self._log, flush=True)
        try:
            child = subprocess.Popen(
                argv,
                cwd=cwd,
                env=clean_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                start_new_session=stoppable,
                pass_fds=keep_fds,
            )
        except OSError as error:
            raise InterpreterError(f"Cannot run {argv[0]}: {error.strerror}.") from None
        with child:
            try:
                for line in child.stdout or ():
                    self._log.write(line)
                    self._tick(line)
            except BaseException:
                if stoppable:
                    os.killpg(child.pid, signal.SIGKILL)
                raise
            finally:
                self._log.flush()
        if child.returncode:
            raise CommandError(f"{self._phase} failed; the log is {self.log_path}.")

    def close(self) -> None:
        """Close the log."""
        self._log.close()

    def show_tail(self) -> None:
        """Print the log's last lines, for a failure that the log explains."""
        if self._tty:
            say("")  # below the line that shows progress
        text = self.log_path.read_text(encoding="utf-8", errors="replace")
        for line in text.splitlines()[-LOG_TAIL:]:
            say(f"  | {line[:200]}")

    def _tick(self, line: str) -> None:
        self._compiled += " -c " in line and line.rstrip().endswith((".c", ".o"))
        now = time.monotonic()
        if now - self._shown < self._every:
            return
        self._shown = now
        text = f"{self._phase}: {now - self._started:.0f} s"
        if self._compiled > 1:
            text += f", {self._compiled} files compiled"
        if self._tty:
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
        else:
            say(text)


def clean_environment() -> dict[str, str]:
    """Return our environment without what would lead the build astray."""
    # Flags of the make that called us would reach the build's own make.
    makes = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "DESTDIR"}
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in makes and not name.startswith("PYTHON")
    }
    return {**kept, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}

"""The Unix sockets of running processes: where they lie, and who may connect.

They lie in a folder that only its user can enter: $FTBUS_RUNTIME_DIR, or "ftbus" in
$XDG_RUNTIME_DIR, or /tmp/ftbus-UID. A file of a process that was killed is replaced;
one that somebody answers at never is.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import re
import socket
import stat
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ftbus.errors import AddressInUseError, InvalidOptionError

if TYPE_CHECKING:
    from collections.abc import Iterator

_SUFFIX: Final = ".sock"
_BACKLOG: Final = 16
_LOCK_S: Final = 2.0
_UCRED: Final = struct.Struct("3i")  # Linux's struct ucred: pid, uid, gid
_XUCRED: Final = struct.Struct("IIh2x16I")  # BSD's: version, uid, groups of the user
_SOL_LOCAL: Final = 0  # <sys/un.h> of macOS; Python does not name it
_LOCAL_PEERCRED: Final = 1  # likewise
# What fits sockaddr_un with its last zero.
_PATH_BYTES_MAX: Final = 107 if sys.platform == "linux" else 103


def runtime_folder() -> Path:
    """Return the folder for this user's sockets; it need not exist."""
    if folder := os.environ.get("FTBUS_RUNTIME_DIR"):
        return Path(folder)
    if folder := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(folder, "ftbus")
    return Path(tempfile.gettempdir(), f"ftbus-{os.geteuid()}")


def listen_own(name: str) -> tuple[Path, socket.socket]:
    """Listen in the folder where `python -m ftbus top` looks; return (path, socket).

    name: the bus's. Raises PermissionError if somebody else could put files there, and
    OSError.
    """
    folder = runtime_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if (
        not stat.S_ISDIR(status.st_mode)
        or status.st_uid != os.geteuid()
        or status.st_mode & 0o022
    ):
        raise PermissionError(
            errno.EPERM,
            "not a folder of this user's alone; set FTBUS_RUNTIME_DIR to one",
            str(folder),
        )
    _sweep(folder)
    words = re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII)[:32].strip("-.")
    stem = f"{os.getpid()}-{words or 'bus'}"
    for n in itertools.count(1):
        path = folder / f"{stem}{f'-{n}' if n > 1 else ''}{_SUFFIX}"
        try:
            return path, listen_unix(path)
        except AddressInUseError:
            continue  # another bus of this name
    raise AssertionError("unreachable")


def running(folder: Path | None = None) -> list[Path]:
    """Return the sockets that somebody answers at, the newest first.

    folder: where to look; None for this user's.
    """
    found = []
    with contextlib.suppress(OSError):
        for path in (folder or runtime_folder()).glob(f"*{_SUFFIX}"):
            with contextlib.suppress(OSError):  # it went away just now
                if is_answered(path):
                    found.append((path.stat().st_mtime_ns, path))
    return [path for _, path in sorted(found, reverse=True)]


def is_answered(path: Path) -> bool:
    """Return whether a process listens at a socket.

    Raises OSError if that cannot be told.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except BlockingIOError:
            return True  # its backlog is full: it listens
    return True


def listen_unix(path: Path) -> socket.socket:
    """Return a socket that listens at a path, which only this user can connect to.

    A socket file that nobody answers at is replaced.

    Raises AddressInUseError, InvalidOptionError if the path is too long, and OSError.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _locked(path.parent):
            _remove_stale(path)
            try:
                listener.bind(str(path))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise AddressInUseError(path, "the file exists") from error
                if error.errno is None:  # said by Python, not by the system
                    raise InvalidOptionError(
                        "path", str(path), f"a path of at most {_PATH_BYTES_MAX} bytes"
                    ) from error
                raise
            os.chmod(path, 0o600)  # before it listens: nobody can have connected
            listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes out that replace a stale file in the folder just now."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + _LOCK_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


def _sweep(folder: Path) -> None:
    """Remove what processes that were killed have left."""
    with _locked(folder):
        for path in folder.glob(f"*{_SUFFIX}"):
            with contextlib.suppress(OSError):  # no socket, or none of ours: leave it
                if not is_answered(path):
                    path.unlink()


def _remove_stale(path: Path) -> None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise AddressInUseError(path, "a file that is no socket is there")
    if is_answered(path):
        raise AddressInUseError(path, "a process answers there")
    path.unlink()


def identity(path: Path) -> tuple[int, int]:
    """Return what tells a file from another one that has its name later."""
    status = path.lstat()
    return status.st_dev, status.st_ino


def remove(path: Path, known: tuple[int, int]) -> None:
    """Remove a socket's file if it is still the one of that identity."""
    with contextlib.suppress(OSError):  # gone already, with its folder perhaps
        if identity(path) == known:
            path.unlink()


def peer_user(connection: socket.socket) -> int:
    """Return the user id of the process at the other end of a Unix socket."""
    if hasattr(socket, "SO_PEERCRED"):
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        return int(_UCRED.unpack(raw)[1])
    raw = connection.getsockopt(_SOL_LOCAL, _LOCAL_PEERCRED, _XUCRED.size)
    return int(_XUCRED.unpack(raw)[1])

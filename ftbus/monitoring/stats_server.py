r"""bus.serve_stats(): the statistics of a running process, for whoever may ask.

The protocol, version 1, is one JSON object a line, in UTF-8. A request of at most 4096
bytes::

    {"version": 1, "request": "stats"}

carries "token" too if it comes over TCP. The reply is a line as well: what
Snapshots.message() builds, or {"version": 1, "error": CODE, "message": TEXT}, where
CODE is "busy", "denied", "invalid", "too_long" or "unavailable". A client that is not
understood is closed after the reply, and so is one that asks nothing for a minute. No
client gets more than 200 replies a second.
"""

from __future__ import annotations

import errno
import hmac
import io
import json
import os
import secrets
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ftbus.errors import AddressInUseError, InvalidOptionError
from ftbus.monitoring import sockets
from ftbus.monitoring.server import Server, TimedReader
from ftbus.monitoring.snapshots import ROWS_DEFAULT, VERSION, Snapshots

if TYPE_CHECKING:
    from ftbus.bus import EventBus

REQUEST_BYTES_MAX: Final = 4096

_IDLE_S: Final = 60.0
_SEND_S: Final = 5.0
_PACE_S: Final = 0.005  # between replies: who asks without end takes no core
_TOKEN_BYTES: Final = 24
_ROWS_MAX: Final = 10_000


class StatsServer(Server):
    """What bus.serve_stats() returns; close() ends it."""

    address: Path | tuple[str, int]
    """The path of the Unix socket, or the host and port."""
    token: str | None
    """What every request over TCP must carry; None for a Unix socket."""

    def __init__(
        self,
        bus: EventBus,
        where: str | os.PathLike[str] | int | None = None,
        *,
        max_keys: int = ROWS_DEFAULT,
    ) -> None:
        self._snapshots = Snapshots(check_rows(max_keys))
        self._file: tuple[Path, tuple[int, int]] | None = None
        self.token = None
        if isinstance(where, bool) or not isinstance(
            where, str | os.PathLike | int | None
        ):
            raise InvalidOptionError("where", where, "a path, a port or None")
        if isinstance(where, int):
            listener = listen_tcp("127.0.0.1", where)
            self.address = listener.getsockname()[:2]
            self.token = secrets.token_urlsafe(_TOKEN_BYTES)
        else:
            if where is None:
                path, listener = sockets.listen_own(bus.name)
            else:
                path = Path(where).absolute()
                listener = sockets.listen_unix(path)
            self.address = path
            self._file = path, sockets.identity(path)
        super().__init__(bus, listener, "stats")

    def clean_up(self) -> None:
        """Remove the socket's file, if it is still ours."""
        if self._file is not None:
            sockets.remove(*self._file)

    def refuse(self, connection: socket.socket) -> None:
        """Say that there are too many clients."""
        connection.send(_error("busy", "too many clients; try again later"))

    def serve(self, connection: socket.socket) -> None:
        """Answer requests, line by line, until one is not understood."""
        if self._file is not None:
            user = sockets.peer_user(connection)
            if user != os.geteuid():
                connection.settimeout(_SEND_S)
                connection.sendall(_error("denied", f"user {user} may not ask"))
                return
        source = TimedReader(connection)
        reader = io.BufferedReader(source, REQUEST_BYTES_MAX)
        goes_on = True
        while goes_on:
            source.allow(_IDLE_S, REQUEST_BYTES_MAX)
            line = reader.readline(REQUEST_BYTES_MAX)
            if not line:
                return
            reply, goes_on = self.answer(line)
            connection.settimeout(_SEND_S)
            connection.sendall(reply)
            time.sleep(_PACE_S)
        source.linger()

    def answer(self, line: bytes) -> tuple[bytes, bool]:
        """Return the reply to a request, and whether to listen to another one."""
        if not line.endswith(b"\n"):
            text = f"a request is a line of at most {REQUEST_BYTES_MAX} bytes"
            return _error("too_long", text), False
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            return _error("invalid", "a request is a JSON object"), False
        if not isinstance(request, dict):
            return _error("invalid", "a request is a JSON object"), False
        if self.token is not None and not _is_same(request.get("token"), self.token):
            return _error("denied", "the token is missing or wrong"), False
        if request.get("version") != VERSION:
            text = f"this process speaks version {VERSION}"
            return _error("invalid", text), False
        if request.get("request") != "stats":
            return _error("invalid", 'the only request is "stats"'), True
        bus = self.bus()
        if bus is None:
            return _error("unavailable", "the bus is gone"), False
        return self._snapshots.message(bus) + b"\n", True

    def __repr__(self) -> str:
        state = "closed" if self.closed else "serving"
        return f"<StatsServer {state} at {_text(self.address)}>"


def check_rows(max_keys: object) -> int:
    """Return the number of rows if it is one; else raise InvalidOptionError."""
    if type(max_keys) is not int or not 1 <= max_keys <= _ROWS_MAX:
        raise InvalidOptionError("max_keys", max_keys, f"1 to {_ROWS_MAX}")
    return max_keys


def listen_tcp(host: str, port: int) -> socket.socket:
    """Return a socket that listens at a port; 0 is any that is free.

    Raises AddressInUseError, InvalidOptionError and OSError.
    """
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port < 65536:
        raise InvalidOptionError("port", port, "0 to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise AddressInUseError(f"{host}:{port}", "the port is in use") from error
        raise
    return listener


def _error(code: str, message: str) -> bytes:
    return (
        json.dumps({"version": VERSION, "error": code, "message": message}) + "\n"
    ).encode()


def _is_same(given: object, token: str) -> bool:
    return isinstance(given, str) and hmac.compare_digest(
        given.encode(errors="replace"), token.encode()
    )


def _text(address: Path | tuple[str, int]) -> str:
    return str(address) if isinstance(address, Path) else f"{address[0]}:{address[1]}"

"""Ask a process that serves its statistics: the other side of stats_server."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any, Final

from ftbus.closing import Closing
from ftbus.errors import FtbusError
from ftbus.monitoring.snapshots import VERSION

_REPLY_BYTES_MAX: Final = 16 << 20


class StatsUnavailableError(FtbusError, ConnectionError):
    """A process did not answer, or not with statistics."""

    def __init__(self, address: object, code: str, reason: object) -> None:
        self.address = address
        self.code = code
        self.reason = reason
        super().__init__(f"no statistics from {address}: {reason}")


class StatsClient(Closing):
    """A connection to a process that called bus.serve_stats(). A context manager.

    address: the path of its socket, or (host, port).
    token: for a port, what its StatsServer.token said.
    timeout: seconds that connecting, and each reply, may take.

    One thread at a time. Raises StatsUnavailableError.
    """

    def __init__(
        self,
        address: Path | str | tuple[str, int],
        *,
        token: str | None = None,
        timeout: float = 5.0,
    ) -> None:
        self.address = address
        self._token = token
        self._timeout = timeout
        self._unread = bytearray()
        where = address if isinstance(address, tuple) else str(address)
        family = socket.AF_UNIX if isinstance(where, str) else socket.AF_INET
        self._socket = socket.socket(family)
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(where)
        except OSError as error:
            self._socket.close()
            reason = "nobody answers there" if _is_gone(error) else error
            raise StatsUnavailableError(address, "gone", reason) from error

    def stats(self) -> dict[str, Any]:
        """Return the newest statistics: what Snapshots.message() builds."""
        request = {"version": VERSION, "request": "stats"}
        if self._token is not None:
            request["token"] = self._token
        try:
            self._socket.settimeout(self._timeout)
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except TimeoutError as error:
            raise self._unavailable("slow", "it does not read") from error
        except OSError:
            pass  # it has closed, and perhaps said why before
        try:
            reply = json.loads(self._read_line())
        except ValueError as error:
            raise self._unavailable("invalid", "its reply is no JSON") from error
        if not isinstance(reply, dict) or reply.get("version") != VERSION:
            raise self._unavailable("invalid", "it speaks another version")
        if "error" in reply:
            raise self._unavailable(str(reply["error"]), reply.get("message"))
        return reply

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._socket.close()

    def _read_line(self) -> bytes:
        deadline = time.monotonic() + self._timeout
        end = self._unread.find(b"\n")
        while end < 0:
            if len(self._unread) > _REPLY_BYTES_MAX:
                raise self._unavailable("invalid", "its reply is too long")
            self._socket.settimeout(max(1e-3, deadline - time.monotonic()))
            try:
                chunk = self._socket.recv(1 << 16)
            except TimeoutError as error:
                text = f"no reply within {self._timeout:g} s"
                raise self._unavailable("slow", text) from error
            except OSError as error:
                raise self._unavailable("gone", error) from error
            if not chunk:
                raise self._unavailable("gone", "it has closed the connection")
            end = chunk.find(b"\n")
            end += len(self._unread) if end >= 0 else 0
            self._unread += chunk
        line = bytes(self._unread[:end])
        del self._unread[: end + 1]
        return line

    def _unavailable(self, code: str, reason: object) -> StatsUnavailableError:
        return StatsUnavailableError(self.address, code, reason)


def _is_gone(error: OSError) -> bool:
    return isinstance(error, ConnectionRefusedError | FileNotFoundError)

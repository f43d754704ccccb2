"""bus.serve_dashboard(): the statistics of a running process as a page.

The page and what it needs lie in assets/ and come from this process alone; its
Content-Security-Policy forbids everything else. Data is given only to who knows the
token in the address, and a request must name this host by a number or as localhost:
a page of another site that has its name resolved to this machine gets nothing.
"""

from __future__ import annotations

import hmac
import io
import ipaddress
import re
import secrets
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from importlib import resources
from typing import TYPE_CHECKING, Any, Final, cast

from ftbus.errors import InvalidOptionError
from ftbus.monitoring.server import Server, TimedReader
from ftbus.monitoring.snapshots import ROWS_DEFAULT, Snapshots
from ftbus.monitoring.stats_server import check_rows, listen_tcp

if TYPE_CHECKING:
    import socket

    from ftbus.bus import EventBus

REQUEST_BYTES_MAX: Final = 16 << 10

_REQUEST_S: Final = 10.0
_SEND_S: Final = 10.0
_TOKEN_BYTES: Final = 24
_TOKEN: Final = re.compile(r"[\w~.-]{8,256}", re.ASCII)
_HOST: Final = re.compile(r"(?:\[([\da-fA-F:.]+)\]|([\w.-]+))(?::\d{1,5})?", re.ASCII)
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; "
    "style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Connection": "close",
}
_BUSY: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n"
    b"Connection: close\r\n\r\n"
)


class Dashboard(Server):
    """What bus.serve_dashboard() returns; close() ends it."""

    port: int
    """Where it listens."""
    token: str
    """What a request for data must carry."""
    url: str
    """The address to open. The token is in its fragment, which browsers do not send."""

    def __init__(
        self,
        bus: EventBus,
        port: int = 0,
        *,
        host: str = "127.0.0.1",
        token: str | None = None,
        max_keys: int = ROWS_DEFAULT,
    ) -> None:
        if token is not None and (
            not isinstance(token, str) or not _TOKEN.fullmatch(token)
        ):
            expected = "None or 8 to 256 letters, digits and any of ~._-"
            raise InvalidOptionError("token", token, expected)
        if not isinstance(host, str) or not host:
            raise InvalidOptionError("host", host, "an address of this machine")
        self.snapshots = Snapshots(check_rows(max_keys))
        self.assets = _read_assets()
        self.host = host
        self.token = token or secrets.token_urlsafe(_TOKEN_BYTES)
        listener = listen_tcp(host, port)
        self.port = listener.getsockname()[1]
        name = f"[{host}]" if ":" in host else host
        self.url = f"http://{name}:{self.port}/#token={self.token}"
        super().__init__(bus, listener, "dashboard")

    def refuse(self, connection: socket.socket) -> None:
        """Say that there are too many clients."""
        connection.send(_BUSY)

    def serve(self, connection: socket.socket) -> None:
        """Answer one request."""
        _Request(connection, None, cast("Any", self))

    def __repr__(self) -> str:
        state = "closed" if self.closed else "serving"
        return f"<Dashboard {state} at {self.host}:{self.port}>"


def _read_assets() -> dict[str, tuple[str, bytes]]:
    """Return (type, content) of every file of the page, by its path in the address."""
    files = {}
    for file in (resources.files("ftbus.monitoring") / "assets").iterdir():
        stem, dot, suffix = file.name.rpartition(".")
        if stem and (kind := _TYPES.get(dot + suffix)):
            files[f"/{file.name}"] = kind, file.read_bytes()
    files["/"] = files.pop("/index.html")
    return files


class _Request(BaseHTTPRequestHandler):
    """One request, from its first byte to the last of the reply, and both in time."""

    protocol_version = "HTTP/1.1"
    server_version = "ftbus"
    sys_version = ""
    server: Any  # a Dashboard: what the base class asks of it is not used here

    def setup(self) -> None:
        """Read in bounds; the base class would wait for each byte anew."""
        self._source = TimedReader(self.request)
        self._source.allow(_REQUEST_S, REQUEST_BYTES_MAX)
        self.connection = self.request
        self.rfile = io.BufferedReader(self._source)
        self.wfile = io.BytesIO()

    def finish(self) -> None:
        """Send the reply."""
        self.request.settimeout(_SEND_S)
        self.request.sendall(self.wfile.getvalue())  # type: ignore[attr-defined]
        self._source.linger()

    def handle(self) -> None:
        """Answer one request; browsers open another connection for the next."""
        self.close_connection = True
        self.handle_one_request()

    def parse_request(self) -> bool:
        """Parse, and check what holds for every request."""
        if not super().parse_request():
            return False
        self.close_connection = True
        if self._source.is_spent:
            self.send_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            return False
        if not _is_host_allowed(self.headers.get("Host", ""), self.server.host):
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST)
            return False
        return True

    def do_GET(self) -> None:
        """Send a file of the page, or the statistics."""
        path = self.path.partition("?")[0]
        if path in self.server.assets:
            self._reply(HTTPStatus.OK, *self.server.assets[path])
        elif path != "/api/stats":
            self.send_error(HTTPStatus.NOT_FOUND)
        elif not self._has_token():
            self.send_error(HTTPStatus.UNAUTHORIZED)
        else:
            bus = self.server.bus()
            if bus is None:
                self.send_error(HTTPStatus.SERVICE_UNAVAILABLE)
            else:
                message = self.server.snapshots.message(bus)
                self._reply(HTTPStatus.OK, "application/json", message)

    do_HEAD = do_GET  # noqa: N815 - named by the base class

    def send_error(
        self, code: int, message: str | None = None, explain: str | None = None
    ) -> None:
        """Reply with the status alone, in words."""
        status = HTTPStatus(code)
        text = f"{status.value} {status.phrase}\n"
        self._reply(status, "text/plain; charset=utf-8", text.encode())

    def _reply(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        if getattr(self, "request_version", "") == "HTTP/0.9":
            self.request_version = "HTTP/1.0"  # nobody speaks it; they all read 1.0
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if status is HTTPStatus.UNAUTHORIZED:
            self.send_header("WWW-Authenticate", "Bearer")
        self.end_headers()
        if getattr(self, "command", None) != "HEAD":
            self.wfile.write(body)

    def _has_token(self) -> bool:
        scheme, _, given = self.headers.get("Authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(
            given.strip().encode(errors="replace"), self.server.token.encode()
        )

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: who looks at a page is no event of the application's."""


def _is_host_allowed(given: str, host: str) -> bool:
    """Return whether a Host header names this machine as no name server could."""
    found = _HOST.fullmatch(given)
    if found is None:
        return False
    name = (found[1] or found[2]).lower()
    if name in ("localhost", host.lower()):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True

"""bus.serve_dashboard(): what it serves, to whom, and what the page makes of it."""

import contextlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import browser
import pytest

from ftbus import AddressInUseError, BusClosedError, EventBus, InvalidOptionError
from ftbus.monitoring.dashboard import REQUEST_BYTES_MAX, Dashboard
from ftbus.testing import eventually

pytestmark = pytest.mark.thread_unsafe(reason="it runs servers and a browser")

CHROMIUM = browser.find()
ASSETS = Path(browser.__file__).parent.parent / "ftbus/monitoring/assets"


@pytest.fixture
def bus() -> Iterator[EventBus]:
    with EventBus(workers=2, name="shown") as bus:
        yield bus


@pytest.fixture
def board(bus: EventBus) -> Iterator[Dashboard]:
    with bus.serve_dashboard() as board:
        yield board


def get(
    board: Dashboard, path: str, method: str = "GET", **headers: str
) -> tuple[HTTPResponse, bytes]:
    connection = HTTPConnection("127.0.0.1", board.port, timeout=60)
    with contextlib.closing(connection):
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response, response.read()


def get_stats(board: Dashboard, token: str) -> tuple[HTTPResponse, bytes]:
    return get(board, "/api/stats", Authorization=f"Bearer {token}")


def send(board: Dashboard, raw: bytes) -> bytes:
    """Send bytes as they are; return all that comes back."""
    with socket.create_connection(("127.0.0.1", board.port), timeout=60) as client:
        with contextlib.suppress(ConnectionError):
            client.sendall(raw)
            client.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while chunk := client.recv(1 << 16):
                answer += chunk
        return answer


def test_statistics_are_those_of_the_bus(bus: EventBus, board: Dashboard) -> None:
    bus.on("key", lambda event: None)
    for _ in range(7):
        bus.emit("key")
    response, body = get_stats(board, board.token)
    assert response.status == 200
    assert response.headers["Content-Type"] == "application/json"
    stats = json.loads(body)["stats"]
    assert (stats["name"], stats["emitted"], stats["handled"]) == ("shown", 7, 7)
    (row,) = stats["topics"]
    assert (row["key"], row["emitted"]) == ("key", 7)


def test_statistics_want_the_token(board: Dashboard) -> None:
    for token in ("", "wrong", board.token[:-1], board.token + "x", "\xff"):
        response, body = get_stats(board, token)
        assert response.status == 401, token
        assert b"stats" not in body
    assert get(board, "/api/stats")[0].status == 401
    basic = get(board, "/api/stats", Authorization=f"Basic {board.token}")
    assert basic[0].status == 401
    assert get(board, f"/api/stats?token={board.token}")[0].status == 401


def test_page_is_made_of_its_own_files_alone(board: Dashboard) -> None:
    response, page = get(board, "/")
    assert response.status == 200
    policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Referrer-Policy"] == "no-referrer"
    for name in re.findall(r'(?:src|href)="([^"#]+)"', page.decode()):
        assert get(board, f"/{name}")[0].status == 200, name
    for file in ASSETS.iterdir():
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", file.read_text())
        assert not re.search(
            r"innerHTML|\beval\b|\bon\w+=\"|style=\"", file.read_text()
        )


@pytest.mark.parametrize(
    "path", ["/x", "/index.html", "/../dashboard.py", "/assets/", "/%2e%2e/", "*"]
)
def test_nothing_else_is_served(board: Dashboard, path: str) -> None:
    response, body = get(board, path)
    assert (response.status, body) == (404, b"404 Not Found\n")


def test_head_and_other_methods(board: Dashboard) -> None:
    response, body = get(board, "/dashboard.css", "HEAD")
    assert (response.status, body) == (200, b"")
    assert int(response.headers["Content-Length"]) > 1000
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE"):
        assert get(board, "/api/stats", method)[0].status == 501


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:80", 200),
        ("localhost:1234", 200),
        ("LOCALHOST", 200),
        ("[::1]:8080", 200),
        ("192.0.2.7", 200),
        ("attacker.example", 421),
        ("127.0.0.1.attacker.example", 421),
        ("localhost.attacker.example", 421),
        ("attacker.example@127.0.0.1:x", 421),
        ("", 421),
        ("[::1", 421),
    ],
)
def test_host_must_be_a_number_or_localhost(
    board: Dashboard, host: str, status: int
) -> None:
    response, _ = get(board, "/", Host=host)
    assert response.status == status


def test_request_without_a_host_is_refused(board: Dashboard) -> None:
    assert send(board, b"GET / HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 421 ")


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"x\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 505),
        (b"GET / HTTP/x\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET /" + b"a" * REQUEST_BYTES_MAX, 431),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * REQUEST_BYTES_MAX, 431),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 2000, 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a" * (4 * REQUEST_BYTES_MAX), 431),
    ],
)
def test_bad_requests_are_refused(board: Dashboard, raw: bytes, status: int) -> None:
    answer = send(board, raw)
    assert re.match(rb"HTTP/1\.\d %d " % status, answer), answer[:200]
    assert get(board, "/")[0].status == 200


def test_slow_clients_hold_up_neither_others_nor_close(
    bus: EventBus, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ftbus.monitoring.dashboard._REQUEST_S", 0.5)
    with contextlib.ExitStack() as stack:
        board = bus.serve_dashboard()
        slow = []
        for _ in range(Dashboard.connections_max):
            client = stack.enter_context(
                socket.create_connection(("127.0.0.1", board.port), timeout=60)
            )
            client.sendall(b"GET / HTTP/1.1\r\nX")
            slow.append(client)
        # None of them may keep its place, however it dribbles.
        pending = set(slow)

        def is_served() -> bool:
            for client in list(pending):
                try:
                    client.sendall(b"x")
                except OSError:
                    pending.discard(client)
            with contextlib.suppress(OSError):
                return get(board, "/")[0].status == 200
            return False

        assert eventually(is_served, 60)
        bus.close()
    assert eventually(lambda: not _threads("shown-dashboard"), 30)
    assert caplog.records == []


def test_too_many_clients_are_told_so(bus: EventBus) -> None:
    with bus.serve_dashboard() as board, contextlib.ExitStack() as stack:
        for _ in range(Dashboard.connections_max):
            stack.enter_context(
                socket.create_connection(("127.0.0.1", board.port), timeout=60)
            )

        def answer() -> bytes:
            with (
                contextlib.suppress(ConnectionError, TimeoutError),
                socket.create_connection(("127.0.0.1", board.port), 0.2) as client,
            ):
                return client.recv(1000)
            return b""

        assert eventually(lambda: answer().startswith(b"HTTP/1.1 503 "), 30)


def _threads(word: str) -> list[str]:
    return [t.name for t in threading.enumerate() if word in t.name]


def test_ends_with_the_bus() -> None:
    bus = EventBus(name="shown")
    board = bus.serve_dashboard()
    assert board.url == f"http://127.0.0.1:{board.port}/#token={board.token}"
    assert repr(board) == f"<Dashboard serving at 127.0.0.1:{board.port}>"
    bus.close()
    assert board.closed
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", board.port))
    with pytest.raises(BusClosedError):
        bus.serve_dashboard()


def test_another_address_can_be_listened_at(bus: EventBus) -> None:
    try:
        board = bus.serve_dashboard(host="::1")
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    with board, contextlib.closing(HTTPConnection("::1", board.port, 60)) as client:
        assert board.url.startswith(f"http://[::1]:{board.port}/#token=")
        client.request("GET", "/")
        assert client.getresponse().status == 200


def test_options(bus: EventBus) -> None:
    with bus.serve_dashboard(token="my-own-token") as board:
        assert get_stats(board, "my-own-token")[0].status == 200
        with pytest.raises(AddressInUseError):
            bus.serve_dashboard(board.port)
    for options in (
        {"port": -1},
        {"port": True},
        {"port": "80"},
        {"host": ""},
        {"token": "short"},
        {"token": "with space"},
        {"token": b"12345678"},
        {"max_keys": 0},
    ):
        with pytest.raises(InvalidOptionError):
            bus.serve_dashboard(**options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium: CHROMIUM=PATH, or chromium on the PATH")
    profile = tmp_path_factory.mktemp("profile")
    with contextlib.closing(browser.Browser(CHROMIUM, profile)) as opened:
        yield opened


@pytest.fixture
def traffic(bus: EventBus) -> Iterator[None]:
    """Emit, post and fail until the test ends."""
    is_over = threading.Event()

    def fail(event: object) -> None:
        raise LookupError("<b>no such player</b>")

    bus.on("moved", lambda event: None)
    bus.on("<script>alert(1)</script>", fail)

    def run() -> None:
        while not is_over.wait(0.01):
            for number in range(20):
                bus.post("moved", number)
            with contextlib.suppress(ExceptionGroup):
                bus.emit("<script>alert(1)</script>")

    thread = threading.Thread(target=run)
    thread.start()
    yield
    is_over.set()
    thread.join()


HAS_CURVE = "!!document.querySelector('#throughput path.curve')"
TILE = "[...document.querySelectorAll('.tile .value')][{}].textContent"


def test_page_shows_what_happens(
    page: browser.Browser, board: Dashboard, traffic: None
) -> None:
    page.show(1280, 800)
    page.open(board.url)
    page.wait_until(f"parseFloat({TILE.format(0)}) > 0")
    page.wait_until(HAS_CURVE)
    assert page.evaluate("document.title") == "shown · ftbus"
    assert page.evaluate("document.querySelector('#status').dataset.state") == "live"
    keys = "[...document.querySelectorAll('#keys tbody th')].map(e => e.title)"
    assert set(page.evaluate(keys)) == {"moved", "<script>alert(1)</script>"}
    assert page.evaluate("document.querySelectorAll('.worker').length") == 2
    assert page.evaluate("document.querySelectorAll('b, script:not([src])').length") > 0
    assert page.evaluate("document.querySelectorAll('main script').length") == 0
    assert page.complaints() == []
    origin = f"http://127.0.0.1:{board.port}/"
    assert all(url.startswith(origin) for url in page.requested())


@pytest.mark.parametrize("width", [320, 390, 768, 1280, 1920])
def test_page_fits_every_width(
    page: browser.Browser, board: Dashboard, traffic: None, width: int
) -> None:
    page.show(width, 800)
    page.open(board.url)
    page.wait_until(HAS_CURVE)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_page_follows_the_scheme_and_its_own_button(
    page: browser.Browser, board: Dashboard
) -> None:
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    page.show(1280, 800, "light")
    page.open(board.url)
    page.wait_until("document.documentElement.dataset.theme === 'light'")
    light = page.evaluate(ground)
    page.show(1280, 800, "dark")
    page.wait_until("document.documentElement.dataset.theme === 'dark'")
    dark = page.evaluate(ground)
    assert light != dark
    page.evaluate("document.querySelector('#theme').click()")
    assert page.evaluate(ground) == light
    page.open("about:blank")
    page.open(board.url)
    assert page.evaluate(ground) == light  # it is remembered
    page.press("t")
    assert page.evaluate(ground) == dark


def test_page_works_by_keyboard(
    page: browser.Browser, board: Dashboard, traffic: None
) -> None:
    page.show(1280, 800)
    page.open(board.url)
    page.wait_until(HAS_CURVE)
    seen = []
    for _ in range(40):
        page.press("Tab")
        seen.append(
            page.evaluate(
                "(document.activeElement.closest('section')?.id || "
                "document.activeElement.id || document.activeElement.className)"
            )
        )
    for wanted in ("skip", "pause", "theme", "throughput", "latency", "keys"):
        assert wanted in seen, seen
    page.evaluate("document.querySelector('#throughput .chart').focus()")
    page.press("ArrowLeft")
    said = "document.querySelector('#throughput [aria-live]').textContent"
    assert "Emitted" in page.wait_until(said)
    page.evaluate("document.querySelector('#throughput .link').focus()")
    page.press(" ")
    page.wait_until("document.querySelectorAll('#throughput td').length > 2")
    page.press("p")
    page.wait_until("document.querySelector('#status').dataset.state === 'paused'")
    page.press("p")
    page.wait_until("document.querySelector('#status').dataset.state === 'live'")


def test_page_makes_sense_to_a_screen_reader(
    page: browser.Browser, board: Dashboard, traffic: None
) -> None:
    page.show(1280, 800)
    page.open(board.url)
    page.wait_until(HAS_CURVE)
    nodes = page.do("Accessibility.getFullAXTree")["nodes"]
    found: dict[str, list[str]] = {}
    for node in nodes:
        role = node.get("role", {}).get("value", "")
        found.setdefault(role, []).append(node.get("name", {}).get("value", ""))
    assert len(found["main"]) == len(found["banner"]) == len(found["contentinfo"]) == 1
    assert {"Throughput", "Latency", "Queue", "Handlers", "Keys"} <= set(
        found["region"]
    )
    assert all(found["button"]), "a button without a name"
    charts = [name for name in found["image"] if "line chart" in name]
    assert len(charts) == 4
    assert all("Now " in chart for chart in charts)
    assert (
        page.evaluate("document.querySelectorAll('[aria-live=assertive]').length") == 0
    )


def test_page_says_that_it_has_no_access(
    page: browser.Browser, board: Dashboard
) -> None:
    page.open("about:blank")
    page.open(board.url.replace(board.token, "wrong-token"))
    page.wait_until("!document.querySelector('#notice').hidden")
    text = page.evaluate("document.querySelector('#notice').textContent")
    assert "serve_dashboard" in text


def test_page_says_that_the_process_has_ended(
    page: browser.Browser, bus: EventBus
) -> None:
    board = bus.serve_dashboard()
    page.open(board.url)
    page.wait_until("document.querySelector('#status').dataset.state === 'live'")
    board.close()
    page.wait_until("document.querySelector('#status').dataset.state === 'lost'")
    text = page.evaluate("document.querySelector('#notice').textContent")
    assert "does not answer" in text
    with bus.serve_dashboard(board.port, token=board.token):
        page.wait_until("document.querySelector('#status').dataset.state === 'live'")


def test_page_moves_nothing_for_who_wants_that(
    page: browser.Browser, board: Dashboard
) -> None:
    page.open(board.url)
    features = [{"name": "prefers-reduced-motion", "value": "reduce"}]
    page.do("Emulation.setEmulatedMedia", features=features)
    page.wait_until("document.querySelector('#status').dataset.state === 'live'")
    assert page.evaluate("document.getAnimations().length") == 0

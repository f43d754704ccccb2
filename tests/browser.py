"""A headless Chromium, driven through its DevTools pipe by this file alone."""

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
from pathlib import Path
from typing import Any

from ftbus.testing import eventually

LIMIT_S = 60


def find() -> str | None:
    """Return the path of a Chromium, or None where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return os.environ.get("CHROMIUM") or next(
        filter(None, map(shutil.which, names)), None
    )


class Browser:
    """One browser with one page, to be closed. One thread."""

    def __init__(self, path: str, profile: Path) -> None:
        commands, self._out = os.pipe()
        self._in, events = os.pipe()
        # Chromium reads its commands from descriptor 3 and writes its events to 4.
        script = f'exec "$@" 3<&{commands} 4>&{events}'
        # It hangs at its start with the run-time library of a sanitizer inside.
        plain = {name: os.environ[name] for name in os.environ if name != "LD_PRELOAD"}
        self._process = subprocess.Popen(
            [
                *("bash", "-c", script, "browser", path),
                *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
                *("--remote-debugging-pipe", "--disable-dev-shm-usage"),
                *("--disable-background-networking", "--disable-component-update"),
                *("--no-proxy-server", f"--user-data-dir={profile}", "about:blank"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[commands, events],
            env=plain,
        )
        os.close(commands)
        os.close(events)
        self._unread = b""
        self._numbers = itertools.count(1)
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        try:
            self._open_page()
        except BaseException:
            self.close()
            raise

    def _open_page(self) -> None:
        target = self.do("Target.createTarget", url="about:blank")["targetId"]
        session = self.do("Target.attachToTarget", targetId=target, flatten=True)
        self._session = session["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            self.do(f"{domain}.enable")

    def do(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command; return its result. Raises RuntimeError."""
        number = next(self._numbers)
        command = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            command["sessionId"] = self._session
        os.write(self._out, json.dumps(command).encode() + b"\0")
        while True:
            message = self._receive()
            if message.get("id") != number:
                self.events.append(message)
            elif "error" in message:
                raise RuntimeError(f"{method}: {message['error']}")
            else:
                return message["result"]

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            if not select.select([self._in], [], [], LIMIT_S)[0]:
                raise RuntimeError("the browser does not answer")
            chunk = os.read(self._in, 1 << 16)
            if not chunk:
                raise RuntimeError("the browser has ended")
            self._unread += chunk
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression in the page."""
        result = self.do(
            "Runtime.evaluate",
            expression=expression,
            returnByValue=True,
            awaitPromise=True,
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait_until(self, expression: str) -> Any:
        """Wait until an expression is true in the page; return it."""
        return eventually(lambda: self.evaluate(expression), LIMIT_S)

    def show(self, width: int, height: int, scheme: str = "light") -> None:
        """Give the page a size, and a preferred colour scheme."""
        self.do(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.do("Emulation.setEmulatedMedia", features=features)

    def open(self, url: str) -> None:
        """Open an address."""
        self.events.clear()
        self.do("Page.navigate", url=url)
        self.wait_until("document.readyState === 'complete'")

    def press(self, key: str) -> None:
        """Press and release a key."""
        text = {"text": key} if len(key) == 1 else {}
        code = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "ArrowLeft": 37}
        extra = {"windowsVirtualKeyCode": code.get(key, ord(key[0]))}
        self.do("Input.dispatchKeyEvent", type="keyDown", key=key, **text, **extra)
        self.do("Input.dispatchKeyEvent", type="keyUp", key=key, **extra)

    def screenshot(self, *, whole: bool = False) -> bytes:
        """Return a PNG of what is seen, or of the whole page."""
        shot = self.do(
            "Page.captureScreenshot", format="png", captureBeyondViewport=whole
        )
        return base64.b64decode(shot["data"])

    def complaints(self) -> list[str]:
        """Return what the page logged as an error, and what it threw."""
        self.evaluate("0")  # what came before it has been read then
        texts = []
        for event in self.events:
            parameters = event.get("params", {})
            if event.get("method") == "Runtime.exceptionThrown":
                texts.append(json.dumps(parameters["exceptionDetails"]))
            if event.get("method") == "Log.entryAdded":
                texts.append(parameters["entry"]["text"])
        return texts

    def requested(self) -> list[str]:
        """Return the addresses of all requests of the page."""
        return [
            event["params"]["request"]["url"]
            for event in self.events
            if event.get("method") == "Network.requestWillBeSent"
        ]

    def close(self) -> None:
        """End the browser."""
        os.close(self._out)
        os.close(self._in)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

"""A codec that counts, and ways to deliver an event: for the tests of encoding."""

import threading
from typing import Any

import pytest
from dispatching import WAIT

from ftbus import EventBus, codecs


class Counting:
    """JSON, and how often it was asked."""

    name = "counting"

    def __init__(self) -> None:
        self.encoded: list[int] = []
        self.decoded: list[int] = []
        self._json = codecs.get("json")

    def encode(self, event: Any, /) -> Any:
        self.encoded.append(threading.get_ident())
        return self._json.encode(event)

    def decode(self, data: Any, /) -> Any:
        self.decoded.append(threading.get_ident())
        return self._json.decode(data)


def deliver(bus: EventBus, verb: str, event: object) -> None:
    """Send an event under "key" by a verb, and wait until it was handled."""
    if verb == "call":
        bus.call("key", event).result(WAIT)
    else:
        getattr(bus, verb)("key", event)
        assert bus.drain(WAIT)


VERBS = pytest.mark.parametrize("verb", ["emit", "post", "call"])

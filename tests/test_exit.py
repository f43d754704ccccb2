"""The end of the interpreter; subinterpreters."""

from typing import Any

import pytest

EXITS = {
    "pending queue": """
bus.on("key", lambda event: None)
bus.post_many("key", range(50_000))
""",
    "sleeping handler": """
entered = threading.Event()
bus.on("key", lambda event: (entered.set(), time.sleep(60)))
bus.post("key")
entered.wait(30)
bus.post_many("key", range(100))
""",
    "two buses with sleeping handlers": """
buses = [ftbus.EventBus(workers=1) for _ in range(4)]
entered = threading.Semaphore(0)
for each in buses:
    each.on("key", lambda event: (entered.release(), time.sleep(60)))
    each.post("key")
for each in buses:
    entered.acquire(timeout=30)
""",
    "bus in a global": """
bus.on("key", lambda event: bus)
bus.post("key")
""",
    "bus in a cycle": """
class Owner:
    def handle(self, event): pass
owner = Owner()
owner.bus, owner.topic = bus, bus.topic("key")
owner.subscription = bus.subscribe("key", owner.handle)
bus.post("key")
del owner, bus
""",
    "emit in atexit": """
import atexit
@atexit.register
def last():
    try:
        bus.emit("key")
    except ftbus.BusClosedError:
        pass
bus.on("key", lambda event: None)
bus.post("key")
""",
    "emit in a finalizer": """
class Late:
    def __del__(self, closed=ftbus.BusClosedError):
        try:
            self.bus.emit("key")
            self.bus.post("key")
        except closed:
            pass
late = Late()
late.bus = bus
bus.on("key", lambda event: None)
bus.post("key")
""",
    "pinned bus": """
bus.pin()
topic = bus.topic("key")
topic.on(lambda event: topic)
topic.post()
""",
    "emitting daemon threads": """
topic = bus.topic("key")
topic.on(lambda event: None)
def endless():
    try:
        while True:
            topic.emit()
            bus.post("key")
    except ftbus.BusClosedError:
        pass
for _ in range(2):
    threading.Thread(target=endless, daemon=True).start()
bus.post("key")
""",
    "call under way": """
bus.on("key", lambda event: time.sleep(60))
future = bus.call("key")
""",
    "system exit in the main thread": """
bus.on("key", lambda event: None)
bus.post("key")
sys.exit(0)
""",
}


@pytest.mark.thread_unsafe(reason="starts a process")
@pytest.mark.parametrize("program", EXITS.values(), ids=EXITS.keys())
def test_interpreter_exits_quietly_and_soon(python: Any, program: str) -> None:
    prologue = """
import sys, threading, time, ftbus
bus = ftbus.EventBus(workers=2)
"""
    done = python(prologue + program, within=20)  # the handlers sleep for 60 s
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")


@pytest.mark.thread_unsafe(reason="starts a process")
def test_interpreter_exits_soon_although_a_bus_cannot_be_closed(python: Any) -> None:
    done = python(
        """
import ftbus
class Stubborn(ftbus.EventBus):
    def close(self, **options):
        raise LookupError("not me")
buses = [Stubborn(workers=2), ftbus.EventBus(workers=2), Stubborn(workers=2)]
for bus in buses:
    bus.post("key")
    bus.drain()
raise SystemExit(3)
"""
    )
    assert done.returncode == 3
    assert "not me" in done.stderr


@pytest.mark.thread_unsafe(reason="starts a process")
def test_queued_events_are_handled_at_exit(python: Any) -> None:
    done = python(
        """
import ftbus
bus = ftbus.EventBus(workers=1)
bus.on("key", lambda event: print(event, flush=True))
bus.post_many("key", range(100))
"""
    )
    assert done.stdout.split() == [str(n) for n in range(100)]


# Subinterpreters


@pytest.mark.thread_unsafe(reason="starts a process")
def test_subinterpreter_gets_a_clean_import_error(python: Any) -> None:
    done = python(
        """
import _interpreters, ftbus
other = _interpreters.create()
for _ in range(3):
    error = _interpreters.run_string(other, '''
try:
    import ftbus
except ImportError as error:
    assert "subinterpreters" in str(error), error
else:
    raise AssertionError("imported")
''')
    assert error is None, error
_interpreters.destroy(other)
with ftbus.EventBus() as bus:
    bus.on("key", lambda event: None)
    assert bus.emit("key") == 1
""",
        "-W",
        "ignore",
    )
    assert (done.returncode, done.stderr) == (0, "")

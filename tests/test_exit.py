"""The end of the interpreter; subinterpreters."""

from typing import Any

import pytest
from exits import EXITS


@pytest.mark.thread_unsafe(reason="starts a process")
@pytest.mark.parametrize("program", EXITS.values(), ids=EXITS.keys())
def test_interpreter_exits_quietly_and_soon(python: Any, program: str) -> None:
    done = python(program, within=20)
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

"""What is alive, and what runs when it goes."""

import sys
from types import FrameType

from ftbus import EventBus, lifecycle
from ftbus.registry import Registry


class Equal:
    """Equal to all others, and not to be put into a set."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


def test_registry_has_what_is_alive_in_order() -> None:
    registry: Registry[Equal] = Registry()
    first, second, third = Equal(), Equal(), Equal()
    for one in (first, second, third):
        registry.add(one)
    assert [id(one) for one in registry.live()] == [id(first), id(second), id(third)]
    del one, second
    assert [id(one) for one in registry.live()] == [id(first), id(third)]


def test_nothing_that_could_be_interrupted_runs_when_a_bus_goes() -> None:
    """Ctrl-C in a weak reference's callback would be printed, and be lost."""
    bus = EventBus(workers=1)
    executor = bus.executor()
    bus.close()
    before = len(lifecycle.buses.live())
    ran: list[str] = []

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            ran.append(frame.f_code.co_qualname)

    sys.setprofile(note)
    try:
        del executor, bus
    finally:
        sys.setprofile(None)
    assert ran == []
    assert len(lifecycle.buses.live()) == before - 1

"""One topic and its handlers: how ftbus emits to it, and how others do.

A contender is made by a function of the handlers; what that returns is called in each
thread and makes the thread's own loop, with an event of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from types import FunctionType
from typing import Any

from harness import Bind

import ftbus

# Handlers. Functions of a module are immortal on 3.13t once a thread was started.


def handler(event: object) -> None:
    pass


def functions(n: int) -> list[Callable[[object], None]]:
    """Return n functions that are as if each was written out in this module."""
    return [FunctionType(handler.__code__, globals()) for _ in range(n)]


class Listener:
    def handle(self, event: object) -> None:
        pass


def make_closure() -> Callable[[object], None]:
    def inner(event: object) -> None:
        pass

    return inner


# The loops. What they use is in their arguments, hence in local variables.


def run_empty(n: int) -> None:
    for _ in range(n):
        pass


def run_hand(handlers_by_key: dict[str, Any], event: object, n: int) -> None:
    for _ in range(n):
        for handle in handlers_by_key["key"]:
            handle(event)


def run_bound(emit: Callable[[object], object], event: object, n: int) -> None:
    for _ in range(n):
        emit(event)


def run_keyed(emit: Callable[[str, object], object], event: object, n: int) -> None:
    for _ in range(n):
        emit("key", event)


def run_topic(topic: ftbus.Topic, event: object, n: int) -> None:
    for _ in range(n):
        topic.emit(event)


def run_bus(bus: ftbus.EventBus, event: object, n: int) -> None:
    for _ in range(n):
        bus.emit("key", event)


def run_pluggy(emit: Callable[..., object], event: object, n: int) -> None:
    for _ in range(n):
        emit(event=event)


# ftbus and the others


def hand(handlers: Sequence[Any], new_event: Callable[[], object] = object) -> Bind:
    handlers_by_key = {"key": tuple(handlers)}
    return lambda thread: partial(run_hand, handlers_by_key, new_event())


def bus_with(handlers: Sequence[Any], **options: Any) -> ftbus.EventBus:
    bus = ftbus.EventBus(**options)
    for handle in handlers:
        bus.subscribe("key", handle)
    return bus


def bound(
    handlers: Sequence[Any],
    new_event: Callable[[], object] = object,
    **options: Any,
) -> Bind:
    topic = bus_with(handlers, **options).topic("key")
    return lambda thread: partial(run_bound, topic.emit, new_event())


def shared_topic(handlers: Sequence[Any]) -> Bind:
    topic = bus_with(handlers).topic("key")
    return lambda thread: partial(run_topic, topic, object())


def pinned_topic(handlers: Sequence[Any]) -> Bind:
    topic = bus_with(handlers).pin().topic("key")
    return lambda thread: partial(run_topic, topic, object())


def pinned_bus(handlers: Sequence[Any]) -> Bind:
    bus = bus_with(handlers).pin()
    return lambda thread: partial(run_bus, bus, object())


# The others


def locked(handlers: Sequence[Any]) -> Bind:
    """What is usually written: copy the list under a lock, then loop."""
    lock = threading.RLock()
    handlers_by_key = {"key": list(handlers)}

    def emit(key: str, event: object) -> None:
        with lock:
            found = list(handlers_by_key[key])
        for handle in found:
            handle(event)

    return lambda thread: partial(run_keyed, emit, object())


def eventkit(handlers: Sequence[Any]) -> Bind:
    from eventkit import Event

    event = Event()
    for handle in handlers:
        event += handle
    return lambda thread: partial(run_bound, event.emit, object())


def pyee(handlers: Sequence[Any]) -> Bind:
    from pyee import EventEmitter

    emitter = EventEmitter()
    for handle in handlers:
        emitter.on("key", handle)
    return lambda thread: partial(run_keyed, emitter.emit, object())


def blinker(handlers: Sequence[Any]) -> Bind:
    from blinker import Signal

    signal = Signal()
    for handle in handlers:
        signal.connect(handle)
    return lambda thread: partial(run_bound, signal.send, object())


def psygnal(handlers: Sequence[Any]) -> Bind:
    from psygnal import Signal

    class Emitter:
        changed = Signal(object)

    emitter = Emitter()
    for handle in handlers:
        emitter.changed.connect(handle)
    return lambda thread: partial(run_bound, emitter.changed.emit, object())


def pluggy(handlers: Sequence[Any]) -> Bind:
    import pluggy as library

    class Spec:
        @library.HookspecMarker("benchmark")
        def handle(self, event: object) -> None:
            pass

    manager = library.PluginManager("benchmark")
    manager.add_hookspecs(Spec)
    for handle in handlers:
        plugin = type("Plugin", (), {})()
        plugin.handle = library.HookimplMarker("benchmark")(handle)
        manager.register(plugin)
    return lambda thread: partial(run_pluggy, manager.hook.handle, object())


PEERS = {
    "dict + RLock": ("", locked),
    "eventkit": ("eventkit", eventkit),
    "pyee": ("pyee", pyee),
    "blinker": ("blinker", blinker),
    "psygnal": ("psygnal", psygnal),
    "pluggy": ("pluggy", pluggy),
}

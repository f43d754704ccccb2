"""One exception per cause; each carries the object it is about."""

from __future__ import annotations

from concurrent.futures import CancelledError
from concurrent.futures.thread import BrokenThreadPool
from operator import index
from typing import TYPE_CHECKING, Any, Self, SupportsIndex

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ftbus.bus import EventBus
    from ftbus.executor import BusExecutor


class FtbusError(Exception):
    """The base of every exception that ftbus raises on its own account."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by message and attributes: constructors take other arguments."""
        return _rebuild, (type(self), self.args, self.__dict__)


class UnsupportedKeyError(FtbusError, TypeError):
    """An object was used as a key that cannot be one."""

    def __init__(self, key: object) -> None:
        self.key = key
        super().__init__(
            f"{_brief(key)} cannot be a key: use a str, bytes, int of 64 bits, Key, "
            "enum member or class (exactly these types, not subclasses)"
        )


class HandlerTypeError(FtbusError, TypeError):
    """Something that cannot be called was subscribed."""

    def __init__(self, key: object, handler: object) -> None:
        self.key = key
        self.handler = handler
        super().__init__(
            f"{_brief(handler)} cannot handle {_repr(key)}: "
            "a handler is a callable that takes the event"
        )


class InvalidOptionError(FtbusError, ValueError):
    """An option has a value that it cannot have."""

    def __init__(self, option: str, value: object, expected: str) -> None:
        self.option = option
        self.value = value
        super().__init__(f"{option}={_repr(value)} is not possible: use {expected}")


class AddressInUseError(FtbusError, OSError):
    """A server was to listen where something else is."""

    def __init__(self, address: object, reason: str) -> None:
        self.address = address
        self.reason = reason
        super().__init__(f"cannot listen at {address}: {reason}; choose another place")


class BusClosedError(FtbusError, RuntimeError):
    """A bus was used after close()."""

    def __init__(self, bus: EventBus, doing: str) -> None:
        self.bus = bus
        self.doing = doing
        super().__init__(f"cannot {doing}: {bus!r} is closed; make a new EventBus")


class BusForkedError(BusClosedError):
    """A bus whose workers run in the parent was asked to queue in a fork's child."""

    def __init__(self, bus: EventBus, doing: str) -> None:
        super().__init__(bus, doing)
        self.args = (
            f"cannot {doing}: the workers of {bus!r} run in the parent process; "
            "make a new EventBus after the fork, or use emit",
        )


class QueueFullError(FtbusError, RuntimeError):
    """The queue was full and the overflow policy, or the timeout, says to refuse."""

    def __init__(self, bus: EventBus, key: object, queue_size: int) -> None:
        self.bus = bus
        self.key = key
        self.queue_size = queue_size
        super().__init__(
            f"no space for {key!r}: {queue_size} events are queued on {bus!r}; post "
            "more slowly, raise queue_size or workers, or choose another overflow"
        )


class StatsUnstableError(FtbusError, RuntimeError):
    """stats(exact=True) could not stop the other threads: counters moved meanwhile."""

    def __init__(self, bus: EventBus, tries: int) -> None:
        self.bus = bus
        self.tries = tries
        super().__init__(
            f"the counters of {bus!r} moved in each of {tries} exact readings; call "
            "stats() while the bus is quiet, or without exact=True"
        )


class StreamFullError(FtbusError, RuntimeError):
    """A stream had no space, and its overflow policy says to refuse."""

    def __init__(self, key: object, maxsize: int) -> None:
        self.key = key
        self.maxsize = maxsize
        super().__init__(
            f"a stream of {_repr(key)} is full: {maxsize} events wait; take them "
            "faster, raise maxsize, or choose another overflow"
        )


class EventDroppedError(FtbusError, CancelledError):
    """What a Future stood for was given up, by the overflow policy or by close."""

    def __init__(self, bus: EventBus, what: object) -> None:
        self.bus = bus
        self.what = what
        super().__init__(
            f"{_repr(what)} was dropped before it ran: {bus!r} was full, or closed"
        )


class ExecutorShutdownError(FtbusError, RuntimeError):
    """Something was submitted to an executor after its shutdown()."""

    def __init__(self, executor: BusExecutor) -> None:
        self.executor = executor
        super().__init__(
            f"cannot schedule new futures after shutdown of {executor!r}, or of the "
            "interpreter; ask the bus for a new executor"
        )


class ExecutorBrokenError(FtbusError, BrokenThreadPool):
    """The initializer of an executor failed; nothing runs there any more."""

    def __init__(self, executor: BusExecutor, error: BaseException) -> None:
        self.executor = executor
        self.error = error
        super().__init__(f"the initializer of {executor!r} raised {_brief(error)}")


class EmitDepthError(FtbusError, RecursionError):
    """Handlers emitted from within handlers without end."""

    def __init__(self, bus: EventBus, key: object, limit: int) -> None:
        self.bus = bus
        self.key = key
        self.limit = limit
        super().__init__(
            f"emit of {key!r} is nested more than {limit} deep: a handler emits, "
            "directly or not, the key that it handles; post() it instead"
        )


class DeadlockError(FtbusError, RuntimeError):
    """A wait was refused that would never have ended: both would wait for the other."""

    def __init__(self, waiting_for: object, remedy: str) -> None:
        self.waiting_for = waiting_for
        super().__init__(
            f"waiting for {_repr(waiting_for)} would never end: what it waits for "
            f"waits, directly or not, for what runs here; {remedy}"
        )


class HandlerErrors(ExceptionGroup[Exception]):
    """What the handlers of one emit or call raised, after all of them ran."""

    key: object
    ran: int

    def __new__(cls, key: object, errors: Sequence[Exception], ran: int) -> Self:
        """Group the exceptions of `ran` handlers of a key."""
        self = super().__new__(
            cls,
            f"{len(errors)} of {ran} handler calls for {key!r} failed",
            list(errors),
        )
        self.key = key
        self.ran = ran
        return self

    def __init__(self, key: object, errors: Sequence[Exception], ran: int) -> None:
        """Accept what __new__ took."""

    def derive(self, excs: Sequence[Any]) -> ExceptionGroup[Any]:
        """Build the part of this group that `except*` and split() ask for."""
        return HandlerErrors(self.key, excs, self.ran)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the constructor's own arguments."""
        return HandlerErrors, (self.key, list(self.exceptions), self.ran), vars(self)


class ArenaLimitError(FtbusError, MemoryError):
    """A buffer was asked for beyond the pool's byte limit."""

    def __init__(self, pool: object, requested_bytes: int, limit_bytes: int) -> None:
        self.pool = pool
        self.requested_bytes = requested_bytes
        self.limit_bytes = limit_bytes
        super().__init__(
            f"{requested_bytes} bytes do not fit {pool!r}, which is limited to "
            f"{limit_bytes}: release buffers or raise limit_bytes"
        )


class HandleError(FtbusError, BufferError):
    """An integer that is not a handle, or no longer, was to become a Buffer."""

    def __init__(self, handle: SupportsIndex, reason: str) -> None:
        self.handle = handle
        self.reason = reason
        super().__init__(f"handle {index(handle):#x} cannot be taken: {reason}")


class CodecError(FtbusError, ValueError):
    """An event could not be encoded, or bytes could not be decoded."""

    def __init__(self, codec: object, event: object, reason: object) -> None:
        self.codec = codec
        self.event = event
        self.reason = reason
        super().__init__(f"codec {codec!r} failed on {_brief(event)}: {reason}")


class UnknownCodecError(FtbusError, LookupError):
    """A codec was asked for by a name that none is registered under."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        self.name = name
        self.known = tuple(known)
        super().__init__(
            f"no codec {name!r}; there are {', '.join(self.known)}: "
            "ftbus.codecs.register() adds one"
        )


def _rebuild(
    kind: type[FtbusError], args: tuple[Any, ...], attributes: dict[str, Any]
) -> FtbusError:
    self = kind.__new__(kind, *args)
    self.__dict__.update(attributes)
    return self


def _repr(value: object) -> str:
    try:
        text = repr(value)
    except Exception as error:
        text = f"<repr raised {type(error).__name__}>"
    return text if len(text) <= 80 else text[:77] + "..."


def _brief(value: object) -> str:
    return f"{type(value).__name__} {_repr(value)}"

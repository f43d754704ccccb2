"""Observers: told of each handler call, for tracing and the like."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Protocol

from ftbus.errors import InvalidOptionError

if TYPE_CHECKING:
    from collections.abc import Callable

KINDS = ("started", "finished", "failed", "dropped")


class Observer(Protocol):
    """What bus.add_observer() takes; every method is optional.

    They run in the thread that runs the handler (dropped: that gives the event up),
    around emit, post and call alike, and should be quick. What they raise goes to
    sys.unraisablehook and stops nothing. `handler` is the callable that was subscribed.
    Subclassing this is not needed: an object with one of the methods will do.
    """

    def started(self, key: object, handler: object, event: object) -> None:
        """Hear that a handler is about to be called."""

    def finished(self, key: object, handler: object, event: object) -> None:
        """Hear that it returned; in the thread that heard `started`."""

    def failed(
        self, key: object, handler: object, event: object, error: BaseException
    ) -> None:
        """Hear that it raised, before anybody else does."""

    def dropped(self, key: object, event: object) -> None:
        """Hear that a posted event was given up: by overflow policy or close.

        key: None for a task of call or executor.
        """


class Observers:
    """Those of one bus. Changed under the bus's lock, read without one."""

    __slots__ = ("_all", "_by_kind")

    def __init__(self) -> None:
        self._all: tuple[object, ...] = ()
        self._by_kind: dict[str, tuple[Callable[..., Any], ...]] = dict.fromkeys(
            KINDS, ()
        )

    def __bool__(self) -> bool:
        return bool(self._all)

    def add(self, observer: object) -> None:
        """Tell `observer` too.

        Raises InvalidOptionError for an object without any of the methods.
        """
        if not any(callable(getattr(observer, kind, None)) for kind in KINDS):
            raise InvalidOptionError(
                "observer", observer, f"an object with one of {KINDS}"
            )
        if not any(each is observer for each in self._all):
            self._set((*self._all, observer))

    def remove(self, observer: object) -> bool:
        """Stop telling `observer`; return whether it was told so far."""
        left = tuple(each for each in self._all if each is not observer)
        was_there = len(left) < len(self._all)
        self._set(left)
        return was_there

    def _set(self, observers: tuple[object, ...]) -> None:
        self._all = observers
        self._by_kind = {
            kind: tuple(
                method
                for each in observers
                if callable(method := getattr(each, kind, None))
            )
            for kind in KINDS
        }

    def tell(self, kind: str, arguments: tuple[object, ...]) -> None:
        """Call the observers' method of that name."""
        for method in self._by_kind[kind]:
            try:
                method(*arguments)
            except BaseException as error:
                _report_unraisable(method, error)


class _Unraisable:
    """What sys.unraisablehook gets: the fields of UnraisableHookArgs."""

    __slots__ = ("err_msg", "exc_traceback", "exc_type", "exc_value", "object")

    def __init__(self, method: object, error: BaseException) -> None:
        self.exc_type = type(error)
        self.exc_value = error
        self.exc_traceback = error.__traceback__
        self.err_msg = "Exception ignored in an ftbus observer"
        self.object = method


def _report_unraisable(method: object, error: BaseException) -> None:
    hook: Any = sys.unraisablehook
    hook(_Unraisable(method, error))

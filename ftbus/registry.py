"""What is alive: a fork's child and the interpreter's exit see to all of it."""

from __future__ import annotations

import weakref


class _Reference[T](weakref.ref[T]):
    """A weak reference that is equal to itself only, whatever it refers to."""

    __slots__ = ()
    __eq__ = object.__eq__
    __hash__ = object.__hash__


class Registry[T]:
    """Objects for as long as they live, in the order in which they came. Any thread.

    All that runs when one of them goes is C. An exception from outside (Ctrl-C) that
    arrives in a callback written in Python, like a WeakSet's, is printed and lost.
    """

    __slots__ = ("_references",)

    def __init__(self) -> None:
        self._references: dict[weakref.ref[T], None] = {}

    def add(self, one: T) -> None:
        """Remember an object until it goes."""
        self._references[_Reference(one, self._references.pop)] = None

    def live(self) -> list[T]:
        """Return the objects that are alive."""
        references = list(self._references)
        return [one for each in references if (one := each()) is not None]

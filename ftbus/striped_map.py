"""StripedMap: a mapping for many threads, whose readers take no lock.

The methods for one key, and iteration, come from the C core; this file makes them a
whole ``collections.abc.MutableMapping``.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, KeysView, Mapping, ValuesView
from collections.abc import MutableMapping as _MutableMapping
from reprlib import recursive_repr
from typing import TYPE_CHECKING, Any, Self, cast, overload

from ftbus import _core
from ftbus.errors import UnsupportedKeyError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _typeshed import SupportsKeysAndGetItem

__all__ = ["StripedMap"]

_MISSING: Any = object()


class StripedMap[K, V](_core.StripedMap[K, V], _MutableMapping[K, V]):
    """A mapping from compact keys to any objects, to be shared by threads.

    Make one as a dict is made: ``StripedMap()``, ``StripedMap(mapping)``,
    ``StripedMap(pairs)``, each with keyword arguments added. Keys are str, bytes, int
    of 64 bits, Key, enum members and classes, exactly these types and not subclasses;
    anything else raises UnsupportedKeyError, a TypeError. ``Key("a")`` and ``"a"`` are
    one key; the object that came first is the one that iteration returns.

    Every method may be called from any thread. Reading takes no lock, replacing a value
    neither; adding and removing keys locks one of several stripes. A method for one key
    (``m[k]``, get, setdefault, pop, replace, update_with, popitem) is atomic; one
    for many (update, clear, ``==``, copy, len) is a sequence of such steps.

    Iteration goes on while others write and never raises because of them. It returns
    each key that is there the whole time once, and none twice; a key that comes or goes
    meanwhile may be missed, or returned when it is gone already.

    Values are released as in a dict: when the last reference goes, the replaced or
    removed value is finalized before the method returns, or very soon after if another
    thread was reading at that moment.
    """

    __slots__ = ()

    @overload
    def __init__(self, /) -> None: ...
    @overload
    def __init__(self: StripedMap[str, V], /, **named: V) -> None: ...
    @overload
    def __init__(self, other: SupportsKeysAndGetItem[K, V], /) -> None: ...
    @overload
    def __init__(
        self: StripedMap[str, V],
        other: SupportsKeysAndGetItem[str, V],
        /,
        **named: V,
    ) -> None: ...
    @overload
    def __init__(self, other: Iterable[tuple[K, V]], /) -> None: ...
    @overload
    def __init__(
        self: StripedMap[str, V], other: Iterable[tuple[str, V]], /, **named: V
    ) -> None: ...
    def __init__(self: Any, other: Any = (), /, **named: Any) -> None:
        self.update(other, **named)

    @classmethod
    def fromkeys(cls, keys: Iterable[K], value: Any = None, /) -> Self:
        """Make a map that gives each of the keys the same value."""
        made: Any = cls()
        for key in keys:
            made[key] = value
        return cast("Self", made)

    def copy(self) -> Self:
        """Return a new map with the keys and values of this one.

        Keys that others add or remove meanwhile may be in it or not.
        """
        copied = type(self)()
        copied.update(self)
        return copied

    def update(self, other: Any = (), /, **named: Any) -> None:
        """Take over the keys and values of a mapping, or of pairs, and then the named.

        Raises UnsupportedKeyError, and what `other` raises; what was taken over before
        that stays.
        """
        for key, value in _pairs(other):
            self[key] = value
        for name, value in named.items():
            self[cast("K", name)] = value

    def keys(self) -> KeysView[K]:
        """Return a view of the keys, which behaves as a set."""
        return _Keys(self)

    def values(self) -> ValuesView[V]:
        """Return a view of the values."""
        return _Values(self)

    def items(self) -> ItemsView[K, V]:
        """Return a view of the pairs of key and value."""
        return _Items(self)

    def pin(self) -> Self:
        """Keep this map alive until the process ends; return it.

        For the usual map that lives as long as anyway: threads that share it then no
        longer contend for its reference count, which makes ``m[k]`` scale. The
        alternative is ``get = m.get``, taken once in each thread. Contents are released
        by clear() as ever, but no longer by the garbage collector. Call it from the
        thread that made the map.
        """
        return _core.pin_object(self)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Mapping):
            return NotImplemented
        if len(self) != len(other):
            return False
        for key, value in self.items():
            found = _get(other, key)
            if found is not value and (found is _MISSING or found != value):
                return False
        return True

    __hash__ = None  # type: ignore[assignment]

    def __or__(self, other: Mapping[Any, Any]) -> Self:
        if not isinstance(other, Mapping):
            return NotImplemented
        merged = self.copy()
        merged.update(other)
        return merged

    def __ror__(self, other: Mapping[Any, Any]) -> Self:
        if not isinstance(other, Mapping):
            return NotImplemented
        merged = type(self)()
        merged.update(other)
        merged.update(self)
        return merged

    def __ior__(self, other: Any) -> Self:  # type: ignore[misc]
        self.update(other)
        return self

    @recursive_repr("StripedMap({...})")
    def __repr__(self) -> str:
        pairs = ", ".join(f"{key!r}: {value!r}" for key, value in self.items())
        return f"{type(self).__name__}({{{pairs}}})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as an empty map that the pairs are then put into, as dicts are."""
        return type(self), (), self.__getstate__(), None, iter(self.items())


class _Keys[K](KeysView[K]):
    """The keys of a map; what cannot be a key is not among them."""

    __slots__ = ()
    _mapping: StripedMap[K, Any]

    def __contains__(self, key: object) -> bool:
        try:
            return key in self._mapping
        except UnsupportedKeyError:
            return False


class _Values[V](ValuesView[V]):
    """The values of a map; the base class would look each key up again."""

    __slots__ = ()
    _mapping: StripedMap[Any, V]

    def __contains__(self, value: object) -> bool:
        return any(found is value or found == value for found in self)

    def __iter__(self) -> Iterator[V]:
        return self._mapping._iter_values()


class _Items[K, V](ItemsView[K, V]):
    """The pairs of a map; likewise, and what cannot be a pair is not among them."""

    __slots__ = ()
    _mapping: StripedMap[K, V]

    def __contains__(self, pair: object) -> bool:
        if not (isinstance(pair, tuple) and len(pair) == 2):
            return False
        try:
            found = self._mapping.get(pair[0], _MISSING)
        except UnsupportedKeyError:
            return False
        return found is pair[1] or (found is not _MISSING and bool(found == pair[1]))

    def __iter__(self) -> Iterator[tuple[K, V]]:
        return self._mapping._iter_items()


def _pairs(other: Any) -> Iterable[tuple[Any, Any]]:
    """Return the pairs of what dict.update accepts."""
    if isinstance(other, StripedMap | dict):
        return other.items()
    if isinstance(other, Mapping) or hasattr(other, "keys"):
        return ((key, other[key]) for key in other.keys())  # noqa: SIM118
    return cast("Iterable[tuple[Any, Any]]", other)


def _get(mapping: Mapping[Any, Any], key: object) -> Any:
    """Return the value of a key, or _MISSING, also if the mapping refuses such keys."""
    try:
        return mapping.get(key, _MISSING)
    except TypeError:
        return _MISSING

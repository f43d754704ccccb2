"""Codecs for fixed layouts: a struct format and the fields it holds.

Such a codec writes in place and needs no copy. It may be used from any thread.
"""

from __future__ import annotations

import dataclasses
import operator
import struct
from collections.abc import Buffer as BytesLike
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ftbus.errors import CodecError

if TYPE_CHECKING:
    from ftbus._core import Buffer

__all__ = ["StructCodec"]

type _Pick = Callable[[Any], Sequence[Any]]
type _Make = Callable[[Sequence[Any]], Any]


class StructCodec:
    """Encode events of one fixed layout by the standard library's struct module.

    name: what it is registered and asked for under.
    format: as of struct; begin with "<" or ">" where bytes leave the machine.
    fields: a dataclass or NamedTuple, whose fields are the format's values in order, or
        the names of the keys of a dict.

        @dataclass
        class Moved:
            player: int
            x: float
            y: float

        bus = EventBus(codec=StructCodec("moved", "<Idd", Moved))

    Raises TypeError if fields is none of these, ValueError if the format is none, or
    does not have as many values as there are fields.
    """

    def __init__(self, name: str, format: str, fields: type | Sequence[str]) -> None:
        try:
            self._struct = struct.Struct(format)
        except struct.error as error:
            raise ValueError(f"{format!r} is no struct format: {error}") from error
        self.name = name
        self.fields, self._pick, self._make = _access(fields)
        self._type = fields if isinstance(fields, type) else dict
        values_n = len(self._struct.unpack(bytes(self._struct.size)))
        if values_n != len(self.fields):
            raise ValueError(
                f"{format!r} has {values_n} values for {len(self.fields)} fields: "
                f"{', '.join(self.fields)}"
            )

    @property
    def format(self) -> str:
        """The struct format."""
        return self._struct.format

    @property
    def size(self) -> int:
        """How many bytes every event takes."""
        return self._struct.size

    def encode(self, event: Any, /) -> bytes:
        """Return the event's bytes; raises CodecError if it does not fit the layout."""
        values = self._values(event)
        try:
            return self._struct.pack(*values)
        except struct.error as error:
            raise CodecError(self, event, self._reason(error)) from error

    def encode_into(self, event: Any, buffer: Buffer, /) -> int:
        """Write the event into a Buffer; return how many bytes that takes."""
        values = self._values(event)
        try:
            self._struct.pack_into(buffer, 0, *values)
        except struct.error as error:
            if len(buffer) >= self._struct.size:
                raise CodecError(self, event, self._reason(error)) from error
        return self._struct.size

    def decode(self, data: BytesLike, /) -> Any:
        """Return the event; raises CodecError for bytes of another size."""
        try:
            values = self._struct.unpack(data)
        except (struct.error, TypeError) as error:
            raise CodecError(self, data, error) from error
        try:
            return self._make(values)
        except (TypeError, ValueError) as error:  # what a class's own __init__ refuses
            raise CodecError(self, data, error) from error

    def _values(self, event: Any) -> Sequence[Any]:
        if not isinstance(event, self._type):
            reason = f"its events are of {self._type.__qualname__}"
            raise CodecError(self, event, reason)
        try:
            return self._pick(event)
        except KeyError as error:
            raise CodecError(self, event, f"it lacks the key {error}") from error
        except AttributeError as error:
            raise CodecError(self, event, error) from error

    def _reason(self, error: struct.error) -> str:
        layout = ", ".join(self.fields)
        return f"{error}; the layout is {self._struct.format!r} of {layout}"

    def __repr__(self) -> str:
        return f"<codec {self.name}>"


def _access(fields: type | Sequence[str]) -> tuple[tuple[str, ...], _Pick, _Make]:
    """Return the names, and how values are taken from an event and made one again."""
    if isinstance(fields, type):
        return _access_class(fields)
    if isinstance(fields, str) or not all(isinstance(name, str) for name in fields):
        raise TypeError(f"{fields!r} is no dataclass, NamedTuple or list of names")
    names = tuple(fields)
    if len(set(names)) != len(names):
        raise ValueError(f"a name appears twice in {', '.join(names)}")
    pick = _tuple_getter(operator.itemgetter, names)
    return names, pick, lambda values: dict(zip(names, values, strict=True))


def _access_class(kind: type) -> tuple[tuple[str, ...], _Pick, _Make]:
    if dataclasses.is_dataclass(kind):
        described = dataclasses.fields(kind)
        unset = [field.name for field in described if not field.init]
        if unset:
            raise TypeError(
                f"{kind.__qualname__}() does not take {', '.join(unset)}, so no event "
                "can be made from bytes"
            )
        names = tuple(field.name for field in described)
        pick = _tuple_getter(operator.attrgetter, names)
        if any(field.kw_only for field in described):
            return names, pick, lambda v: kind(**dict(zip(names, v, strict=True)))
        return names, pick, lambda values: kind(*values)
    names = getattr(kind, "_fields", ())
    if issubclass(kind, tuple) and names:
        return names, tuple, lambda values: kind(*values)
    raise TypeError(f"{kind.__qualname__} is no dataclass or NamedTuple")


def _tuple_getter(getter: Callable[..., Any], names: tuple[str, ...]) -> _Pick:
    """Return a function to a tuple, also of one value or none."""
    if len(names) > 1:
        return getter(*names)  # type: ignore[no-any-return]
    picks = [getter(name) for name in names]
    return lambda event: [pick(event) for pick in picks]

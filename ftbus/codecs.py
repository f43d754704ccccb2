"""How an event becomes bytes for handlers that want them, and back.

A bus encodes an event at most once, however many handlers, sockets and threads read the
bytes. ``json``, ``pickle`` and ``raw`` are always there, ``msgspec.json`` and
``msgspec.msgpack`` where msgspec is installed; ``register()`` adds more, and
``StructCodec`` makes one from a struct format. Codecs and the
functions here may be used from any thread.

A codec with a method ``encode_into(event, buffer)`` writes in place and saves the copy
that the bytes of ``encode`` need: see InPlaceCodec.
"""

from __future__ import annotations

import importlib
import json
import pickle
from collections.abc import Buffer as BytesLike
from importlib.util import find_spec
from threading import Lock
from typing import Any, Protocol, runtime_checkable

from ftbus import _core
from ftbus._core import Buffer
from ftbus.errors import CodecError, UnknownCodecError
from ftbus.layouts import StructCodec

__all__ = [
    "Codec",
    "InPlaceCodec",
    "JsonCodec",
    "MsgspecCodec",
    "PickleCodec",
    "RawCodec",
    "StructCodec",
    "get",
    "names",
    "register",
]


@runtime_checkable
class Codec(Protocol):
    """What a codec must have. Both methods may run in many threads at once."""

    @property
    def name(self) -> str:
        """What it is registered and asked for under."""

    def encode(self, event: Any, /) -> BytesLike:
        """Turn an event into bytes.

        The bytes are copied once into pooled memory, unless they are a frozen
        ftbus.Buffer already: a codec that fills one in place saves that copy.

        Raises CodecError if this codec cannot express the event.
        """

    def decode(self, data: BytesLike, /) -> Any:
        """Turn such bytes into an event again.

        Raises CodecError if they are not what encode() makes.
        """


@runtime_checkable
class InPlaceCodec(Codec, Protocol):
    """A codec that can write into pooled memory itself. Optional."""

    def encode_into(self, event: Any, buffer: Buffer, /) -> int:
        """Write the event's bytes at the start of a writable Buffer of zeros.

        Returns how many bytes the event takes. More than len(buffer) asks for more
        room: what was written is thrown away and the method called once more, with at
        least so many bytes, up to GROWTHS_MAX times in all. The buffer is read-only as
        soon as this returns, so no export that may write can stay open.

        Raises CodecError if this codec cannot express the event.
        """


GROWTHS_MAX = _core.GROWTHS_MAX
"""How often in a row encode_into may ask for more room for one event."""


class _Named:
    """A codec of ours: a name, and how it looks in messages."""

    name: str

    def __repr__(self) -> str:
        return f"<codec {self.name}>"


class JsonCodec(_Named):
    """JSON as compact UTF-8, by the standard library.

    Keys that are not str become str, and tuples come back as lists.
    """

    name = "json"
    _encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))

    def encode(self, event: Any, /) -> bytes:
        """Return the event as JSON; raises CodecError for what JSON cannot express."""
        try:
            return self._encoder.encode(event).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise CodecError(self, event, error) from error

    def decode(self, data: BytesLike, /) -> Any:
        """Return the value of JSON text in UTF-8; raises CodecError if it is not."""
        try:
            return json.loads(str(data, "utf-8"))
        except (TypeError, ValueError, RecursionError) as error:
            raise CodecError(self, data, error) from error


class PickleCodec(_Named):
    """Python's pickle: any event whose class can be imported where it is decoded.

    Decoding runs what the bytes say. Never decode bytes from outside the process.
    """

    name = "pickle"

    def encode(self, event: Any, /) -> bytes:
        """Return the event pickled; raises CodecError if it cannot be.

        Objects pickle by their own methods, which may raise anything: whatever it was
        is the error's cause, except MemoryError, which passes through.
        """
        try:
            return pickle.dumps(event, pickle.HIGHEST_PROTOCOL)
        except MemoryError:
            raise
        except Exception as error:
            raise CodecError(self, event, error) from error

    def decode(self, data: BytesLike, /) -> Any:
        """Return the pickled event; raises CodecError as encode() does."""
        try:
            return pickle.loads(data)
        except MemoryError:
            raise
        except Exception as error:
            raise CodecError(self, data, error) from error


class RawCodec(_Named):
    """Events that are bytes already: any bytes-like object passes through."""

    name = "raw"

    def encode(self, event: Any, /) -> BytesLike:
        """Return the event itself; raises CodecError if it is not bytes-like."""
        if isinstance(event, BytesLike):
            return event
        reason = "not bytes-like; encode it first, or use the codec 'json' or 'pickle'"
        raise CodecError(self, event, reason)

    def decode(self, data: BytesLike, /) -> BytesLike:
        """Return the bytes themselves."""
        return data


class MsgspecCodec(_Named):
    """JSON or MessagePack by msgspec, imported when it is first used.

    Not before, because importing an extension may turn the GIL on.
    """

    def __init__(self, name: str) -> None:
        """Use the module of that name: msgspec.json or msgspec.msgpack."""
        self.name = name

    def encode(self, event: Any, /) -> bytes:
        """Return the event's bytes; raises CodecError for what msgspec refuses."""
        module = importlib.import_module(self.name)
        try:
            encoded: bytes = module.encode(event)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise CodecError(self, event, error) from error
        return encoded

    def decode(self, data: BytesLike, /) -> Any:
        """Return the value; raises CodecError for bytes msgspec cannot read."""
        module = importlib.import_module(self.name)
        try:
            return module.decode(data)
        except (TypeError, ValueError, RecursionError) as error:
            raise CodecError(self, data, error) from error


_registry: dict[str, Codec] = {}
_registry_lock = Lock()  # for writers; readers look up one key


def register(codec: Codec, *, replace: bool = False) -> None:
    """Make a codec known by its name, for every bus of the process.

    Raises TypeError if it lacks a name, encode or decode, and ValueError if the name is
    empty, or taken and replace is false.
    """
    _check(codec)
    if not codec.name:
        raise ValueError(f"{codec!r} has an empty name")
    with _registry_lock:
        if codec.name in _registry and not replace:
            raise ValueError(
                f"a codec {codec.name!r} is registered already: "
                f"{_registry[codec.name]!r}; replace=True replaces it"
            )
        _registry[codec.name] = codec


def get(codec: str | Codec) -> Codec:
    """Return the codec of that name; a codec object is returned itself.

    Raises UnknownCodecError for a name that is not registered and TypeError for an
    object that lacks name, encode or decode.
    """
    if isinstance(codec, str):
        found = _registry.get(codec)
        if found is None:
            raise UnknownCodecError(codec, names())
        return found
    _check(codec)
    return codec


def _check(codec: object) -> None:
    if not isinstance(codec, Codec) or not isinstance(codec.name, str):
        raise TypeError(f"{codec!r} is no codec: it needs name, encode and decode")
    into = getattr(codec, "encode_into", None)
    if into is not None and not callable(into):
        raise TypeError(f"{codec!r} has an encode_into that cannot be called: {into!r}")


def names() -> list[str]:
    """Return the registered names, sorted."""
    return sorted(_registry)


_own: list[Codec] = [JsonCodec(), PickleCodec(), RawCodec()]
if find_spec("msgspec") is not None:
    _own += [MsgspecCodec("msgspec.json"), MsgspecCodec("msgspec.msgpack")]
for _codec in _own:
    # They live as long as this module; pinned, their counts are not written by all
    # threads that encode.
    register(_core.pin_object(_codec))

"""ftbus.codecs: the built-in codecs and the registry."""

from __future__ import annotations

import math
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Barrier, Thread
from typing import Any
from uuid import uuid4

import pytest

from ftbus import CodecError, UnknownCodecError, codecs
from ftbus.buffers import default_pool

JSON_EVENTS = [
    None,
    True,
    0,
    -(2**70),
    1.5,
    "",
    "grüße \U0001f600",
    [],
    [1, [2, [3]]],
    {"a": {"b": [None, False]}, "c": "\x00"},
]


class Reversed:
    """A codec of the tests' own."""

    def __init__(self, name: str = "reversed") -> None:
        self.name = name

    def encode(self, event: Any, /) -> bytes:
        return bytes(reversed(event))

    def decode(self, data: Any, /) -> bytes:
        return bytes(reversed(data))


class Unpicklable:
    def __reduce__(self) -> str:
        raise ZeroDivisionError("its own failure")


class OutOfMemory:
    def __reduce__(self) -> str:
        raise MemoryError


@contextmanager
def unused_name() -> Iterator[str]:
    """Yield a name that no codec has, and forget what was registered under it."""
    name = uuid4().hex
    try:
        yield name
    finally:
        codecs._registry.pop(name, None)


class TestJson:
    codec = codecs.get("json")

    @pytest.mark.parametrize("event", JSON_EVENTS, ids=repr)
    def test_round_trip_through_a_buffer(self, event: object) -> None:
        data = default_pool.from_bytes(self.codec.encode(event))
        assert self.codec.decode(data) == event
        assert self.codec.decode(bytes(data)) == event
        assert self.codec.decode(memoryview(data)) == event

    def test_is_compact_utf8(self) -> None:
        assert self.codec.encode({"a": [1, 2], "ü": None}) == (
            '{"a":[1,2],"ü":null}'.encode()
        )

    @pytest.mark.parametrize("event", [object(), {1, 2}, b"x", {(1, 2): 3}, "\ud800"])
    def test_names_what_it_cannot_encode(self, event: object) -> None:
        with pytest.raises(CodecError, match="json") as caught:
            self.codec.encode(event)
        assert caught.value.event is event
        assert caught.value.codec is self.codec
        assert caught.value.__cause__ is not None

    def test_refuses_cycles(self) -> None:
        event: list[object] = []
        event.append(event)
        with pytest.raises(CodecError):
            self.codec.encode(event)

    @pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[1,]"])
    def test_names_what_it_cannot_decode(self, data: bytes) -> None:
        with pytest.raises(CodecError) as caught:
            self.codec.decode(data)
        assert caught.value.event is data


class TestPickle:
    codec = codecs.get("pickle")

    @pytest.mark.parametrize("event", [*JSON_EVENTS, {1, 2}, b"x", 1j, len], ids=repr)
    def test_round_trip_through_a_buffer(self, event: object) -> None:
        data = default_pool.from_bytes(self.codec.encode(event))
        assert self.codec.decode(data) == event

    def test_nan_survives(self) -> None:
        assert math.isnan(self.codec.decode(self.codec.encode(math.nan)))

    def test_wraps_whatever_an_event_raises(self) -> None:
        with pytest.raises(CodecError, match="its own failure") as caught:
            self.codec.encode(Unpicklable())
        assert isinstance(caught.value.__cause__, ZeroDivisionError)

    def test_lets_memory_errors_pass(self) -> None:
        with pytest.raises(MemoryError):
            self.codec.encode(OutOfMemory())

    def test_names_what_it_cannot_decode(self) -> None:
        with pytest.raises(CodecError):
            self.codec.decode(b"\x80\x05nonsense")


class TestRaw:
    codec = codecs.get("raw")

    @pytest.mark.parametrize(
        "event",
        [b"x", bytearray(b"x"), memoryview(b"x"), default_pool.from_bytes(b"x")],
    )
    def test_passes_bytes_through(self, event: Any) -> None:
        assert self.codec.encode(event) is event
        assert self.codec.decode(event) is event

    @pytest.mark.parametrize("event", ["x", 1, None, [b"x"]])
    def test_refuses_all_else(self, event: object) -> None:
        with pytest.raises(CodecError, match="not bytes-like") as caught:
            self.codec.encode(event)
        assert caught.value.event is event


class TestMsgspec:
    """Its wiring, with a stand-in where msgspec itself has no build."""

    def test_is_registered_only_where_installed(self) -> None:
        try:
            import msgspec  # noqa: F401
        except ImportError:
            assert not [name for name in codecs.names() if "msgspec" in name]
        else:
            for name in ("msgspec.json", "msgspec.msgpack"):
                codec = codecs.get(name)
                assert codec.decode(codec.encode({"a": [1, None]})) == {"a": [1, None]}

    def test_failures_become_codec_errors(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(_: object) -> None:
            raise TypeError("refused")

        module = types.ModuleType("msgspec_stand_in")
        module.encode = module.decode = fail  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        codec = codecs.MsgspecCodec(module.__name__)
        with pytest.raises(CodecError, match="refused"):
            codec.encode(1)
        with pytest.raises(CodecError, match="refused"):
            codec.decode(b"1")


class TestRegistry:
    def test_has_the_built_in_ones_sorted(self) -> None:
        assert {"json", "pickle", "raw"} <= set(codecs.names())
        assert codecs.names() == sorted(codecs.names())
        assert repr(codecs.get("json")) == "<codec json>"

    def test_an_unknown_name_lists_the_known(self) -> None:
        with pytest.raises(UnknownCodecError, match="json, pickle, raw") as caught:
            codecs.get("yaml")
        assert caught.value.name == "yaml"
        assert set(caught.value.known) >= {"json", "pickle", "raw"}

    def test_a_codec_object_is_used_as_it_is(self) -> None:
        codec = Reversed()
        assert codecs.get(codec) is codec
        assert codec.name not in codecs.names()

    @pytest.mark.parametrize("codec", [None, 1, object(), b"json"])
    def test_refuses_what_is_no_codec(self, codec: Any) -> None:
        with pytest.raises(TypeError, match="no codec"):
            codecs.get(codec)
        with pytest.raises(TypeError, match="no codec"):
            codecs.register(codec)

    def test_register_replaces_only_when_asked(self) -> None:
        with unused_name() as name:
            codecs.register(Reversed(name))
            codec = codecs.get(name)
            assert codec.decode(codec.encode(b"abc")) == b"abc"
            with pytest.raises(ValueError, match="registered already"):
                codecs.register(Reversed(name))
            assert codecs.get(name) is codec
            codecs.register(Reversed(name), replace=True)
            assert codecs.get(name) is not codec

    def test_refuses_names_that_are_none(self) -> None:
        nameless = Reversed()
        nameless.name = ""
        with pytest.raises(ValueError, match="empty name"):
            codecs.register(nameless)
        nameless.name = None  # type: ignore[assignment]
        with pytest.raises(TypeError, match="no codec"):
            codecs.register(nameless)

    def test_one_of_many_registrations_wins(self) -> None:
        barrier = Barrier(4)
        outcomes: list[str] = []

        def register(name: str) -> None:
            barrier.wait()
            try:
                codecs.register(Reversed(name))
                outcomes.append("registered")
            except ValueError:
                outcomes.append("refused")

        with unused_name() as name:
            threads = [Thread(target=register, args=(name,)) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert sorted(outcomes) == ["refused"] * 3 + ["registered"]

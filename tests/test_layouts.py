"""StructCodec, and the protocol of codecs that write in place."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftbus import Buffer, CodecError, EventBus, InvalidOptionError, codecs
from ftbus.codecs import StructCodec


@dataclass(frozen=True, slots=True)
class Moved:
    player: int
    x: float
    name: bytes


@dataclass(kw_only=True)
class Hit:
    player: int
    damage: int = 0


class Point(NamedTuple):
    x: int
    y: int


@dataclass
class Nothing:
    pass


@dataclass
class Positive:
    value: int

    def __post_init__(self) -> None:
        if self.value < 0:
            raise ValueError("a negative value")


LAYOUTS: list[tuple[str, Any, Any]] = [
    ("<Id4s", Moved, Moved(1, -2.5, b"abcd")),
    ("<II", Hit, Hit(player=1, damage=2)),
    (">hh", Point, Point(-1, 2)),
    ("<q", ["only"], {"only": -(2**63)}),
    ("<B2xB", ("a", "b"), {"a": 1, "b": 2}),
    ("<", Nothing, Nothing()),
]


def emitted(codec: Any, *events: Any) -> list[Buffer]:
    """Return the Buffers that a bus makes of the events."""
    with EventBus(codec=codec) as bus:
        seen: list[Buffer] = []
        bus.on("key", seen.append, encoded=True)
        failures: list[Exception] = []
        for event in events:
            try:
                bus.emit("key", event)
            except ExceptionGroup as group:
                failures += group.exceptions
        for failure in failures:
            raise failure
        return seen


class TestStructCodec:
    @pytest.mark.parametrize(("format", "fields", "event"), LAYOUTS)
    def test_round_trip(self, format: str, fields: Any, event: Any) -> None:
        codec = StructCodec("layout", format, fields)
        assert codec.format == format
        assert codec.size == struct.calcsize(format)
        data = codec.encode(event)
        assert codec.decode(data) == event
        (buffer,) = emitted(codec, event)
        assert buffer == data
        assert buffer.decode() == event
        assert type(buffer.decode()) is type(event)

    @given(st.integers(0, 2**32 - 1), st.floats(allow_nan=False), st.binary())
    def test_any_values(self, player: int, x: float, name: bytes) -> None:
        codec = StructCodec("moved", "<Id16s", Moved)
        event = Moved(player, x, name[:16].ljust(16, b"\0"))
        assert codec.decode(codec.encode(event)) == event

    def test_is_registered_like_any_other(self) -> None:
        codec = StructCodec("test_layouts.point", "<ii", Point)
        codecs.register(codec, replace=True)
        try:
            assert isinstance(codec, codecs.InPlaceCodec)
            (buffer,) = emitted("test_layouts.point", Point(1, 2))
            assert Buffer(bytes(buffer)).decode("test_layouts.point") == Point(1, 2)
            assert repr(codec) == "<codec test_layouts.point>"
        finally:
            codecs._registry.pop("test_layouts.point", None)

    def test_events_of_another_type_are_named(self) -> None:
        codec = StructCodec("moved", "<Id4s", Moved)
        for encode in (codec.encode, lambda event: emitted(codec, event)):
            with pytest.raises(CodecError, match=r"failed on Point .*: .* of Moved"):
                encode(Point(1, 2))

    @pytest.mark.parametrize(
        ("event", "reason"),
        [
            (Moved(-1, 0.0, b""), r"<Id4s.* of player, x, name"),
            (Moved("one", 0.0, b""), r"integer.*<Id4s"),  # type: ignore[arg-type]
        ],
    )
    def test_values_that_do_not_fit_are_named(self, event: Any, reason: str) -> None:
        codec = StructCodec("moved", "<Id4s", Moved)
        for encode in (codec.encode, lambda event: emitted(codec, event)):
            with pytest.raises(CodecError, match=reason) as caught:
                encode(event)
            assert caught.value.event is event
            assert isinstance(caught.value.__cause__, struct.error)

    def test_missing_fields_are_named(self) -> None:
        with pytest.raises(CodecError, match="lacks the key 'b'"):
            StructCodec("pair", "<BB", ["a", "b"]).encode({"a": 1})
        half = Moved(1, 1.0, b"")
        object.__delattr__(half, "x")
        with pytest.raises(CodecError, match="x"):
            StructCodec("moved", "<Id4s", Moved).encode(half)

    @pytest.mark.parametrize("data", [b"", b"1234567", b"123456789", "text", None])
    def test_bytes_of_another_size_are_refused(self, data: Any) -> None:
        with pytest.raises(CodecError) as caught:
            StructCodec("point", "<ii", Point).decode(data)
        assert caught.value.event is data

    def test_what_the_class_refuses_is_a_codec_error(self) -> None:
        codec = StructCodec("positive", "<i", Positive)
        with pytest.raises(CodecError, match="a negative value"):
            codec.decode(struct.pack("<i", -1))

    @pytest.mark.parametrize(
        ("format", "fields", "error", "reason"),
        [
            ("<Z", Point, ValueError, "no struct format"),
            ("<i", Point, ValueError, "1 values for 2 fields: x, y"),
            ("<iii", Point, ValueError, "3 values for 2 fields"),
            ("<ii", int, TypeError, "no dataclass or NamedTuple"),
            ("<ii", "xy", TypeError, "list of names"),
            ("<ii", [1, 2], TypeError, "list of names"),
            ("<ii", ["x", "x"], ValueError, "twice"),
        ],
    )
    def test_layouts_must_make_sense(
        self, format: str, fields: Any, error: type[Exception], reason: str
    ) -> None:
        with pytest.raises(error, match=reason):
            StructCodec("wrong", format, fields)

    def test_a_field_that_init_does_not_take_is_refused(self) -> None:
        @dataclass
        class Computed:
            x: int
            y: int = field(init=False, default=0)

        assert dataclasses.is_dataclass(Computed)
        with pytest.raises(TypeError, match="does not take y"):
            StructCodec("computed", "<ii", Computed)


class InPlace:
    """A codec of bytes whose encode_into is a function of the test's own."""

    name = "in place"

    def __init__(self, into: Callable[[Any, Buffer], Any]) -> None:
        self.encode_into = into
        self.offered: list[int] = []

    def encode(self, event: Any, /) -> bytes:
        raise AssertionError("encode_into is asked instead")

    def decode(self, data: Any, /) -> Any:
        return bytes(data)


def write(offered: list[int]) -> Callable[[Any, Buffer], int]:
    def into(event: bytearray, buffer: Buffer) -> int:
        offered.append(len(buffer))
        assert bytes(buffer) == bytes(len(buffer))  # nothing old shows
        n = min(len(event), len(buffer))
        buffer[:n] = event[:n]
        return len(event)

    return into


class TestEncodeInto:
    @pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 1000, 1_000_000])
    def test_gets_the_room_it_asks_for(self, size: int) -> None:
        offered: list[int] = []
        event = bytearray(range(256)) * (size // 256 + 1)
        event = event[:size]
        (buffer,) = emitted(InPlace(write(offered)), event)
        assert buffer == event
        assert buffer.readonly
        assert len(offered) == (1 if size <= 64 else 2)
        assert offered[-1] >= size

    def test_is_offered_what_recent_events_took(self) -> None:
        offered: list[int] = []
        emitted(InPlace(write(offered)), *[bytearray(1000)] * 10)
        assert offered == [64] + [1000] * 10
        offered.clear()
        emitted(InPlace(write(offered)), bytearray(5000), *[bytearray(100)] * 200)
        assert offered[:3] == [64, 5000, 5000]
        assert len(offered) == 202  # the room shrinks, never below what is needed
        assert 100 <= offered[-1] < 200

    def test_room_grows_geometrically(self) -> None:
        offered: list[int] = []

        def into(event: Any, buffer: Buffer) -> int:
            offered.append(len(buffer))
            return min(len(buffer) + 1, 1000)

        (buffer,) = emitted(InPlace(into), object())
        assert len(buffer) == 1000
        assert offered == [64, 128, 256, 512, 1024]

    def test_that_is_never_content_ends_with_an_error(self) -> None:
        asked: list[int] = []

        def into(event: Any, buffer: Buffer) -> int:
            asked.append(len(buffer))
            return len(buffer) + 1

        with pytest.raises(CodecError, match="asked for more room 9 times"):
            emitted(InPlace(into), object())
        assert len(asked) == codecs.GROWTHS_MAX + 1

    @pytest.mark.parametrize("result", [None, -1, 1.0, "1", True])
    def test_that_returns_no_size_is_named(self, result: Any) -> None:
        with pytest.raises(CodecError, match=r"encode_into\(\) returned"):
            emitted(InPlace(lambda event, buffer: result), object())

    def test_that_keeps_an_export_is_named(self) -> None:
        views: list[memoryview] = []

        def into(event: Any, buffer: Buffer) -> int:
            views.append(memoryview(buffer))
            return 1

        with pytest.raises(CodecError, match=r"leave its buffer as it got it: .*1 exp"):
            emitted(InPlace(into), object())
        views.pop().release()

    def test_that_releases_or_freezes_its_buffer_is_named(self) -> None:
        def releases(event: Any, buffer: Buffer) -> int:
            buffer.release()
            return 1

        def freezes(event: Any, buffer: Buffer) -> int:
            buffer.freeze()
            return 1

        for into in (releases, freezes):
            with pytest.raises(CodecError, match="leave its buffer"):
                emitted(InPlace(into), object())

    def test_that_keeps_its_buffer_cannot_write_later(self) -> None:
        kept: list[Buffer] = []

        def into(event: Any, buffer: Buffer) -> int:
            kept.append(buffer)
            kept.append(buffer[0:2])
            return 4

        (made,) = emitted(InPlace(into), object())
        for buffer in kept:
            with pytest.raises(BufferError, match="frozen"):
                buffer[0] = 1
        assert made == bytes(4)
        kept.clear()

    def test_its_exception_passes(self) -> None:
        def into(event: Any, buffer: Buffer) -> int:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            emitted(InPlace(into), object())

    def test_must_be_callable(self) -> None:
        codec = InPlace(5)  # type: ignore[arg-type]
        with pytest.raises(InvalidOptionError, match="codec"):
            EventBus(codec=codec)
        with pytest.raises(TypeError, match="encode_into that cannot be called"):
            codecs.register(codec)

    def test_without_it_encode_is_asked(self) -> None:
        assert not isinstance(codecs.get("json"), codecs.InPlaceCodec)
        assert emitted("json", [1]) == [b"[1]"]

"""One decode per Buffer, whoever asks, and how long what it gave lives."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from counting import VERBS, Counting, deliver
from dispatching import WAIT

from ftbus import Buffer, CodecError, EventBus, UnknownCodecError, codecs
from ftbus.buffers import default_pool
from ftbus.testing import eventually, run_threads


def encoded(event: Any, codec: Any = "json") -> Buffer:
    """Return the Buffer that a bus makes of an event."""
    with EventBus(codec=codec) as bus:
        seen: list[Buffer] = []
        bus.on("key", seen.append, encoded=True)
        bus.emit("key", event)
        return seen.pop()


class TestDecode:
    def test_is_done_once_and_shared(self) -> None:
        codec = Counting()
        buffer = encoded({"x": [1]}, codec)
        assert buffer.codec is codec
        value = buffer.decode()
        assert value == {"x": [1]}
        assert buffer.decode() is value
        assert buffer.decode(codec) is value
        assert len(codec.decoded) == 1

    @VERBS
    def test_is_shared_by_the_handlers_of_an_event(self, verb: str) -> None:
        codec = Counting()
        values: list[Any] = []
        with EventBus(codec=codec, workers=2) as bus:
            for _ in range(8):
                bus.on("key", lambda b: values.append(b.decode()), encoded=True)
            deliver(bus, verb, [1, 2])
        assert values == [[1, 2]] * 8
        assert all(value is values[0] for value in values)
        assert len(codec.decoded) == 1

    def test_has_one_decoder_for_whom_others_wait(self) -> None:
        class Slow(Counting):
            def decode(self, data: Any, /) -> Any:
                self.decoded.append(threading.get_ident())
                assert go.wait(WAIT)
                return object()

        go = threading.Event()
        codec = Slow()
        buffer = encoded([1], codec)
        started = threading.Barrier(5)
        values: list[Any] = []

        def ask() -> None:
            started.wait(WAIT)
            values.append(buffer.decode())

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        started.wait(WAIT)
        eventually(lambda: codec.decoded)
        assert values == []
        go.set()
        for thread in threads:
            thread.join(WAIT)
        assert len(values) == 4
        assert all(value is values[0] for value in values)
        assert len(codec.decoded) == 1

    def test_races_to_one_value(self) -> None:
        for _ in range(50):
            codec = Counting()
            buffer = encoded([1, 2, 3], codec)
            values = run_threads(4, lambda index, b=buffer: b.decode())
            assert all(value is values[0] for value in values)
            assert len(codec.decoded) == 1

    def test_a_failure_is_raised_and_not_kept(self) -> None:
        class Moody(Counting):
            def decode(self, data: Any, /) -> Any:
                self.decoded.append(threading.get_ident())
                if len(self.decoded) < 3:
                    raise CodecError(self, data, f"attempt {len(self.decoded)}")
                return "value"

        buffer = encoded([1], Moody())
        for attempt in (1, 2):
            with pytest.raises(CodecError, match=f"attempt {attempt}"):
                buffer.decode()
        assert buffer.decode() == "value"

    def test_who_waited_for_a_failure_tries_itself(self) -> None:
        class FailsFirst(Counting):
            def decode(self, data: Any, /) -> Any:
                self.decoded.append(threading.get_ident())
                if len(self.decoded) == 1:
                    assert go.wait(WAIT)
                    raise ZeroDivisionError
                return "value"

        go = threading.Event()
        codec = FailsFirst()
        buffer = encoded([1], codec)
        outcomes: list[Any] = []

        def ask() -> None:
            try:
                outcomes.append(buffer.decode())
            except ZeroDivisionError as error:
                outcomes.append(type(error))

        first = threading.Thread(target=ask)
        first.start()
        eventually(lambda: codec.decoded)
        second = threading.Thread(target=ask)
        second.start()
        go.set()
        first.join(WAIT)
        second.join(WAIT)
        assert sorted(outcomes, key=str) == [ZeroDivisionError, "value"]
        assert len(codec.decoded) == 2

    def test_from_within_itself_is_an_error_and_no_deadlock(self) -> None:
        class Recursive(Counting):
            def decode(self, data: Any, /) -> Any:
                return boxes[0].decode()

        boxes: list[Buffer] = []
        boxes.append(encoded([1], Recursive()))
        with pytest.raises(RecursionError, match="its own decode"):
            boxes[0].decode()
        assert boxes[0] == b"[1]"
        boxes.clear()

    def test_names_its_codec_where_no_bus_did(self) -> None:
        buffer = Buffer(b"[1]")
        assert buffer.codec is None
        with pytest.raises(BufferError, match="name the codec"):
            buffer.decode()
        with pytest.raises(UnknownCodecError):
            buffer.decode("no such codec")
        with pytest.raises(TypeError, match="no codec"):
            buffer.decode(5)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="at most 1"):
            buffer.decode("json", 1)  # type: ignore[call-arg]
        value = buffer.decode("json")
        assert value == [1]
        assert buffer.decode() is value
        assert buffer.codec is codecs.get("json")

    def test_a_codec_that_fails_is_not_the_buffers_own(self) -> None:
        buffer = Buffer(codecs.get("pickle").encode([1]))
        with pytest.raises(CodecError):
            buffer.decode("json")
        assert buffer.codec is None
        value = buffer.decode("pickle")
        assert value == [1]
        assert buffer.decode() is value

    def test_each_who_names_a_codec_gets_what_it_decodes(self) -> None:
        class Tagging(Counting):
            def decode(self, data: Any, /) -> Any:
                return (self, bytes(data))

        for _ in range(50):
            named = [Tagging() for _ in range(3)]
            buffer = Buffer(b"x")
            values = run_threads(3, lambda index, n=named, b=buffer: b.decode(n[index]))
            assert [value[0] for value in values] == named
            assert buffer.codec in named

    def test_a_second_codec_is_asked_each_time(self) -> None:
        buffer = encoded([1])
        raw = buffer.decode("raw")
        assert raw == b"[1]"
        assert buffer.decode("raw") is not raw
        assert buffer.decode() == [1]

    def test_of_a_slice_is_its_own(self) -> None:
        buffer = encoded([[1], 2])
        assert buffer[1:4].codec is None
        assert buffer[1:4].decode("json") == [1]

    def test_wants_final_bytes(self) -> None:
        buffer = default_pool.allocate(3)
        buffer[:] = b"[1]"
        with pytest.raises(BufferError, match="freeze it first"):
            buffer.decode("json")
        assert buffer.freeze().decode("json") == [1]

    def test_ends_with_release(self) -> None:
        buffer = encoded([1])
        buffer.decode()
        buffer.release()
        with pytest.raises(BufferError, match="released"):
            buffer.decode()


class Value:
    """What can be watched going away."""


class Watched(Counting):
    """Decodes to Values that keep what they came from."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: list[weakref.ref[Value]] = []

    def decode(self, data: Any, /) -> Value:
        value = Value()
        value.data = data  # type: ignore[attr-defined]
        self.alive.append(weakref.ref(value))
        return value


class TestDecodedLifetime:
    @pytest.mark.parametrize(
        "drop", [lambda boxes: boxes.clear(), lambda boxes: boxes[0].release()]
    )
    def test_the_value_goes_with_the_buffer(
        self, drop: Callable[[list[Buffer]], None]
    ) -> None:
        live = default_pool.live
        codec = Watched()
        boxes = [encoded([1], codec)]
        boxes[0].decode()
        assert codec.alive[0]() is not None
        drop(boxes)
        assert codec.alive[0]() is None
        eventually(lambda: default_pool.live <= live)

    def test_the_value_outlives_the_last_use_if_released_meanwhile(self) -> None:
        codec = Watched()
        buffer = encoded([1], codec)
        buffer.decode()
        with memoryview(buffer):
            buffer.release()
            assert codec.alive[0]() is not None
        assert codec.alive[0]() is None

    def test_a_value_that_refers_to_its_buffer_is_collected(self) -> None:
        codec = Watched()

        def make_cycle() -> None:
            buffer = encoded([1], codec)
            buffer.decode().own = buffer

        make_cycle()
        assert codec.alive[0]() is not None
        gc.collect()
        assert codec.alive[0]() is None

    def test_a_codec_that_refers_to_its_buffers_is_collected(self) -> None:
        class Keeping(Counting):
            def __init__(self) -> None:
                super().__init__()
                self.kept: list[Buffer] = []

        def make_cycle() -> weakref.ref[Keeping]:
            codec = Keeping()
            codec.kept.append(encoded([1], codec))
            return weakref.ref(codec)

        alive = make_cycle()
        gc.collect()
        assert alive() is None

    def test_a_slice_that_is_in_the_value_is_collected(self) -> None:
        codec = Watched()

        def make_cycle() -> None:
            buffer = default_pool.allocate(8)
            part = buffer[2:4]  # refers to the whole, for it shares its writability
            buffer.freeze()
            buffer.decode(codec).part = part

        make_cycle()
        gc.collect()
        assert codec.alive[0]() is None

    def test_a_buffer_object_used_again_shows_no_old_value(self) -> None:
        first = encoded([1])
        assert first.decode() == [1]
        name = id(first)
        del first
        buffer = Buffer(b"[2]")
        assert id(buffer) == name  # this thread kept the object for its next Buffer
        assert buffer.codec is None
        assert buffer.decode("json") == [2]

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
    @pytest.mark.thread_unsafe(reason="a fork takes one thread along")
    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_a_fork_while_another_thread_decodes(self) -> None:
        class Slow(Counting):
            def decode(self, data: Any, /) -> Any:
                self.decoded.append(os.getpid())
                if self.decoded == [parent]:
                    assert go.wait(WAIT)
                return "value"

        parent = os.getpid()
        go = threading.Event()
        codec = Slow()
        buffer = encoded([1], codec)
        thread = threading.Thread(target=buffer.decode)
        thread.start()
        eventually(lambda: codec.decoded)
        child = os.fork()
        if child == 0:
            ok = False
            try:
                ok = buffer.decode() == "value"
            finally:
                os._exit(0 if ok else 1)
        _, status = os.waitpid(child, 0)
        go.set()
        thread.join(WAIT)
        assert os.waitstatus_to_exitcode(status) == 0

"""Serialize once: one encode per event, whoever asks."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from counting import VERBS, Counting, deliver
from dispatching import WAIT

from ftbus import Buffer, BufferPool, EventBus, HandlerErrors


class Failing(Counting):
    """Encodes nothing, and says so in its own way."""

    def encode(self, event: Any, /) -> Any:
        self.encoded.append(threading.get_ident())
        raise ZeroDivisionError("its own failure")


class Event:
    pass


class TestEncode:
    @VERBS
    def test_once_for_all_who_want_bytes_among_others(self, verb: str) -> None:
        codec = Counting()
        with EventBus(codec=codec, workers=2) as bus:
            seen: list[Any] = []
            for _ in range(5):
                bus.on("key", seen.append, encoded=True)
                bus.on("key", seen.append)
            event = {"x": [1, 2]}
            deliver(bus, verb, event)
            buffers = [item for item in seen if item is not event]
            assert len(seen) == 10
            assert len(buffers) == 5
            assert all(item is buffers[0] for item in buffers)
            assert buffers[0] == b'{"x":[1,2]}'
            assert len(codec.encoded) == 1
            assert bus.stats().topic("key").encoded == 1

    @VERBS
    def test_never_when_nobody_wants_bytes(self, verb: str) -> None:
        codec = Counting()
        with EventBus(codec=codec, workers=1) as bus:
            bus.on("key", lambda event: None)
            cancelled = bus.subscribe("key", lambda event: None, encoded=True)
            cancelled.cancel()
            deliver(bus, verb, object())
            deliver(bus, verb, Event())
            assert codec.encoded == []
            assert bus.stats().encoded == 0

    @VERBS
    @pytest.mark.parametrize("event", [b"raw", Buffer(b"frozen"), BufferPool])
    def test_bytes_and_buffers_pass_through_untouched(
        self, verb: str, event: Any
    ) -> None:
        if event is BufferPool:
            event = BufferPool().allocate(4)  # writable, and stays so
        codec = Counting()
        with EventBus(codec=codec, workers=1) as bus:
            seen: list[Any] = []
            bus.on("key", seen.append, encoded=True)
            deliver(bus, verb, event)
            assert seen[0] is event
            assert codec.encoded == []
            assert getattr(event, "codec", None) is None
            assert bus.stats().encoded == 0

    def test_emit_and_call_encode_in_the_thread_of_the_caller(self) -> None:
        codec = Counting()
        with EventBus(codec=codec, workers=1) as bus:
            bus.on("key", lambda event: None, encoded=True)
            bus.emit("key", [1])
            bus.call("key", [1]).result(WAIT)
            assert codec.encoded == [threading.get_ident()] * 2

    def test_post_encodes_in_the_worker_that_runs_the_handlers(self) -> None:
        codec = Counting()
        ran_in: list[int] = []
        with EventBus(codec=codec, workers=2) as bus:
            bus.on("key", lambda event: ran_in.append(threading.get_ident()))
            bus.on("key", lambda event: None, encoded=True)
            bus.post("key", [1])
            assert bus.drain(WAIT)
            assert codec.encoded == ran_in != [threading.get_ident()]

    def test_handlers_of_one_call_on_different_workers_share_it(self) -> None:
        codec = Counting()
        meet = threading.Barrier(2)

        def handler(event: Buffer) -> tuple[int, Buffer]:
            meet.wait(WAIT)  # so each has a worker of its own
            return threading.get_ident(), event

        with EventBus(codec=codec, workers=2) as bus:
            for _ in range(2):
                bus.on("key", handler, encoded=True)
            (one, first), (two, second) = bus.call("key", [1]).result(WAIT)
            assert one != two
            assert first is second
            assert len(codec.encoded) == 1
            del first, second

    def test_every_base_of_a_class_shares_it(self) -> None:
        class Base:
            pass

        class Derived(Base):
            pass

        class Constant(Counting):
            def encode(self, event: Any, /) -> bytes:
                return b"bytes"

        seen: list[Any] = []
        with EventBus(codec=Constant()) as bus:
            bus.on(Base, seen.append, encoded=True)
            bus.on(Derived, seen.append, encoded=True)
            assert bus.emit(Derived()) == 2
            assert seen[0] is seen[1]
            assert bus.stats().encoded == 1
            seen.clear()


class TestEncodingFailure:
    def test_of_emit_is_raised_there_once_for_each_who_wanted_bytes(self) -> None:
        codec = Failing()
        with EventBus(codec=codec) as bus:
            seen: list[Any] = []
            for _ in range(3):
                bus.on("key", seen.append, encoded=True)
            bus.on("key", seen.append)
            event = Event()
            with pytest.raises(HandlerErrors) as caught:
                bus.emit("key", event)
            assert len(codec.encoded) == 1
            assert len(caught.value.exceptions) == 3
            assert all(e is caught.value.exceptions[0] for e in caught.value.exceptions)
            first = caught.value.exceptions[0]
            assert isinstance(first, ZeroDivisionError)
            assert (
                first.__notes__[0]
                == "ftbus: encoding an event of type Event for key 'key'"
            )
            assert seen == [event]
            assert bus.stats().failed == 3
            assert bus.stats().encoded == 0

    def test_of_call_is_raised_by_call_itself(self) -> None:
        codec = Failing()
        with EventBus(codec=codec, workers=1) as bus:
            ran: list[Any] = []
            bus.on("key", ran.append)
            bus.once("key", ran.append, encoded=True)
            with pytest.raises(ZeroDivisionError) as caught:
                bus.call("key", Event())
            assert caught.value.__notes__ == [
                "ftbus: encoding an event of type Event for key 'key'"
            ]
            assert bus.drain(WAIT)
            assert ran == []
            bus.emit("key", b"raw")
            assert ran == [b"raw", b"raw"]  # the once-handler was given back

    def test_of_post_goes_to_the_error_hook_with_key_and_type(self) -> None:
        codec = Failing()
        told: list[tuple[BaseException, object, object]] = []

        def on_error(error: BaseException, key: object, handler: object) -> None:
            told.append((error, key, handler))

        with EventBus(codec=codec, workers=1, on_error=on_error) as bus:
            ran: list[Any] = []
            bus.on("key", ran.append, encoded=True)
            bus.on("key", ran.append)
            event = Event()
            bus.post("key", event)
            assert bus.drain(WAIT)
            ((error, key, handler),) = told
            assert isinstance(error, ZeroDivisionError)
            assert key == "key"
            assert handler == ran.append
            assert error.__notes__ == [
                "ftbus: encoding an event of type Event for key 'key'"
            ]
            assert ran == [event]
            told.clear()

    def test_an_interrupt_while_encoding_goes_up(self) -> None:
        class Interrupted(Counting):
            def encode(self, event: Any, /) -> Any:
                raise KeyboardInterrupt

        with EventBus(codec=Interrupted()) as bus:
            bus.on("key", lambda event: None, encoded=True)
            with pytest.raises(KeyboardInterrupt):
                bus.emit("key", [1])

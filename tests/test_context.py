"""Context variables: what handlers on the workers see of who posts or calls."""

import asyncio
import gc
import weakref
from collections.abc import Callable
from contextvars import Context, ContextVar
from typing import Any

import pytest
from dispatching import WAIT, Gate, check_conservation, held_bus

from ftbus import EventBus, InvalidOptionError
from ftbus.testing import run_threads

variable: ContextVar[Any] = ContextVar("variable", default="unset")
other: ContextVar[Any] = ContextVar("other", default="unset")

Post = Callable[..., Any]


def posts(bus: EventBus) -> dict[str, Post]:
    """Return every way to queue one event for "key"."""
    topic = bus.topic("key")
    return {
        "post": lambda **options: bus.post("key", 1, **options),
        "topic.post": lambda **options: topic.post(1, **options),
        "partition": lambda **options: bus.post("key", 1, partition="p", **options),
        "post_many": lambda **options: bus.post_many("key", [1], **options),
        "many.partition": lambda **options: topic.post_many(
            [1], partition=str, **options
        ),
        "call": lambda **options: bus.call("key", 1, **options).result(WAIT),
        "topic.call": lambda **options: topic.call(1, **options).result(WAIT),
    }


WAYS = ["post", "topic.post", "partition", "post_many", "many.partition", "call"]
WAYS += ["topic.call"]


@pytest.mark.parametrize("way", WAYS)
def test_handlers_see_what_the_poster_has_set(way: str) -> None:
    with EventBus(workers=1) as bus:
        seen: list[Any] = []
        bus.on("key", lambda event: seen.append((event, variable.get())))
        post = posts(bus)[way]

        def set_and_post(value: object) -> None:
            variable.set(value)
            post()
            variable.set("too late")

        Context().run(post)
        Context().run(set_and_post, "a")
        Context().run(set_and_post, "b")
        Context().run(post)
        assert bus.drain(WAIT)
        assert seen == [(1, "unset"), (1, "a"), (1, "b"), (1, "unset")]


@pytest.mark.parametrize("way", WAYS)
def test_context_that_was_chosen(way: str) -> None:
    with EventBus(workers=1) as bus:
        seen: list[Any] = []

        @bus.on("key")
        def handler(event: object) -> None:
            seen.append((variable.get(), other.get()))
            variable.set("changed")

        post = posts(bus)[way]
        chosen, empty = Context(), Context()
        chosen.run(variable.set, "chosen")

        def set_and_post() -> None:
            variable.set("mine")
            other.set("mine")
            post(context=chosen)
            post(context=empty)
            post(context=None)

        Context().run(set_and_post)
        assert bus.drain(WAIT)
        assert seen[0] == ("chosen", "unset")
        assert seen[1] == ("unset", "unset")
        assert seen[2] == ("mine", "mine")
        assert chosen[variable] == "chosen"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("context", [5, "context", {}])
def test_what_is_no_context_is_refused(way: str, context: Any) -> None:
    with EventBus(workers=1) as bus:
        seen: list[object] = []
        bus.on("key", seen.append)
        with pytest.raises(InvalidOptionError) as caught:
            posts(bus)[way](context=context)
        assert caught.value.option == "context"
        assert caught.value.value is context
        with pytest.raises(InvalidOptionError):
            bus.executor(context=context)
        assert bus.stats().posted == 0
        assert seen == []


def test_handlers_of_one_event_share_a_copy_and_the_next_gets_a_new_one() -> None:
    with EventBus(workers=1) as bus:
        seen: list[Any] = []

        def handler(event: object) -> None:
            seen.append(variable.get())
            variable.set("from a handler")

        bus.on("key", handler)
        bus.on("key", lambda event: handler(event))

        def post() -> None:
            variable.set("mine")
            bus.post_many("key", range(2))

        Context().run(post)
        assert bus.drain(WAIT)
        assert seen == ["mine", "from a handler"] * 2


def test_handlers_of_a_call_run_at_once_each_in_its_own_copy() -> None:
    with EventBus(workers=3) as bus:
        gates = [Gate() for _ in range(3)]
        for gate in gates:

            def handler(event: object, gate: Gate = gate) -> object:
                gate(event)
                was = variable.get()
                variable.set("changed")
                return was

            bus.on("key", handler)

        def call() -> Any:
            variable.set("mine")
            return bus.call("key")

        future = Context().run(call)
        for gate in gates:
            gate.wait_entered()
        for gate in gates:
            gate.open()
        assert future.result(WAIT) == ["mine"] * 3


def test_executor_with_a_context_of_its_own() -> None:
    with EventBus(workers=2) as bus:
        context = Context()
        context.run(variable.set, "chosen")
        executor = bus.executor(context=context)
        context.run(variable.set, "set later")

        def function() -> tuple[Any, Any]:
            seen = variable.get()
            variable.set("own")  # in a copy: no other function sees it
            return seen, other.get()

        mine = Context()
        mine.run(other.set, "of who submits")
        for _ in range(5):
            future = mine.run(executor.submit, function)
            assert future.result(WAIT) == ("chosen", "unset")
        assert list(executor.map(lambda n: variable.get(), range(2))) == ["chosen"] * 2
        assert mine.get(other) == "of who submits"


def test_executor_and_acall_carry_the_context() -> None:
    with EventBus(workers=1) as bus, bus.executor() as executor:
        bus.on("key", lambda event: variable.get())

        async def main() -> Any:
            variable.set("mine")
            return await bus.acall("key")

        assert asyncio.run(main()) == ["mine"]
        context = Context()
        context.run(variable.set, "mine")
        assert context.run(executor.submit, variable.get).result(WAIT) == "mine"
        assert executor.submit(variable.get).result(WAIT) == "unset"
        assert (
            list(context.run(executor.map, lambda n: variable.get(), "ab"))
            == ["mine"] * 2
        )


@pytest.mark.parametrize("verb", ["emit", "post", "call"])
def test_async_handlers_run_in_the_context_of_their_event(verb: str) -> None:
    with EventBus(workers=1) as bus:
        seen: list[Any] = []

        async def main() -> None:
            done = asyncio.Event()

            @bus.on("key")
            async def handler(event: object) -> None:
                seen.append((event, variable.get()))
                variable.set("changed")
                await asyncio.sleep(0)
                if len(seen) == 3:
                    done.set()

            def send(event: object, value: str | None) -> None:
                if value is not None:
                    variable.set(value)
                getattr(bus, verb)("key", event)

            Context().run(send, 1, "a")
            Context().run(send, 2, None)
            Context().run(send, 3, "b")
            await asyncio.wait_for(done.wait(), WAIT)

        asyncio.run(main())
        assert bus.drain(WAIT)
        assert sorted(seen) == [(1, "a"), (2, "unset"), (3, "b")]


def test_what_a_waiting_handler_runs_does_not_see_its_context() -> None:
    with EventBus(workers=1) as bus, bus.executor() as executor:
        seen: list[Any] = []
        bus.on("inner", lambda event: seen.append((event, variable.get())))
        gate = Gate()
        bus.on("gate", gate)
        bus.post("gate")
        gate.wait_entered()
        outside = executor.submit(lambda: seen.append(("job", variable.get())))
        bus.post("inner", "event")

        @bus.on("outer")
        def outer(event: object) -> None:
            variable.set("outer")
            outside.result(WAIT)
            bus.drain(WAIT)
            Context().run(bus.call, "inner", "empty").result(WAIT)
            bus.call("inner", "mine").result(WAIT)
            seen.append(("outer", variable.get()))

        future = bus.call("outer")
        gate.open()
        assert future.result(WAIT) == [None]
        assert sorted(seen) == [
            ("empty", "unset"),
            ("event", "unset"),
            ("job", "unset"),
            ("mine", "outer"),
            ("outer", "outer"),
        ]


def test_values_are_let_go_with_the_event() -> None:
    class Value:
        pass

    for drop in (False, True):
        with held_bus(queue_size=4, overflow="drop_newest") as (bus, gate):
            value = Value()
            gone = weakref.ref(value)
            context = Context()
            context.run(variable.set, value)
            bus.post_many("key", range(8), context=context)
            del value, context
            gc.collect()
            assert gone() is not None
            if not drop:
                gate.open()
                assert bus.drain(WAIT)
            else:
                assert bus.close(drain=False, timeout=0) == 5
                gate.open()
                bus.close()
            gc.collect()
            assert gone() is None
            check_conservation(bus.stats())


def test_contexts_of_many_posters_do_not_mix() -> None:
    with EventBus(workers=3) as bus:
        wrong: list[Any] = []

        @bus.on("key")
        def handler(event: tuple[int, int]) -> None:
            if variable.get() != event:
                wrong.append((event, variable.get()))

        def post(index: int) -> None:
            for n in range(500):
                variable.set((index, n))
                bus.post("key", (index, n), partition=n % 3 if n % 2 else None)

        run_threads(3, post)
        assert bus.drain(WAIT)
        assert wrong == []
        check_conservation(bus.stats())


def test_handler_that_fails_leaves_its_context() -> None:
    errors: list[BaseException] = []
    with EventBus(workers=1, on_error=lambda e, k, h: errors.append(e)) as bus:
        seen: list[Any] = []

        @bus.on("key")
        def handler(event: type[BaseException]) -> None:
            raise event

        bus.on("look", lambda event: seen.append(variable.get()))
        context = Context()
        context.run(variable.set, "mine")
        for kind in (ValueError, SystemExit):
            bus.post("key", kind, context=context)
            bus.post("look")
        assert bus.drain(WAIT)
        assert seen == ["unset"] * 2
        assert [type(error) for error in errors] == [ValueError, SystemExit]

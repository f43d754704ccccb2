"""Faults: context variables of whoever starts the workers, or posts, or fails.

Hunts for a worker that keeps the context of its first poster, for a value that is seen
by an event of another, and for one that outlives its events.
Mutants: py-context-not-left.
"""

import contextvars
import gc
import random
import threading
import weakref

from stressing import WAIT, assert_conserved, fresh_seed, scaled

from ftbus import EventBus
from ftbus.testing import eventually, run_threads

UNSET = "unset"
who: contextvars.ContextVar[object] = contextvars.ContextVar("who", default=UNSET)


class Value:
    """Can be watched dying, which a str cannot."""


def test_values_of_posters_never_mix_and_are_let_go(seed: int) -> None:
    drawn = fresh_seed(seed)
    references: list[weakref.ref[Value]] = []
    wrong: list[object] = []
    lock = threading.Lock()
    with EventBus(workers=3, queue_size=128) as bus:

        def check(event: object) -> None:
            if who.get() is not event:
                wrong.append((who.get(), event))
            if isinstance(event, Value):  # without variables, it would be the worker's
                who.set("left behind by a handler")
                if id(event) % 5 == 0:
                    raise ValueError("on purpose")

        def on_error(error: BaseException, key: object, handler: object) -> None:
            pass

        bus._on_error = on_error
        bus.on("key", check)

        def work(index: int) -> None:
            random_ = random.Random(drawn + index)
            for number in range(scaled(500)):
                value = Value() if number % 2 else UNSET
                if isinstance(value, Value):
                    with lock:
                        references.append(weakref.ref(value))
                context = contextvars.Context()
                if isinstance(value, Value):
                    context.run(who.set, value)
                verb = random_.choice(["post", "call", "explicit"])
                if verb == "explicit":
                    bus.post("key", value, context=context)
                elif verb == "post":
                    context.run(bus.post, "key", value, partition=number % 4)
                else:
                    context.run(bus.call, "key", value)

        # The first poster, whose context starts the workers, has set it too.
        first = Value()
        references.append(weakref.ref(first))
        context = contextvars.Context()
        context.run(who.set, first)
        context.run(bus.post, "key", first)
        del first, context
        run_threads(4, work)
        assert bus.drain(WAIT)
        assert wrong == []
        assert_conserved(bus)
        gc.collect()
        eventually(lambda: all(each() is None for each in references), 30)
    assert who.get() is UNSET

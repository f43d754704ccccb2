"""The bus against a model of it: one worker, every step at rest before the next."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from dispatching import WAIT
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    precondition,
    rule,
)

from ftbus import BusClosedError, EventBus, HandlerErrors, Key, Subscription


class Animal:
    pass


class Bird(Animal):
    pass


class Penguin(Bird):
    pass


CLASSES: list[type] = [Animal, Bird, Penguin]
KEYS: list[Any] = ["a", b"a", 97, Key("b"), *CLASSES]
keys = st.sampled_from(KEYS)
events = st.integers(0, 3)


@dataclass
class Model:
    """What a handler should be: where it stands, and what it has seen."""

    key: Any
    priority: int
    age: int
    is_once: bool
    fails_on: int | None
    seen: list[Any] = field(default_factory=list)
    is_active: bool = True

    def call(self, event: Any) -> Any:
        self.seen.append(event)
        if event == self.fails_on:
            raise ValueError(self.age)
        return self.age


class BusMachine(RuleBasedStateMachine):
    """Run the same steps on a bus and on lists."""

    subscriptions: Bundle[tuple[Model, Subscription]] = Bundle("subscriptions")

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[Any] = []
        self.bus = EventBus(workers=1, on_error=lambda *args: self.errors.append(args))
        self.handlers: list[Model] = []
        self.expected: dict[int, list[Any]] = {}
        self.counters: Counter[str] = Counter()
        self.age = 0

    # The model

    def matching(self, key: Any) -> list[Model]:
        """Return the handlers that an event of the key reaches, in order."""
        names = key.__mro__ if isinstance(key, type) else (key,)
        found = []
        for name in names:
            own = [h for h in self.handlers if h.is_active and h.key is name]
            found += sorted(own, key=lambda h: (-h.priority, h.age))
        return found

    def deliver(self, key: Any, event: Any) -> list[Model]:
        """Let the model's handlers see the event; return which."""
        reached = self.matching(key)
        for handler in reached:
            self.expected[handler.age].append(event)
            handler.is_active = not handler.is_once
        failed = sum(event == handler.fails_on for handler in reached)
        self.counters.update(handled=len(reached), failed=failed)
        return reached

    def failures(self, reached: list[Model], event: Any) -> list[int]:
        return [handler.age for handler in reached if event == handler.fails_on]

    # The steps

    @precondition(lambda self: not self.bus.closed)
    @rule(
        target=subscriptions,
        key=keys,
        priority=st.integers(-1, 1),
        is_once=st.booleans(),
        fails_on=st.none() | events,
    )
    def subscribe(
        self, key: Any, priority: int, is_once: bool, fails_on: int | None
    ) -> tuple[Model, Subscription]:
        self.age += 1
        handler = Model(key, priority, self.age, is_once, fails_on)
        subscription = self.bus.subscribe(
            key, handler.call, priority=priority, once=is_once
        )
        self.handlers.append(handler)
        self.expected[handler.age] = []
        return handler, subscription

    @rule(pair=subscriptions, wait=st.booleans())
    def cancel(self, pair: tuple[Model, Subscription], wait: bool) -> None:
        handler, subscription = pair
        assert subscription.cancel(wait=wait) == handler.is_active
        handler.is_active = False

    @rule(pair=consumes(subscriptions))
    def forget_the_subscription(self, pair: tuple[Model, Subscription]) -> None:
        """Which does not cancel it."""

    @rule(key=keys)
    def off_all(self, key: Any) -> None:
        own = [h for h in self.handlers if h.is_active and h.key is key]
        assert self.bus.off(key) == len(own)
        for handler in own:
            handler.is_active = False

    @rule(pair=subscriptions)
    def off_one(self, pair: tuple[Model, Subscription]) -> None:
        handler, _ = pair
        assert self.bus.off(handler.key, handler.call) == handler.is_active
        handler.is_active = False

    @rule(key=keys, event=events, is_by_topic=st.booleans())
    def emit(self, key: Any, event: int, is_by_topic: bool) -> None:
        emit = self.bus.topic(key).emit if is_by_topic else None
        try:
            ran = emit(event) if emit else self.bus.emit(key, event)
        except BusClosedError:
            assert self.bus.closed
            return
        except HandlerErrors as group:
            reached = self.deliver(key, event)
            assert group.ran == len(reached)
            ages = [error.args[0] for error in group.exceptions]
            assert ages == self.failures(reached, event)
            assert ages
        else:
            assert not self.bus.closed
            reached = self.deliver(key, event)
            assert ran == len(reached)
            assert self.failures(reached, event) == []
        self.counters["emitted"] += 1

    @rule(kind=st.sampled_from(CLASSES))
    def emit_instance(self, kind: type) -> None:
        event = kind()
        try:
            ran = self.bus.emit(event)
        except BusClosedError:
            assert self.bus.closed
            return
        assert ran == len(self.deliver(kind, event))
        self.counters["emitted"] += 1

    @rule(key=keys, batch=st.lists(events, max_size=4))
    def emit_many(self, key: Any, batch: list[int]) -> None:
        """One after the other, up to the first that fails."""
        raised: list[int] = []
        ran = 0
        try:
            ran = self.bus.emit_many(key, batch)
        except BusClosedError:
            assert self.bus.closed
            return
        except HandlerErrors as group:
            raised = [error.args[0] for error in group.exceptions]
        expected = 0
        for event in batch:
            reached = self.deliver(key, event)
            expected += len(reached)
            self.counters["emitted"] += 1
            if failures := self.failures(reached, event):
                assert raised == failures
                return
        assert (raised, ran) == ([], expected)

    @rule(
        key=keys,
        batch=st.lists(events, max_size=4),
        partition=st.sampled_from([None, "p", 1]),
        way=st.sampled_from(["post", "urgent", "post_many", "by event"]),
    )
    def post(self, key: Any, batch: list[int], partition: Any, way: str) -> None:
        before = len(self.errors)
        try:
            if way == "post":
                for event in batch:
                    assert self.bus.post(key, event, partition=partition)
            elif way == "urgent":
                for event in batch:
                    assert self.bus.post(key, event, urgent=True)
            else:
                of_each = (lambda event: event % 2) if way == "by event" else partition
                posted = self.bus.post_many(key, batch, partition=of_each)
                assert posted == len(batch)
        except BusClosedError as error:
            assert self.bus.closed
            assert error.doing == "post"
            return
        assert self.bus.drain(WAIT)
        assert not self.bus.closed or not batch
        failures = []
        for event in batch:
            failures += self.failures(self.deliver(key, event), event)
        told = [error.args[0] for error, _, _ in self.errors[before:]]
        if way == "by event":  # the partitions have no order among them
            told.sort()
            failures.sort()
        assert told == failures
        self.counters.update(posted=len(batch), delivered=len(batch))

    @rule(key=keys, event=events)
    def call(self, key: Any, event: int) -> None:
        try:
            future = self.bus.call(key, event)
        except BusClosedError:
            assert self.bus.closed
            return
        try:
            results = future.result(WAIT)
        except HandlerErrors as group:
            reached = self.deliver(key, event)
            ages = [error.args[0] for error in group.exceptions]
            assert ages == self.failures(reached, event)
        else:
            reached = self.deliver(key, event)
            assert results == [handler.age for handler in reached]
        assert self.bus.drain(WAIT)
        self.counters.update(posted=len(reached), delivered=len(reached))

    @rule()
    def drain(self) -> None:
        assert self.bus.drain(WAIT)

    @rule(drain=st.booleans())
    def close(self, drain: bool) -> None:
        assert self.bus.close(drain=drain, timeout=WAIT) == 0
        for handler in self.handlers:
            handler.is_active = False

    # What always holds

    @invariant()
    def handlers_saw_what_they_should(self) -> None:
        for handler in self.handlers:
            assert handler.seen == self.expected[handler.age]

    @invariant()
    def counters_are_exact(self) -> None:
        stats = self.bus.stats()
        for name in ("emitted", "delivered", "handled", "failed"):
            assert getattr(stats, name) == self.counters[name], name
        assert stats.posted - stats.rejected == self.counters["posted"]
        assert stats.dropped == stats.pending == 0
        active = sum(handler.is_active for handler in self.handlers)
        assert sum(row.handlers for row in stats.topics) == active

    def teardown(self) -> None:
        self.bus.close()


TestBusMachine = BusMachine.TestCase
TestBusMachine.settings = settings(max_examples=60, stateful_step_count=30)
TestBusMachine = pytest.mark.thread_unsafe(reason="one machine at a time")(
    TestBusMachine
)

"""Guarantee: the map answers as one thread would; once and cancel have one winner.

Hunts for a value that is read after it was replaced, for two threads that both win a
setdefault, a pop or a replace, and for a once-handler and its cancellation that both
claim, or neither. The search is itself tested with histories that are known to be bad.
Mutants: py-map-replace-unchecked, py-once-claimed-twice.
"""

import random
import threading
from typing import Any

import pytest
from linearizability import Call, Recorder, is_linearizable
from stressing import WAIT, fresh_seed, scaled

from ftbus import EventBus, StripedMap
from ftbus.testing import run_threads

ABSENT = "absent"


def answer_as_map(state: Any, name: str, argument: Any) -> tuple[Any, Any]:
    """One key of a map."""
    match name:
        case "get":
            return state, state
        case "contains":
            return state, state != ABSENT
        case "set":
            return argument, None
        case "pop":
            return ABSENT, state
        case "delete":
            return ABSENT, state != ABSENT
        case "setdefault":
            return (argument, argument) if state == ABSENT else (state, state)
        case "replace":
            old, new = argument
            return (new, True) if state == old else (state, False)
        case "add":
            after = argument + (0 if state == ABSENT else state)
            return after, after
    raise AssertionError(name)


def call(m: StripedMap[int, Any], key: int, name: str, argument: Any) -> Any:
    """Make the call on the map; return the result as the model gives it."""
    match name:
        case "get":
            return m.get(key, ABSENT)
        case "contains":
            return key in m
        case "set":
            m[key] = argument
            return None
        case "pop":
            return m.pop(key, ABSENT)
        case "delete":
            try:
                del m[key]
            except KeyError:
                return False
            return True
        case "setdefault":
            return m.setdefault(key, argument)
        case "replace":
            return m.replace(key, *argument)
        case "add":
            return m.update_with(key, lambda old: old + argument, 0)
    raise AssertionError(name)


NAMES = ["get", "contains", "set", "pop", "delete", "setdefault", "replace", "add"]


@pytest.mark.parametrize("keys", [1, 40], ids=["one key", "many keys"])
def test_histories_of_the_map(keys: int, seed: int) -> None:
    drawn = fresh_seed(seed)
    calls_n = 0
    for turn in range(scaled(60)):
        recorder = Recorder()
        m: StripedMap[int, Any] = StripedMap()

        def work(index: int) -> None:
            random_ = random.Random(f"{drawn} {turn} {index}")
            record = recorder.thread()
            for number in range(8 if keys == 1 else 160):
                key = number % keys
                name = random_.choice(NAMES)
                argument: Any = random_.randrange(3)
                if name == "replace":
                    argument = (argument, random_.randrange(3))
                record(key, name, argument, lambda: call(m, key, name, argument))
            recorder.add(record.calls)

        run_threads(4, work)
        assert recorder.failures(answer_as_map, ABSENT) == []
        assert m._is_valid()
        calls_n += len(recorder)
    print(f"{calls_n} calls explained")


def answer_as_once(state: Any, name: str, argument: Any) -> tuple[Any, Any]:
    """One once-handler: subscribed, then run by one, or cancelled by one."""
    if name == "state":
        return state, state == "active"
    # emit, post: whether it ran; cancel, off: whether it was this that ended it.
    return ("over", True) if state == "active" else (state, False)


@pytest.mark.parametrize("verb", ["emit", "post"])
def test_histories_of_once_and_cancel(verb: str, seed: int) -> None:
    """Of all that race for one handler exactly one wins, and it is the first.

    Not so with a call, which reserves the handler before it runs it and may be kept
    from it by a cancel: others have passed the handler by in between.
    """
    drawn = fresh_seed(seed)
    with EventBus(workers=2) as bus:
        for turn in range(scaled(150)):
            recorder = Recorder()
            winner: list[int] = []
            subscription = bus.subscribe("key", winner.append, once=True)

            def reach(index: int) -> bool:
                if verb == "emit":
                    bus.emit("key", index)
                else:
                    bus.post("key", index)
                    bus.drain(WAIT)
                return index in winner

            def work(index: int) -> None:
                random_ = random.Random(f"{drawn} {turn} {index}")
                record = recorder.thread()
                for _ in range(2):
                    name = random_.choice([verb, verb, "cancel", "off", "state"])
                    if name == "cancel":
                        record(0, name, None, subscription.cancel)
                    elif name == "off":
                        record(0, name, None, lambda: bus.off("key") == 1)
                    elif name == "state":
                        record(0, name, None, lambda: subscription.active)
                    elif index not in winner:
                        record(0, name, None, lambda: reach(index))
                recorder.add(record.calls)

            run_threads(4, work)
            assert len(winner) <= 1
            assert recorder.failures(answer_as_once, "active") == [], verb
            bus.off("key")


# The search itself


def calls(*rows: tuple[str, Any, Any, int, int]) -> list[Call]:
    return [Call(*row) for row in rows]


GOOD_HISTORIES = {
    "one after another": calls(("set", 1, None, 0, 1), ("get", None, 1, 2, 3)),
    "read beside the write": calls(("set", 1, None, 0, 3), ("get", None, 1, 1, 2)),
    "read before the write": calls(("set", 1, None, 0, 3), ("get", None, ABSENT, 1, 2)),
    "either order of writes": calls(
        ("set", 1, None, 0, 3), ("set", 2, None, 1, 2), ("get", None, 1, 4, 5)
    ),
    "a pop beside two writes": calls(
        ("set", 1, None, 0, 9),
        ("set", 2, None, 1, 8),
        ("pop", None, 2, 2, 7),
        ("pop", None, 1, 3, 6),
        ("get", None, ABSENT, 10, 11),
    ),
}
BAD_HISTORIES = {
    "a value from nowhere": calls(("get", None, 5, 0, 1)),
    "stale read": calls(("set", 1, None, 0, 1), ("get", None, ABSENT, 2, 3)),
    "lost write": calls(
        ("set", 1, None, 0, 1), ("set", 2, None, 2, 3), ("get", None, 1, 4, 5)
    ),
    "popped twice": calls(
        ("set", 1, None, 0, 1), ("pop", None, 1, 2, 5), ("pop", None, 1, 3, 4)
    ),
    "two first ones": calls(("setdefault", 1, 1, 0, 3), ("setdefault", 2, 2, 1, 2)),
    "replaced twice": calls(
        ("set", 0, None, 0, 1),
        ("replace", (0, 1), True, 2, 5),
        ("replace", (0, 2), True, 3, 4),
    ),
    "lost update": calls(("add", 1, 1, 0, 3), ("add", 1, 1, 1, 2)),
    "back in time": calls(
        ("set", 1, None, 0, 1),
        ("set", 2, None, 2, 7),
        ("get", None, 2, 3, 4),
        ("get", None, 1, 5, 6),
    ),
}


@pytest.mark.parametrize("history", GOOD_HISTORIES.values(), ids=GOOD_HISTORIES.keys())
def test_search_accepts(history: list[Call]) -> None:
    assert is_linearizable(history, answer_as_map, ABSENT)


@pytest.mark.parametrize("history", BAD_HISTORIES.values(), ids=BAD_HISTORIES.keys())
def test_search_rejects(history: list[Call]) -> None:
    assert not is_linearizable(history, answer_as_map, ABSENT)


def test_search_of_calls_that_all_overlap_ends() -> None:
    """By the memory: without it, 12 calls have 479 million orders."""
    history = calls(*(("set", n % 3, None, n, 1000 + n) for n in range(12)))
    assert is_linearizable(history, answer_as_map, ABSENT)
    history.append(Call("get", None, 7, 2000, 2001))
    assert not is_linearizable(history, answer_as_map, ABSENT)


def test_search_rejects_what_a_map_without_locks_answers() -> None:
    """A real history: a setdefault made of a look and a write, met between the two."""
    naive: dict[int, int] = {}
    recorder = Recorder()
    meeting = threading.Barrier(2)

    def setdefault(value: int) -> int:
        found = naive.get(0)
        meeting.wait(WAIT)
        if found is None:
            naive[0] = value
            return value
        return found

    def work(index: int) -> None:
        record = recorder.thread()
        record(0, "setdefault", index, lambda: setdefault(index))
        recorder.add(record.calls)

    run_threads(2, work)
    assert len(recorder.failures(answer_as_map, ABSENT)) == 1

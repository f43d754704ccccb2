"""StripedMap does what a dict does."""

import collections
import copy
import enum
import pickle
import typing
from collections.abc import Callable, Hashable, MutableMapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ftbus import Key, StripedMap


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Number(enum.IntEnum):
    ONE = 1


class Tag:
    """A class that is a key."""


KEYS: list[Hashable] = [
    "",
    "a",
    "player.moved",
    "a rather long key, longer than what fits into its entry",
    "grün",
    "\N{SNOWMAN}",
    b"",
    b"a",
    bytes(range(256)),
    0,
    1,
    -1,
    2**63 - 1,
    -(2**63),
    Colour.RED,
    Number.ONE,
    Tag,
    int,
    Key("a key"),
    Key(7),
]
# Keys of equal kind and value are one; these are all different.
DISTINCT = KEYS

# What a dict does


def test_is_a_mutable_mapping() -> None:
    assert issubclass(StripedMap, MutableMapping)
    assert isinstance(StripedMap(), MutableMapping)


@pytest.mark.parametrize("key", KEYS, ids=lambda key: type(key).__name__)
def test_keeps_every_kind_of_key(key: Hashable) -> None:
    m: StripedMap[Any, Any] = StripedMap()
    assert key not in m
    m[key] = "one"
    assert m[key] == "one"
    assert key in m
    m[key] = "two"
    assert m.get(key) == "two"
    assert list(m) == [key]
    assert next(iter(m)) is key
    del m[key]
    assert key not in m
    assert len(m) == 0


def test_kinds_are_apart() -> None:
    m: StripedMap[Any, int] = StripedMap((key, i) for i, key in enumerate(DISTINCT))
    assert len(m) == len(DISTINCT)
    assert [m[key] for key in DISTINCT] == list(range(len(DISTINCT)))


def test_a_key_object_and_its_value_are_one_key() -> None:
    m = StripedMap({"a": 1, 2: 2})
    assert m[Key("a")] == 1
    assert m[Key(2)] == 2
    m[Key("a")] = 3
    assert list(m.items()) in ([("a", 3), (2, 2)], [(2, 2), ("a", 3)])
    assert all(not isinstance(key, Key) for key in m)


def test_constructors() -> None:
    expected = {"a": 1, "b": 2}
    assert StripedMap() == {}
    assert StripedMap(expected) == expected
    assert StripedMap(StripedMap(expected)) == expected
    assert StripedMap([("a", 1), ("b", 2)]) == expected
    assert StripedMap(iter(expected.items())) == expected
    assert StripedMap(a=1, b=2) == expected
    assert StripedMap({"a": 0}, a=1, b=2) == expected
    assert StripedMap([("a", 0)], a=1, b=2) == expected
    assert StripedMap(collections.ChainMap({"a": 1}, {"b": 2})) == expected
    assert StripedMap(self=1, other=2) == {"self": 1, "other": 2}
    assert StripedMap.fromkeys("ab", 0) == {"a": 0, "b": 0}
    assert StripedMap.fromkeys("ab") == {"a": None, "b": None}


@pytest.mark.parametrize("other", [1, [1], ["abc"], None])
def test_constructor_refuses(other: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        StripedMap(other)


def test_missing_keys() -> None:
    m: StripedMap[Any, int] = StripedMap()
    for operation in (m.__getitem__, m.__delitem__, m.pop):
        with pytest.raises(KeyError) as caught:
            operation(Tag)
        assert caught.value.args == (Tag,)
    assert m.get("a") is None
    assert m.get("a", 5) == 5
    assert m.pop("a", 5) == 5
    with pytest.raises(KeyError, match="empty"):
        m.popitem()


def test_a_missing_key_that_is_an_exception() -> None:
    class FaultError(ValueError, enum.Enum):
        DISK = "disk"

    with pytest.raises(KeyError) as caught:
        StripedMap[Any, int]()[FaultError.DISK]
    assert caught.value.args == (FaultError.DISK,)


def test_wrong_numbers_of_arguments() -> None:
    m: Any = StripedMap(a=1)
    for call in (
        lambda: m.get(),
        lambda: m.get("a", 1, 2),
        lambda: m.pop(),
        lambda: m.setdefault("a", 1, 2),
        lambda: m.replace("a", 1),
        lambda: m.update_with("a"),
        lambda: m.update_with("a", int, 1, 2),
        lambda: m.update_with("a", int, nothing=1),
        lambda: type(m)({}, {}),
    ):
        with pytest.raises(TypeError):
            call()
    assert m == {"a": 1}


def test_setdefault_and_pop() -> None:
    m: StripedMap[str, Any] = StripedMap()
    assert m.setdefault("a", 1) == 1
    assert m.setdefault("a", 2) == 1
    assert m.setdefault("b") is None
    assert m.pop("a") == 1
    assert m == {"b": None}


def test_popitem_empties() -> None:
    expected = {str(i): i for i in range(500)}
    m = StripedMap(expected)
    popped = dict(m.popitem() for _ in range(500))
    assert popped == expected
    assert not m


def test_update() -> None:
    m: StripedMap[Any, Any] = StripedMap(a=1)
    m.update({"b": 2})
    m.update([("c", 3)], d=4)
    m.update(StripedMap(e=5))
    m.update(collections.UserDict(f=6))
    m.update(a=0)
    m.update()
    assert m == {"a": 0, "b": 2, "c": 3, "d": 4, "e": 5, "f": 6}


def test_operators() -> None:
    m = StripedMap(a=1, b=1)
    assert (m | {"b": 2}) == {"a": 1, "b": 2}
    assert type(m | {}) is StripedMap
    merged: Any = {"b": 2, "c": 2} | m
    assert type(merged) is StripedMap
    assert merged == {"a": 1, "b": 1, "c": 2}
    same = m
    m |= [("c", 3)]
    assert m is same
    assert m == {"a": 1, "b": 1, "c": 3}
    with pytest.raises(TypeError):
        m | [("a", 1)]  # type: ignore[operator]


def test_equality() -> None:
    m: StripedMap[Any, Any] = StripedMap({"a": 1, Colour.RED: [2]})
    nan = float("nan")
    assert m == {"a": 1, Colour.RED: [2]}
    assert dict(m) == m
    assert m == StripedMap(m)
    assert m != {"a": 1}
    assert m != {"a": 1, Colour.RED: [3]}
    assert m != {"a": 1, (1, 2): [2]}
    assert m != [("a", 1)]
    assert StripedMap({"a": 1}) != collections.defaultdict(lambda: 1, b=1)
    assert StripedMap(a=nan) == {"a": nan}
    assert StripedMap(a=None) != {"b": None}
    with pytest.raises(TypeError, match="unhashable"):
        hash(m)


def test_copies_are_shallow_and_apart() -> None:
    m: StripedMap[str, Any] = StripedMap(a=[1])
    for copied in (m.copy(), copy.copy(m)):
        assert type(copied) is StripedMap
        assert copied == m
        assert copied["a"] is m["a"]
        copied["b"] = 2
        assert "b" not in m
    deep = copy.deepcopy(m)
    assert deep == m
    assert deep["a"] is not m["a"]


class Named(StripedMap[str, int]):
    """A subclass, whose instances have attributes."""


def test_subclasses() -> None:
    m = Named(a=1)
    m.name = "own"  # type: ignore[attr-defined]
    assert type(m.copy()) is Named
    assert repr(m) == "Named({'a': 1})"
    assert type(Named.fromkeys("ab", 1)) is Named
    for copied in (pickle.loads(pickle.dumps(m)), copy.copy(m), copy.deepcopy(m)):
        assert type(copied) is Named
        assert copied == m
        assert copied.name == "own"
    assert not hasattr(StripedMap(), "__dict__")


def test_repr() -> None:
    m: StripedMap[Any, Any] = StripedMap(a=1)
    assert repr(StripedMap()) == "StripedMap({})"
    assert repr(m) == "StripedMap({'a': 1})"
    m["a"] = m
    assert repr(m) == "StripedMap({'a': StripedMap({...})})"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles(protocol: int) -> None:
    m: StripedMap[Any, Any] = StripedMap({key: [i] for i, key in enumerate(KEYS)})
    assert pickle.loads(pickle.dumps(m, protocol)) == m


def test_pickles_with_itself_inside() -> None:
    m: StripedMap[str, Any] = StripedMap()
    m["self"] = m
    loaded = pickle.loads(pickle.dumps(m))
    assert loaded["self"] is loaded
    copied = copy.deepcopy(m)
    assert copied["self"] is copied


def test_views() -> None:
    expected = {"a": 1, "b": 2}
    m = StripedMap(expected)
    keys, values = m.keys(), m.values()
    items: Any = m.items()
    m["c"] = expected["c"] = 3
    assert len(keys) == len(values) == len(items) == 3
    assert keys == expected.keys()
    assert items == expected.items()
    assert sorted(values) == [1, 2, 3]
    assert keys & {"a", "z", (1, 2)} == {"a"}
    assert keys | {"z"} == {"a", "b", "c", "z"}
    assert keys - {"a"} == {"b", "c"}
    assert keys ^ {"a", "z"} == {"b", "c", "z"}
    assert keys.isdisjoint([(1, 2)])
    assert {"a"} < keys
    assert "a" in keys
    assert typing.cast(Any, (1, 2)) not in keys
    assert 3 in values
    assert 4 not in values
    assert ("a", 1) in items
    assert ("a", 2) not in items
    assert ("z", 1) not in items
    assert ((1, 2), 1) not in items
    assert "a" not in items
    assert items & {("a", 1), ("b", 9)} == {("a", 1)}
    assert repr(keys).endswith(f"({m!r})")


def test_match_statement() -> None:
    match StripedMap(kind="move", x=1):
        case {"kind": "move", "x": x}:
            assert x == 1
        case _:
            pytest.fail("a StripedMap is not taken for a mapping")


def test_generic() -> None:
    alias = StripedMap[str, int]
    assert typing.get_origin(alias) is StripedMap
    assert typing.get_args(alias) == (str, int)
    assert alias(a=1) == {"a": 1}


class Model(RuleBasedStateMachine):
    """Every operation on a StripedMap and on a dict, with the same outcome."""

    # Small integers and texts, so that keys are met again, and what they collide with.
    keys = st.one_of(
        st.integers(0, 40),
        st.text("ab", max_size=3),
        st.binary(max_size=1),
        st.sampled_from([Colour.RED, Colour.BLUE, Tag, int, "long " * 10]),
    )
    values = st.one_of(st.integers(), st.none(), st.lists(st.integers(), max_size=2))

    def __init__(self) -> None:
        super().__init__()
        self.map: StripedMap[Any, Any] = StripedMap()
        self.dict: dict[Any, Any] = {}

    def both(self, operation: Callable[[Any], Any]) -> None:
        """Check that both return, or raise, the same."""
        outcomes: list[Any] = []
        for target in (self.map, self.dict):
            try:
                outcomes.append(operation(target))
            except KeyError as error:
                outcomes.append(("KeyError", error.args))
        assert outcomes[0] == outcomes[1]

    @rule(key=keys, value=values)
    def set(self, key: Any, value: Any) -> None:
        self.both(lambda m: m.__setitem__(key, value))

    @rule(key=keys, value=values)
    def read(self, key: Any, value: Any) -> None:
        self.both(lambda m: (m.get(key), m.get(key, value), key in m))
        self.both(lambda m: m[key])

    @rule(key=keys)
    def delete(self, key: Any) -> None:
        self.both(lambda m: m.__delitem__(key))

    @rule(key=keys, value=values)
    def pop(self, key: Any, value: Any) -> None:
        self.both(lambda m: m.pop(key, value))

    @rule(key=keys, value=values)
    def setdefault(self, key: Any, value: Any) -> None:
        self.both(lambda m: m.setdefault(key, value))

    @rule(pairs=st.dictionaries(keys, values, max_size=60))
    def update(self, pairs: dict[Any, Any]) -> None:
        self.both(lambda m: m.update(pairs))

    @rule()
    def popitem(self) -> None:
        if self.dict:
            key, value = self.map.popitem()
            assert self.dict.pop(key) == value

    @rule()
    def clear(self) -> None:
        self.both(lambda m: m.clear())

    @rule(key=keys, old=values, new=values)
    def replace(self, key: Any, old: Any, new: Any) -> None:
        expected = key in self.dict and self.dict[key] == old
        assert self.map.replace(key, old, new) is expected
        if expected:
            self.dict[key] = new

    @rule(key=keys, value=values)
    def update_with(self, key: Any, value: Any) -> None:
        if key in self.dict:
            self.dict[key] = [self.dict[key], value]
            found = self.map.update_with(key, lambda old: [old, value])
        else:
            self.dict[key] = ["new", value]
            found = self.map.update_with(key, lambda old: [old, value], "new")
        assert found == self.dict[key]

    @invariant()
    def is_the_same(self) -> None:
        assert len(self.map) == len(self.dict)
        assert self.map == self.dict
        assert self.dict == self.map
        assert self.map.keys() == self.dict.keys()
        assert self.map.items() == self.dict.items() or self.dict  # unhashable values
        assert self.map._is_valid()


Model.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestModel = Model.TestCase


@given(st.dictionaries(Model.keys, st.integers(), max_size=300))
def test_agrees_with_a_dict_of_any_size(pairs: dict[Any, int]) -> None:
    m = StripedMap(pairs)
    assert m == pairs
    assert sorted(map(repr, m)) == sorted(map(repr, pairs))
    assert sorted(m.values()) == sorted(pairs.values())
    assert pickle.loads(pickle.dumps(m)) == pairs

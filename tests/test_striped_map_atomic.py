"""What StripedMap does at once: replace, update_with; keys that are none."""

from typing import Any

import pytest

from ftbus import StripedMap, UnsupportedKeyError

# Keys that are none


class Text(str):
    """A str whose hash and comparison would run in the core, if it let them."""

    def __hash__(self) -> int:
        raise AssertionError("the core called __hash__")

    def __eq__(self, other: object) -> bool:
        raise AssertionError("the core called __eq__")


class Meta(type):
    """The class of a class that is a key, by its identity."""

    def __hash__(cls) -> int:
        raise AssertionError("the core called __hash__")

    def __eq__(cls, other: object) -> bool:
        raise AssertionError("the core called __eq__")


@pytest.mark.parametrize(
    "key",
    [1.5, None, True, (1,), [], Text("a"), 2**63, "\ud800", object()],
    ids=lambda key: type(key).__name__,
)
def test_unsupported_keys(key: Any) -> None:
    m: Any = StripedMap(a=1)
    for operation in (
        lambda: m[key],
        lambda: m.__setitem__(key, 1),
        lambda: m.__delitem__(key),
        lambda: key in m,
        lambda: m.get(key),
        lambda: m.pop(key, None),
        lambda: m.setdefault(key),
        lambda: m.replace(key, 1, 2),
        lambda: m.update_with(key, int, 0),
        lambda: m.update([(key, 1)]),
    ):
        with pytest.raises(TypeError, match=r"str, bytes, int .* Key, enum") as caught:
            operation()
        assert isinstance(caught.value, UnsupportedKeyError)
        assert caught.value.key is key
    assert m == {"a": 1}


def test_a_hostile_class_is_only_compared_by_identity() -> None:
    class Hostile(metaclass=Meta):
        pass

    m: Any = StripedMap()
    m[Hostile] = 1
    assert m[Hostile] == 1
    assert Hostile in m
    assert next(iter(m)) is Hostile
    assert m.pop(Hostile) == 1


# Atomic operations


def test_replace_compares_by_equality() -> None:
    m: StripedMap[str, Any] = StripedMap(a=[1])
    assert m.replace("a", [1], [2]) is True
    assert m["a"] == [2]
    assert m.replace("a", [1], [3]) is False
    assert m.replace("b", None, [3]) is False
    nan = float("nan")
    m["a"] = nan
    assert m.replace("a", nan, 1) is True


def test_replace_lets_a_failing_comparison_through() -> None:
    class Incomparable:
        def __eq__(self, other: object) -> bool:
            raise ZeroDivisionError

        __hash__ = None  # type: ignore[assignment]

    m: StripedMap[str, Any] = StripedMap(a=Incomparable())
    with pytest.raises(ZeroDivisionError):
        m.replace("a", 1, 2)
    assert isinstance(m["a"], Incomparable)


def test_replace_compares_again_when_the_value_changed() -> None:
    m: StripedMap[str, Any] = StripedMap()
    compared = []

    class Meddler:
        """Changes the map while it is being compared."""

        def __init__(self, number: int) -> None:
            self.number = number

        def __eq__(self, other: object) -> bool:
            compared.append(self.number)
            if self.number < 3:
                m["a"] = Meddler(self.number + 1)
            return True

        __hash__ = None  # type: ignore[assignment]

    m["a"] = Meddler(0)
    assert m.replace("a", "any", "new") is True
    assert compared == [0, 1, 2, 3]
    assert m["a"] == "new"


def test_update_with() -> None:
    m: StripedMap[str, Any] = StripedMap(a=1)
    assert m.update_with("a", lambda value: value + 1) == 2
    assert m.update_with("b", lambda value: value + 1, default=10) == 11
    assert m.update_with("b", lambda value: value + 1, 10) == 12
    with pytest.raises(KeyError, match="c"):
        m.update_with("c", lambda value: value)
    with pytest.raises(ZeroDivisionError):
        m.update_with("a", lambda value: value / 0)
    with pytest.raises(ZeroDivisionError):
        m.update_with("c", lambda value: value / 0, default=1)
    assert m == {"a": 2, "b": 12}


def test_update_with_calls_again_when_the_value_changed() -> None:
    m = StripedMap(a=0)
    seen = []

    def bump(value: int) -> int:
        seen.append(value)
        if value < 30:
            m["a"] = value + 10
        return value + 1

    assert m.update_with("a", bump) == 31
    assert seen == [0, 10, 20, 30]
    assert m["a"] == 31


def test_update_with_of_a_key_that_comes_and_goes() -> None:
    m: StripedMap[str, int] = StripedMap()
    seen = []

    def bump(value: int) -> int:
        seen.append(value)
        if len(seen) == 1:
            m["a"] = 100
        elif len(seen) == 2:
            del m["a"]
        return value + 1

    assert m.update_with("a", bump, 0) == 1
    assert seen == [0, 100, 0]


def test_update_with_may_use_the_map() -> None:
    m = StripedMap(a=1, b=2)
    assert m.update_with("a", lambda value: value + m.pop("b")) == 3
    assert m.update_with("a", lambda value: m.update_with("c", lambda c: c + 1, 0)) == 1
    assert m == {"a": 1, "c": 1}

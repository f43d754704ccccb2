"""What can be a key, which spellings name one topic, and what is refused."""

import copy
import enum
import pickle
import random
from typing import Any

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

import ftbus
from ftbus import EventBus, Key, UnsupportedKeyError
from ftbus.testing import run_threads

# A short alphabet: for all of Unicode Hypothesis first spends 20 s on tables.
values = st.one_of(
    st.text(st.sampled_from("ab.Z09 \0\x7fé߿☃\ufffd𝄞\U0010ffff")),
    st.binary(),
    st.integers(-(2**63), 2**63 - 1),
)


def bytes_of(value: str | bytes | int) -> bytes:
    """Return what the documentation says is hashed."""
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, int):
        return value.to_bytes(8, "little", signed=True)
    return value


# Key objects


@given(values)
def test_hash64_is_xxh3_of_the_bytes(value: Any) -> None:
    assert Key(value).hash64 == xxhash.xxh3_64_intdigest(bytes_of(value))


@pytest.mark.parametrize(
    "length", [0, 1, 3, 4, 8, 9, 16, 17, 128, 129, 240, 241, 512, 1024, 1025, 5000]
)
def test_hash64_at_the_boundaries_of_the_algorithm(length: int) -> None:
    data = random.Random(length).randbytes(length)
    assert Key(data).hash64 == xxhash.xxh3_64_intdigest(data)


@pytest.mark.thread_unsafe(reason="starts a process")
def test_hash64_is_the_same_in_every_process(python: Any) -> None:
    program = "import ftbus; print([ftbus.Key(v).hash64 for v in %r])"
    keys = ["player.moved", b"\x00\xff", -5, "", "é" * 100]
    here = str([Key(value).hash64 for value in keys])
    for hash_seed in ("0", "1"):
        done = python(program % (keys,), PYTHONHASHSEED=hash_seed)
        assert done.stdout.strip() == here, done.stderr


@given(values)
def test_key_survives_pickle_and_copy(value: Any) -> None:
    key = Key(value)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        twin = pickle.loads(pickle.dumps(key, protocol))
        assert twin == key
        assert twin.hash64 == key.hash64
        assert type(twin.value) is type(value)
    assert copy.copy(key) == copy.deepcopy(key) == key


@given(values, values)
def test_keys_are_equal_and_ordered_as_their_values(one: Any, two: Any) -> None:
    assert (Key(one) == Key(two)) == (type(one) is type(two) and one == two)
    assert (Key(one) != Key(two)) != (Key(one) == Key(two))
    assert Key(one) == one
    assert one == Key(one)
    assert hash(Key(one)) == hash(one)
    if type(one) is type(two):
        assert (Key(one) < Key(two)) == (one < two)
    else:
        with pytest.raises(TypeError):
            assert Key(one) < Key(two)


def test_key_never_equals_other_kinds() -> None:
    assert Key(1) != True  # noqa: E712 (bool is no key)
    assert Key(1) != 1.0
    assert Key("a") != b"a"
    assert Key("1") != 1
    assert Key("a") is not None
    assert Key("a") != object()


def test_segments_join_to_one_key() -> None:
    key = Key("player", "moved", "x")
    assert key == Key("player.moved.x") == "player.moved.x"
    assert key.segments == ("player", "moved", "x")
    assert Key("plain").segments == ("plain",)
    assert Key("").segments == ("",)
    assert Key(5).segments == (5,)
    assert Key(b"a.b").segments == (b"a.b",)
    assert str(key) == "player.moved.x"
    assert repr(key) == "Key('player.moved.x')"
    assert key.value == "player.moved.x"
    assert Key(key) is key


@pytest.mark.parametrize(
    "arguments", [(), ("a", 1), (1, "a"), ("a", b"b"), (b"a", b"b"), ("a", Key("b"))]
)
def test_wrong_segments_are_refused(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError):
        Key(*arguments)


def test_key_is_immutable_and_final() -> None:
    key = Key("a")
    with pytest.raises(AttributeError):
        key.value = "b"  # type: ignore[misc]
    with pytest.raises(AttributeError):
        key.other = "b"  # type: ignore[attr-defined]
    with pytest.raises(TypeError):
        type("Sub", (Key,), {})
    with pytest.raises(TypeError):
        Key("a", value="b")  # type: ignore[call-arg]


# Spellings of one topic


@given(values)
def test_value_and_key_name_one_topic(value: Any) -> None:
    with EventBus() as bus:
        bus.on(value, lambda event: None)
        assert bus.emit(value, 1) == bus.emit(Key(value), 1) == 1
        bus.on(Key(value), lambda event: None)
        assert bus.emit(value, 1) == bus.topic(Key(value)).emit(1) == 2
        assert bus.off(Key(value)) == 2


def test_equal_text_of_another_object_names_one_topic() -> None:
    with EventBus() as bus:
        bus.on("player.moved", lambda event: None)
        built = "".join(["player", ".", "moved"])
        for _ in range(3):
            assert bus.emit(built, 1) == 1
        assert bus.emit("player.move", 1) == bus.emit("player.moved ", 1) == 0


def test_kinds_of_keys_are_told_apart() -> None:
    with EventBus() as bus:
        for index, key in enumerate(["97", b"97", 97, b"a", "a", int, str], 1):
            bus.on(key, lambda event: None)
            assert bus.emit(key, 1) == 1
            assert len(bus.stats().topics) == index + 1  # and the row of unnamed keys


def test_many_keys_with_close_hashes_are_told_apart(seed: int) -> None:
    with EventBus() as bus:
        keys: list[Any] = list(range(-500, 500))
        keys += [f"key.{n}" for n in range(500)] + [b"%d" % n for n in range(500)]
        random.Random(seed).shuffle(keys)
        seen: list[Any] = []
        for key in keys:
            bus.on(key, lambda event, key=key: seen.append((key, event)))
        for key in keys:
            assert bus.emit(key, key) == 1
        assert seen == [(key, key) for key in keys]
        assert sum(bus.off(key) for key in keys) == len(keys)


def test_threads_that_name_new_keys_agree_on_one_topic() -> None:
    with EventBus() as bus:
        names = [f"new.{n}" for n in range(300)]

        def name_all(index: int) -> int:
            for name in names[index:] + names[:index]:
                bus.on("".join(name), lambda event: None)
            return sum(bus.emit(name) for name in names)

        run_threads(4, name_all)
        assert [bus.emit(name) for name in names] == [4] * len(names)
        rows = [row.key for row in bus.stats().topics]
        assert len(rows) == len(set(rows)) == len(names) + 1


# Enums


class Color(enum.Enum):
    RED = 1
    ROUGE = 1  # an alias
    BLUE = 2


class Level(enum.IntEnum):
    LOW = 1


class Name(enum.StrEnum):
    LOW = "low"


class Permission(enum.Flag):
    READ = enum.auto()
    WRITE = enum.auto()


def test_enum_members_are_keys_by_identity() -> None:
    with EventBus() as bus:
        bus.on(Color.RED, lambda event: None)
        assert bus.emit(Color.ROUGE, 1) == bus.emit(Color(1), 1) == 1
        assert bus.emit(Color.RED) == 1
        assert bus.emit(Color.BLUE, 1) == bus.emit(1, 1) == 0
        bus.on(Level.LOW, lambda event: None)
        bus.on(Name.LOW, lambda event: None)
        assert bus.emit(Level.LOW) == bus.emit(Name.LOW) == 1
        assert bus.emit(1) == bus.emit("low") == 0
        both = Permission.READ | Permission.WRITE
        bus.on(both, lambda event: None)
        assert bus.emit(Permission.READ | Permission.WRITE, 1) == 1
        assert bus.emit(Permission.READ, 1) == 0
        assert bus.off(Color.RED) == 1


def test_enum_class_is_a_class_key() -> None:
    with EventBus() as bus:
        seen: list[object] = []
        bus.on(Color, seen.append)
        assert bus.emit(Color, 5) == 1
        assert bus.emit(Color.RED, 6) == 0
        assert seen == [5]


# Classes


class Base:
    pass


class Left(Base):
    pass


class Right(Base):
    pass


class Both(Left, Right):
    pass


def test_event_of_a_class_reaches_its_bases_along_the_mro() -> None:
    with EventBus() as bus:
        seen: list[str] = []
        for each in (Base, Right, Left, Both):
            bus.on(each, lambda event, name=each.__name__: seen.append(name))
        assert bus.emit(Both()) == 4
        assert seen == ["Both", "Left", "Right", "Base"]
        seen.clear()
        assert bus.emit(Right()) == 2
        assert seen == ["Right", "Base"]
        assert bus.emit(Base()) == 1


def test_class_without_handlers_of_its_own_reaches_its_bases() -> None:
    with EventBus() as bus:
        bus.on(Base, lambda event: None)
        assert bus.emit(Both()) == 1
        assert bus.emit(Both, Both()) == 1
        assert bus.topic(Both).emit(Both()) == 1
        assert bus.emit(Both()) == 1
        assert bus.emit_many(Both, [Both(), Both()]) == 2
        assert bus.off(Both) == 0
        assert bus.off(Base) == 1


def test_class_may_be_the_key_of_any_event() -> None:
    with EventBus() as bus:
        seen: list[object] = []
        bus.on(Left, seen.append)
        bus.on(int, seen.append)
        event = Base()
        assert bus.emit(Left, event) == bus.emit(Left) == bus.emit(int, 5) == 1
        assert bus.emit(bool, True) == 1  # int is its base
        assert seen == [event, None, 5, True]


def test_handlers_of_object_hear_only_object() -> None:
    """Every class would reach them, and every emit would pay for the look-up."""
    with EventBus() as bus:
        seen: list[object] = []
        bus.on(object, seen.append)
        assert bus.emit(Base()) == 0
        assert bus.emit(object, 1) == 1
        assert bus.call(object, 2).result(30) == [None]
        assert seen == [1, 2]


def test_emit_post_and_call_agree_on_class_events() -> None:
    with EventBus(workers=2) as bus:
        seen: list[str] = []
        bus.on(Base, lambda event: seen.append(f"base {type(event).__name__}"))
        bus.on(Both, lambda event: seen.append(f"both {type(event).__name__}"))
        bus.emit(Both())
        bus.post(Both())
        assert bus.drain(30)
        assert seen == ["both Both", "base Both"] * 2
        seen.clear()
        assert bus.call(Both()).result(30) == [None, None]
        assert sorted(seen) == ["base Both", "both Both"]


def test_classes_with_a_hostile_metaclass_are_keys_by_identity() -> None:
    class Hostile(type):
        def __hash__(cls) -> int:
            raise AssertionError("hashed")

        def __eq__(cls, other: object) -> bool:
            raise AssertionError("compared")

    class Event(metaclass=Hostile):
        pass

    with EventBus() as bus:
        seen: list[object] = []
        bus.on(Event, seen.append)
        assert bus.emit(Event()) == 1
        assert bus.off(Event) == 1


def test_class_made_in_a_function_is_let_go_with_the_bus() -> None:
    import gc
    import weakref

    def use() -> "weakref.ref[Any]":
        with EventBus() as bus:
            event_class = type("Event", (), {})
            bus.on(event_class, lambda event: None)
            assert bus.emit(event_class()) == 1
            payload = event_class()
            bus.emit(payload)
            return weakref.ref(payload)

    reference = use()
    gc.collect()
    assert reference() is None


# What is refused


class StrSub(str):
    def __hash__(self) -> int:
        raise AssertionError("hashed")

    def __eq__(self, other: object) -> bool:
        raise AssertionError("compared")


class IntSub(int):
    pass


class BytesSub(bytes):
    pass


class Hostile:
    def __hash__(self) -> int:
        raise AssertionError("hashed")

    def __eq__(self, other: object) -> bool:
        raise AssertionError("compared")

    def __bool__(self) -> bool:
        raise AssertionError("asked for truth")

    def __repr__(self) -> str:
        raise ValueError("no repr")

    __str__ = __repr__


UNSUPPORTED = [
    None,
    True,
    False,
    1.5,
    (1, "a"),
    [],
    {},
    set(),
    frozenset(),
    bytearray(b"a"),
    memoryview(b"a"),
    2**63,
    -(2**63) - 1,
    2**200,
    "\ud800",
    "lone \udfff surrogate",
    len,
    lambda: None,
    ...,
    StrSub("a"),
    IntSub(1),
    BytesSub(b"a"),
    Hostile(),
    ftbus,
]


@pytest.mark.parametrize(
    "key", UNSUPPORTED, ids=[type(k).__name__ for k in UNSUPPORTED]
)
def test_unsupported_key_is_refused_everywhere(key: Any) -> None:
    with EventBus(workers=1) as bus:
        bus.on("good", lambda event: None)
        for use in (
            lambda: bus.on(key, print),
            lambda: bus.subscribe(key, print),
            lambda: bus.once(key, print),
            lambda: bus.off(key),
            lambda: bus.emit(key, 1),
            lambda: bus.emit_many(key, [1]),
            lambda: bus.post(key, 1),
            lambda: bus.post_many(key, [1]),
            lambda: bus.call(key, 1),
            lambda: bus.topic(key),
        ):
            with pytest.raises(UnsupportedKeyError) as caught:
                use()
            assert caught.value.key is key
            assert isinstance(caught.value, TypeError)
            assert "key" in str(caught.value)
        assert bus.emit("good") == 1
        assert bus.stats().posted == 0
        assert len(bus.stats().topics) == 2


@pytest.mark.parametrize(
    "value", [None, True, 1.5, StrSub("a"), IntSub(1), object(), 2**64, "\ud800", Base]
)
def test_key_object_is_not_made_of_it(value: Any) -> None:
    with pytest.raises(UnsupportedKeyError) as caught:
        Key(value)
    assert caught.value.key is value


def test_instances_of_own_classes_are_events_not_keys() -> None:
    """They go under their class, and none of their methods runs."""
    with EventBus() as bus:
        seen: list[object] = []
        for each in (StrSub, IntSub, Hostile):
            bus.on(each, seen.append)
        events = [StrSub("a"), IntSub(1), Hostile()]
        for event in events:
            assert bus.emit(event) == 1
        assert len(seen) == 3
        assert all(one is two for one, two in zip(seen, events, strict=True))


@pytest.mark.parametrize("event", [1.5, None, [], {}, (), True, len, object()])
def test_builtin_values_alone_are_no_events(event: Any) -> None:
    with EventBus() as bus, pytest.raises(UnsupportedKeyError) as caught:
        bus.emit(event)
    assert caught.value.key is event


@pytest.mark.parametrize("partition", [1.5, None, (1,), StrSub("a"), True, Hostile()])
def test_unsupported_partition_is_refused_and_nothing_is_posted(partition: Any) -> None:
    with EventBus(workers=1) as bus:
        seen: list[object] = []
        bus.on("key", seen.append)
        if partition is None:  # means: no partition
            assert bus.post("key", 1, partition=None)
        else:
            with pytest.raises(UnsupportedKeyError) as caught:
                bus.post("key", 1, partition=partition)
            assert caught.value.key is partition
            with pytest.raises(UnsupportedKeyError):
                bus.post_many("key", [1], partition=lambda event: partition)
        assert bus.drain(30)
        stats = bus.stats()
        assert stats.posted == stats.delivered == len(seen)

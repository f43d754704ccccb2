"""Options and timeouts that are refused."""

from typing import Any

import pytest
from dispatching import WAIT

from ftbus import EventBus, InvalidOptionError


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("workers", 0),
        ("workers", -1),
        ("workers", 1025),
        ("workers", True),
        ("workers", 1.0),
        ("workers", "2"),
        ("queue_size", 0),
        ("queue_size", -1),
        ("queue_size", 2**30 + 1),
        ("queue_size", 2**100),
        ("queue_size", True),
        ("queue_size", None),
        ("queue_size", 10.0),
        ("overflow", "drop"),
        ("overflow", None),
        ("overflow", 0),
        ("overflow", ["block"]),
        ("errors", "ignore"),
        ("errors", None),
        ("errors", []),
        ("on_error", 5),
        ("on_error", "print"),
        ("codec", 5),
        ("codec", None),
        ("name", 5),
        ("name", None),
    ],
)
def test_invalid_options_are_refused(option: str, value: Any) -> None:
    with pytest.raises(InvalidOptionError) as caught:
        EventBus(**{option: value})
    assert caught.value.option == option
    assert caught.value.value is value
    assert isinstance(caught.value, ValueError)
    assert option in str(caught.value)


@pytest.mark.parametrize("arguments", [(2,), (None,)])
def test_options_are_keyword_only(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError):
        EventBus(*arguments)
    with pytest.raises(TypeError):
        EventBus(unknown=1)  # type: ignore[call-arg]


@pytest.mark.parametrize("timeout", [-1, -0.001, float("nan"), "1", [], 1j])
def test_invalid_timeouts_are_refused(timeout: Any) -> None:
    with EventBus(workers=1) as bus:
        seen: list[int] = []
        bus.on("key", seen.append)
        for use in (
            lambda: bus.post("key", 1, timeout=timeout),
            lambda: bus.post_many("key", [1], timeout=timeout),
            lambda: bus.topic("key").post(1, timeout=timeout),
            lambda: bus.call("key", 1, timeout=timeout),
            lambda: bus.drain(timeout),
            lambda: bus.close(timeout=timeout),
        ):
            with pytest.raises(InvalidOptionError) as caught:
                use()
            assert caught.value.option == "timeout"
            assert caught.value.value is timeout
        assert not bus.closed
        assert bus.post("key", 2)
        assert bus.drain(WAIT)
        assert seen == [2]
        assert bus.stats().posted == 1


def test_very_long_timeouts_are_no_limit() -> None:
    with EventBus(workers=1) as bus:
        for timeout in (1e9, 1e300, float("inf"), 10**12):
            assert bus.post("key", timeout=timeout)
            assert bus.drain(timeout)
        assert bus.close(timeout=1e300) == 0

"""A plugin for pytest: fail a test that leaves a buffer held, and name its site.

In conftest.py at the top of the tests::

    pytest_plugins = ["ftbus.testing.pytest_plugin"]

Then a test that takes the fixture ``no_held_buffers`` is checked, or every test, with
``ftbus_no_held_buffers = true`` in pytest's configuration. Every buffer of every pool
is watched meanwhile, which makes their use some microseconds slower. Tests that run at
the same time in threads of one process are taken for one another: check one at a time.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest

from ftbus import buffers
from ftbus.testing import eventually

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from ftbus.buffers import HeldBuffer

__all__ = ["has_failed", "no_held_buffers"]

_has_failed = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the two settings."""
    parser.addini(
        "ftbus_no_held_buffers",
        "fail every test that leaves an ftbus.Buffer held",
        type="bool",
        default=False,
    )
    parser.addini(
        "ftbus_held_seconds",
        "how long what other threads hold after a test has to go away",
        default="5",
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note a failure: its traceback holds the test's variables."""
    report = yield
    item.stash[_has_failed] = report.failed or item.stash.get(_has_failed, False)
    return report


def has_failed(request: pytest.FixtureRequest) -> bool:
    """Return whether the test has failed so far, for a fixture that ends after it."""
    item: pytest.Item = request.node
    return item.stash.get(_has_failed, False)


@pytest.fixture
def no_held_buffers(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the test if memory of a pool that was allocated in it is still held.

    A test that failed already is not checked.
    """
    before = buffers.leak_level()
    buffers.set_leak_level("all")
    known = {held.serial for held in buffers.held_buffers()}
    try:
        yield
        if has_failed(request):
            return
        seconds = float(request.config.getini("ftbus_held_seconds"))
        left = _left_after(known, seconds)
    finally:
        buffers.set_leak_level(before)  # type: ignore[arg-type]
    if left:
        sites = "\n".join(str(held) for held in left)
        pytest.fail(f"the test leaves buffers held: {len(left)}\n{sites}", False)


def _left_after(known: set[int], seconds: float) -> list[HeldBuffer]:
    """Return what is held beyond that; wait for other threads if there is something."""

    def left() -> list[HeldBuffer]:
        return [held for held in buffers.held_buffers() if held.serial not in known]

    def is_settled() -> bool:
        if left():
            gc.collect()
        return not left()

    try:
        eventually(is_settled, seconds)
    except AssertionError:
        return left()
    return []


@pytest.fixture(autouse=True)
def _check_all(request: pytest.FixtureRequest) -> None:
    if request.config.getini("ftbus_no_held_buffers"):
        request.getfixturevalue("no_held_buffers")

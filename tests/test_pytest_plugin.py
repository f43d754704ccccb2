"""ftbus.testing.pytest_plugin: a user's tests, run by a pytest of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.thread_unsafe(reason="it runs processes")

CONFTEST = 'pytest_plugins = ["ftbus.testing.pytest_plugin"]\n'
CHECK_ALL = "[pytest]\nftbus_no_held_buffers = true\nftbus_held_seconds = 0.2\n"
CHECK_ASKED = "[pytest]\nftbus_held_seconds = 0.2\n"

Pytest = Callable[[str, str], subprocess.CompletedProcess[str]]


@pytest.fixture
def run_pytest(tmp_path: Path) -> Pytest:
    """Return a function that runs a file of tests under a configuration."""

    def run(tests: str, config: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "conftest.py").write_text(CONFTEST)
        (tmp_path / "pytest.ini").write_text(config)
        (tmp_path / "test_users.py").write_text(tests)
        root = str(Path(__file__).parent.parent)
        paths = [*filter(None, [os.environ.get("PYTHONPATH")]), root]
        options = ["-p", "no:cacheprovider", "-p", "no:xdist", "-rA", "--color=no"]
        return subprocess.run(
            [sys.executable, "-m", "pytest", *options, str(tmp_path)],
            cwd=tmp_path,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(paths),
                "FTBUS_LEAK_LEVEL": "off",
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


TESTS = """\
import ftbus, pytest
from ftbus.buffers import leak_level
kept = []

def make():
    return ftbus.Buffer(b"12345")

def test_leaves_one():
    kept.append(make())

def test_leaves_none():
    make()
    assert leak_level() == "all"

def test_leaves_garbage():
    class Node:
        pass
    node = Node()
    node.self, node.buffer = node, make()

@pytest.fixture
def buffer():
    buffer = make()
    yield buffer
    buffer.release()

def test_uses_a_fixture(buffer):
    assert len(buffer) == 5

def test_fails_itself():
    buffer = make()
    assert not len(buffer)
"""


def test_every_test_is_checked_if_so_configured(run_pytest: Pytest) -> None:
    run = run_pytest(TESTS, CHECK_ALL)
    assert run.returncode == 1, run.stdout + run.stderr
    assert "1 failed, 4 passed, 1 error" in run.stdout
    assert "ERROR test_users.py::test_leaves_one - Failed: " in run.stdout
    assert "the test leaves buffers held: 1\n" in run.stdout
    assert "test_users.py:6 in make\n" in run.stdout
    assert "test_users.py:9 in test_leaves_one\n" in run.stdout
    assert "FAILED test_users.py::test_fails_itself - " in run.stdout


def test_a_test_is_checked_if_it_asks(run_pytest: Pytest) -> None:
    tests = (
        "import ftbus\nfrom ftbus.buffers import leak_level\nkept = []\n"
        "def test_one():\n    kept.append(ftbus.Buffer(b'1'))\n"
        "    assert leak_level() == 'off'\n"
        "def test_two(no_held_buffers):\n    kept.append(ftbus.Buffer(b'1'))\n"
        "def test_three(no_held_buffers):\n    pass\n"
        "def test_four():\n    assert leak_level() == 'off'\n"
    )
    run = run_pytest(tests, CHECK_ASKED)
    assert "4 passed, 1 error" in run.stdout
    assert "ERROR test_users.py::test_two - Failed: " in run.stdout


def test_ftbus_itself_needs_no_pytest(
    python: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    run = python("import sys, ftbus, ftbus.testing; assert 'pytest' not in sys.modules")
    assert run.returncode == 0, run.stderr

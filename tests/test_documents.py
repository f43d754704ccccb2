"""What the documents name exists: tests, files, make targets."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "docs" / "testing.md", ROOT / "docs" / "guarantees.md"]

pytestmark = pytest.mark.skipif(
    not DOCUMENTS[0].exists(), reason="no documents in this copy"
)


def named_tests(text: str) -> set[str]:
    """Return every path::name in backticks, however the lines are broken."""
    return set(re.findall(r"`((?:tests|stress)/\w+\.py::\w+)`", text))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_test_that_is_named_exists(document: Path) -> None:
    named = named_tests(document.read_text())
    assert len(named) > 20
    missing = []
    for name in named:
        path, _, function = name.partition("::")
        source = ROOT / path
        text = source.read_text() if source.exists() else ""
        if not re.search(rf"^(def|class) {function}\b", text, re.MULTILINE):
            missing.append(name)
    assert missing == []


def test_every_row_of_the_faults_and_guarantees_names_a_test() -> None:
    rows = []
    for document, heading in (
        (DOCUMENTS[0], "## Faults"),
        (DOCUMENTS[1], "# What ftbus guarantees"),
        (DOCUMENTS[1], "## What is refused"),
    ):
        section = document.read_text().partition(heading + "\n")[2]
        section = re.split(r"^#", section, flags=re.MULTILINE)[0]
        lines = [line for line in section.splitlines() if line.startswith("|")]
        assert len(lines) > 4, heading
        rows += lines[2:]
    assert len(rows) > 40
    assert [row for row in rows if not named_tests(row)] == []


def test_every_lane_is_a_make_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = set(re.findall(r"`make ([a-z-]+)", DOCUMENTS[0].read_text()))
    assert len(named) > 12
    assert named - targets == set()


def test_ci_names_every_lane_that_it_leaves_out() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    run = set(re.findall(r'^ *phase "[^"]*" ([a-z-]+)', script, re.MULTILINE))
    left_out = re.search(r"left_out=\(([^)]*)\)", script)
    assert left_out
    lanes = set(re.findall(r"`make ([a-z-]+)", DOCUMENTS[0].read_text()))
    # The C core alone is part of `make test`.
    assert lanes - run - set(left_out[1].split()) == {"check", "help"}


def test_every_stress_test_belongs_to_a_row() -> None:
    """No stress test is there that no document says the purpose of."""
    named = set().union(*(named_tests(path.read_text()) for path in DOCUMENTS))
    files = {name.partition("::")[0] for name in named}
    for path in sorted((ROOT / "stress").glob("test_*.py")):
        assert f"stress/{path.name}" in files

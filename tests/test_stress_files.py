"""The stress tests name the bug they hunt and the mutant that they must catch."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

mutate = pytest.importorskip("mutate", reason="no C sources here")


@pytest.mark.parametrize("path", mutate.stress_files(), ids=lambda path: path.name)
def test_stress_test_says_what_it_hunts_and_which_mutant_it_catches(path: Path) -> None:
    docstring = path.read_text().split('"""')[1]
    assert re.match(r"(Guarantee|Faults): ", docstring)
    assert "\nHunts for " in docstring
    line = mutate.mutants_line(path)
    assert line, "its docstring does not end in a line of mutants"
    if line.startswith("none, "):
        assert re.match(r"none, as .{30,}", line), "no mutant, and no reason"
        return
    assert mutate.named(path)
    for name in mutate.named(path):
        assert name in mutate.ALL, f"there is no mutant {name!r}"


def test_every_mutant_of_the_python_layer_applies_and_is_named() -> None:
    named = {name for path in mutate.stress_files() for name in mutate.named(path)}
    for mutant in mutate.PY_MUTANTS:
        text = (ROOT / "csrc" / mutant.file).read_text()
        assert mutant.apply(text) != text
        assert mutant.name in named


def test_the_line_of_mutants_is_read_over_several_lines(tmp_path: Path) -> None:
    path = tmp_path / "test_it.py"
    path.write_text('"""Guarantee: it.\n\nMutants: one,\ntwo, three.\n"""\n')
    assert mutate.named(path) == ["one", "two", "three"]
    path.write_text('"""Guarantee: it.\n\nMutants: none, as there is none.\n"""\n')
    assert mutate.named(path) == []
    path.write_text('"""Guarantee: it."""\n')
    assert mutate.mutants_line(path) == ""

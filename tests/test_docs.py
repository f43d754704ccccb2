"""The documentation never lies: each page is a program that prints what it says.

A page's Python blocks are joined in order; its text blocks, joined, are the output.
A page that begins with "<!-- needs: a, b -->" is skipped where these are not installed.
"""

import inspect
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import ftbus

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
sys.path.insert(0, str(ROOT / "tools"))

import reference  # noqa: E402


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


WRITTEN = ("benchmarks.md", "reference.md")  # by programs
PAGES = sorted(
    str(page.relative_to(DOCS))
    for page in DOCS.rglob("*.md")
    if page.name not in WRITTEN and blocks(page.read_text(), "python")
)


def test_there_are_pages_to_run() -> None:
    assert {"tutorial.md", "faq.md", "howto/ordering.md"} <= set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_page_prints_what_it_says(page: str) -> None:
    text = (DOCS / page).read_text()
    if needs := re.match(r"<!-- needs: (.*) -->", text):
        for module in needs[1].split(", "):
            if find_spec(module) is None:
                pytest.skip(f"{module} is not installed")
    program = "\n".join(blocks(text, "python"))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    expected = "".join(blocks(text, "text"))
    assert (done.stdout, done.stderr, done.returncode) == (expected, "", 0)


def test_all_pages_are_reached_from_the_navigation() -> None:
    config = (ROOT / "mkdocs.yml").read_text()
    named = set(re.findall(r"^ +- .*: ([\w/-]+\.md)$", config, re.MULTILINE))
    assert set(PAGES) <= named
    there = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    assert named - there <= {"reference.md"}  # which is written when the site is built


def test_make_targets_that_pages_name_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    pages = [*DOCS.rglob("*.md"), ROOT / "CONTRIBUTING.md", ROOT / "README.md"]
    for page in pages:
        named = re.findall(r"(?:`|\$ )make ([a-z-]+)", page.read_text())
        assert set(named) <= targets, page


def test_the_reference_has_every_public_name_and_its_docstring() -> None:
    text = reference.reference()
    for name in ftbus.__all__:
        assert f"\n### `{name}`\n" in text
    assert "\n#### `EventBus.emit`\n" in text
    assert "\n#### `Topic.post_many`\n" in text
    titles = re.findall(r"^### (.*)$", text, re.MULTILINE)
    assert len(titles) > len(ftbus.__all__)
    assert inspect.getdoc(ftbus.EventBus.drain).splitlines()[0] in text

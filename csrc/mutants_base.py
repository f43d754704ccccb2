"""What the tables of mutants are made of: see mutants.py.

A mutant's `old` occurs in its file; it is the first occurrence that is replaced, or the
nth. Checks are named as the report prints them: "model ring", "test_ring",
"test_ring thread".
"""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """One way to break the code, and the checks that must notice."""

    name: str
    file: str
    old: str
    new: str
    checks: tuple[str, ...]
    nth: int = 1  # which occurrence of `old`, from 1

    def apply(self, text: str) -> str:
        """Return the file's text with the occurrence of `old` replaced.

        Raises:
            ValueError: There is no such occurrence.
        """
        parts = text.split(self.old)
        if len(parts) <= self.nth:
            raise ValueError(f"{self.name}: {self.file} has no such text: {self.old!r}")
        before, after = parts[: self.nth], parts[self.nth :]
        return self.old.join(before) + self.new + self.old.join(after)


class Mirrored(NamedTuple):
    """An order that a model has as the code does: no check sees it in the code itself.

    Where x86 makes no difference between two orders, no test can; the accesses are made
    again in a model, and the mutants named break them there.
    """

    file: str
    text: str  # each of its occurrences has one access in it
    mutants: tuple[str, ...]
    orders: tuple[str, ...] = ()  # what they make it; none: each one step weaker


class Kept(NamedTuple):
    """An order that could be weaker, as far as the checks here can see: why not."""

    file: str
    text: str  # each of its occurrences has one access in it
    orders: tuple[str, ...]  # the weaker ones
    why: str

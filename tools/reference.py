"""Write the reference of all public names from their docstrings, as Markdown.

python tools/reference.py docs/reference.md

Needs an interpreter with ftbus. Docstrings are text that reads well in a terminal; here
each stands as it is, below its signature, so that nothing is reflowed into nonsense.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import Any

MODULES = ["ftbus", "ftbus.codecs", "ftbus.buffers", "ftbus.testing", "ftbus.streams"]

HEAD = """\
# Reference

Every public name, from its docstring. Unless it says otherwise, everything may be used
from any thread. Errors are subclasses of `ftbus.FtbusError`, and carry what they are
about.
"""


def signature(name: str, it: Any) -> str:
    """Return how it is called; C functions without a text signature say it inside."""
    try:
        shown = str(inspect.signature(it))  # annotations are text: without its quotes
        return name + re.sub(r"(: |-> )'([^']*)'", r"\1\2", shown)
    except (TypeError, ValueError):
        return f"{name}(...)"


def is_own(cls: type, name: str) -> bool:
    """Say whether ftbus defines it, and not object or the standard library."""
    owner = next((base for base in cls.__mro__ if name in vars(base)), object)
    return owner.__module__.partition(".")[0] == "ftbus"


def members(cls: type) -> list[str]:
    """Return the public methods and properties, in the order of the alphabet."""
    names = [name for name in dir(cls) if not name.startswith("_")]
    return [name for name in names if is_own(cls, name)]


def block(title: str, level: int, call: str, text: str | None) -> list[str]:
    """Return a heading, a signature and a docstring."""
    body = inspect.cleandoc(text) if text else ""
    shown = f"{call}\n\n{indented(body)}".rstrip()
    return [f"{'#' * level} {title}", "", "```text", shown, "```", ""]


def indented(text: str) -> str:
    return "\n".join(f"    {line}".rstrip() for line in text.splitlines())


def class_part(name: str, cls: type) -> list[str]:
    """Return a class and its members."""
    lines = block(f"`{name}`", 3, signature(name, cls), cls.__doc__)
    for member in members(cls):
        found = inspect.getattr_static(cls, member)
        it = getattr(cls, member)
        call = signature(member, it) if callable(it) else member
        if not callable(it) and not getattr(found, "__doc__", None):
            continue  # a field, which the signature of its class names
        lines += block(f"`{name}.{member}`", 4, call, inspect.getdoc(it))
    return lines


def module_part(name: str) -> list[str]:
    """Return the public names of a module that no module before it has shown."""
    module = importlib.import_module(name)
    doc = inspect.cleandoc(module.__doc__ or "")
    lines = [f"## `{name}`", "", "```text", doc, "```", ""]
    for public in sorted(module.__all__):
        it = getattr(module, public)
        if isinstance(it, type):
            lines += class_part(public, it)
        elif callable(it):
            lines += block(f"`{public}`", 3, signature(public, it), inspect.getdoc(it))
        else:
            lines += block(f"`{public}`", 3, f"{public}: {type(it).__name__}", None)
    return lines


def reference() -> str:
    """Return the whole page."""
    parts = [line for name in MODULES for line in module_part(name)]
    return "\n".join([HEAD, *parts]).rstrip() + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(reference())

"""Compare the types that ftbus declares with what there is at run time.

    PYTHON_GIL=0 python tools/stubtest.py

mypy's stubtest on the whole package, made for stubs: where types are inline it takes
what a module imports for the module's own, and there is more of that than at run time.
So here such a name is checked where it is defined, and where __all__ has it. Names of
`type` statements, which it does not know, and of caught errors are passed over. What
else may differ is in tools/stubtest.txt; an entry there that nothing needs is an error.
"""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
ALLOWED = ROOT / "tools" / "stubtest.txt"
MISSING = "is not present at runtime"
CLEAN = "Success: "


def main() -> int:
    """Print what differs; return how many such lines there are."""
    command = [sys.executable, "-m", "mypy.stubtest", "ftbus", "--concise"]
    command += ["--mypy-config-file", str(ROOT / "pyproject.toml")]
    found = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False
    )
    allowed = entries(ALLOWED.read_text(encoding="utf-8"))
    unused = set(allowed)
    left = []
    for line in found.stdout.splitlines():
        name = line.partition(" ")[0]
        used = {entry for entry in allowed if re.fullmatch(entry, name)}
        unused -= used
        if not used and not line.startswith(CLEAN) and not is_foreign(name, line):
            left.append(line)
    left += [f"tools/stubtest.txt: nothing needs {entry}" for entry in sorted(unused)]
    print("\n".join(left) or "The types agree with what there is at run time.")
    return min(len(left), 1)


def entries(text: str) -> list[str]:
    """Return the regular expressions of an allowlist."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def is_foreign(name: str, line: str) -> bool:
    """Return whether a line is about what stubtest cannot judge in that module."""
    module, _, rest = name, "", ""
    while module and not (path := source(module)):
        module, _, last = module.rpartition(".")
        rest = f"{last}.{rest}" if rest else last
    first = rest.partition(".")[0]
    if not module or first not in passed_over(path):
        return False
    exported = getattr(importlib.import_module(module), "__all__", ())
    return not (rest in exported and line.endswith(MISSING))


def source(module: str) -> Path | None:
    """Return the file of one of our modules, or None if there is no such module."""
    base = ROOT.joinpath(*module.split("."))
    files = (base / "__init__.py", base.with_suffix(".py"))
    return next((file for file in files if file.is_file()), None)


def passed_over(path: Path) -> set[str]:
    """Return what imports, `type` statements and `except` bind in a module."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {each.asname or each.name.split(".")[0] for each in node.names}
        elif isinstance(node, ast.TypeAlias):
            names.add(node.name.id)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            names.add(node.name)  # unbound again where it ends
    return names


if __name__ == "__main__":
    sys.exit(main())

"""Run all benchmarks, or some; write docs/benchmarks.md and its plots.

python benchmarks [--quick] [--page-only] [--of NAME,NAME]

Each benchmark runs in a process of its own and leaves build/bench/NAME.json, which the
page is made from; figures of an earlier run stay until their benchmark runs again.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import page

HERE = Path(__file__).parent
FOUND = HERE.parent / "build" / "bench"


def run(name: str, options: list[str]) -> int:
    """Run one benchmark, its progress and its table shown; return its exit status."""
    FOUND.mkdir(parents=True, exist_ok=True)
    file = FOUND / f"{name}.json"
    command = [sys.executable, str(HERE / f"{name}.py"), "--json", str(file), *options]
    # cffi, which the buffers are compared with, would turn the GIL on.
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "PYTHON_GIL": "0"}
    return subprocess.run(command, env=environment, check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--of", default="", help=f"some of {','.join(page.NAMES)}")
    parser.add_argument("--page-only", action="store_true", help="measure nothing")
    options, passed_on = parser.parse_known_args()
    chosen = options.of.split(",") if options.of else page.NAMES
    if unknown := set(chosen) - set(page.NAMES):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}")
    names = [] if options.page_only else chosen
    start, codes = time.monotonic(), []
    for i, name in enumerate(names, 1):
        print(f"\n== {i} of {len(names)}: {name}.py, {time.monotonic() - start:.0f} s")
        sys.stdout.flush()
        codes.append(run(name, passed_on))
        if codes[-1] == 130:
            break
    written = page.write(FOUND, HERE.parent / "docs")
    print(f"\n{time.monotonic() - start:.0f} s; written: {', '.join(written)}")
    return max(codes, default=0)


if __name__ == "__main__":
    sys.exit(main())

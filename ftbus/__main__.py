"""``python -m ftbus``: the demo, a look at a process, what this interpreter is."""

from __future__ import annotations

import sys
from typing import Final

_USAGE: Final = """\
usage: python -m ftbus COMMAND [OPTIONS]

  demo     run a game server and its players on this machine, and report
  top      show what a running process does, live
  doctor   say what this interpreter is and whether handlers can run in parallel

python -m ftbus COMMAND --help says more.
"""


def main(argv: list[str]) -> int:
    """Run a subcommand, imported only now, and return the exit status."""
    command = argv[0] if argv else "--help"
    if command == "demo":
        from ftbus import demo

        return demo.main(argv[1:])
    if command == "top":
        from ftbus.monitoring import top

        return top.main(argv[1:])
    if command == "doctor":
        from ftbus import doctor

        return doctor.main(argv[1:])
    if command in ("-h", "--help"):
        print(_USAGE, end="")
        return 0
    print(f"no command {command!r}\n\n{_USAGE}", end="", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

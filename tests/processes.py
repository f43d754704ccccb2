"""Programs that tests run in processes of their own."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

# Before 3.14, cffi turns the GIL on unless it is kept off; an ordinary interpreter
# refuses to start with the variable.
IS_GIL_AT_STAKE = sys.version_info < (3, 14) and bool(
    sysconfig.get_config_var("Py_GIL_DISABLED")
)
GIL_OFF = {"PYTHON_GIL": "0"} if IS_GIL_AT_STAKE else {}


def environment(**variables: str) -> dict[str, str]:
    """Return the variables for a program in a file, in whatever folder it runs.

    What is under test is found as it is here, where a path may be relative; and the
    program finds the modules beside it, which a safe path would keep it from.
    """
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    whole = os.pathsep.join(map(os.path.abspath, filter(None, paths)))
    found = {**os.environ, "PYTHONPATH": whole, **variables}
    found.pop("PYTHONSAFEPATH", None)
    return found


def output_of(
    *arguments: str | Path, folder: Path, within: float, **variables: str
) -> str:
    """Run Python in a folder; return what it printed, once it has ended well."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment(**variables),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=within,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout

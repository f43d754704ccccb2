"""`python -m ftbus doctor`, and what is said where something optional is missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import ftbus
from ftbus import doctor

pytestmark = pytest.mark.thread_unsafe(reason="it runs processes, and captures output")


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_facts_stand_in_two_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([]) == (0 if doctor.is_parallel() else 1)
    lines = capsys.readouterr().out.splitlines()
    names = [name for name, _ in doctor.facts()] + ["verdict"]
    width = max(map(len, names)) + 2
    assert [line[:width].rstrip() for line in lines] == names
    assert all(line[width - 2 : width] == "  " != line[width] for line in lines)


@pytest.mark.skipif(not doctor.is_free_threaded(), reason="this build has a GIL anyway")
def test_verdict_names_what_switched_the_gil_on() -> None:
    done = run("-m", "ftbus", "doctor", PYTHON_GIL="1")
    assert done.returncode == 1
    assert "asked for by PYTHON_GIL=1" in done.stdout.splitlines()[-1]


def test_imports_are_watched_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    doctor.main(["json", "no_such_module"])
    found = [each for each in capsys.readouterr().out.splitlines() if "import " in each]
    assert found[0].endswith("json: ok")
    assert found[1].endswith("no_such_module: No module named 'no_such_module'")


@pytest.mark.parametrize(
    ("module", "needs", "distribution"),
    [
        ("prometheus", "prometheus_client", "prometheus-client"),
        ("opentelemetry", "opentelemetry", "opentelemetry-api"),
    ],
)
def test_an_outlet_says_what_to_install(
    module: str, needs: str, distribution: str
) -> None:
    program = f"import sys; sys.modules[{needs!r}] = None; import ftbus.monitoring."
    done = run("-c", program + module)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    expected = f"ftbus.monitoring.{module} needs {distribution}: pip install"
    assert last.startswith(f"ModuleNotFoundError: {expected} {distribution}")


def test_the_source_folder_says_that_nothing_is_compiled(tmp_path: Path) -> None:
    package = tmp_path / "ftbus"
    package.mkdir()
    source = Path(ftbus.__file__)
    (package / source.name).write_bytes(source.read_bytes())
    done = run("-P", "-c", "import ftbus", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"ModuleNotFoundError: {package} has no compiled core")
    assert "run from another folder" in last


def test_top_says_what_to_install() -> None:
    program = (
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'rich' else find(name, *a)\n"
        "from ftbus.monitoring import top; raise SystemExit(top.main([]))"
    )
    done = run("-c", program)
    assert done.returncode == 2
    assert (
        done.stderr == "ftbus top: rich is missing: pip install rich, or use --json\n"
    )

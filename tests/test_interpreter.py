"""tools/interpreter.py with a source tree that only pretends to be CPython.

The pretended configure meets the test at two named pipes, so that the test knows when
a build is under way and decides when it goes on.
"""

import io
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from builds import TSAN

pytestmark = [
    pytest.mark.thread_unsafe(reason="what it tests runs in other processes"),
    pytest.mark.iterations(1),  # a second round would find the first one's cache
]

TOOL = Path(__file__).parent.parent / "tools" / "interpreter.py"
LIMIT_SECONDS = 60
if TSAN:
    KIND = "tsan"
elif hasattr(sys, "gettotalrefcount"):
    KIND = "debug"
else:
    KIND = "ft" if sysconfig.get_config_var("Py_GIL_DISABLED") else "gil"
# The "CPython" that gets built and installed is the interpreter that runs this test.
CONFIGURE = """#!/bin/sh
prefix=${1#--prefix=}
echo configured >> "$FTBUS_TEST/builds"
case "$FTBUS_TEST_MODE" in
fail) echo "the compiler is on strike"; exit 1 ;;
meet) echo > "$FTBUS_TEST/started"; read -r _ < "$FTBUS_TEST/gate" ;;
esac
cat > python <<END
#!/bin/sh
exec "$FTBUS_TEST_PYTHON" "\\$@"
END
chmod 755 python
printf 'all:\\ninstall:\\n' > Makefile
printf '\\tmkdir -p "$(DESTDIR)%s/bin"\\n' "$prefix" >> Makefile
printf '\\tcp python "$(DESTDIR)%s/bin/python3.13"\\n' "$prefix" >> Makefile
"""
UV_REQUESTS = {"ft": "3.13t", "gil": "3.13"}
UV = """#!/bin/sh
echo "$@" >> "$FTBUS_TEST/asked"
case "$2" in find) echo "$FTBUS_TEST_PYTHON" ;; esac
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start the tool with a cache of its own and without apt, uv or other Pythons."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "make", "tar", "gzip", "cat", "cp", "mkdir", "chmod"):
        (tools / name).symlink_to(shutil.which(name) or pytest.skip(f"no {name}"))
    os.mkfifo(tmp_path / "started")
    os.mkfifo(tmp_path / "gate")
    running: list[subprocess.Popen[str]] = []

    def start_tool(*arguments: str, **variables: str) -> subprocess.Popen[str]:
        environment = {
            "PATH": str(tools),
            "FTBUS_CACHE": str(tmp_path / "cache"),
            "FTBUS_TEST": str(tmp_path),
            "FTBUS_TEST_PYTHON": sys.executable,
            **variables,
        }
        command = [sys.executable, str(TOOL), *arguments]
        pipe = subprocess.PIPE
        tool = subprocess.Popen(
            command, env=environment, stdout=pipe, stderr=pipe, text=True
        )
        running.append(tool)
        return tool

    yield start_tool
    for tool in running:
        tool.kill()
        tool.communicate(timeout=LIMIT_SECONDS)


@pytest.fixture
def source(tmp_path: Path) -> None:
    """Put the pretended source into the cache, as if it had been fetched."""
    folder = tmp_path / "cache" / "source"
    folder.mkdir(parents=True)
    member = tarfile.TarInfo("Python-3.13.99/configure")
    member.size, member.mode = len(CONFIGURE), 0o755
    with tarfile.open(folder / "python3.13_3.13.99.orig.tar.gz", "w:gz") as archive:
        archive.addfile(member, io.BytesIO(CONFIGURE.encode()))


def finish(tool: subprocess.Popen[str]) -> tuple[int, str, list[str]]:
    """Wait for the tool; return its status, its answer and what it told."""
    out, err = tool.communicate(timeout=LIMIT_SECONDS)
    return tool.returncode, out.strip(), err.splitlines()


def wait_until_waiting(tool: subprocess.Popen[str]) -> None:
    """Return once the tool has said that it waits for another build."""
    assert tool.stderr is not None
    assert any("waiting" in line for line in iter(tool.stderr.readline, ""))


def builds(tmp_path: Path) -> int:
    """Return how often the pretended configure was run."""
    return len((tmp_path / "builds").read_text().splitlines())


def entries(tmp_path: Path) -> list[str]:
    """Return the finished and unfinished builds in the cache."""
    cache = tmp_path / "cache"
    found = [*cache.glob("python/*"), *cache.glob("work/*")]
    return [path.name for path in found]


@pytest.mark.parametrize("python", ["/nowhere/python3.13t", "/bin/sh"])
def test_wrong_choice_is_refused_in_one_sentence(start: Start, python: str) -> None:
    status, answer, told = finish(start(FTBUS_PYTHON=python))
    assert (status, answer, len(told)) == (1, "", 1)
    assert f"FTBUS_PYTHON={python} cannot be used: " in told[0]


def test_own_choice_is_taken_if_it_is_free_threaded(start: Start) -> None:
    status, answer, told = finish(start(FTBUS_PYTHON=sys.executable))
    if KIND == "ft":
        assert (status, answer, told) == (0, sys.executable, [])
    else:
        assert (status, answer) == (1, "")
        assert told[0].endswith(" build, not a free-threaded one.")


@pytest.mark.skipif(KIND not in UV_REQUESTS, reason="uv has no such builds")
def test_uv_is_asked_before_anything_is_built(start: Start, tmp_path: Path) -> None:
    uv = tmp_path / "bin" / "uv"
    uv.write_text(UV)
    uv.chmod(0o755)
    assert finish(start("--kind", KIND))[:2] == (0, sys.executable)
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == [
        f"python {verb} {UV_REQUESTS[KIND]}" for verb in ("install", "find")
    ]


@pytest.mark.skipif(KIND not in UV_REQUESTS, reason="uv has no such builds")
@pytest.mark.usefixtures("source")
def test_uv_that_fails_is_no_obstacle(start: Start, tmp_path: Path) -> None:
    (tmp_path / "bin" / "uv").symlink_to(shutil.which("false") or "/bin/false")
    assert finish(start("--kind", KIND))[0] == 0
    assert builds(tmp_path) == 1


def test_without_a_source_one_sentence_says_what_to_do(start: Start) -> None:
    status, answer, told = finish(start("--kind", KIND))
    assert (status, answer) == (1, "")
    assert "set FTBUS_PYTHON" in told[-1]
    assert not any("Traceback" in line for line in told)


@pytest.mark.usefixtures("source")
def test_build_is_kept_and_found_again(start: Start, tmp_path: Path) -> None:
    first = finish(start("--kind", KIND))
    second = finish(start("--kind", KIND))
    assert first[0] == second[0] == 0
    assert first[1] == second[1]
    assert second[2] == []
    assert Path(first[1]).is_relative_to(tmp_path / "cache" / "python")
    assert builds(tmp_path) == 1


@pytest.mark.usefixtures("source")
def test_entry_that_stopped_working_is_built_again(
    start: Start, tmp_path: Path
) -> None:
    _, python, _ = finish(start("--kind", KIND))
    Path(python).write_text("#!/nowhere/sh\n")
    assert finish(start("--kind", KIND))[:2] == (0, python)
    assert builds(tmp_path) == 2


@pytest.mark.usefixtures("source")
def test_failed_build_shows_the_log_and_leaves_nothing(
    start: Start, tmp_path: Path
) -> None:
    status, answer, told = finish(start("--kind", KIND, FTBUS_TEST_MODE="fail"))
    assert (status, answer) == (1, "")
    assert any("the compiler is on strike" in line for line in told)
    assert told[-1].endswith(f"the log is {tmp_path / 'cache' / 'build.log'}.")
    assert entries(tmp_path) == []


@pytest.mark.usefixtures("source")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_build_leaves_nothing(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    tool = start("--kind", KIND, FTBUS_TEST_MODE="meet")
    (tmp_path / "started").read_text()
    tool.send_signal(number)
    status, answer, told = finish(tool)
    assert (status, answer) == (130, "")
    assert "interrupted" in told[-1]
    assert entries(tmp_path) == []


@pytest.mark.usefixtures("source")
def test_killed_build_is_cleared_by_the_next(start: Start, tmp_path: Path) -> None:
    killed = start("--kind", KIND, FTBUS_TEST_MODE="meet")
    (tmp_path / "started").read_text()
    killed.kill()
    killed.wait(timeout=LIMIT_SECONDS)
    leftovers = entries(tmp_path)
    assert leftovers
    following = start("--kind", KIND)
    wait_until_waiting(following)  # for the killed one's children
    (tmp_path / "gate").write_text("go on\n")
    assert finish(following)[0] == 0
    assert not set(leftovers) & set(entries(tmp_path))
    assert builds(tmp_path) == 2


@pytest.mark.usefixtures("source")
def test_two_runs_at_once_build_once(start: Start, tmp_path: Path) -> None:
    first = start("--kind", KIND, FTBUS_TEST_MODE="meet")
    (tmp_path / "started").read_text()
    second = start("--kind", KIND, FTBUS_TEST_MODE="meet")
    wait_until_waiting(second)
    (tmp_path / "gate").write_text("go on\n")
    results = finish(first)[:2], finish(second)[:2]
    assert results[0] == results[1]
    assert results[0][0] == 0
    assert builds(tmp_path) == 1

"""Rules for the C sources that no compiler checks."""

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

CSRC = Path(__file__).parent.parent / "csrc"
SOURCES = sorted(
    path
    for folder in ("arena", "core", "py")
    for path in (CSRC / folder).glob("*.[ch]")
)
# The arena stands alone, so it has its atomics to itself.
ATOMICS = ("ftb_atomic.h", "ftb_arena_internal.h")
LINES_MAX = 500

pytestmark = pytest.mark.skipif(not SOURCES, reason="no C sources here")


def code_of(path: Path) -> str:
    """Return a file without comments and the contents of strings, line by line."""
    text = path.read_text()

    def blank(match: re.Match[str]) -> str:
        lines = "\n" * match[0].count("\n")
        return f'"{lines}"' if match[0].startswith('"') else lines or " "

    pattern = r'"(?:\\.|[^"\\\n])*"|/\*.*?\*/|//[^\n]*'
    return re.sub(pattern, blank, text, flags=re.DOTALL)


def findings(pattern: str, *, but: tuple[str, ...] = ()) -> list[str]:
    """Return file:line of every match in the code, except in the files named."""
    return [
        f"{path.relative_to(CSRC)}:{number}: {line.strip()}"
        for path in SOURCES
        if path.name not in but
        for number, line in enumerate(code_of(path).splitlines(), 1)
        if re.search(pattern, line)
    ]


def functions(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the name and body of each function."""
    pattern = r"^(\w+)\([^;{}]*\)\n?\{\n(.*?)^\}"
    for match in re.finditer(pattern, code_of(path), re.DOTALL | re.MULTILINE):
        yield match[1], match[2]


def test_the_lint_itself_sees_code_and_not_comments(tmp_path: Path) -> None:
    path = tmp_path / "a.c"
    path.write_text('int\nf(void)\n{\n    /* g();\n */ return h("g()", 1); // g()\n}\n')
    assert "g()" not in code_of(path)
    assert code_of(path).count("\n") == 6
    ((name, body),) = functions(path)
    assert name == "f"
    assert "h(" in body


def test_no_standalone_fences() -> None:
    """ThreadSanitizer does not understand them, nor do readers what they pair with."""
    assert findings(r"\batomic_(thread|signal)_fence\b|__sync_synchronize") == []


def test_bare_atomics_are_in_one_file_only() -> None:
    calls = r"\batomic_(load|store|exchange|fetch|compare|init|flag)\w*|__atomic_\w+"
    assert findings(calls, but=ATOMICS) == []


def test_every_atomic_names_its_order() -> None:
    """In those files too: no call with the default order."""
    calls = r"\batomic_(load|store|exchange|fetch_\w+|compare_exchange_\w+)\s*\("
    offenders = [line for line in findings(calls) if "_explicit" not in line]
    assert offenders == []


def test_no_wall_clock() -> None:
    """Timeouts and latencies must not jump with it."""
    assert findings(r"CLOCK_REALTIME|\btime\s*\(|\bgettimeofday\b|_PyTime_Get\w*") == []


def test_condition_variables_wait_on_the_monotonic_clock() -> None:
    waits = [path.name for path in SOURCES if "pthread_cond_timedwait" in code_of(path)]
    assert all("CLOCK_MONOTONIC" in code_of(CSRC / "core" / name) for name in waits)


def test_no_borrowed_references_from_shared_containers() -> None:
    """Another thread may take the object away before it is used."""
    borrowing = (
        r"\bPyDict_GetItem(WithError|String)?\b|\bPyDict_Next\b|\bPyDict_SetDefault\b"
        r"|\bPyList_GetItem\b|\bPyList_GET_ITEM\b|\bPyWeakref_GetObject\b"
        r"|\bPyWeakref_GET_OBJECT\b|\bPyCell_GET\b|\bPySequence_Fast\w*"
        r"|\bPyImport_AddModule\b|\bPyEval_GetLocals\b"
    )
    assert findings(borrowing) == []


def test_no_foreign_thread_states() -> None:
    """Every thread here was made by Python and is known to it."""
    assert findings(r"PyGILState_|PyThreadState_(New|Swap)") == []


def test_critical_sections_run_no_user_code() -> None:
    """They would be given up half way, or deadlock with a lock of ours."""
    user_code = (
        r"PyObject_(Call|Vectorcall|Repr|Str|Hash|RichCompare|GetAttr|SetAttr)|PyIter_"
        r"|Py_X?DECREF|Py_CLEAR|Py_X?SETREF|PyMutex_Lock|pthread_mutex_lock"
    )
    for path in SOURCES:
        for section in code_of(path).split("Py_BEGIN_CRITICAL_SECTION")[1:]:
            inside, end, _ = section.partition("Py_END_CRITICAL_SECTION")
            assert end, path.name
            assert not re.search(user_code, inside), path.name


def test_recursive_calls_are_left_as_often_as_entered() -> None:
    for path in SOURCES:
        for name, body in functions(path):
            enters = body.count("Py_EnterRecursiveCall")
            leaves = body.count("Py_LeaveRecursiveCall")
            assert enters == leaves, f"{path.name}: {name}"
            after = body.partition("Py_EnterRecursiveCall")[2]
            failure, _, rest = after.partition("}")
            assert not enters or "return" in failure, f"{path.name}: {name}"
            between = rest.partition("Py_LeaveRecursiveCall")[0]
            assert "return" not in between, f"{path.name}: {name} leaves the section"


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        ("Py_BEGIN_ALLOW_THREADS", "Py_END_ALLOW_THREADS"),
        ("PyEval_SaveThread", "PyEval_RestoreThread"),
    ],
)
def test_detached_sections_pair_and_use_no_python(begin: str, end: str) -> None:
    for path in SOURCES:
        for name, body in functions(path):
            for part in body.split(begin)[1:]:
                inside, found, _ = part.partition(end)
                assert found, f"{path.name}: {name}"
                assert not re.search(r"\breturn\b|\bgoto\b|\bPy[A-Z]\w+_", inside), (
                    f"{path.name}: {name} uses Python while detached"
                )


def test_core_and_arena_do_not_know_python() -> None:
    offenders = [
        line
        for line in findings(r"\bPy_?[A-Z]\w+|Python\.h")
        if not line.startswith("py/")
    ]
    assert offenders == []


def test_files_are_short_enough_to_read() -> None:
    long = {
        path.name: lines
        for path in SOURCES
        if (lines := len(path.read_text().splitlines())) > LINES_MAX
    }
    assert long == {}


def test_headers_are_guarded() -> None:
    for path in SOURCES:
        if path.suffix == ".h":
            text = code_of(path)
            guard = re.search(r"#ifndef (\w+_H)\n#define \1\n", text)
            assert guard, path.name


def test_no_unfinished_business() -> None:
    words = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    root = CSRC.parent
    texts = [*SOURCES, *(root / "ftbus").rglob("*.py"), *(root / "tests").glob("*.py")]
    offenders = [
        str(path.relative_to(root))
        for path in texts
        if path != Path(__file__) and words.search(path.read_text())
    ]
    assert offenders == []


def test_functions_are_short_enough_to_follow() -> None:
    long = {
        f"{path.name}: {name}": body.count("\n")
        for path in SOURCES
        for name, body in functions(path)
        if body.count("\n") > 60
    }
    assert long == {}


@pytest.fixture
def mutants(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Yield csrc/mutants.py, which is a program and not on the path."""
    monkeypatch.syspath_prepend(CSRC)
    before = set(sys.modules)
    yield importlib.import_module("mutants")
    for name in set(sys.modules) - before:
        if name.startswith("mutants"):
            del sys.modules[name]


def test_every_memory_order_has_a_mutant_or_a_reason(mutants: ModuleType) -> None:
    assert list(mutants.uncovered(CSRC, mutants.MUTANTS)) == []


def test_the_table_of_mutants_is_current(mutants: ModuleType) -> None:
    """`python3 csrc/mutants.py --table > csrc/MUTANTS.md` makes it so."""
    assert (CSRC / "MUTANTS.md").read_text() == mutants.table()


def test_every_model_is_in_the_readme() -> None:
    table = (CSRC / "README.md").read_text().partition("## Models")[2]
    rows = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    assert rows == {path.stem for path in (CSRC / "models").glob("*.cpp")}


def test_suppressions_name_no_code_of_ours_and_have_reasons() -> None:
    groups = (CSRC.parent / "tools" / "tsan.supp").read_text().split("\n\n")
    assert len(groups) > 5
    for group in groups:
        reason, *lines = group.strip().splitlines()
        assert reason.startswith("# "), group
        for line in lines:
            assert line.startswith(("# ", "race", "thread:")), line
            assert not re.search(r"ftb|_core|bus_|striped|csrc|arena", line), line


@pytest.mark.parametrize(
    "name", ["ring-free-load", "strand-tail-release", "reclaim-1-enter", "grace-gone"]
)
def test_an_order_that_lost_its_mutant_is_found(mutants: ModuleType, name: str) -> None:
    left = [mutant for mutant in mutants.MUTANTS if mutant.name != name]
    (line,) = mutants.uncovered(CSRC, left)
    (lost,) = {mutant.file for mutant in mutants.MUTANTS if mutant.name == name}
    assert line.startswith(f"{lost}:")


def test_a_reason_without_its_order_is_found(
    mutants: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = sys.modules["mutants_orders"]
    stale = mutants.KEPT[0]._replace(text="ftb_load_acquire(&nothing)")
    monkeypatch.setattr(orders, "KEPT", (*mutants.KEPT, stale))
    with pytest.raises(ValueError, match="nothing"):
        list(mutants.uncovered(CSRC, mutants.MUTANTS))

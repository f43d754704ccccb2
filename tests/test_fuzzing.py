"""The fuzzing harness finds what is planted, and ftbus has nothing to find."""

import random
import sys
from pathlib import Path

import pytest

from ftbus.testing import fuzzing

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "stress"))

fuzz = pytest.importorskip("fuzz", reason="no stress tests here")


def test_a_planted_fault_is_found_kept_and_can_be_repeated(tmp_path: Path) -> None:
    def target(data: bytes) -> None:
        if len(data) < 4:
            raise ValueError("too short")
        if data[3] == 0xFF:
            raise IndexError("planted")

    def hunt() -> fuzzing.FindingError:
        with pytest.raises(fuzzing.FindingError, match="IndexError: planted") as caught:
            fuzzing.fuzz(
                target,
                [b"abcdef"],
                random.Random(5),
                refuses=ValueError,
                inputs=100_000,
                keep=tmp_path,
            )
        return caught.value

    first = hunt()
    assert first.data[3] == 0xFF
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [first.data]
    assert hunt().data == first.data


@pytest.mark.thread_unsafe(reason="reads the memory of the process")
def test_memory_that_grows_is_found() -> None:
    hoard: list[bytes] = []
    with pytest.raises(fuzzing.FindingError, match="grew by"):
        fuzzing.fuzz(
            lambda data: hoard.append(b"x" * 40_000),
            [b"seed"],
            random.Random(1),
            inputs=10_000,
            grows_max=100 << 20,
        )


def test_good_inputs_are_counted_and_seeds_come_first() -> None:
    seen: list[bytes] = []
    outcome = fuzzing.fuzz(seen.append, [b"one", b"two"], random.Random(1), inputs=50)
    assert outcome == (50, 0)
    assert seen[:2] == [b"one", b"two"]


def test_damage_and_cuts_keep_what_they_should(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(300):
        data = rng.randbytes(rng.randrange(300))
        assert b"".join(fuzzing.cut(data, rng)) == data
        assert len(fuzzing.damaged(data, rng, [b"other"])) <= len(data) + 100
    changed = [fuzzing.damaged(b"0123456789", rng) for _ in range(100)]
    assert len(set(changed)) > 50


@pytest.mark.thread_unsafe(reason="faulthandler has one timer")
@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_nothing_is_found(name: str, seed: int) -> None:
    target = fuzz.TARGETS[name]
    seeds = fuzzing.corpus(fuzz.CORPUS / target.folder)
    assert len(seeds) > 5
    outcome = fuzzing.fuzz(
        target.function,
        seeds,
        random.Random(f"{seed} {name}"),
        refuses=target.refuses,
        inputs=2000,
    )
    assert outcome.inputs == 2000
    assert outcome.refused > 0


def test_receiver_accounts_for_every_datagram(seed: int) -> None:
    seeds = fuzzing.corpus(fuzz.CORPUS / "datagrams")
    outcomes = fuzz.fuzz_receiver(seeds, random.Random(seed), 300)
    assert {"posted", "foreign", "malformed", "truncated"} <= outcomes.keys()

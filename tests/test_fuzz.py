"""Tests of benchmarks.fuzz, and a few of its cases for each reader."""

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_runs import READS_CONFIG

from benchmarks import fuzz
from benchmarks.fuzz import READERS, Case, Failure, Reader
from lstm_jax.errors import UserError

pytestmark = [READS_CONFIG, pytest.mark.usefixtures("unchecked_types")]

# Of the others a case takes a training or a process, or one has to be made before.
LONG = ("train", "stored", "folder", "environment")
CASES = {name: 25 for name in READERS if name not in LONG}
CASES |= {"arrays": 10, "overrides": 10}
NONE_REFUSED = ("spelling", "quotes")


@pytest.mark.parametrize("name", CASES)
def test_every_case_is_read_or_refused(name: str) -> None:
    failures: list[Failure] = []
    counts = fuzz.fuzz([name], 0, None, CASES[name], failures.append)
    assert failures == []
    cases, read, _ = counts[name]
    assert cases == CASES[name]
    assert (read == cases) == (name in NONE_REFUSED)


def test_a_case_follows_from_its_seed() -> None:
    for name in CASES:
        first, again, other = (
            repr(READERS[name].make(random.Random(f"{seed} {name}"))) for seed in "001"
        )
        assert first == again, name
        assert first != other, name


def bug(folder: Path, options: Any) -> None:
    raise KeyError("text")


def panic(folder: Path, options: Any) -> None:
    raise BaseException("of a library")


def several_lines(folder: Path, options: Any) -> None:
    raise ValueError("one\nand another")


def leak(folder: Path, options: Any) -> None:
    (folder / "../outside/new.txt").write_text("")


def overwrite(folder: Path, options: Any) -> None:
    Path("../outside/secret.txt").write_text("")


def hang(folder: Path, options: Any) -> None:
    time.sleep(30)


@pytest.mark.parametrize(
    ("read", "problem"),
    [
        (bug, "KeyError: 'text'"),
        (panic, "BaseException: of a library"),
        (several_lines, "a message that is not one line"),
        (leak, "wrote outside of its folder"),
        (overwrite, "wrote outside of its folder"),
        (hang, "TimeoutError: more than 1 s"),
    ],
)
def test_failures_are_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    read: Callable[[Path, Any], None],
    problem: str,
) -> None:
    def make(rng: random.Random) -> Case:
        return Case({"a.txt": b"words"}, {})

    monkeypatch.setitem(READERS, "mine", Reader(make, read, ValueError))
    monkeypatch.setattr(fuzz, "SECONDS", 1)
    done, failure = fuzz.run_case("mine", 0, 3, tmp_path)
    assert failure is not None
    assert problem in failure.problem
    assert (failure.reader, failure.seed, failure.case) == ("mine", 0, 3)
    assert done == (read in (leak, overwrite))


def test_what_is_refused_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path, options: Any) -> None:
        assert (folder / "a.txt").read_bytes() == b"words"
        raise UserError("give another file")

    def make(rng: random.Random) -> Case:
        return Case({"a.txt": b"words"}, {})

    monkeypatch.setitem(READERS, "mine", Reader(make, refuse))
    assert fuzz.run_case("mine", 0, 0, tmp_path) == (False, None)
    assert list(tmp_path.iterdir()) == []

"""Tests of benchmarks.soak, in small: what it does in half an hour, it does at all."""

import copy
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_runs import TINY

from benchmarks import damage, memory, runs, soak

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

ARGUMENTS = (
    *TINY,
    "--config.devices.count=1",
    "--config.num_steps=200",
    "--config.model.dropout=0.5",
    "--config.report.every=25",
    "--config.report.evaluate_every=100",
    "--config.checkpoint.every=50",
    "--config.checkpoint.best=",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, fast_runs: Path) -> Any:
    """A run that nobody killed; it and those after it share what they compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(fast_runs))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        folder = tmp_path_factory.mktemp("soak")
        yield runs.finish(ARGUMENTS, folder / "whole", folder / "cache")


@pytest.mark.slow
def test_killed_twice(whole: runs.Run, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(soak.PHASES, "compilation", 0.0)
    expected = runs.end(whole.workdir, whole.out)
    assert expected.result["step"] == expected.arrays["step"] == 200
    assert {path.split("/")[0] for path in expected.arrays} == {
        *("step", "params", "opt_state", "sums")
    }
    row = soak.trial(
        ARGUMENTS,
        tmp_path / "killed",
        tmp_path / "cache",
        expected,
        ["start", "compilation"],  # the other phases are too short to be met for sure
        random.Random(235),
    )
    assert (row["lost"], row["differences"]) == ("", [])
    assert row["starts"] == 3
    assert [(kill["aim"], kill["signal"]) for kill in row["kills"]] == [
        ("start", "SIGKILL"),
        ("compilation", "SIGTERM"),
    ]


@pytest.mark.slow
def test_terminated(whole: runs.Run, tmp_path: Path, monkeypatch: Any) -> None:
    """And a start that fails is a lost run."""
    monkeypatch.setattr(soak, "TERMINATED", 1.0)
    monkeypatch.setitem(soak.PHASES, "compilation", 0.0)
    expected = runs.end(whole.workdir, whole.out)
    workdir = tmp_path / "killed"
    row = soak.trial(
        ARGUMENTS, workdir, tmp_path, expected, ["compilation"], random.Random(0)
    )
    (kill,) = row["kills"]
    assert kill["signal"] == "SIGTERM"
    assert (row["lost"], row["differences"]) == ("", [])
    (workdir / "config.json").write_text("{")
    row = soak.trial(ARGUMENTS, workdir, tmp_path, expected, [], random.Random(0))
    assert row["lost"].startswith("exit code 2: error: ")


@pytest.mark.slow
def test_phases(whole: runs.Run, tmp_path: Path) -> None:
    """What each is told from, in the order of a run."""

    def phase() -> str:
        return soak.phase(run, {100, 400})

    def add_rows(*rows: dict[str, Any]) -> None:
        with (run.workdir / "metrics.jsonl").open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    run = whole._replace(
        workdir=tmp_path, out=tmp_path / "run.out", err=tmp_path / "run.err"
    )
    run.out.touch()
    run.err.touch()
    assert phase() == "start"
    run.out.write_text("a summary\n")
    half = tmp_path / "checkpoints" / "80.orbax-checkpoint-tmp"
    half.mkdir(parents=True)  # left by the start before
    assert phase() == "compilation"
    half.rmdir()
    add_rows({"step": 80, "split": "train"})
    run.err.write_text("step 80/400  1.2 ms/step\n")
    assert phase() == "steps"
    half.mkdir()
    assert phase() == "save"
    half.rmdir()
    add_rows({"step": 100, "split": "train"})
    assert phase() == "evaluation"
    add_rows({"step": 100, "split": "windows"})
    assert phase() == "steps"
    add_rows({"step": 400, "split": "train"}, {"step": 400, "split": "windows"})
    assert phase() == "end"
    run.err.write_text("finished before, at step 400: not trained again\n")
    assert phase() == "end"


def test_differences_are_told() -> None:
    draw = np.random.default_rng(0)
    name = "params/head/bias"
    expected = runs.End(
        arrays={name: draw.normal(size=5), "step": np.int32(10)},
        rows=[
            {"step": step, "split": "train", "epoch": step, "loss": draw.normal()}
            for step in range(9)
        ],
        meta={"epoch": 3},
        result={"step": 10, "epoch": 3},
    )
    assert runs.differences(copy.deepcopy(expected), expected) == []
    flipped = expected.arrays[name].copy()
    flipped.view(np.uint8)[3] ^= 1
    arrays = {**expected.arrays, name: flipped}
    found = expected._replace(arrays=arrays)
    assert runs.differences(found, expected) == [f"array {name}"]
    del arrays[name]
    assert runs.differences(found, expected) == [f"array {name}"]
    for field in ("rows", "meta", "result"):
        changed = copy.deepcopy(getattr(expected, field))
        (changed[7] if field == "rows" else changed)["epoch"] += 1
        found = expected._replace(**{field: changed})
        assert runs.differences(found, expected) == [field]
    twice = expected._replace(rows=[*expected.rows, expected.rows[-1]])
    assert runs.differences(twice, expected) == ["rows: one is there twice", "rows"]


def trial_of(
    whole: runs.Run, folder: Path, name: str | Path, way: str
) -> tuple[bool, list[str]]:
    draw, expected = random.Random(0), runs.end(whole.workdir, whole.out)
    row = damage.trial(ARGUMENTS, whole, expected, folder, Path(name), way, draw)
    return row["noticed"], row["differences"]


@pytest.mark.slow
def test_damage(whole: runs.Run, tmp_path: Path) -> None:
    names = damage.files(whole.workdir)
    assert len(names) > 10
    assert {name.parts[:2] for name in names} == {("checkpoints", "200")}
    biggest = max(names, key=lambda name: (whole.workdir / name).stat().st_size)
    assert trial_of(whole, tmp_path, biggest, "flipped") == (True, [])


@pytest.mark.slow
def test_damage_unnoticed(whole: runs.Run, tmp_path: Path) -> None:
    """It is a fault, though it leaves the bits alone, unless nothing is read there."""
    unread = "checkpoints/200/commit_success.txt"
    assert trial_of(whole, tmp_path, unread, "deleted") == (False, [])
    found = trial_of(whole, tmp_path, "summary.txt", "truncated")
    assert found == (False, ["not noticed"])


@pytest.mark.slow
def test_every_file_damaged(whole: runs.Run, tmp_path: Path) -> None:
    rows = damage.trials(ARGUMENTS, whole, tmp_path, 0)
    assert len(rows) > 30
    assert {row["way"] for row in rows} == set(damage.WAYS)
    assert not any(row["differences"] for row in rows)


@pytest.mark.slow
def test_memory(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(memory, "MINUTE", 1.5)
    arguments = (*ARGUMENTS, "--config.num_steps=10000000")
    found = memory.watch(tmp_path / "run", tmp_path, 5, arguments, every=0.1)
    assert len(found["MB"]) == 5
    assert 100 < min(found["MB"]) < max(found["MB"]) < 3000
    assert found["rows"] > 5
    assert "bound: 3.0" in memory.text(found)
    finite = (*ARGUMENTS, "--config.num_steps=20")
    with pytest.raises(RuntimeError, match="exit code 0"):
        memory.watch(tmp_path / "short", tmp_path, 100, finite, every=0.1)


@pytest.mark.parametrize(("added", "grows"), [(0.0, False), (5.0, True)])
def test_growth_is_told_from_noise(added: float, grows: bool) -> None:
    """A sawtooth of 10 MB, and a minute that sticks out."""
    draw = random.Random(0)
    medians = [600 + added * minute + draw.uniform(-5, 5) for minute in range(10)]
    medians[4] += 50
    assert (memory.slope(medians[memory.WARM_UP :]) > memory.MOST) is grows


def test_report() -> None:
    kills = [{"signal": "SIGKILL", "phase": "save", "aim": "steps"}] * 2
    row = {"kills": kills, "starts": 3, "seconds": 90.0, "lost": "", "differences": []}
    found = {
        "date": "2026-01-02",
        "machine": "a machine",
        "versions": {"jax": "1"},
        "seed": 3,
        "kills": {"one": [row, row], "two": [row]},
        "memory": {
            "MB": [1.0, 2.0],
            "MB a minute": 1.0,
            "grows": False,
            "steps": 5,
            "rows": 6,
        },
    }
    text = soak.text(found)
    assert "| one | 2 | 6 | 4 | 0 | 0 | 0 | 0 | 4 | 0 | 0 | 0 | 0 | 3.0 |" in text
    assert "| all | 3 | 9 | 6 | 0 | 0 | 0 | 0 | 6 | 0 | 0 | 0 | 0 | 4.5 |" in text
    assert soak.is_well(found)
    for ill in (
        {"kills": {"one": [{**row, "lost": "exit code 1"}]}},
        {"kills": {"one": [{**row, "differences": ["rows"]}]}},
        {"memory": {**found["memory"], "grows": True}},
    ):
        assert not soak.is_well(found | ill)


def test_report_of_damage() -> None:
    row = {"file": "a", "way": "flipped", "noticed": True, "differences": []}
    found = {
        "date": "2026-01-02",
        "machine": "a machine",
        "versions": {"jax": "1"},
        "seed": 3,
        "case": "one",
        "trials": [row, row | {"file": "b", "noticed": False, "differences": ["rows"]}],
    }
    text = damage.text(found)
    assert "| flipped | 2 | 1 | 1 |" in text
    assert "| deleted | 0 | 0 | 0 |" in text
    assert "reads it: `b`." in text

"""A run that was stopped, killed or finished, started again."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from reference import assert_same_bits
from toy_runs import (
    hashes,
    ragged_task,
    rows_of,
    saved_state,
    stopped_at,
    toy_config,
    toy_task,
)

import lstm_jax as lj
from lstm_jax import interrupts, reporting, training, workdirs
from lstm_jax.errors import Interrupted
from lstm_jax.tasks import make_task

ROOT = Path(__file__).parents[1]


pytestmark = pytest.mark.usefixtures("fast_runs")


def test_stopped_and_continued_is_as_never_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = toy_task(dropout=0.5)
    fields = {"num_steps": 40, "optimizer.warmup_steps": 8, "optimizer.name": "adamw"}
    config = toy_config(**fields, **{"optimizer.clip_norm": 0.5})
    training.fit(config, task, tmp_path / "whole")
    for before, num_steps in ((0, 10), (10, 25), (25, 40)):  # within an epoch
        config.num_steps = num_steps
        capsys.readouterr()
        result = training.fit(config, task, tmp_path / "parts")
        assert result["step"] == num_steps
        said, *_ = capsys.readouterr().err.splitlines()
        first = "step 5/10  epoch" if before == 0 else f"going on from step {before}"
        assert said.startswith(first)
    whole, parts = (
        saved_state(tmp_path / name, config, task) for name in ("whole", "parts")
    )
    assert whole.step == 40
    assert_same_bits(parts, whole)
    rows = rows_of(tmp_path / "whole", "train")
    assert [row["step"] for row in rows] == [5, 10, 15, 20, 25, 30, 35, 40]
    assert rows_of(tmp_path / "parts", "train") == rows


@pytest.mark.slow
def test_sums_of_a_row_go_on_across_a_stop(tmp_path: Path) -> None:
    """Interrupted at step 9, between the rows of steps 5 and 10."""
    task = toy_task(dropout=0.5)
    config = toy_config(**{"checkpoint.every": 9, "num_steps": 15})
    config.report.evaluate_every = 12
    training.fit(config, task, tmp_path / "whole")

    workdir = tmp_path / "parts"
    with stopped_at(12, "all"):
        training.fit(config, task, workdir)
    assert int(saved_state(workdir, config, task).step) == 9
    assert saved_state(workdir, config, task).sums["count"] == 2 + 4 + 4 + 2
    assert [row["step"] for row in rows_of(workdir, "train", "all")] == [5, 10, 12]
    training.fit(config, task, workdir)
    assert rows_of(workdir, "train", "all") == rows_of(
        tmp_path / "whole", "train", "all"
    )
    assert_same_bits(
        saved_state(workdir, config, task),
        saved_state(tmp_path / "whole", config, task),
    )


# Runs train.py, and kills it before it writes a row or while it saves a checkpoint.
KILLED = """
import os, runpy, signal, sys

from lstm_jax import checkpoints

sys.argv[0] = "train.py"
save = checkpoints.save


def killing_save(manager, step, state, meta):
    save(manager, step, state, meta)
    if step == 120:
        os.kill(os.getpid(), signal.SIGKILL)


checkpoints.save = killing_save
runpy.run_path("train.py", run_name="__main__")
"""


def test_killed_and_started_again_is_as_never_stopped(
    tmp_path: Path, fast_runs: Path
) -> None:
    workdir = tmp_path / "killed"
    fields = {
        "batch_size": 48,
        "num_steps": 160,
        "model.cell": "simple_rnn",
        "model.num_layers": 1,
        "model.hidden_size": 4,
        "model.embedding_size": 3,
        "model.dropout": 0.5,
        "report.every": 50,
        "report.evaluate_every": 0,
        "checkpoint.every": 30,
    }
    command = [
        f"--workdir={workdir}",
        *(f"--config.{name}={value}" for name, value in fields.items()),
    ]

    def start(*program: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *program, *command],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(fast_runs)}
            | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"},
        )

    def steps() -> list[int]:
        names = [path.name for path in (workdir / "checkpoints").iterdir()]
        return sorted(int(name) for name in names if name.isdecimal())

    # While a save is under way.
    killed = start("-c", KILLED)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [row["step"] for row in rows_of(workdir, "train")] == [50, 100]
    assert steps()[-1] in (90, 120)

    finished = start("train.py")
    assert finished.returncode == 0, finished.stderr
    result = json.loads(finished.stdout.splitlines()[-1])
    assert steps() == [150, 160]

    config = workdirs.read_config(workdir)
    task = make_task(config)
    whole = training.fit(config, task, tmp_path / "whole")
    rows = rows_of(workdir, "train", "windows")
    assert [(row["step"], row["split"]) for row in rows] == [
        *((50, "train"), (100, "train"), (150, "train")),
        *((160, "train"), (160, "windows")),
    ]
    assert rows == rows_of(tmp_path / "whole", "train", "windows")
    assert_same_bits(
        saved_state(workdir, config, task),
        saved_state(tmp_path / "whole", config, task),
    )
    own = {"seconds", "workdir"}
    assert {k: v for k, v in result.items() if k not in own} == {
        k: v for k, v in whole.items() if k not in own
    }

    before = hashes(workdir)
    again = training.fit(config, task, workdir)
    assert json.loads(json.dumps(again)) == result
    assert hashes(workdir) == before


@pytest.mark.parametrize(
    "signals",
    [
        {12: signal.SIGINT},
        pytest.param(
            {
                5: signal.SIGTERM,
                12: signal.SIGINT,
                15: signal.SIGINT,
                25: signal.SIGTERM,
            },
            marks=pytest.mark.slow,
        ),
    ],
    ids=["one", "four"],
)
def test_signals_lose_nothing(
    signals: dict[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever they come, the steps under way are saved; a row is written once."""
    task = ragged_task(2, cells=(lj.simple_rnn(2),), dropout=0.5)
    config = toy_config(num_steps=30, **{"checkpoint.every": 7})
    config.report.evaluate_every = 12
    training.fit(config, task, tmp_path / "whole")
    add_row, at = reporting.add_row, dict(signals)

    def interrupting(out: Any, row: Any) -> None:
        add_row(out, row)
        if (number := at.pop(row["step"], None)) is not None:
            signal.raise_signal(number)

    monkeypatch.setattr(reporting, "add_row", interrupting)
    before, saved = signal.getsignal(signal.SIGINT), []
    while at:
        numbers = list(at.values())
        with pytest.raises(Interrupted) as caught:
            training.fit(config, task, tmp_path / "parts")
        assert caught.value.number in numbers
        saved.append(caught.value.step)
        assert int(saved_state(tmp_path / "parts", config, task).step) == saved[-1]
        assert signal.getsignal(signal.SIGINT) is before
    assert len(saved) == len(signals)
    training.fit(config, task, tmp_path / "parts")
    assert_same_bits(
        saved_state(tmp_path / "parts", config, task),
        saved_state(tmp_path / "whole", config, task),
    )
    rows = rows_of(tmp_path / "parts", "train", "all")
    assert rows == rows_of(tmp_path / "whole", "train", "all")


def test_a_second_signal_acts_at_once(request: Any) -> None:
    # A shell may have told what it runs in the background to ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with interrupts.noted() as received:
        assert received() is None
        signal.raise_signal(signal.SIGINT)
        assert received() == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_other_threads_leave_signals_alone() -> None:
    def enter() -> None:
        with interrupts.noted() as received:
            found.append((received(), signal.getsignal(signal.SIGINT)))

    found: list[Any] = []
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [(None, signal.getsignal(signal.SIGINT))]


def test_reports_and_checkpoints_may_change(tmp_path: Path) -> None:
    task = toy_task(dropout=0.5)
    config = toy_config(num_steps=40)
    training.fit(config, task, tmp_path / "whole")
    config.num_steps = 17
    training.fit(config, task, tmp_path / "parts")
    config.num_steps = 40
    config.report.every = 8
    config.report.evaluate_every = 11
    config.report.samples = True
    config.checkpoint.every = 6
    config.checkpoint.keep = 3
    config.checkpoint.best = "all_loss"
    result = training.fit(config, task, tmp_path / "parts")
    assert result["best_step"] == result["step"] in (17, 22, 33, 40)
    assert_same_bits(
        saved_state(tmp_path / "parts", config, task),
        saved_state(tmp_path / "whole", config, task),
    )
    rows = rows_of(tmp_path / "parts", "train", "all")
    assert [(row["step"], row["split"]) for row in rows] == [
        *((5, "train"), (10, "train"), (15, "train"), (17, "train"), (17, "all")),
        *((22, "all"), (24, "train"), (32, "train"), (33, "all")),
        *((40, "train"), (40, "all")),
    ]
    config.devices.count = 1  # what the run chose is stored
    assert workdirs.read_config(tmp_path / "parts").to_dict() == config.to_dict()

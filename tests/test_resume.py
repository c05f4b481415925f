"""A run that was stopped, killed, finished or mistaken for another, started again."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from reference import assert_same_bits
from toy_runs import compilation_cached, hashes, saved_state, toy_config, toy_task

import lstm_jax as lj
from lstm_jax import training, workdirs
from lstm_jax.errors import UserError
from lstm_jax.reporting import read_metrics
from lstm_jax.tasks import Task, make_task

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    with compilation_cached(folder):
        yield folder


def rows_of(workdir: Path, *splits: str) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl without the time they took."""
    rows = read_metrics(workdir)
    places = [(row["step"], row["split"]) for row in rows]
    assert len(set(places)) == len(places)
    assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)
    seconds = [row.pop("seconds") for row in rows]
    assert seconds == sorted(seconds)
    return [row for row in rows if row["split"] in splits]


def test_stopped_and_continued_is_as_never_stopped(tmp_path: Path) -> None:
    task = toy_task(dropout=0.5)
    fields = {"num_steps": 40, "optimizer.warmup_steps": 8, "optimizer.name": "adamw"}
    config = toy_config(**fields, **{"optimizer.clip_norm": 0.5})
    training.fit(config, task, tmp_path / "whole")
    for num_steps in (10, 25, 40):  # in the middle of an epoch
        config.num_steps = num_steps
        result = training.fit(config, task, tmp_path / "parts")
        assert result["step"] == num_steps
    whole, parts = (
        saved_state(tmp_path / name, config, task) for name in ("whole", "parts")
    )
    assert whole.step == 40
    assert_same_bits(parts, whole)
    rows = rows_of(tmp_path / "whole", "train")
    assert [row["step"] for row in rows] == [5, 10, 15, 20, 25, 30, 35, 40]
    assert rows_of(tmp_path / "parts", "train") == rows


def test_sums_of_a_row_go_on_across_a_stop(tmp_path: Path) -> None:
    """Interrupted at step 9, between the rows of steps 5 and 10."""
    task = toy_task(dropout=0.5)
    config = toy_config(**{"checkpoint.every": 9, "num_steps": 15})
    config.report.evaluate_every = 12
    training.fit(config, task, tmp_path / "whole")

    class StoppedError(Exception):
        pass

    workdir = tmp_path / "parts"
    with pytest.MonkeyPatch.context() as patch:
        add_row = training.reporting.add_row

        def stop_at_12(report: Any, row: dict[str, Any]) -> None:
            add_row(report, row)
            if row["step"] == 12:
                raise StoppedError

        patch.setattr(training.reporting, "add_row", stop_at_12)
        with pytest.raises(StoppedError):
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

from lstm_jax import checkpoints, reporting

function, at = sys.argv[1], int(sys.argv[2])
sys.argv[:] = ["train.py", *sys.argv[3:]]
add_row, save = reporting.add_row, checkpoints.save


def killing_add_row(report, row):
    if function == "add_row" and row["step"] == at:
        os.kill(os.getpid(), signal.SIGKILL)
    add_row(report, row)


def killing_save(manager, step, state, meta):
    save(manager, step, state, meta)
    if function == "save" and step == at:
        os.kill(os.getpid(), signal.SIGKILL)


reporting.add_row, checkpoints.save = killing_add_row, killing_save
runpy.run_path("train.py", run_name="__main__")
"""


def test_killed_and_started_again_is_as_never_stopped(
    tmp_path: Path, cache: Path
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
            env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)}
            | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"},
        )

    def steps() -> list[int]:
        names = [path.name for path in (workdir / "checkpoints").iterdir()]
        return sorted(int(name) for name in names if name.isdecimal())

    # With the row of step 100 unwritten, the steps after it already under way.
    killed = start("-c", KILLED, "add_row", "100")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [row["step"] for row in rows_of(workdir, "train")] == [50]
    assert steps()[-1] in (60, 90)  # the last save may not be complete

    killed = start("-c", KILLED, "save", "120")
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
    again = start("train.py")
    assert again.returncode == 0, again.stderr
    assert again.stdout == finished.stdout
    assert "step " not in again.stderr
    assert hashes(workdir) == before


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[ConfigDict, Path]:
    """The config and the folder of a complete next-word run."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "text.txt").write_text("a b c d a c b d a d c b a b c d")
    config = toy_config(**{"data.path": str(folder / "text.txt"), "num_steps": 12})
    config.checkpoint.every = 5
    training.fit(config, make_task(config), folder / "run")
    return config, folder / "run"


def test_finished_run_started_again_trains_nothing(
    finished: tuple[ConfigDict, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    config, workdir = finished
    before = hashes(workdir)
    result = training.fit(config, make_task(config), workdir)
    assert hashes(workdir) == before
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.splitlines()[-1].startswith("a b c ")
    row = [row for row in read_metrics(workdir) if row["split"] == "windows"][-1]
    assert result["step"] == row["step"] == 12
    assert result["windows_loss"] == row["loss"]
    assert result["windows_accuracy"] == row["accuracy"]
    assert result["epoch"] == row["epoch"] == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seed": 7}, "in seed: 0 there, 7 here: name another folder with --workdir="),
        ({"model.hidden_size": 5}, "in model.hidden_size: 4 there, 5 here: "),
        ({"data.path": "fable.txt"}, r"in data.path: '.*text.txt' there, 'fable.txt'"),
        ({"num_steps": 11}, "in num_steps: 12 there, 11 here: "),
        (
            {"seed": 7, "batch_size": 5, "report.every": 2},
            "in batch_size: 4 there, 5 here; seed: 0 there, 7 here: ",
        ),
        (
            {"optimizer.schedule": "cosine", "num_steps": 13},
            "in num_steps: 12 there, 13 here; optimizer.schedule: 'constant' there, ",
        ),
    ],
)
def test_run_of_another_config_is_refused(
    finished: tuple[ConfigDict, Path], fields: dict[str, Any], message: str
) -> None:
    config, workdir = finished[0].copy_and_resolve_references(), finished[1]
    config.update_from_flattened_dict(fields)
    before = hashes(workdir)
    with pytest.raises(UserError, match=message) as error:
        training.fit(config, make_task(config), workdir)
    assert "\n" not in str(error.value)
    assert hashes(workdir) == before


def test_run_on_another_text_of_the_same_name_is_refused(
    finished: tuple[ConfigDict, Path],
) -> None:
    config, workdir = finished
    path = Path(config.data.path)
    before, text = hashes(workdir), path.read_text()
    path.write_text(text.replace("d", "e"))
    with pytest.raises(UserError, match=r"on other data \(vocabulary.json differs\)"):
        training.fit(config, make_task(config), workdir)
    path.write_text(text)
    assert hashes(workdir) == before


def test_start_killed_after_the_config_is_mended(
    finished: tuple[ConfigDict, Path], tmp_path: Path
) -> None:
    config, workdir = finished
    (tmp_path / "config.json").write_bytes((workdir / "config.json").read_bytes())
    training.fit(config, make_task(config), tmp_path)
    for name in ("vocabulary.json", "summary.txt", "config.json"):
        assert (tmp_path / name).read_bytes() == (workdir / name).read_bytes()
    assert rows_of(tmp_path, "train", "windows") == rows_of(workdir, "train", "windows")


def test_longer_run_under_a_cosine_is_refused(tmp_path: Path) -> None:
    config = toy_config(**{"optimizer.schedule": "cosine", "num_steps": 3})
    workdirs.claim(tmp_path, config, {})
    before = hashes(tmp_path)
    config.num_steps = 5
    with pytest.raises(UserError, match="in num_steps: 3 there, 5 here"):
        training.fit(config, toy_task(), tmp_path)
    assert hashes(tmp_path) == before


def test_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    before = hashes(tmp_path)
    with pytest.raises(UserError, match=r"is not empty and holds no config.json"):
        training.fit(toy_config(), toy_task(), tmp_path)
    with pytest.raises(UserError, match=r"notes.txt is a file"):
        training.fit(toy_config(), toy_task(), notes)
    assert hashes(tmp_path) == before


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
    assert workdirs.read_config(tmp_path / "parts").to_dict() == config.to_dict()


def worsening_task() -> Task:
    """Each step adds 1 to the one parameter; evaluation wants it to be 3."""

    def loss(params: Any, examples: Any, weight: Any, key: Any) -> Any:
        w = params["w"]
        losses = examples["slope"] * w + examples["square"] * (w - 3) ** 2
        return {"count": jnp.sum(weight), "loss": jnp.sum(weight * losses)}

    def examples(slope: float, square: float) -> dict[str, np.ndarray]:
        return {
            "slope": np.full(6, slope, np.float32),
            "square": np.full(6, square, np.float32),
        }

    return toy_task()._replace(
        init=lambda key: {"w": jnp.zeros(())},
        loss=loss,
        examples=examples(-1, 0),
        splits={"test": examples(0, 1)},
        order=lambda key, epoch: jnp.arange(6),
        epoch_size=6,
    )


def test_best_checkpoint_outlives_worse_ones(tmp_path: Path) -> None:
    task = worsening_task()
    fields = {"optimizer.name": "sgd", "optimizer.learning_rate": 1.0, "num_steps": 8}
    config = toy_config(**fields, **{"report.every": 4, "report.evaluate_every": 1})
    config.checkpoint.best = "test_loss"
    config.checkpoint.keep = 1

    def folders() -> list[int]:
        return sorted(int(f.name) for f in (tmp_path / "checkpoints").iterdir())

    result = training.fit(config, task, tmp_path)
    rows = rows_of(tmp_path, "test")
    assert [row["loss"] for row in rows] == [(step - 3) ** 2 for step in range(1, 9)]
    assert folders() == [3, 8]
    assert (result["step"], result["best_step"], result["epoch"]) == (3, 3, 1.5)
    assert result["test_loss"] == 0
    assert workdirs.load_params(tmp_path, workdirs.answering_step(tmp_path, None)) == {
        "w": 8
    }
    # Still so after it went on, from the last and not from the best.
    config.num_steps = 11
    result = training.fit(config, task, tmp_path)
    assert folders() == [3, 11]
    assert (result["step"], result["best_step"], result["test_loss"]) == (3, 3, 0)
    assert workdirs.load_params(tmp_path, result["step"]) == {"w": 3}
    # Of batches of 4 and 2, with the parameter at 0 to 3, 4 to 7 and 8 to 10.
    losses = [row["loss"] for row in rows_of(tmp_path, "train")]
    assert losses == [-16 / 12, -64 / 12, -90 / 10]


def test_init_from_takes_what_matches_and_names_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A rate of zero: the parameters of a checkpoint are those that the run began with.
    config = toy_config(**{"num_steps": 1, "optimizer.learning_rate": 0.0})
    task, other = (
        toy_task(cells=(lj.simple_rnn(4),), num_classes=classes) for classes in (3, 5)
    )
    training.fit(config, task, tmp_path / "first")
    theirs = workdirs.load_params(tmp_path / "first", 1)

    config.seed = 1
    own = jax.jit(other.init)(training.make_keys(1).init)
    capsys.readouterr()
    training.fit(config, other, tmp_path / "second", tmp_path / "first")
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first == f"starting from step 1 of {tmp_path / 'first'}"
    assert last == "not there in this shape, begun anew: head/bias, head/kernel"
    taken = workdirs.load_params(tmp_path / "second", 1)
    assert_same_bits(taken["recurrent"], theirs["recurrent"])
    assert_same_bits(taken["head"], own["head"])
    kernels = [p["recurrent"]["layer_0"]["cell"]["kernel"] for p in (taken, own)]
    assert (kernels[0] != kernels[1]).all()

    # All match: nothing is named. A run that goes on keeps its own.
    training.fit(config, task, tmp_path / "third", tmp_path / "first")
    assert "begun anew" not in capsys.readouterr().out
    assert_same_bits(workdirs.load_params(tmp_path / "third", 1), theirs)
    config.num_steps = 2
    training.fit(config, task, tmp_path / "third", tmp_path / "second")
    assert "parameters taken" not in capsys.readouterr().out
    assert_same_bits(workdirs.load_params(tmp_path / "third", 2), theirs)


def test_init_from_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run in .*nowhere \(no config.json\)"):
        training.fit(toy_config(), toy_task(), tmp_path / "run", tmp_path / "nowhere")

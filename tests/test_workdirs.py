"""Tests of lstm_jax.workdirs: whose a folder is, and what may change there."""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict
from toy_runs import (
    climbing_config,
    climbing_task,
    hashes,
    rows_of,
    toy_config,
    toy_task,
)

from lstm_jax import training, workdirs
from lstm_jax.config import base_config
from lstm_jax.errors import UserError
from lstm_jax.reporting import read_metrics
from lstm_jax.tasks import make_task

pytestmark = pytest.mark.usefixtures("fast_runs")

# Another process that trains in a folder.
HOLDING = """
import pathlib, sys
from toy_runs import toy_config
from lstm_jax import workdirs

with workdirs.claimed(pathlib.Path(sys.argv[1]), toy_config(num_steps=1), {}):
    print("claimed", flush=True)
    input()
"""


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
    assert captured.err == "finished before, at step 12: not trained again\n"
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
        ({"data.order": "walk"}, "in data.order: 'shuffled' there, 'walk' here: "),
        ({"optimizer.ema": 0.9}, "in optimizer.ema: 0.0 there, 0.9 here: "),
        ({"model.dense": (3,)}, r"in model.dense: \[\] there, \[3\] here: "),
        (
            {"num_steps": 0, "num_epochs": 9},
            "in num_epochs: 0 there, 9 here; num_steps: 12 there, 0 here: ",
        ),
        (
            {"patience": 1, "checkpoint.best": "windows_loss"},
            "in patience: 0 there, 1 here: ",
        ),
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
    with pytest.raises(UserError, match=r"on other data \(.* differs\): name another"):
        training.fit(config, make_task(config), workdir)
    path.write_text(text)
    assert hashes(workdir) == before


def test_data_that_moved_is_the_same_data(
    finished: tuple[ConfigDict, Path], tmp_path: Path
) -> None:
    config, workdir = finished[0].copy_and_resolve_references(), tmp_path / "run"
    shutil.copytree(finished[1], workdir)
    config.data.path = str(shutil.copy(config.data.path, tmp_path / "moved.txt"))
    config.num_steps = 16
    task = make_task(config)
    config.data.test_path, config.data.tfds_dir = "elsewhere.csv", "/elsewhere"
    result = training.fit(config, task, workdir)
    assert result["step"] == 16
    config.devices.count = 1  # those that the run began with
    assert workdirs.read_config(workdir).to_dict() == config.to_dict()


def test_start_killed_after_the_config_is_mended(
    finished: tuple[ConfigDict, Path], tmp_path: Path
) -> None:
    config, workdir = finished
    (tmp_path / "config.json").write_bytes((workdir / "config.json").read_bytes())
    training.fit(config, make_task(config), tmp_path)
    for name in ("vocabulary.json", "data.sha256", "summary.txt", "config.json"):
        assert (tmp_path / name).read_bytes() == (workdir / name).read_bytes()
    assert rows_of(tmp_path, "train", "windows") == rows_of(workdir, "train", "windows")


def test_longer_run_under_a_cosine_is_refused(tmp_path: Path) -> None:
    config = toy_config(**{"optimizer.schedule": "cosine", "num_steps": 3})
    with workdirs.claimed(tmp_path, config, {}):
        pass
    before = hashes(tmp_path)
    config.num_steps = 5
    with pytest.raises(UserError, match="in num_steps: 3 there, 5 here"):
        training.fit(config, toy_task(), tmp_path)
    assert hashes(tmp_path) == before


@pytest.mark.parametrize(
    "name",
    [
        *("summary.txt", "curves.png", "metrics.jsonl", "vocabulary.json"),
        *("identity.json", "checkpoints/10/x", "members/seed0/x", "forecast.png"),
        *("events.out.tfevents.17.host", "data.sha256"),
    ],
)
def test_folder_with_a_file_that_a_run_writes_is_refused(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    before, task = hashes(tmp_path), toy_task()
    task = task._replace(files={**task.files, "vocabulary.json": "{}"})
    held = name.partition("/")[0]
    with pytest.raises(UserError, match=rf"holds {held} of something else, for") as e:
        training.fit(toy_config(), task, tmp_path)
    assert "\n" not in str(e.value)
    assert hashes(tmp_path) == before


def test_folder_of_runs_and_a_file_are_refused(
    finished: tuple[ConfigDict, Path], tmp_path: Path
) -> None:
    shutil.copytree(finished[1], tmp_path / "runs" / "first")
    before = hashes(tmp_path)
    with pytest.raises(
        UserError, match=r"runs holds runs, such as first: name another"
    ):
        training.fit(toy_config(), toy_task(), tmp_path / "runs")
    assert hashes(tmp_path) == before
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    with pytest.raises(UserError, match=r"notes.txt is a file"):
        training.fit(toy_config(), toy_task(), notes)


def test_folder_with_other_files_is_used(tmp_path: Path) -> None:
    """As `train.py --workdir=run > run/train.log` does."""
    (tmp_path / "data").mkdir()
    for name in ("train.log", "data/a.csv"):
        (tmp_path / name).write_text("mine")
    result = training.fit(toy_config(num_steps=1), toy_task(), tmp_path)
    assert result["step"] == 1
    assert training.fit(toy_config(num_steps=2), toy_task(), tmp_path)["step"] == 2
    for name in ("train.log", "data/a.csv"):
        assert (tmp_path / name).read_text() == "mine"


def test_refused_resume_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    config = toy_config(num_steps=5)
    training.fit(config, toy_task(), tmp_path)
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("{torn\n" + metrics.read_text())
    before = hashes(tmp_path)
    config.num_steps = 10
    with pytest.raises(UserError, match="line 1 is not JSON"):
        training.fit(config, toy_task(), tmp_path)
    assert hashes(tmp_path) == before


def test_evaluation_that_is_not_finite_is_null(tmp_path: Path) -> None:
    """JSON has no NaN."""
    task = climbing_task(lambda w: jnp.inf)
    result = training.fit(climbing_config(num_steps=2), task, tmp_path)
    assert result["test_loss"] is None
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert (last["split"], last["loss"]) == ("test", None)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    """The other is refused, and changes nothing; the lock goes with its owner."""
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "claimed\n"
        before = hashes(tmp_path)
        with pytest.raises(UserError, match="another process trains in"):
            training.fit(toy_config(num_steps=1), toy_task(), tmp_path)
        assert hashes(tmp_path) == before
    finally:
        other.kill()  # it cannot unlock
        other.communicate()
    training.fit(toy_config(num_steps=1), toy_task(), tmp_path)
    assert stat.S_IMODE((tmp_path / ".lock").stat().st_mode) == 0o600


def test_other_text_of_the_same_words_is_refused(tmp_path: Path) -> None:
    text, workdir = tmp_path / "text.txt", tmp_path / "run"
    text.write_text("a b c a b c a b c d e f")
    config = toy_config(num_steps=1, **{"data.path": str(text), "batch_size": 1})
    task = make_task(config)
    training.fit(config, task, workdir)
    text.write_text("a b c c b a a b c d e f")
    other = make_task(config)
    assert other.files["vocabulary.json"] == task.files["vocabulary.json"]
    before = hashes(workdir)
    config.num_steps = 2
    with pytest.raises(UserError, match=r"other data \(data.sha256 differs\)"):
        training.fit(config, other, workdir)
    assert hashes(workdir) == before


def test_start_that_was_killed_in_its_first_write_is_mended(tmp_path: Path) -> None:
    (tmp_path / "config.json.tmp").write_text('{"ta')
    config = toy_config()
    with workdirs.claimed(tmp_path, config, {}):
        pass
    assert workdirs.read_config(tmp_path).to_dict() == config.to_dict()


def test_config_of_an_earlier_version_gets_the_defaults(tmp_path: Path) -> None:
    config = toy_config(**{"model.hidden_size": 9, "data.window": 5})
    fields = config.to_dict()
    for group, names in {
        "model": ("dense", "bidirectional", "recurrent_dropout", "head"),
        "data": ("buckets", "holdout", "tfds_dir"),
        "optimizer": ("ema",),
    }.items():
        for name in names:
            del fields[group][name]
    del fields["num_epochs"], fields["patience"], fields["report"]
    config.report = base_config().report
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert workdirs.read_config(tmp_path).to_dict() == config.to_dict()
    # An integer where a number belongs, and a list for a tuple, are of their types.
    fields["model"] |= {"dropout": 0, "dense": [4, 2]}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    model = workdirs.read_config(tmp_path).model
    assert (model.dropout, model.dense) == (0.0, (4, 2))


@pytest.mark.parametrize(
    ("group", "field"), [("", "sead"), ("model", "hiden_size"), ("swept", "seeds")]
)
def test_field_of_a_later_version_is_named(
    group: str, field: str, tmp_path: Path
) -> None:
    fields = toy_config().to_dict()
    (fields.setdefault(group, {}) if group else fields)[field] = 3
    (tmp_path / "config.json").write_text(json.dumps(fields))
    name = f"{group}.{field}".strip(".")
    with pytest.raises(UserError, match=f"a field {name}, which this lstm_jax"):
        workdirs.read_config(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("hidden_size", value) for value in (None, "128", 1.5, True, [1])),
        *(("bidirectional", value) for value in (0, 1, None, "no")),
        *(("dropout", value) for value in (True, "0.5", None)),
        *(("dense", value) for value in (3, "3", None)),
        *(("cell", value) for value in (3, None, ["lstm"])),
    ],
)
def test_field_of_another_type_is_named(
    tmp_path: Path, field: str, value: object
) -> None:
    fields = toy_config().to_dict()
    fields["model"][field] = value
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=rf"model\.{field}=.* is not of its type"):
        workdirs.read_config(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 100_000, "config.json is damaged: restore it"),
        ('{"seed": ' + "9" * 5000 + "}", "config.json is damaged: restore it"),
        (
            '{"model": {"dropout": 1' + "0" * 400 + "}}",
            "config.json: model.dropout=1000.* is too large: restore it",
        ),
        ('{"a\\nb": 1}', "config.json has a field a b, which this lstm_jax"),
    ],
)
def test_config_beyond_pythons_limits(
    tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=message):
        workdirs.read_config(tmp_path)

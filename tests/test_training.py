"""Tests of lstm_jax.training: `fit` on small tasks."""

import collections
import functools
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import assert_same_bits
from toy_runs import (
    logits_of,
    losses_and_hits,
    saved_state,
    toy_arrays,
    toy_config,
    toy_model,
    toy_task,
)

import lstm_jax as lj
from lstm_jax import reporting, steps, training, workdirs
from lstm_jax.errors import UserError
from lstm_jax.tasks import classification, make_task

pytestmark = pytest.mark.usefixtures("fast_runs")


def test_train_rows_are_means_since_the_row_before(tmp_path: Path) -> None:
    config = toy_config(**{"num_steps": 11, "report.every": 4})
    config.report.evaluate_every = 3
    config.checkpoint.every = 5
    task = toy_task(dropout=0.5)
    result = training.fit(config, task, tmp_path / "run")
    rows = reporting.read_metrics(tmp_path / "run")
    assert [(row["step"], row["split"]) for row in rows] == [
        *((3, "all"), (4, "train"), (6, "all"), (8, "train"), (9, "all")),
        *((11, "train"), (11, "all")),
    ]
    # A step at a time, with the sums of each step alone.
    made, keys = steps.make_stepping(config, task), steps.make_keys(config.seed)
    state = steps.init_state(made, keys)
    run = jax.jit(functools.partial(steps.train_steps, made, keys))
    each, params = [], {}
    for step in range(1, 12):
        state = run(state, task.examples[0], jnp.int32(0), jnp.int32(1))
        each.append({name: float(value) for name, value in state.sums.items()})
        state = state._replace(sums=jax.tree.map(jnp.zeros_like, state.sums))
        params[step] = state.params
    assert [sums["count"] for sums in each] == [4, 4, 2, 4, 4, 2, 4, 4, 2, 4, 4]
    since = {4: slice(0, 4), 8: slice(4, 8), 11: slice(8, 11)}
    for row in rows:
        assert set(row) == {"step", "epoch", "split", "loss", "accuracy", "seconds"}
        assert row["epoch"] == row["step"] / 3
        if row["split"] == "train":
            part = each[since[row["step"]]]
            count = sum(sums["count"] for sums in part)
            want = [sum(s[name] for s in part) / count for name in ("loss", "accuracy")]
        else:
            logits = logits_of(params[row["step"]], toy_arrays()[0])
            want = [a.mean() for a in losses_and_hits(logits, toy_arrays()[1])]
        np.testing.assert_allclose([row["loss"], row["accuracy"]], want, rtol=1e-5)
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0
    assert result["seconds"] >= seconds[-1]
    assert_same_bits(workdirs.load_params(tmp_path / "run", 11), state.params)


@pytest.mark.slow
def test_bits_do_not_depend_on_where_the_loop_stops(tmp_path: Path) -> None:
    states = []
    for every, evaluate_every, save_every in ((1, 0, 0), (7, 10, 9), (50, 0, 100)):
        config = toy_config(num_steps=100)
        config.optimizer.clip_norm = 0.1
        config.optimizer.schedule = "cosine"
        config.report.every = every
        config.report.evaluate_every = evaluate_every
        config.checkpoint.every = save_every
        workdir, task = tmp_path / str(every), toy_task(dropout=0.5)
        training.fit(config, task, workdir)
        states.append(saved_state(workdir, config, task))
        assert states[-1].step == 100
    assert_same_bits(states[1], states[0])
    assert_same_bits(states[2], states[0])


def test_fit_learns_a_task_of_own_arrays(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Arrays of NumPy's own types, int64 and float64, do as well."""
    monkeypatch.chdir(tmp_path)
    inputs, labels = (np.asarray(a.tolist()) for a in toy_arrays(60))
    model = toy_model(cells=(lj.simple_rnn(4),))
    test = toy_arrays(30)
    task = classification(model, inputs[30:], labels[30:], {"my_test": test})
    config = toy_config(num_steps=300)
    config.checkpoint.best = "my_test_accuracy"
    result = lj.fit(config, task)
    workdir = Path("checkpoints", "next_word-1")
    assert f"training in {workdir}\n" in capsys.readouterr().err
    rows = [row for row in reporting.read_metrics(workdir) if row["split"] == "train"]
    assert rows[0]["loss"] > 0.9
    assert rows[-1]["loss"] < 0.15
    assert rows[-1]["accuracy"] > 0.95
    params = workdirs.load_params(workdir, 300)
    losses, hits = losses_and_hits(logits_of(params, test[0], model), test[1])
    np.testing.assert_allclose(result["my_test_loss"], losses.mean(), rtol=1e-4)
    np.testing.assert_allclose(result["my_test_accuracy"], hits.mean(), rtol=1e-6)
    assert result["my_test_accuracy"] > 0.7
    assert list(result) == [
        *("step", "epoch", "my_test_loss", "my_test_accuracy"),
        *("best_step", "seconds", "workdir"),
    ]
    assert (result["step"], result["epoch"], result["best_step"]) == (300, 37.5, 300)
    assert result["workdir"] == str(workdir)
    assert result["seconds"] >= rows[-1]["seconds"] > 0
    assert (workdir / "summary.txt").read_text() == task.summary
    assert task.summary.splitlines()[-1].split() == ["total", "43"]


def test_fit_without_a_folder_makes_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("next_word-8", "next_word-11-old", "tag-20", "next_word"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    config = toy_config(num_steps=1)
    folders = [lj.fit(config, toy_task())["workdir"] for _ in range(2)]
    wanted = [str(Path("checkpoints", f"next_word-{n}")) for n in (9, 10)]
    assert folders == wanted
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if line.startswith("training in")] == [
        f"training in {folder}" for folder in wanted
    ]
    # One that is refused leaves no folder behind.
    config.checkpoint.best = "nothing"
    with pytest.raises(UserError, match="is never evaluated"):
        lj.fit(config, toy_task())
    assert len(list((tmp_path / "checkpoints").iterdir())) == 6


@pytest.mark.slow
def test_nothing_compiles_after_the_first_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = toy_config(**{"batch_size": 16, "num_steps": 60, "report.every": 4})
    config.report.evaluate_every = 5
    config.report.samples = True
    config.checkpoint.every = 7
    config.checkpoint.best = "windows_loss"
    task = make_task(config)._replace(demonstrate=None)
    compiled: list[str] = []
    first_epoch: list[str] = []
    add_row = reporting.add_row

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            words = record.getMessage().split()
            if words[0] == "Compiling":
                compiled.append(words[1])

    def add_row_and_look(report: reporting.Report, row: reporting.Row) -> None:
        add_row(report, row)
        if row["epoch"] <= 1:
            first_epoch[:] = compiled

    monkeypatch.setattr(reporting, "add_row", add_row_and_look)
    listener = Listener()
    logging.getLogger("jax").addHandler(listener)
    with jax.log_compiles():
        result = training.fit(config, task, tmp_path)
    logging.getLogger("jax").removeHandler(listener)
    caplog.clear()
    assert result["epoch"] > 4
    times = collections.Counter(compiled)
    assert times["jit(train_steps)"] == times["jit(evaluate)"] == 1
    assert compiled == first_epoch


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("batch_size", 0, "batch_size=0 must be at least 1"),
        ("num_steps", 0, "num_steps=0 and num_epochs=0: give one of them"),
        ("num_epochs", 3, "num_steps=20 and num_epochs=3: give one of them"),
        ("checkpoint.keep", 0, "checkpoint.keep=0 must be at least 1"),
        ("checkpoint.every", -1, "checkpoint.every=-1 must be at least 0"),
        ("report.every", 0, "report.every=0 must be at least 1"),
        ("report.evaluate_every", -1, "report.evaluate_every=-1 must be at least 0"),
        ("checkpoint.best", "test_loss", "'test_loss' is never evaluated: choose"),
        ("checkpoint.best", "all_f1", "choose one of all_loss, all_accuracy$"),
        ("optimizer.name", "lion", "unknown optimizer.name 'lion'"),
    ],
)
def test_fields_that_are_no_use_make_no_folder(
    tmp_path: Path, field: str, value: Any, message: str
) -> None:
    config = toy_config(**{field: value})
    with pytest.raises(UserError, match=message):
        training.fit(config, toy_task(), tmp_path / "run")
    assert not (tmp_path / "run").exists()

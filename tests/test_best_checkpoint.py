"""The best checkpoint by a metric: kept, answering, and chosen anew."""

from pathlib import Path

import jax.numpy as jnp
import pytest
from toy_runs import (
    climbing_config,
    climbing_task,
    folders,
    rows_of,
)

from lstm_jax import training, workdirs

pytestmark = pytest.mark.usefixtures("fast_runs")


def test_best_checkpoint_outlives_worse_ones(tmp_path: Path) -> None:
    task = climbing_task(lambda w: (w - 3) ** 2)
    fields = {"num_steps": 8, "report.every": 4, "report.evaluate_every": 1}
    config = climbing_config(**fields)
    config.checkpoint.best = "test_loss"
    config.checkpoint.keep = 1

    result = training.fit(config, task, tmp_path)
    rows = rows_of(tmp_path, "test")
    assert [row["loss"] for row in rows] == [(step - 3) ** 2 for step in range(1, 9)]
    assert folders(tmp_path) == [3, 8]
    assert (result["step"], result["best_step"], result["epoch"]) == (3, 3, 1.5)
    assert result["test_loss"] == 0
    assert workdirs.load_params(tmp_path, workdirs.answering_step(tmp_path, None)) == {
        "w": 8
    }
    # Still so after it went on, from the last and not from the best.
    config.num_steps = 11
    result = training.fit(config, task, tmp_path)
    assert folders(tmp_path) == [3, 11]
    assert (result["step"], result["best_step"], result["test_loss"]) == (3, 3, 0)
    assert workdirs.load_params(tmp_path, result["step"]) == {"w": 3}
    # Of batches of 4 and 2, with the parameter at 0 to 3, 4 to 7 and 8 to 10.
    losses = [row["loss"] for row in rows_of(tmp_path, "train")]
    assert losses == [-16 / 12, -64 / 12, -90 / 10]


def test_a_metric_that_is_not_finite_costs_no_checkpoint(tmp_path: Path) -> None:
    """Neither the best one before it nor one that comes after."""
    values = jnp.array([9.0, 2.0, jnp.nan, 5.0, -jnp.inf, jnp.nan, 1.0, 4.0])
    task = climbing_task(lambda w: values[w.astype(int) - 1])
    fields = {"num_steps": 6, "report.evaluate_every": 1}
    config = climbing_config(**fields)
    config.checkpoint.best = "test_loss"
    config.checkpoint.keep = 1
    result = training.fit(config, task, tmp_path)
    assert (result["step"], result["best_step"], result["test_loss"]) == (2, 2, 2.0)
    assert folders(tmp_path) == [2, 6]
    assert workdirs.load_params(tmp_path, 2) == {"w": 2}
    config.num_steps = 8
    result = training.fit(config, task, tmp_path)
    assert (result["step"], result["best_step"], result["test_loss"]) == (7, 7, 1.0)
    assert folders(tmp_path) == [7, 8]


def test_best_of_a_finished_run_may_be_chosen_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is printed is what a prediction loads, which reads the stored config."""
    task = climbing_task(lambda w: (w - 3) ** 2)
    fields = {"num_steps": 8, "report.every": 4, "report.evaluate_every": 1}
    config = climbing_config(**fields)
    config.checkpoint.every = 1
    config.checkpoint.keep = 4

    def answers() -> int:
        best = workdirs.read_config(tmp_path).checkpoint.best
        return workdirs.answering_step(tmp_path, best or None)

    result = training.fit(config, task, tmp_path)
    assert (result["step"], result["best_step"], answers()) == (8, None, 8)
    capsys.readouterr()
    for best, step in (("test_loss", 5), ("", 8)):  # of the steps 5 to 8
        config.checkpoint.best = best
        result = training.fit(config, task, tmp_path)
        assert capsys.readouterr().err.startswith("finished before, at step 8: ")
        assert result["step"] == answers() == step
        assert result["test_loss"] == (step - 3) ** 2
        assert result["best_step"] == (step if best else None)
    assert folders(tmp_path) == [5, 6, 7, 8]

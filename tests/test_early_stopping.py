"""Runs counted in epochs, and runs that end when they no longer get better."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest
from reference import assert_same_bits
from toy_runs import (
    climbing_config,
    climbing_task,
    folders,
    hashes,
    rows_of,
    saved_state,
    stopped_at,
)

from lstm_jax import training, workdirs
from lstm_jax.errors import UserError
from lstm_jax.tasks import Task

# What the split "test" gives after each step: the best is at step 4.
LOSSES = (9.0, 5.0, 6.0, 7.0, 4.0, 8.0, 6.0, 7.0, 5.0, 4.0, 3.0, 2.0, 1.0)


pytestmark = pytest.mark.usefixtures("fast_runs")


def task_of_losses() -> Task:
    return climbing_task(lambda w: jnp.array(LOSSES)[w.astype(jnp.int32)])


def places(workdir: Path) -> list[tuple[int, str]]:
    return [(row["step"], row["split"]) for row in rows_of(workdir)]


def test_epochs_end_with_rows_and_a_checkpoint(tmp_path: Path) -> None:
    config = climbing_config(num_steps=0, num_epochs=3, **{"checkpoint.keep": 9})
    task = task_of_losses()
    result = training.fit(config, task, tmp_path)
    ends = [(step, split) for step in (2, 4, 6) for split in ("train", "test")]
    assert places(tmp_path) == ends
    assert [row["epoch"] for row in rows_of(tmp_path)] == [1, 1, 2, 2, 3, 3]
    assert folders(tmp_path) == [2, 4, 6]
    assert (result["step"], result["epoch"], result["test_loss"]) == (6, 3, LOSSES[6])
    # Batches of 4 and 2 with the parameter at 0 and 1, 2 and 3, 4 and 5.
    losses = [row["loss"] for row in rows_of(tmp_path, "train")]
    assert losses == pytest.approx([-2 / 6, -14 / 6, -26 / 6], rel=1e-6)
    # More epochs are free, fewer are not.
    config.num_epochs = 5
    assert training.fit(config, task, tmp_path)["step"] == 10
    more = [(step, split) for step in (8, 10) for split in ("train", "test")]
    assert places(tmp_path) == ends + more
    config.num_epochs = 4
    with pytest.raises(UserError, match="in num_epochs: 5 there, 4 here"):
        training.fit(config, task, tmp_path)


def test_epochs_are_stops_beside_the_periods(tmp_path: Path) -> None:
    fields = {"report.every": 3, "report.evaluate_every": 5, "checkpoint.every": 3}
    config = climbing_config(num_steps=0, num_epochs=3, **fields)
    config.checkpoint.keep = 9
    training.fit(config, task_of_losses(), tmp_path)
    assert places(tmp_path) == [
        *((2, "train"), (2, "test"), (3, "train"), (4, "train"), (4, "test")),
        *((5, "test"), (6, "train"), (6, "test")),
    ]
    assert folders(tmp_path) == [2, 3, 4, 6]


def test_steps_have_no_stops_at_epochs(tmp_path: Path) -> None:
    config = climbing_config(num_steps=7)
    training.fit(config, task_of_losses(), tmp_path)
    assert places(tmp_path) == [(7, "train"), (7, "test")]
    assert folders(tmp_path) == [7]


def test_epochs_under_a_cosine_are_fixed(tmp_path: Path) -> None:
    fields = {"optimizer.schedule": "cosine"}
    config = climbing_config(num_steps=0, num_epochs=3, **fields)
    with workdirs.claimed(tmp_path, config, {}):
        pass
    config.num_epochs = 4
    with pytest.raises(UserError, match="in num_epochs: 3 there, 4 here"):
        training.fit(config, task_of_losses(), tmp_path)
    # The rate falls to zero at the last epoch's end: 1, 3/4, 1/2, 1/4 of a half turn.
    config = climbing_config(num_steps=0, num_epochs=2, **fields)
    training.fit(config, task_of_losses(), tmp_path / "run")
    w = float(workdirs.load_params(tmp_path / "run", 4)["w"])
    assert w == pytest.approx(1 + (1 + 0.5**0.5) / 2 + 0.5 + (1 - 0.5**0.5) / 2)


def patient_config(**fields: Any) -> Any:
    """Evaluated after each step; ends after three evaluations without a new best."""
    config = climbing_config(num_steps=0, num_epochs=6, patience=3)
    config.report.evaluate_every = 1
    config.checkpoint.best = "test_loss"
    config.update_from_flattened_dict(fields)
    return config


def test_run_ends_when_patience_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, task = patient_config(), task_of_losses()
    result = training.fit(config, task, tmp_path)
    losses = [row["loss"] for row in rows_of(tmp_path, "test")]
    # 6 and 7 came after 5, but 4 came in time; then 8, 6 and 7 did not.
    assert losses == list(LOSSES[1:8])
    assert (result["step"], result["best_step"], result["test_loss"]) == (4, 4, 4.0)
    assert saved_state(tmp_path, config, task).step == 7
    err = capsys.readouterr().err
    assert err.splitlines()[-1] == "test_loss has not improved 3 times: the end"

    # Started again it trains nothing, however long it may be.
    before = hashes(tmp_path)
    assert training.fit(config, task, tmp_path) == result
    ended = (
        "patience ended it at step 7 of {}, test_loss not having improved 3 times "
        "(patience=3; a larger one, or 0 for none, goes on): not trained again\n"
    )
    assert capsys.readouterr().err == ended.format(12)
    assert hashes(tmp_path) == before
    config.num_epochs, config.report.every = 7, 500
    assert training.fit(config, task, tmp_path) == result
    assert capsys.readouterr().err == ended.format(14)
    # The record says how long it was to be trained, not what was asked for in vain.
    stored = workdirs.read_config(tmp_path)
    assert (stored.num_epochs, stored.report.every) == (6, 500)


@pytest.mark.parametrize(("patience", "last", "best"), [(4, 8, 4), (0, 12, 12)])
def test_more_patience_goes_on_as_if_it_had_been_so(
    patience: int, last: int, best: int, tmp_path: Path
) -> None:
    config, task = patient_config(), task_of_losses()
    training.fit(config, task, tmp_path / "parts")
    config.patience = patience
    result = training.fit(config, task, tmp_path / "parts")
    # After 4.0 at step 4 came 8, 6, 7 and 5, and at step 9 another 4.
    assert rows_of(tmp_path / "parts", "test")[-1]["step"] == last
    assert (result["step"], result["best_step"]) == (best, best)
    assert workdirs.read_config(tmp_path / "parts").patience == patience
    training.fit(config, task, tmp_path / "whole")
    assert rows_of(tmp_path / "parts", "test") == rows_of(tmp_path / "whole", "test")
    assert_same_bits(
        saved_state(tmp_path / "parts", config, task),
        saved_state(tmp_path / "whole", config, task),
    )
    config.patience = 3
    with pytest.raises(UserError, match=f"patience: {patience} there, 3 here"):
        training.fit(config, task, tmp_path / "parts")


def scored(task: Task) -> Task:
    """With the losses as a metric that grows."""

    def loss(*arguments: Any) -> Any:
        sums, carry = task.loss(*arguments)
        return {**sums, "score": sums["loss"]}, carry

    return task._replace(loss=loss)


def test_patience_of_one_and_a_metric_to_maximise(tmp_path: Path) -> None:
    config = patient_config(patience=1, **{"checkpoint.best": "test_score"})
    result = training.fit(config, scored(task_of_losses()), tmp_path)
    # 5, 6, 7, and then 4.
    assert (result["step"], result["test_score"]) == (3, 7.0)
    assert rows_of(tmp_path, "test")[-1]["step"] == 4


def test_another_metric_is_counted_anew(tmp_path: Path) -> None:
    """`checkpoint.best` may change on a resume; scores of two metrics compare not."""
    config, task = patient_config(), scored(task_of_losses())
    config.checkpoint.best = "test_score"
    with stopped_at(3, "test"):
        training.fit(config, task, tmp_path)
    config.checkpoint.best = "test_loss"
    result = training.fit(config, task, tmp_path)
    assert (result["step"], result["test_loss"]) == (4, 4.0)
    assert rows_of(tmp_path, "test")[-1]["step"] == 7


def test_no_patience_is_to_the_end(tmp_path: Path) -> None:
    config = patient_config(patience=0)
    assert training.fit(config, task_of_losses(), tmp_path)["test_loss"] == LOSSES[12]
    assert rows_of(tmp_path, "test")[-1]["step"] == 12


def test_losses_that_are_not_finite_are_no_best(tmp_path: Path) -> None:
    values = jnp.array([9.0, jnp.nan, 5.0, jnp.nan, jnp.inf, 6.0, 1.0])
    task = climbing_task(lambda w: values[w.astype(jnp.int32)])
    result = training.fit(patient_config(), task, tmp_path)
    assert (result["step"], result["test_loss"]) == (2, 5.0)
    assert rows_of(tmp_path, "test")[-1]["step"] == 5


@pytest.mark.parametrize(
    ("value", "last", "best"), [(5.0, 4, 4), (float("nan"), 3, None)]
)
def test_as_good_as_before_is_no_better(
    tmp_path: Path, value: float, last: int, best: int | None
) -> None:
    task = climbing_task(lambda w: 0 * w + value)
    result = training.fit(patient_config(), task, tmp_path)
    assert rows_of(tmp_path, "test")[-1]["step"] == last
    # Of equals the newest that is kept answers; of none the last.
    assert (result["step"], result["best_step"]) == (last, best)


@pytest.mark.parametrize(
    ("stops", "fields"),
    [
        ((2, 3, 5, 7), {}),
        pytest.param(
            *((6,), {"checkpoint.every": 1, "checkpoint.keep": 1}),
            marks=pytest.mark.slow,
        ),
        # Saved at an evaluation of each epoch only, or also between.
        pytest.param(
            *((4,), {"report.evaluate_every": 0, "checkpoint.every": 3}),
            marks=pytest.mark.slow,
        ),
    ],
)
@pytest.mark.slow
def test_interrupted_run_ends_where_the_whole_one_does(
    tmp_path: Path, stops: tuple[int, ...], fields: dict[str, Any]
) -> None:
    config, task = patient_config(**fields), task_of_losses()
    if config.report.evaluate_every == 0:
        config.patience = 2  # of 6, 4, 6, 5 and 3 after the epochs; the third is late
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    wanted = training.fit(config, task, whole)
    for step in stops:
        with stopped_at(step, "test"):
            training.fit(config, task, parts)
    result = training.fit(config, task, parts)
    own = {"seconds", "workdir"}
    for name in result.keys() - own:
        assert result[name] == wanted[name], name
    assert rows_of(parts) == rows_of(whole)
    assert_same_bits(saved_state(parts, config, task), saved_state(whole, config, task))
    assert int(saved_state(parts, config, task).step) < 12

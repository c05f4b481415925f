"""Runs whose numbers cease to be finite: where that is told, and what is kept."""

import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import assert_same_bits
from toy_runs import (
    BATCH,
    climbing_config,
    climbing_task,
    ragged_arrays,
    ragged_task,
    rows_of,
    saved_state,
    toy_arrays,
    toy_config,
    toy_model,
    toy_task,
)

import lstm_jax as lj
from lstm_jax import diagnosis, steps, training
from lstm_jax.errors import UserError
from lstm_jax.tasks import Task, classification

pytestmark = pytest.mark.usefixtures("fast_runs")


def bursting(threshold: float) -> lj.Cell:
    """A simple RNN whose output is infinite once its input is beyond a threshold."""

    def gates(extras: Any, carry: Any, zx: Any, zh: Any) -> Any:
        h = jnp.tanh(zx + zh)
        return lj.HiddenCarry(h), jnp.where(carry.h[0] > threshold, jnp.inf, h)

    return lj.gated(3, 1, gates)


def task_with(value: float, at: int) -> Task:
    """`toy_task`, one of whose examples holds a value."""
    inputs, labels = toy_arrays()
    inputs[at, -1, 0] = value
    return classification(toy_model(), inputs, labels, {"all": toy_arrays()})


def told(workdir: Path) -> dict[str, Any]:
    return json.loads((workdir / "not_finite.json").read_text())


@pytest.mark.parametrize(
    "value", [np.nan, pytest.param(np.inf, marks=pytest.mark.slow)]
)
def test_an_input(tmp_path: Path, value: float) -> None:
    """A batch with it is named, with the example; what was saved before stays."""
    task, at = task_with(value, at=7), 7
    config = toy_config(**{"checkpoint.every": 1, "report.every": 20})
    advice = re.escape(f"inputs[7, 2, 0] of the training data is {value}: mend that")
    first = r"first in the batch's inputs, row \d, time 2 "
    with pytest.raises(UserError, match=f"{first}.*{advice}") as raised:
        training.fit(config, task, tmp_path)
    assert "learning_rate" not in str(raised.value)
    found = told(tmp_path)
    assert found["indices"][found["row"]] == at
    assert found["time"] == 2
    # The steps before are saved, and the run ends there again.
    saved = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
    assert saved == ([found["step"] - 1] if found["step"] > 1 else [])
    with pytest.raises(UserError, match=f"at step {found['step']}, "):
        training.fit(config, task, tmp_path)
    assert rows_of(tmp_path) == []


@pytest.mark.parametrize("every", [5, 20])
def test_a_loss_within_a_dispatch(tmp_path: Path, every: int) -> None:
    """The steps after it change nothing: they are not run."""
    losing = 7

    def loss(params: Any, examples: Any, weight: Any, key: Any, carry: Any) -> Any:
        step = params["w"]
        losses = jnp.where(step == losing - 1, jnp.nan, -step) * weight
        return {"count": jnp.sum(weight), "loss": jnp.sum(losses)}, carry

    task = toy_task()._replace(init=lambda key: {"w": jnp.zeros(())}, loss=loss)
    config = toy_config(
        **{
            "optimizer.name": "sgd",
            "optimizer.learning_rate": 1.0,
            "report.every": every,
            "checkpoint.every": 3,
        }
    )
    with pytest.raises(UserError, match=f"at step {losing}, first in the loss"):
        training.fit(config, task, tmp_path)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["3", "6"]
    assert float(saved_state(tmp_path, config, task).params["w"]) == 6
    assert [row["step"] for row in rows_of(tmp_path)] == [5] * (every == 5)


def test_train_steps_end_after_it() -> None:
    task = task_with(np.nan, at=7)
    examples = jax.tree.map(jnp.asarray, task.examples[0])

    stepping = steps.Stepping(task, optax.sgd(0.1), BATCH)
    keys = steps.make_keys(0)
    state = steps.init_state(stepping, keys)
    run = jax.jit(
        lambda state, count: steps.train_steps(
            stepping, keys, state, examples, jnp.int32(0), count
        )
    )
    ended = run(state, jnp.int32(20))
    assert 1 <= int(ended.step) <= 3
    again = run(ended, jnp.int32(20))
    assert_same_bits(again, ended)


def test_an_output_of_a_layer(tmp_path: Path) -> None:
    inputs, labels = toy_arrays()
    task = classification(
        toy_model(cells=(lj.lstm(3), bursting(0.0)), pooling="mean"),
        inputs,
        labels,
        {"all": toy_arrays()},
    )
    with pytest.raises(UserError, match="the output of recurrent/layer_1, row"):
        training.fit(toy_config(), task, tmp_path)
    found = told(tmp_path)
    assert found["step"] == 1
    # The carry before the first step is zero.
    assert found["time"] == 1


def test_a_gradient(tmp_path: Path) -> None:
    """Of a root at zero; the loss itself is finite."""

    def loss(params: Any, examples: Any, weight: Any, key: Any, carry: Any) -> Any:
        losses = weight * (params["v"] ** 2 + jnp.sqrt(params["w"]))
        return {"count": jnp.sum(weight), "loss": jnp.sum(losses)}, carry

    params = {"v": jnp.ones(()), "w": jnp.zeros(())}
    task = toy_task()._replace(init=lambda key: params, loss=loss)
    want = "at step 1, first in the gradient of w .*: lower optimizer.learning_rate"
    with pytest.raises(UserError, match=want):
        training.fit(toy_config(), task, tmp_path)


@pytest.mark.slow
def test_with_buckets(tmp_path: Path) -> None:
    inputs, labels, lengths = ragged_arrays()
    row = int(np.argmax(lengths))
    inputs[row, lengths[row] - 1] = np.nan
    task = classification(toy_model(), inputs, labels, lengths=lengths, buckets=2)
    with pytest.raises(UserError, match="the batch's inputs"):
        training.fit(toy_config(), task, tmp_path)
    found = told(tmp_path)
    bucket = task.examples[found["bucket"]]
    example = bucket["inputs"][found["indices"][found["row"]]]
    assert np.isnan(example).any()


def test_a_target_of_a_task_of_ones_own(tmp_path: Path) -> None:
    def loss(params: Any, examples: Any, weight: Any, key: Any, carry: Any) -> Any:
        apart = examples["x"] * params["w"] - examples["target"]
        losses = weight * jnp.sum(apart**2, axis=1)
        return {"count": jnp.sum(weight), "loss": jnp.sum(losses)}, carry

    x = np.arange(12, dtype=np.float32).reshape(6, 2)
    target = x.copy()
    target[4, 1] = -np.inf
    task = toy_task()._replace(
        init=lambda key: {"w": jnp.zeros(())},
        loss=loss,
        examples=({"x": x, "target": target},),
    )
    want = r"the batch's target, row \d .*target\[4, 1\] of the training data is -inf:"
    with pytest.raises(UserError, match=want):
        training.fit(toy_config(), task, tmp_path)
    # Finite, and so large that its square is not.
    x[4, 1], target[4, 1] = 3e30, 0
    want = r"first in the loss .*: the batch's x are as large as 3e\+30: standard"
    with pytest.raises(UserError, match=want):
        training.fit(toy_config(), task, tmp_path / "large")


def test_parameters_that_begin_not_finite(tmp_path: Path) -> None:
    task = toy_task()
    begun = task.init(jax.random.key(0))
    begun["head"]["bias"] = begun["head"]["bias"].at[1].set(jnp.nan)
    task = task._replace(init=lambda key: begun)
    want = "first in head/bias before the first update .*: mend what the task's init"
    with pytest.raises(UserError, match=want):
        training.fit(toy_config(), task, tmp_path)


def test_padding_is_not_blamed(tmp_path: Path) -> None:
    """Padding holds no number, which does no harm; the rate is what does."""
    task = ragged_task(1, cells=(lj.simple_rnn(3),))
    (examples,) = task.examples
    inputs = examples["inputs"].copy()
    inputs[np.arange(inputs.shape[1]) >= examples["lengths"][:, None]] = np.nan
    task = task._replace(examples=({**examples, "inputs": inputs},))
    config = toy_config(**{"optimizer.name": "sgd", "optimizer.learning_rate": 1e38})
    with pytest.raises(UserError, match=r": lower optimizer\.learning_rate") as raised:
        training.fit(config, task, tmp_path)
    assert "the batch's inputs" not in str(raised.value)


def test_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The update is left out, and its batch not counted."""
    task = task_with(np.nan, at=7)
    config = toy_config(num_steps=12, **{"optimizer.skip_nonfinite": 1})
    config.report.every = 3
    result = training.fit(config, task, tmp_path)
    assert np.isfinite(result["all_loss"])
    state = saved_state(tmp_path, config, task)
    assert int(state.opt_state.total_notfinite) == 4  # once an epoch
    rows = rows_of(tmp_path, "train")
    assert len(rows) == 4
    assert all(np.isfinite(row["loss"]) for row in rows)


def test_skipped_too_often(tmp_path: Path) -> None:
    inputs, labels = toy_arrays()
    inputs[:] = np.nan
    task = classification(toy_model(), inputs, labels, {"all": toy_arrays()})
    config = toy_config(**{"optimizer.skip_nonfinite": 3})
    with pytest.raises(UserError, match="at step 4, first in the batch's inputs"):
        training.fit(config, task, tmp_path)


def test_padding_may_hold_anything(tmp_path: Path) -> None:
    task = ragged_task(1, cells=(lj.lstm(3),))
    assert np.isfinite(training.fit(toy_config(), task, tmp_path)["all_loss"])


def spoilt() -> tuple[np.ndarray, np.ndarray]:
    inputs, labels = toy_arrays()
    inputs[7, 2, 1] = np.nan
    return inputs, labels


@pytest.mark.parametrize("seeds", [0, 2])
def test_a_number_of_an_evaluated_split_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], seeds: int
) -> None:
    task = classification(toy_model(), *toy_arrays(), {"test": spoilt()})
    config = toy_config(**{"sweep.seeds": seeds, "report.evaluate_every": 5})
    training.fit(config, task, tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "mend" in line] == [
        "inputs[7, 2, 1] of the test data is nan: mend that number, or mask its step"
    ]


def test_a_number_that_a_whole_sweep_meets_is_named(tmp_path: Path) -> None:
    task = classification(toy_model(), *spoilt(), {})
    with pytest.raises(UserError, match="in all of the 2 members by step 5: ") as error:
        training.fit(toy_config(**{"sweep.seeds": 2}), task, tmp_path)
    expected = "inputs[7, 2, 1] of the training data is nan: mend that number, or mask"
    assert expected in str(error.value)


def test_what_nothing_reads_is_not_blamed() -> None:
    inputs, labels, lengths = ragged_arrays()
    inputs[np.arange(6) >= lengths[:, None]] = np.nan
    task = ragged_task(1, cells=(lj.gru(3),))
    params = task.init(jax.random.key(0))
    bucket = {"inputs": inputs, "labels": labels, "lengths": lengths}
    assert diagnosis.bad_input(task, BATCH, params, (bucket,), "test") is None
    (row,) = np.flatnonzero(lengths == lengths.max())[:1]
    inputs[row, 1, 0] = np.nan
    assert diagnosis.bad_input(task, BATCH, params, (bucket,), "test") == (
        f"inputs[{row}, 1, 0] of the test data is nan: mend that number, or mask its "
        "step"
    )


@pytest.mark.parametrize("name", ["adam", "rmsprop"])
def test_a_gradient_too_large_for_its_square(tmp_path: Path, name: str) -> None:
    """It and every parameter are finite; the moment is not, and w stands still."""
    task = climbing_task(lambda w: w)
    loss = task.loss

    def steep(params: Any, *rest: Any) -> Any:
        sums, carry = loss({"w": params["w"] * 1e20}, *rest)
        return sums, carry

    config = climbing_config(**{"optimizer.name": name, "checkpoint.every": 5})
    message = (
        "the square of the gradient of w, which is 1e.20 .*set optimizer.clip_norm"
    )
    with pytest.raises(UserError, match=message):
        training.fit(config, task._replace(loss=steep), tmp_path)
    clipped = {"optimizer.name": name, "optimizer.clip_norm": 1.0}
    result = training.fit(
        climbing_config(**clipped), task._replace(loss=steep), tmp_path / "clipped"
    )
    assert result["test_loss"] > 1.0

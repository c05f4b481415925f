"""A task whose batches hand a carry to the next one."""

import functools
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
    rows_of,
    saved_state,
    stopped_at,
    toy_config,
    toy_task,
)

from lstm_jax import steps, training
from lstm_jax.steps import Stepping
from lstm_jax.tasks import Task

SIZE, RATE = 10, 0.1  # three batches an epoch, the last half padding
INPUTS = np.random.default_rng(0).normal(size=SIZE).astype(np.float32)
KEYS = steps.make_keys(0)


pytestmark = pytest.mark.usefixtures("fast_runs")


def averaging_task(order: np.ndarray | None = None) -> Task:
    """The carry is a running mean of each row's inputs, which w is drawn to."""

    def loss(params: Any, examples: Any, weight: Any, key: Any, carry: Any) -> Any:
        mean = 0.5 * carry["mean"] + examples["x"]
        losses = (params["w"] - mean) ** 2
        sums = {"count": jnp.sum(weight), "loss": jnp.sum(weight * losses)}
        return sums, {"mean": mean, "batches": carry["batches"] + 1}

    def carry(batch_size: int) -> Any:
        return {"mean": jnp.ones(batch_size), "batches": jnp.zeros((), jnp.int32)}

    examples = ({"x": INPUTS},)
    return toy_task()._replace(
        init=lambda key: {"w": jnp.zeros(())},
        loss=loss,
        carry=carry,
        examples=examples,
        order=np.arange(SIZE) if order is None else order,
        splits={"all": examples},
    )


def batches(count: int) -> list[tuple[np.ndarray, int]]:
    """Inputs of the first steps, the last example repeated as padding; true rows."""
    found = []
    for step in range(count):
        places = step % 3 * BATCH + np.arange(BATCH)
        rows = int((places < SIZE).sum())
        found.append((INPUTS[np.minimum(places, SIZE - 1)].astype(np.float64), rows))
    return found


def by_hand(count: int) -> tuple[float, np.ndarray, list[float]]:
    """The parameter, the carry and the sums of the losses after so many steps."""
    w, mean, losses = 0.0, np.ones(BATCH), []
    for step, (x, rows) in enumerate(batches(count)):
        if step % 3 == 0:
            mean = np.ones(BATCH)
        mean = 0.5 * mean + x
        losses.append(((w - mean[:rows]) ** 2).sum())
        w -= RATE * 2 * (w - mean[:rows]).mean()
    return w, mean, losses


def test_carry_goes_from_batch_to_batch_and_begins_anew_with_an_epoch() -> None:
    task = averaging_task()
    stepping = Stepping(task, optax.sgd(RATE), BATCH)
    run = jax.jit(functools.partial(steps.train_steps, stepping, KEYS))
    bucket, examples = jnp.int32(0), task.examples[0]
    state = steps.init_state(stepping, KEYS)
    assert state.carry["mean"].tolist() == [1] * BATCH
    for step in range(1, 8):
        state = run(state, examples, bucket, jnp.int32(1))
        w, mean, losses = by_hand(step)
        np.testing.assert_allclose(state.params["w"], w, rtol=1e-5)
        np.testing.assert_allclose(state.carry["mean"], mean, rtol=1e-5)
        np.testing.assert_allclose(state.sums["loss"], sum(losses), rtol=1e-5)
        assert state.carry["batches"] == (step - 1) % 3 + 1
    # Many steps a dispatch: the same bits.
    fresh = steps.init_state(stepping, KEYS)
    assert_same_bits(run(fresh, examples, bucket, jnp.int32(7)), state)


@pytest.mark.parametrize("w", [0.0, 0.7])
def test_evaluation_hands_the_carry_on_too(w: float) -> None:
    task, params = averaging_task(), {"w": jnp.float32(w)}
    mean, want, carry = np.ones(BATCH), [], task.carry(BATCH)
    one = jax.jit(functools.partial(steps.eval_step, task, BATCH))
    for number, (x, rows) in enumerate(batches(3)):
        mean = 0.5 * mean + x
        want.append(((w - mean[:rows]) ** 2).sum())
        sums, carry = one(params, task.examples[0], number, carry)
        np.testing.assert_allclose(sums["loss"], want[-1], rtol=1e-5)
        np.testing.assert_allclose(carry["mean"], mean, rtol=1e-5)
    run = jax.jit(functools.partial(steps.evaluate, task, BATCH))
    sums = run(params, task.examples[0])
    np.testing.assert_allclose(sums["loss"], sum(want), rtol=1e-5)
    assert sums["count"] == SIZE


def test_carry_is_saved_and_restored(tmp_path: Path) -> None:
    task = averaging_task()
    fields = {"optimizer.name": "sgd", "optimizer.learning_rate": RATE}
    config = toy_config(num_steps=11, **fields)
    config.report.every = 1000
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    training.fit(config, task, whole)
    wanted = saved_state(whole, config, task)
    w, mean, _ = by_hand(11)
    np.testing.assert_allclose(wanted.params["w"], w, rtol=1e-5)
    np.testing.assert_allclose(wanted.carry["mean"], mean, rtol=1e-5)

    # Stopped within an epoch, interrupted within another; evaluated all the while.
    config.num_steps = 4
    training.fit(config, task, parts)
    config.num_steps = 11
    config.report.evaluate_every = config.report.every = 1
    config.checkpoint.every = 4
    with stopped_at(10, "all"):
        training.fit(config, task, parts)
    for step in (4, 8):
        saved = saved_state(parts, config, task, step)
        np.testing.assert_allclose(saved.carry["mean"], by_hand(step)[1], rtol=1e-5)
        assert saved.carry["batches"] == (step - 1) % 3 + 1
    training.fit(config, task, parts)
    assert_same_bits(saved_state(parts, config, task), wanted)
    losses = [row["loss"] for row in rows_of(parts, "train")[1:]]
    each = by_hand(11)[2]
    want = [each[i] / (2 if i % 3 == 2 else 4) for i in range(4, 11)]
    np.testing.assert_allclose(losses, want, rtol=1e-5)

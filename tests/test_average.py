"""The moving average of the parameters."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import assert_same_bits
from toy_runs import (
    logits_of,
    losses_and_hits,
    saved_state,
    stopped_at,
    toy_arrays,
    toy_config,
    toy_task,
)

from lstm_jax import steps, training, workdirs

pytestmark = pytest.mark.usefixtures("fast_runs")


@pytest.mark.parametrize("ema", [0.5, pytest.param(0.99, marks=pytest.mark.slow)])
def test_average_follows_its_recurrence(ema: float) -> None:
    """With a short memory at first: of 1/10 after the first step, 2/11 after two."""
    config, task = toy_config(**{"optimizer.ema": ema}), toy_task()
    stepping, keys = steps.make_stepping(config, task), steps.make_keys(0)
    run = jax.jit(functools.partial(steps.train_steps, stepping, keys))
    state = steps.init_state(stepping, keys)
    assert_same_bits(state.average, state.params)
    want = jax.tree.map(lambda a: np.asarray(a, np.float64), state.params)
    decays = []
    for step in range(14):
        state = run(state, task.examples[0], jnp.int32(0), jnp.int32(1))
        decays.append(min(ema, (1 + step) / (10 + step)))
        want = jax.tree.map(
            lambda a, b, d=decays[-1]: d * a + (1 - d) * np.asarray(b),
            want,
            state.params,
        )
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7),
            state.average,
            want,
        )
    assert (max(decays) == ema) == (ema == 0.5)


def test_average_is_evaluated_and_predicts(tmp_path: Path) -> None:
    config = toy_config(**{"optimizer.ema": 0.9, "optimizer.learning_rate": 0.3})
    shown = []

    def demonstrate(params: object) -> str:
        shown.append(params)
        return ""

    task = toy_task()._replace(demonstrate=demonstrate)
    result = training.fit(config, task, tmp_path)
    state = saved_state(tmp_path, config, task)
    inputs, labels = toy_arrays()
    average, raw = (
        losses_and_hits(logits_of(params, inputs), labels)[0].mean()
        for params in (state.average, state.params)
    )
    assert result["all_loss"] == pytest.approx(average, rel=1e-5)
    assert abs(average - raw) > 0.01 * average
    assert_same_bits(workdirs.load_params(tmp_path, 20), state.average)
    assert_same_bits(shown, [state.average])


def test_average_does_not_change_the_training() -> None:
    task, keys, states = toy_task(), steps.make_keys(0), []
    for ema in (0.0, 0.5):
        stepping = steps.make_stepping(toy_config(**{"optimizer.ema": ema}), task)
        run = jax.jit(functools.partial(steps.train_steps, stepping, keys))
        start = steps.init_state(stepping, keys)
        states.append(run(start, task.examples[0], jnp.int32(0), jnp.int32(14)))
    assert states[0].average == ()
    assert_same_bits(states[1]._replace(average=()), states[0])


@pytest.mark.slow
def test_resumes_bit_for_bit(tmp_path: Path) -> None:
    task = toy_task(dropout=0.5)
    config = toy_config(**{"num_steps": 20, "optimizer.ema": 0.7})
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    training.fit(config, task, whole)
    config.num_steps = 5
    training.fit(config, task, parts)
    config.num_steps = 20
    config.checkpoint.every = 8
    config.report.evaluate_every = 13
    with stopped_at(13, "all"):
        training.fit(config, task, parts)
    assert int(saved_state(parts, config, task).step) == 8
    config.report.evaluate_every = 0
    training.fit(config, task, parts)
    assert_same_bits(saved_state(parts, config, task), saved_state(whole, config, task))

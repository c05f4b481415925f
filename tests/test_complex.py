"""Complex parameters and states: trained downhill, saved, and their gradients' flow."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import assert_same_bits
from toy_runs import climbing_config, climbing_task, saved_state, toy_config

import lstm_jax as lj
from lstm_jax import flow, steps, training
from lstm_jax.config import base_config
from lstm_jax.errors import UserError
from lstm_jax.lab import own_cell
from lstm_jax.models import SequenceClassifier
from lstm_jax.optimizers import make_optimizer
from lstm_jax.tasks import Task, classification
from lstm_jax.weights import load_weights, save_weights

pytestmark = pytest.mark.usefixtures("fast_runs")

UNITS, LAM = 4, 0.6 + 0.6j


class Rotating(NamedTuple):
    """A hidden state, and a complex memory that is turned at each step."""

    h: Any
    m: Any


def rotating() -> lj.Cell:
    def gates(extras: Any, carry: Any, zx: Any, zh: Any) -> Any:
        real, imaginary = jnp.split(zx + zh, 2)
        m = extras["lam"] * carry.m + jax.lax.complex(real, imaginary)
        h = jnp.tanh(m.real)
        return Rotating(h, m), h

    def initial_carry(params: Any, batch: int) -> Any:
        h = jnp.zeros((batch, UNITS))
        return Rotating(h, h.astype(jnp.complex64))

    return lj.gated(
        UNITS,
        2,
        gates,
        initial_carry=initial_carry,
        init_extra=lambda key, size: {"lam": jnp.full(UNITS, LAM, jnp.complex64)},
    )


def task_of_32() -> Task:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(32, 6, 3)).astype(np.float32)
    labels = (inputs[:, :, 0].sum(1) > 0).astype(np.int32)
    model = SequenceClassifier(cells=(rotating(),), num_classes=2)
    return classification(model, inputs, labels)


def test_a_step_goes_down_the_loss_in_both_directions() -> None:
    task, rate = task_of_32(), 0.1
    config = toy_config(batch_size=32)
    config.optimizer.update({"name": "sgd", "learning_rate": rate})
    stepping, keys = steps.make_stepping(config, task), steps.make_keys(0)
    state = jax.jit(functools.partial(steps.init_state, stepping))(keys)
    batch, weight = jax.tree.map(jnp.asarray, task.examples[0]), jnp.ones(32)
    step = jax.jit(functools.partial(steps.train_step, stepping, keys))
    after = step(state, batch, weight).params
    before = state.params

    def lam_of(params: Any) -> Any:
        return params["recurrent"]["layer_0"]["cell"]["lam"]

    @jax.jit
    def loss_at(params: Any, change: Any) -> Any:
        cell = params["recurrent"]["layer_0"]["cell"]
        cell = {**cell, "lam": cell["lam"] + change}
        changed = {**params, "recurrent": {"layer_0": {"cell": cell}}}
        return task.loss(changed, batch, weight, None, ())[0]["loss"] / 32

    def slope(direction: Any) -> float:
        ends = [float(loss_at(before, s * 1e-2 * direction)) for s in (1, -1)]
        return (ends[0] - ends[1]) / 2e-2

    axes = np.eye(UNITS, dtype=np.complex64)
    want = [slope(axis) + 1j * slope(1j * axis) for axis in axes]
    assert np.abs(np.imag(want)).min() > 1e-3
    moved = (lam_of(after) - lam_of(before)) / -rate
    np.testing.assert_allclose(moved, want, rtol=2e-2, atol=2e-4)
    lower = float(loss_at(before, -rate * moved))
    # The gradient's square, to first order; its conjugate would go up by a part of it.
    drop = rate * np.sum(np.abs(want) ** 2)
    assert float(loss_at(before, jnp.zeros(UNITS))) - lower == pytest.approx(drop, 0.3)
    assert lower < float(loss_at(before, -rate * moved.conj()))


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "sgd"},
        {"name": "sgd", "momentum": 0.5, "clip_norm": 0.5},
        {"name": "adam"},
        {"name": "adamw", "weight_decay": 0.1},
        {"name": "rmsprop", "momentum": 0.5},
        {"name": "rmsprop_tf1", "skip_nonfinite": 2},
    ],
    ids=lambda fields: fields["name"],
)
def test_optimizers_do_not_know_which_way_is_real(fields: Any) -> None:
    """A problem that is turned has the same path, turned; on the real axis it is real.

    So a complex entry has the steps of a real one, by the size of its gradient.
    """
    config = base_config().optimizer
    config.update({"learning_rate": 0.1, **fields})
    optimizer = make_optimizer(config, 10)
    turn = np.exp(0.7j).astype(np.complex64)
    target = jnp.float32([0.3, -1.0, 2.0])

    def path(target: Any) -> Any:
        """From zero towards a target, by |z - target|^2."""

        def loss(z: Any) -> Any:
            return jnp.sum(jnp.abs(z - target) ** 2 * jnp.float32([1, 2, 3]))

        def step(carried: Any, _: Any) -> Any:
            z, state = carried
            updates, state = optimizer.update(jax.grad(loss)(z), state, z)
            z = optax.apply_updates(z, updates)
            return (z, state), z

        begun = jnp.zeros_like(target)
        return jax.lax.scan(step, (begun, optimizer.init(begun)), length=4)[1]

    real, turned = jax.jit(path)(target), jax.jit(path)(turn * target)
    assert turned.dtype == jnp.complex64
    assert (jnp.abs(real[-1] - target) < jnp.abs(target)).all()
    np.testing.assert_allclose(turned, turn * real, rtol=1e-4, atol=1e-5)


def test_a_run_is_saved_and_goes_on(tmp_path: Path) -> None:
    task = climbing_task(jnp.real)
    want = 3 - 2j

    def loss(params: Any, examples: Any, weight: Any, key: Any, carry: Any) -> Any:
        losses = weight * jnp.abs(params["w"] - want) ** 2
        return {"count": jnp.sum(weight), "loss": jnp.sum(losses)}, carry

    task = task._replace(init=lambda key: {"w": jnp.zeros((), "complex64")}, loss=loss)
    fields = {"optimizer.name": "adam", "optimizer.ema": 0.5}
    short, long = (climbing_config(num_steps=n, **fields) for n in (6, 9))
    training.fit(short, task, tmp_path / "a")
    training.fit(long, task, tmp_path / "a")
    result = training.fit(long, task, tmp_path / "b")
    states = [saved_state(tmp_path / name, long, task) for name in "ab"]
    assert_same_bits(*states)
    assert states[0].params["w"].dtype == jnp.complex64
    # From 0 straight towards it.
    assert np.angle(complex(states[0].params["w"]) / want) == pytest.approx(0, abs=1e-3)
    assert np.isfinite(result["test_loss"])
    save_weights(states[0].params, tmp_path / "weights.safetensors")
    loaded = load_weights(tmp_path / "weights.safetensors")["w"]
    assert loaded == np.asarray(states[0].params["w"])


def test_how_the_gradient_flows_through_a_complex_memory() -> None:
    cell = rotating()
    params = cell.init(jax.random.key(0), 3)
    params["recurrent_kernel"] = jnp.zeros_like(params["recurrent_kernel"])
    xs = jax.random.normal(jax.random.key(1), (2, 5, 3))
    carry, ys = lj.unroll(cell, params, xs)
    cotangents = jax.tree.map(jnp.zeros_like, carry), jnp.ones_like(ys)
    found = flow.measure(cell, params, xs, cotangents)
    gains = abs(LAM) ** np.arange(5)
    np.testing.assert_allclose(found.lag_gains["m"], gains, rtol=1e-5)
    tau = found.time_constants["m"]
    np.testing.assert_allclose(tau, np.full(UNITS, -1 / np.log(abs(LAM))), rtol=1e-5)
    assert found.loss_gradients is not None
    assert np.isfinite(found.loss_gradients).all()


def test_the_lab_refuses_it(tmp_path: Path) -> None:
    own = own_cell.OwnCell("mine", "", lambda hidden_size: rotating())
    with pytest.raises(UserError, match=r"mine: lam is complex64: the lab checks real"):
        own_cell.features_of(own, UNITS, 3)

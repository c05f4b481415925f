"""The TPU kernel, interpreted, equals the fused path; and it lowers for a TPU."""

from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import assert_close, outputs_and_gradients

import lstm_jax as lj
from lstm_jax import devices

BATCH, TIME, INPUTS, HIDDEN = 8, 5, 3, 128


def gates(extras: Any, carry: Any, zx: Any, zh: Any) -> Any:
    """Coupled gates with a peephole and a scalar, zh used apart from zx."""
    f, g, o = jnp.split(zx + zh, 3)
    f = jax.nn.sigmoid(f + extras["peephole"] * carry.c)
    c = f * carry.c + (1 - f) * jnp.tanh(g + extras["scale"] * jnp.split(zh, 3)[1])
    return lj.LSTMCarry(jax.nn.sigmoid(o) * jnp.tanh(c), c), c


CELLS = {
    "lstm": lj.lstm(HIDDEN),
    "gru": lj.gru(HIDDEN),
    "simple_rnn": lj.simple_rnn(HIDDEN),
    "own": lj.gated(
        HIDDEN,
        3,
        gates,
        lj.LSTMCarry,
        init_extra=lambda key, size: {
            "peephole": jnp.full(HIDDEN, 0.3),
            "scale": jnp.float32(0.5),
        },
    ),
}


def arguments(cell: lj.Cell) -> dict[str, Any]:
    """Random parameters, inputs with NaN in the padding, a carry, a mask and resets."""
    keys = iter(jax.random.split(jax.random.key(0), 20))
    params = cell.init(next(keys), INPUTS)
    params = jax.tree.map(
        lambda a: a + 0.1 * jax.random.normal(next(keys), a.shape), params
    )
    mask = jax.random.bernoulli(next(keys), 0.7, (BATCH, TIME))
    xs = jax.random.normal(next(keys), (BATCH, TIME, INPUTS))
    carry = jax.tree.map(
        lambda a: jax.random.normal(next(keys), a.shape),
        cell.initial_carry(params, BATCH),
    )
    return {
        "params": params,
        "xs": jnp.where(mask[..., None], xs, jnp.nan),
        "carry": carry,
        "mask": mask,
        "resets": jax.random.bernoulli(next(keys), 0.3, (BATCH, TIME)),
    }


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "reverse"),
    [
        pytest.param(
            name,
            reverse,
            marks=() if (name, reverse) == ("lstm", True) else SLOW,
        )
        for reverse in (False, True)
        for name in CELLS
    ],
)
def test_equals_the_fused_path(name: str, reverse: bool) -> None:
    given = arguments(CELLS[name])

    def run(implementation: str) -> Any:
        return outputs_and_gradients(
            CELLS[name],
            **given,
            reverse=reverse,
            return_carries=True,
            implementation=implementation,
        )

    assert_close(run("pallas"), run("fused"), 1e-5)


@pytest.mark.slow
def test_on_devices() -> None:
    cell = CELLS["own"]
    given = arguments(cell)
    twice = {
        "params": given.pop("params"),
        **jax.tree.map(lambda a: jnp.concatenate([a, a[::-1]]), given),
    }

    def run(count: int) -> Any:
        with jax.set_mesh(devices.make_mesh(count, 2 * BATCH)):
            return outputs_and_gradients(cell, **twice, implementation="pallas")

    assert_close(run(2), run(1), 1e-5)
    with (
        jax.set_mesh(devices.make_mesh(4, 2 * BATCH)),
        pytest.raises(ValueError, match="4 rows, a device's, are no multiple of 8"),
    ):
        outputs_and_gradients(cell, **twice, implementation="pallas")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("lstm", "own") else pytest.mark.slow)
        for name in CELLS
    ],
)
def test_lowers_for_a_tpu(name: str) -> None:
    given = arguments(CELLS[name])
    params, xs = given.pop("params"), given.pop("xs")

    def loss(params: Any, xs: Any) -> Any:
        carry, ys = lj.unroll(CELLS[name], params, xs, **given, implementation="pallas")
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves((carry, ys)))

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
    with mock.patch("jax.default_backend", return_value="tpu"):
        exported = jax.export.export(gradient, platforms=["tpu"])(params, xs)
    assert exported.mlir_module().count("tpu_custom_call") == 2


@pytest.mark.parametrize(
    ("cell", "batch", "message"),
    [
        (lj.lstm(100), 8, "hidden_size=100 is no multiple of 128"),
        (lj.lstm(128), 12, "12 rows, a device's, are no multiple of 8"),
        (lj.lstm(1024), 8, "the recurrent kernel has 16777216 bytes"),
        (lj.gru(128, reset_after=False), 8, "no gates for implementation='pallas'"),
    ],
)
def test_what_the_kernel_cannot_run(cell: lj.Cell, batch: int, message: str) -> None:
    def run() -> Any:
        params = cell.init(jax.random.key(0), INPUTS)
        xs = jnp.zeros((batch, TIME, INPUTS))
        return lj.unroll(cell, params, xs, implementation="pallas")

    with pytest.raises(ValueError, match=message):
        jax.eval_shape(run)


SHIFT = jnp.arange(128.0)


def closing(extras: Any, carry: Any, zx: Any, zh: Any) -> Any:
    h = jnp.tanh(zx + zh + SHIFT)
    return lj.HiddenCarry(h), h


def counting(extras: Any, carry: Any, zx: Any, zh: Any) -> Any:
    h = jnp.tanh(zx + zh)
    return lj.HiddenCarry(h), jnp.int32(h > 0)


@pytest.mark.parametrize(
    ("gates", "message"),
    [(closing, "close over an array"), (counting, "real numbers alone")],
)
def test_gates_that_the_kernel_cannot_run(gates: Any, message: str) -> None:
    cell = lj.gated(HIDDEN, 1, gates)
    params = cell.init(jax.random.key(0), INPUTS)
    xs = jnp.ones((BATCH, TIME, INPUTS))
    with pytest.raises(ValueError, match=message):
        lj.unroll(cell, params, xs, implementation="pallas")
    assert lj.unroll(cell, params, xs)[1].shape == (BATCH, TIME, HIDDEN)


def test_no_steps() -> None:
    cell = lj.lstm(HIDDEN)
    params = cell.init(jax.random.key(0), INPUTS)
    xs = jnp.zeros((BATCH, 0, INPUTS))
    carry, ys = lj.unroll(cell, params, xs, implementation="pallas")
    assert ys.shape == (BATCH, 0, HIDDEN)
    np.testing.assert_array_equal(carry.h, np.zeros((BATCH, HIDDEN)))

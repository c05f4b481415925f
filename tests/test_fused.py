"""The fused path equals autodiff, in values and in every gradient."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from example_cells import (
    BUILT_IN,
    CELLS,
    HIDDEN,
    INVENTED,
    noise_key,
    random_carry,
    random_params,
    random_xs,
)
from reference import (
    assert_close,
    outputs_and_gradients,
    python_unroll,
    weighted_sum,
)

import lstm_jax as lj

pytestmark = pytest.mark.usefixtures("strict", "x64")

BATCH = 3
FUSED = BUILT_IN | INVENTED
# Cells that have in common what others show.
MORE = ("drop_connect", "low_rank", "recurrent_dropout", "memory")


def random_steps(time: int) -> tuple[np.ndarray, np.ndarray, Any]:
    """Returns a mask with holes, resets, and inputs with NaN in the padding."""
    rng = np.random.default_rng(0)
    mask = rng.random((BATCH, time)) < 0.7
    mask[0] = True
    resets = rng.random((BATCH, time)) < 0.2
    xs = jnp.where(mask[..., None], random_xs(BATCH, time), jnp.nan)
    return mask, resets, xs


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in MORE else ())
        for name in FUSED
    ],
)
def test_equals_autodiff(name: str) -> None:
    cell = FUSED[name]
    time = 26  # two chunks
    mask, resets, xs = random_steps(time)
    params = random_params(cell)
    carry = random_carry(cell, params, BATCH)

    def run(implementation: str) -> Any:
        return outputs_and_gradients(
            cell,
            params,
            xs,
            carry,
            mask=jnp.asarray(mask),
            resets=jnp.asarray(resets),
            key=noise_key(0),
            reverse=len(name) % 2 == 0,
            return_carries=True,
            implementation=implementation,
        )

    actual, expected = run("fused"), run("autodiff")
    assert_close(actual, expected)
    gradients = actual[1]
    for leaf in jax.tree.leaves((gradients[0], gradients[2])):
        assert float(jnp.max(jnp.abs(leaf))) > 1e-6
    for leaf in jax.tree.leaves(actual[0][1]):
        assert np.all(np.asarray(leaf)[~mask] == 0)
    assert np.all(np.asarray(gradients[1])[~mask] == 0)


def test_equals_autodiff_without_options() -> None:
    """No mask, no resets, no carry, no key."""
    cell = CELLS["drop_connect"]
    params, xs = random_params(cell), random_xs(BATCH, 7)
    fused, autodiff = (
        outputs_and_gradients(cell, params, xs, implementation=implementation)
        for implementation in ("fused", "autodiff")
    )
    assert_close(fused, autodiff)


LONGEST = 41


@pytest.mark.parametrize(
    ("time", "reverse"),
    [
        (1, False),
        (19, False),
        (20, True),
        (41, True),
    ],
)
def test_any_number_of_steps(time: int, reverse: bool) -> None:
    """Whatever the number of steps leaves over for the last chunk."""
    cell = CELLS["simple_rnn"]
    mask, resets, xs = random_steps(LONGEST)
    mask[:, time:] = resets[:, time:] = False
    xs = jnp.where(jnp.asarray(mask)[..., None], xs, 0)
    params = random_params(cell)
    carry = random_carry(cell, params, BATCH)

    def loss(params: Any, xs: Any, carry: Any) -> Any:
        outputs = python_unroll(
            cell,
            params,
            xs,
            carry,
            valid=mask,
            resets=resets,
            reverse=reverse,
            steps=slice(time),
        )
        return weighted_sum(outputs), outputs

    (dparams, dxs, dcarry), expected = jax.grad(loss, (0, 1, 2), has_aux=True)(
        params, xs, carry
    )
    outputs, gradients = outputs_and_gradients(
        cell,
        params,
        xs[:, :time],
        carry,
        mask=jnp.asarray(mask[:, :time]),
        resets=jnp.asarray(resets[:, :time]),
        reverse=reverse,
        return_carries=True,
        implementation="fused",
    )
    assert_close(outputs, expected)
    assert_close(gradients, (dparams, dxs[:, :time], dcarry))


def compared(zx: Any, zh: Any) -> Any:
    return jnp.where(zx > 0, jnp.tanh(zx + zh), 0.1)


def stopped(zx: Any, zh: Any) -> Any:
    return jnp.tanh(zx + zh) * jax.lax.stop_gradient(zx)


def only_input(zx: Any, zh: Any) -> Any:
    return jnp.tanh(zx)


def only_recurrent(zx: Any, zh: Any) -> Any:
    return jnp.tanh(0.5 + zh)


@pytest.mark.parametrize("function", [compared, stopped, only_input, only_recurrent])
def test_gates_that_use_the_two_products_apart(function: Any) -> None:
    """The sum of the products is not all that counts, gradient or no gradient."""

    def gates(extras: Any, carry: Any, zx: Any, zh: Any) -> Any:
        h = function(zx, zh) + 0.1 * carry.h
        return lj.HiddenCarry(h), h

    cell = lj.gated(HIDDEN, 1, gates)
    params, xs = random_params(cell), random_xs(BATCH, 7)
    fused, autodiff = (
        outputs_and_gradients(cell, params, xs, implementation=implementation)
        for implementation in ("fused", "autodiff")
    )
    assert_close(fused, autodiff)


def test_integers_in_carry_and_outputs() -> None:
    """A step counter, and choices as outputs: nothing to differentiate."""

    def gates(extras: Any, carry: Any, zx: Any, zh: Any) -> Any:
        h = jnp.tanh(zx + zh) / (1 + carry.c.astype(zx.dtype))
        return lj.LSTMCarry(h, carry.c + 1), (h, jnp.argmax(h), h > 0)

    def initial_carry(params: Any, batch_size: int) -> Any:
        h = jnp.zeros((batch_size, HIDDEN), params["kernel"].dtype)
        return lj.LSTMCarry(h, jnp.zeros(batch_size, jnp.int32))

    cell = lj.gated(HIDDEN, 1, gates, lj.LSTMCarry, initial_carry=initial_carry)
    params = random_params(cell)
    mask, resets, xs = random_steps(7)
    fused, autodiff = (
        outputs_and_gradients(
            cell,
            params,
            xs,
            mask=jnp.asarray(mask),
            resets=jnp.asarray(resets),
            implementation=implementation,
        )
        for implementation in ("fused", "autodiff")
    )
    assert_close(fused, autodiff)

"""The fused path under jax's transformations, and differentiated twice."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from example_cells import CELLS, noise_key, random_carry, random_params, random_xs
from reference import assert_close, weighted_sum
from schedules import ROWS_LAST, scheduled

import lstm_jax as lj

pytestmark = pytest.mark.usefixtures("strict", "x64")

BATCH, TIME = 3, 5
RNG = np.random.default_rng(0)
MASK = RNG.random((BATCH, TIME)) < 0.7
RESETS = RNG.random((BATCH, TIME)) < 0.3

Loss = Callable[..., Any]


@pytest.fixture(autouse=True)
def rows_last() -> Iterator[None]:
    """The layout with more axes to move; a cell with its own product has the other."""
    with scheduled(ROWS_LAST):
        yield


def make_loss(cell: lj.Cell, implementation: str) -> Loss:
    def loss(params: Any, xs: Any, carry: Any, key: Any) -> Any:
        return weighted_sum(
            lj.unroll(
                cell,
                params,
                xs,
                carry,
                mask=jnp.asarray(MASK),
                resets=jnp.asarray(RESETS),
                key=key,
                implementation=implementation,
            )
        )

    return loss


def two(tree: Any) -> Any:
    """Stacks the tree and another of the same kind."""
    return jax.tree.map(lambda a: jnp.stack([a, 0.5 * a + 0.1]), tree)


def gradient(loss: Loss) -> Loss:
    return jax.grad(loss, argnums=(0, 1, 2))


def grad_of_jit(loss: Loss, *args: Any) -> Any:
    return gradient(jax.jit(loss))(*args)


def grad_of_checkpoint(loss: Loss, *args: Any) -> Any:
    return jax.jit(gradient(jax.checkpoint(loss)))(*args)


def grad_of_vmap_over_params(loss: Loss, params: Any, *args: Any) -> Any:
    def total(params: Any, *args: Any) -> Any:
        losses = jax.vmap(loss, in_axes=(0, None, None, None))(params, *args)
        return jnp.vdot(losses, jnp.array([1.0, -0.3]))

    return jax.jit(gradient(total))(two(params), *args)


def vmap_of_grad_over_inputs(
    loss: Loss, params: Any, xs: Any, carry: Any, key: Any
) -> Any:
    inputs = (*two((xs, carry)), jax.random.split(key))
    return jax.jit(jax.vmap(gradient(loss), in_axes=(None, 0, 0, 0)))(params, *inputs)


def grad_of_scan(loss: Loss, params: Any, xs: Any, carry: Any, key: Any) -> Any:
    def total(params: Any, xs: Any, carry: Any) -> Any:
        def body(total: Any, now: Any) -> Any:
            return total + loss(params, now[0], carry, now[1]), None

        steps = (two(xs), jax.random.split(key))
        return jax.lax.scan(body, jnp.zeros(()), steps)[0]

    return jax.jit(gradient(total))(params, xs, carry)


def grad_of_grad(loss: Loss, params: Any, xs: Any, carry: Any, key: Any) -> Any:
    def slope(*args: Any) -> Any:
        return weighted_sum(gradient(loss)(*args, key))

    return jax.jit(gradient(slope))(params, xs, carry)


@pytest.mark.parametrize(
    ("name", "transform"),
    [
        ("simple_rnn", grad_of_grad),
        *(
            pytest.param("all_noise", transform, marks=pytest.mark.slow)
            for transform in (
                *(grad_of_jit, grad_of_checkpoint, grad_of_vmap_over_params),
                grad_of_scan,
            )
        ),
        ("all_noise", vmap_of_grad_over_inputs),
    ],
)
def test_equals_autodiff(name: str, transform: Any) -> None:
    cell = CELLS[name]
    params = random_params(cell)
    xs = jnp.where(MASK[..., None], random_xs(BATCH, TIME), jnp.nan)
    args = (params, xs, random_carry(cell, params, BATCH), noise_key(0))
    actual, expected = (
        transform(make_loss(cell, implementation), *args)
        for implementation in ("fused", "autodiff")
    )
    assert_close(actual, expected)
    assert all(float(jnp.max(jnp.abs(a))) > 1e-6 for a in jax.tree.leaves(actual))


def test_truncated_windows() -> None:
    """A carry handed from window to window by lax.scan."""
    cell = CELLS["lstm"]
    params = random_params(cell)
    xs = random_xs(BATCH, 3 * TIME)
    carry = random_carry(cell, params, BATCH)

    def in_windows(params: Any, xs: Any, carry: Any) -> Any:
        def window(carry: Any, xs: Any) -> Any:
            return lj.unroll(cell, params, xs, carry, implementation="fused")

        windows = jnp.moveaxis(xs.reshape(BATCH, 3, TIME, -1), 1, 0)
        carry, ys = jax.lax.scan(window, carry, windows)
        ys = jnp.moveaxis(ys, 0, 1).reshape(BATCH, 3 * TIME, -1)
        return weighted_sum((carry, ys))

    def at_once(params: Any, xs: Any, carry: Any) -> Any:
        return weighted_sum(
            lj.unroll(cell, params, xs, carry, implementation="autodiff")
        )

    actual, expected = (
        jax.jit(gradient(run))(params, xs, carry) for run in (in_windows, at_once)
    )
    assert_close(actual, expected)


def test_forward_mode_needs_autodiff() -> None:
    cell = CELLS["simple_rnn"]
    params, xs = random_params(cell), random_xs(BATCH, TIME)

    def run(implementation: str) -> Any:
        def outputs(xs: Any) -> Any:
            return lj.unroll(cell, params, xs, implementation=implementation)[1]

        return jax.jvp(outputs, (xs,), (jnp.ones_like(xs),))

    _, tangent = run("autodiff")
    epsilon = 1e-6
    ahead, behind = (
        lj.unroll(cell, params, xs + sign * epsilon)[1] for sign in (1, -1)
    )
    assert_close(tangent, (ahead - behind) / (2 * epsilon), 1e-7)
    with pytest.raises(TypeError, match="custom_vjp"):
        run("fused")

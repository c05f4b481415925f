"""What `unroll` must do, written as a loop; and ways to run and compare the two."""

import contextlib
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from schedules import scheduled

import lstm_jax as lj
from lstm_jax.schedule import Schedule


def effective_resets(
    valid: Bool[np.ndarray, "B T"], resets: Bool[np.ndarray, "B T"], reverse: bool
) -> Bool[np.ndarray, "B T"]:
    """Before which valid steps a row starts anew, a row and a step at a time."""
    batch, time = valid.shape
    effective = np.zeros((batch, time), bool)
    for row in range(batch):
        waiting = False
        for t in reversed(range(time)) if reverse else range(time):
            waiting |= bool(resets[row, t]) and not reverse
            if valid[row, t]:
                effective[row, t] = waiting
                waiting = False
            # Reversed, the boundary between t-1 and t comes after step t.
            waiting |= bool(resets[row, t]) and reverse
    return effective


def python_unroll(
    cell: lj.Cell,
    params: Any,
    xs: Float[Array, "B T D"],
    carry: Any = None,
    *,
    valid: Bool[np.ndarray, "B T"] | None = None,
    resets: Bool[np.ndarray, "B T"] | None = None,
    reverse: bool = False,
    noise: lj.Noise | None = None,
    steps: slice = slice(None),
) -> tuple[Any, Any, Any]:
    """Returns (carry, ys, carries) of a Python loop of `cell.step` over `steps`."""
    batch, time = xs.shape[:2]
    valid = np.ones((batch, time), bool) if valid is None else valid
    resets = np.zeros((batch, time), bool) if resets is None else resets
    restart = effective_resets(valid, resets, reverse)
    carry = _initial(cell, params, batch) if carry is None else carry
    ys, carries = {}, {}
    order = range(time)[steps]
    for t in reversed(order) if reverse else order:
        carry, ys[t] = _one_step(
            cell, params, xs, carry, valid, restart, noise, np.int32(t)
        )
        carries[t] = carry
    return carry, *(_stack([kept[t] for t in order]) for kept in (ys, carries))


@functools.partial(jax.jit, static_argnums=(0, 2))
def _initial(cell: lj.Cell, params: Any, batch: int) -> Any:
    return cell.initial_carry(params, batch)


@functools.partial(jax.jit, static_argnums=0)
def _one_step(
    cell: lj.Cell,
    params: Any,
    xs: Float[Array, "B T D"],
    carry: Any,
    valid: Bool[Array, "B T"],
    restart: Bool[Array, "B T"],
    noise: lj.Noise | None,
    t: Int[Array, ""],
) -> tuple[Any, Any]:
    def choose(rows: Array, new: Any, old: Any) -> Any:
        return jax.tree.map(
            lambda a, b: jnp.where(rows[(..., *(None,) * (a.ndim - 1))], a, b),
            new,
            old,
        )

    valid, restart = valid[:, t], restart[:, t]
    x = jnp.where(valid[:, None], xs[:, t], 0)
    drawn = ()
    if noise is not None:
        drawn = (noise._replace(step=jax.tree.map(lambda a: a[:, t], noise.step)),)
    carry = choose(restart, cell.initial_carry(params, xs.shape[0]), carry)
    new, y = cell.step(params, carry, x, *drawn)
    return choose(valid, new, carry), choose(valid, y, jax.tree.map(jnp.zeros_like, y))


@jax.jit
def _stack(steps: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), *steps)


@jax.jit
def weighted_sum(tree: Any) -> Float[Array, ""]:
    """A scalar that every floating-point entry of the tree moves differently.

    The weight of an entry depends on its place only, not on the amount of padding.
    """
    total = jnp.zeros(())
    for number, leaf in enumerate(jax.tree.leaves(tree)):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            places = np.indices(leaf.shape)
            phase = sum((7.3 + axis) * place for axis, place in enumerate(places))
            weights = jnp.asarray(np.cos(number + phase), total.dtype)
            total += jnp.sum(weights * leaf.astype(total.dtype))
    return total


@functools.partial(
    jax.jit,
    static_argnames=("cell", "schedule", "implementation", "reverse", "return_carries"),
)
def outputs_and_gradients(
    cell: lj.Cell,
    params: Any,
    xs: Array,
    carry: Any = None,
    schedule: Schedule | None = None,
    **options: Any,
) -> tuple[Any, Any]:
    """Returns what `unroll` returns, and gradients by params, xs and carry.

    Given a schedule, the fused path has it.
    """

    def loss(params: Any, xs: Array, carry: Any) -> tuple[Array, Any]:
        with scheduled(schedule) if schedule else contextlib.nullcontext():
            outputs = lj.unroll(cell, params, xs, carry, **options)
        return weighted_sum(outputs), outputs

    gradients, outputs = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(
        params, xs, carry
    )
    return outputs, gradients


def assert_close(actual: Any, expected: Any, tolerance: float = 1e-9) -> None:
    """Trees are equal up to `tolerance`, relative and absolute; NaN equals nothing."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    paths = jax.tree_util.tree_leaves_with_path(actual)
    for (path, a), b in zip(paths, jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype, jax.tree_util.keystr(path)
        np.testing.assert_allclose(
            a,
            b,
            rtol=tolerance,
            atol=tolerance,
            equal_nan=False,
            err_msg=jax.tree_util.keystr(path),
        )


def assert_same_bits(actual: Any, expected: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    paths = jax.tree_util.tree_leaves_with_path(actual)
    for (path, a), b in zip(paths, jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype, jax.tree_util.keystr(path)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), jax.tree_util.keystr(
            path
        )

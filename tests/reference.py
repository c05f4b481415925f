"""What `unroll` must do, written as a loop; and ways to run and compare the two."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

import lstm_jax as lj


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
) -> tuple[Any, Any, Any]:
    """Returns (carry, ys, carries) of a Python loop of `cell.step`."""
    batch, time = xs.shape[:2]
    valid = np.ones((batch, time), bool) if valid is None else valid
    resets = np.zeros((batch, time), bool) if resets is None else resets
    initial = cell.initial_carry(params, batch)
    return _python_unroll(
        cell,
        params,
        jnp.where(jnp.asarray(valid)[..., None], xs, 0),
        initial if carry is None else carry,
        initial,
        jnp.asarray(valid),
        jnp.asarray(effective_resets(valid, resets, reverse)),
        noise,
        reverse=reverse,
    )


@functools.partial(jax.jit, static_argnames=("cell", "reverse"))
def _python_unroll(
    cell: lj.Cell,
    params: Any,
    xs: Array,
    carry: Any,
    initial: Any,
    valid: Array,
    effective: Array,
    noise: lj.Noise | None,
    *,
    reverse: bool,
) -> tuple[Any, Any, Any]:
    def choose(rows: Array, new: Any, old: Any) -> Any:
        return jax.tree.map(
            lambda a, b: jnp.where(rows[(...,) + (None,) * (a.ndim - 1)], a, b),
            new,
            old,
        )

    time = xs.shape[1]
    ys, carries = [None] * time, [None] * time
    for t in reversed(range(time)) if reverse else range(time):
        carry = choose(effective[:, t], initial, carry)
        drawn = ()
        if noise is not None:
            drawn = (noise._replace(step=jax.tree.map(lambda a: a[:, t], noise.step)),)
        new, y = cell.step(params, carry, xs[:, t], *drawn)
        carry = choose(valid[:, t], new, carry)
        ys[t] = choose(valid[:, t], y, jax.tree.map(jnp.zeros_like, y))
        carries[t] = carry
    ys, carries = (
        jax.tree.map(lambda *a: jnp.stack(a, axis=1), *steps) for steps in (ys, carries)
    )
    return carry, ys, carries


def weighted_sum(tree: Any) -> Float[Array, ""]:
    """A scalar that every floating-point entry of the tree moves differently."""
    total = jnp.zeros(())
    for seed, leaf in enumerate(jax.tree.leaves(tree)):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            weights = np.random.default_rng(seed).normal(size=leaf.shape)
            total += jnp.sum(jnp.asarray(weights) * leaf.astype(total.dtype))
    return total


@functools.partial(
    jax.jit, static_argnames=("cell", "implementation", "reverse", "return_carries")
)
def outputs_and_gradients(
    cell: lj.Cell, params: Any, xs: Array, carry: Any = None, **options: Any
) -> tuple[Any, Any]:
    """Returns what `unroll` returns, and gradients by params, xs and carry."""

    def loss(params: Any, xs: Array, carry: Any) -> tuple[Array, Any]:
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
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), (
            jax.tree_util.keystr(path)
        )

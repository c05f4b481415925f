"""What `lstm_jax.unroll` must do, written as a loop of one step at a time."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Shaped

from lstm_jax.cells import Cell, Noise


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
    cell: Cell,
    params: Any,
    xs: Shaped[Array, "B T D"],
    carry: Any = None,
    *,
    valid: Bool[np.ndarray, "B T"] | None = None,
    resets: Bool[np.ndarray, "B T"] | None = None,
    reverse: bool = False,
    noise: Noise | None = None,
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
def _initial(cell: Cell, params: Any, batch: int) -> Any:
    return cell.initial_carry(params, batch)


@functools.partial(jax.jit, static_argnums=0)
def _one_step(
    cell: Cell,
    params: Any,
    xs: Shaped[Array, "B T D"],
    carry: Any,
    valid: Bool[Array, "B T"],
    restart: Bool[Array, "B T"],
    noise: Noise | None,
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
def weighted_sum(tree: Any) -> Array:
    """A scalar [] that every floating-point entry of the tree moves differently.

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

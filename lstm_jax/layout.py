"""Arrays of a step with their rows along the first axis, [B, F], or the last, [F, B].

Rows last, each gate is one contiguous block, and the product of a step has the kernel's
many rows on its left: with enough rows in the batch a processor is faster so, by a
fifth forward. Cells never see it: their gates are of one row.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.dtypes import float0
from jaxtyping import Array, DTypeLike, Float, PyTree

from lstm_jax import cells

# The axis of the rows.
RowAxis = Literal[0, -1]
FIRST: RowAxis = 0
LAST: RowAxis = -1


def arrange(tree: PyTree, rows: RowAxis, axis: int = 0) -> PyTree:
    """Moves the rows of arrays, which are along `axis`, to where a layout has them."""
    if rows == FIRST:
        return tree
    return jax.tree.map(lambda a: _move(a, axis, -1), tree)


def restore(tree: PyTree, rows: RowAxis, axis: int = 0) -> PyTree:
    """Moves them back."""
    if rows == FIRST:
        return tree
    return jax.tree.map(lambda a: _move(a, -1, axis), tree)


def ready_kernel(kernel: Float[Array, "F G"], rows: RowAxis) -> Array:
    """The kernel as `product` takes it: transposed once, not at each step."""
    return kernel if rows == FIRST else kernel.T


def product(
    x: Float[Array, "*time B F"], kernel: Array, dtype: DTypeLike | None, rows: RowAxis
) -> Array:
    """x times a `ready_kernel`: [..., B, G], or rows last, of one step, [G, B].

    Operands are cast as in `lstm_jax.cells.product`.
    """
    if rows == FIRST:
        return cells.product(x, kernel, dtype)
    return _dot(kernel, x, dtype, kernel.dtype, (1,), (1,))


def pull_product(
    dz: Array, kernel: Float[Array, "F G"], dtype: DTypeLike | None, rows: RowAxis
) -> Array:
    """Cotangent of x: [..., B, F] or, rows last, [F, ..., B].

    dz is of one step, or of many as scanned or, rows last, as in a `room_for`.
    """
    if rows == FIRST:
        return _dot(dz, kernel, dtype, kernel.dtype, (dz.ndim - 1,), (1,))
    return _dot(kernel, dz, dtype, kernel.dtype, (1,), (0,))


def pull_kernel(
    xs: Float[Array, "K B F"], dzs: Array, dtype: DTypeLike | None, rows: RowAxis
) -> Array:
    """Cotangent of a `ready_kernel`, dzs of many steps as in `pull_product`."""
    # Not `jax.vjp` of the product, which gives (dz^T x)^T rows first: the way round
    # whose left side is contiguous is the faster one.
    if rows == FIRST:
        return _dot(xs, dzs, dtype, dzs.dtype, (0, 1), (0, 1))
    found = _dot(dzs, xs, dtype, dzs.dtype, (1, 2), (0, 1))
    # Turned back at once, it would become a product that processors lack in bfloat16.
    return lax.optimization_barrier(found)


def add_bias(z: Array, bias: Float[Array, " G"], rows: RowAxis) -> Array:
    """Adds the bias to each row of [..., B, G] or, rows last, [G, B]."""
    if rows == LAST:
        return z + jnp.expand_dims(bias, 1)
    return z + jnp.expand_dims(bias, tuple(range(z.ndim - 1)))


def pull_bias(dzs: Array, rows: RowAxis) -> Float[Array, " G"]:
    """Cotangent of the bias, dzs of many steps as in `pull_product`."""
    return jnp.sum(dzs, axis=(0, 1) if rows == FIRST else (1, 2))


def room_for(steps: Float[Array, "T G B"], count: int) -> Float[Array, "G K B"]:
    """Zeros in which `write` puts arrays of K steps, rows last.

    A feature's steps and rows are one contiguous axis there, for large products.
    """
    _, features, batch = steps.shape
    return jnp.zeros((features, count, batch), steps.dtype)


def write(
    room: Float[Array, "G K B"], step: Float[Array, "G B"], at: Array, parts: int
) -> tuple[Array, Array]:
    """Puts one step's array where it belongs.

    Args:
      room: of `room_for`.
      step: the array.
      at: the step.
      parts: blocks of features that are computed each by itself.

    Returns:
      The room, and the array for whatever reads it next.
    """
    # Written at once, all parts would be computed in one loop that branches; and so
    # they would if the array were read from elsewhere.
    for i, part in enumerate(jnp.split(step, parts)):
        start = (i * part.shape[0], at, 0)
        room = lax.dynamic_update_slice(room, jnp.expand_dims(part, 1), start)
    return room, lax.dynamic_index_in_dim(room, at, 1, keepdims=False)


def where_rows(which: Array, new: PyTree, old: PyTree, rows: RowAxis = FIRST) -> PyTree:
    """Takes from `new` the rows [B] that are True, from `old` the others."""

    def choose(a: Array, b: Array) -> Array:
        others = range(1, a.ndim) if rows == FIRST else range(a.ndim - 1)
        return jnp.where(jnp.expand_dims(which, tuple(others)), a, b)

    return jax.tree.map(choose, new, old)


def _move(array: Any, source: int, destination: int) -> Any:
    # The cotangents of integers are arrays of NumPy.
    numpy: Any = np if array.dtype == float0 else jnp
    return numpy.moveaxis(array, source, destination)


def _dot(
    left: Array,
    right: Array,
    dtype: DTypeLike | None,
    result: DTypeLike,
    over_left: tuple[int, ...],
    over_right: tuple[int, ...],
) -> Array:
    operand = result if dtype is None else dtype
    return lax.dot_general(
        left.astype(operand),
        right.astype(operand),
        ((over_left, over_right), ((), ())),
        preferred_element_type=result,
    )

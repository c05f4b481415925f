"""What a gated cell computes in a step, for all rows: shared by its loops."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

from lstm_jax import callers_mesh, layout
from lstm_jax.cells import Fused, Noise, Params, extras_of, recurrent_product
from lstm_jax.layout import FIRST, LAST, RowAxis, where_rows


class Inputs(NamedTuple):
    """What the loop reads; leaves are [T, B, ...], in a step [B, ...].

    Attributes:
      x: [T, B, D].
      valid: [T, B] bool, or None where every step is valid.
      reset: [T, B] bool, or None where nothing is reset.
      noise: `Noise.step`, or None.
    """

    x: Any
    valid: Any
    reset: Any
    noise: PyTree


def masked(inputs: Inputs) -> Inputs:
    """x is zero at masked steps: no content of the padding reaches a product."""
    if inputs.valid is None:
        return inputs
    x = jnp.where(jnp.expand_dims(inputs.valid, -1), inputs.x, 0)
    return inputs._replace(x=x)


def gates_of_rows(
    fused: Fused,
    params: Params,
    noise: Noise | None,
    rows: RowAxis = FIRST,
    *,
    additive: bool,
    return_carries: bool,
) -> Callable[..., tuple[Any, PyTree]]:
    """The gates of all rows, and what a masked step does.

    Args:
      fused: the cell's `fused`.
      params: its parameters, of which the shapes count.
      noise: None, or its noise.
      rows: the axis of the rows in what the gates are given.
      additive: the gates use zx and zh in their sum only.
      return_carries: as in `lstm_jax.unroll`.

    Returns:
      gates(extras, carry, z, valid, noise) -> (carry, (y, carries)), where z is
      (zx + zh,) if additive, else (zx, zh), and extras are as `make_ready` gives them.
    """
    noise_axes = None if noise is None else Noise(None, rows, rows)
    extras_axes = jax.tree.map(
        lambda a: rows if _is_spread(a, rows) else None, extras_of(params)
    )
    axes = (extras_axes, rows, rows, rows, noise_axes)
    of_rows = jax.vmap(fused.gates, in_axes=axes, out_axes=rows)

    def gates(
        extras: Params, carry: Any, z: tuple[Array, ...], valid: Any, noise: Any
    ) -> tuple[Any, PyTree]:
        zx, zh = (*z, jnp.zeros_like(z[0])) if additive else z
        new, y = of_rows(extras, carry, zx, zh, noise)
        if valid is not None:
            new = where_rows(valid, new, carry, rows)
            y = where_rows(valid, y, jax.tree.map(jnp.zeros_like, y), rows)
        # Gates may give constants.
        new, y = callers_mesh.vary((new, y), callers_mesh.varying_axes(carry))
        return new, (y, new if return_carries else ())

    return gates


def make_ready(fused: Fused, params: Params, batch: int, rows: RowAxis) -> Params:
    """The parameters as the steps of a layout read them.

    Rows last, the vectors among the extras are handed to each row: where rows meet an
    array without them `jax.vmap` moves the rows first, and a gate is contiguous no
    more.
    """
    kernels = ["kernel", "recurrent_kernel"][: 2 if fused.recurrent is None else 1]

    def spread(extra: Array) -> Array:
        if not _is_spread(extra, rows):
            return extra
        return jnp.broadcast_to(jnp.expand_dims(extra, 1), (extra.shape[0], batch))

    extras = jax.tree.map(spread, extras_of(params))
    ready = {name: layout.ready_kernel(params[name], rows) for name in kernels}
    return params | ready | extras


def _is_spread(extra: Array, rows: RowAxis) -> bool:
    return rows == LAST and extra.ndim == 1


def weight_gradient(
    fused: Fused,
    params: Params,
    xs: Float[Array, "K B D"],
    hs: Float[Array, "K B H"],
    dzs: tuple[Array, ...],
    rows: RowAxis = FIRST,
) -> Params:
    """Gradient of what `make_ready` gives the products, summed over K steps.

    Args:
      fused: the cell's `fused`.
      params: its parameters.
      xs: inputs of the steps.
      hs: h before each step.
      dzs: cotangents of the gates' input, as in `layout.pull_product`.
      rows: where rows are in dzs.
    """
    dzx, dzh = dzs[0], dzs[-1]
    gradient = {
        "kernel": layout.pull_kernel(xs, dzx, fused.dtype, rows),
        "bias": layout.pull_bias(dzx, rows),
    }
    if fused.recurrent is not None:
        return gradient  # `own_gradient` has the rest
    of_state = layout.pull_kernel(hs, dzh, fused.dtype, rows)
    return gradient | {"recurrent_kernel": of_state}


def own_product(
    fused: Fused, params: Params, h: Array, noise: Noise | None, rows: RowAxis
) -> Array:
    """The recurrent product of a cell that has its own, on rows first or last.

    Rows last, it is called for each row alone: `jax.vmap` puts the transposes next to
    the products, and the compiler makes one product of both.
    """
    # A cell that reads no h, as `min_gru`, gives the same on all of a mesh.
    own_axes = callers_mesh.varying_axes(h)
    if rows == FIRST:
        zh = recurrent_product(fused, params, h, noise)
        return callers_mesh.vary(zh, own_axes)
    axes = None if noise is None else Noise(None, LAST, LAST)

    def of_row(h: Float[Array, " H"], noise: Noise | None) -> Float[Array, " G_H"]:
        if noise is not None:
            own = jax.tree.map(lambda a: a[None], (noise.sequence, noise.step))
            noise = Noise(noise.shared, *own)
        zh = recurrent_product(fused, params, h[None], noise)[0]
        return callers_mesh.vary(zh, own_axes)

    return jax.vmap(of_row, in_axes=(LAST, axes), out_axes=LAST)(h, noise)


def own_gradient(
    fused: Fused,
    params: Params,
    hs: Array,
    dzh: Array,
    noise: Noise | None,
    rows: RowAxis,
) -> Params:
    """Gradient of the parameters by a cell's own recurrent product, over K steps.

    Args:
      fused: the cell's `fused`.
      params: its parameters.
      hs: h before each step, as it is saved.
      dzh: cotangent of zh, as in `layout.pull_product`.
      noise: of the steps.
      rows: where rows are in all of these.

    Returns:
      The gradient, with its matrices transposed.
    """
    axes = None if noise is None else Noise(None, None, 0)
    out_axes = 0 if rows == FIRST else 1

    def step(params: Params, h: Array, noise: Noise | None) -> Array:
        return own_product(fused, params, h, noise, rows)

    steps = jax.vmap(step, in_axes=(None, 0, axes), out_axes=out_axes)
    # Of the transposes, as in `layout.pull_kernel`, and for the same reasons.
    _, pull = jax.vjp(
        lambda turned: steps(transpose(turned), hs, noise), transpose(params)
    )
    return lax.optimization_barrier(pull(dzh)[0])


def transpose(params: Params) -> Params:
    """The parameters, each matrix transposed."""
    return jax.tree.map(lambda a: jnp.matrix_transpose(a) if a.ndim > 1 else a, params)

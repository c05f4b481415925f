"""The fused path: a loop over time whose backward pass is scheduled by hand.

The gates stay the user's: their derivative is `jax.vjp` of `gates` and nothing else.
What this file schedules is everything around them:

- Forward saves the carry before each step and the gates' input: 6 arrays [T, B, H]
  for an LSTM, where differentiating through `lax.scan` saves 13. Gates that use zx or
  zh elsewhere than in the one sum zx + zh have both saved: 4 arrays more.
- Backward runs in chunks of steps. The loop over a chunk has one product a step, for
  the carry, and finds the gradient of the gates' input; those of the inputs and the
  weights are then large products over the chunk in place of small ones a step, and no
  step reads or writes the weight gradient.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.dtypes import float0
from jaxtyping import Array, DTypeLike, Float, PyTree

from lstm_jax import sharding
from lstm_jax.cells import (
    Fused,
    Noise,
    Params,
    extras_of,
    product,
    recurrent_product,
)
from lstm_jax.gate_tracing import trace_gates
from lstm_jax.schedule import Schedule


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


def fused_unroll(
    fused: Fused,
    params: Params,
    inputs: Inputs,
    carry: Any,
    initial: Any,
    noise: Noise | None,
    *,
    reverse: bool,
    return_carries: bool,
    schedule: Schedule,
) -> tuple[Any, PyTree]:
    """Runs a gated cell over time.

    Args:
      fused: the cell's `fused`.
      params: its parameters.
      inputs: what each step reads.
      carry: state before the first step.
      initial: the state that a reset goes back to.
      noise: None, or the cell's noise without `step`, which is in `inputs`.
      reverse: run from the last step to the first.
      return_carries: also return the carry after each step.
      schedule: how the two loops are laid out; it changes no result.

    Returns:
      The carry after the last step, and (ys, carries), leaves [T, B, ...]; carries
      is () unless asked for.

    Raises:
      TypeError: `gates` or `recurrent` closes over a traced value.
    """
    per_step = None if noise is None else noise._replace(step=inputs.noise)
    additive = trace_gates(fused, params, carry, per_step)

    def at_step(noise: Noise | None, per_step: PyTree) -> Noise | None:
        return None if noise is None else noise._replace(step=per_step)

    def input_product(params: Params, x: Array) -> Array:
        bias = jnp.expand_dims(params["bias"], tuple(range(x.ndim - 1)))
        return product(x, params["kernel"], fused.dtype) + bias

    def gates_input(
        params: Params, zx: Array, h: Array, noise: Noise | None
    ) -> tuple[Array, ...]:
        """(zx + zh,) where the gates use no more, else (zx, zh)."""
        zh = recurrent_product(fused, params, h, noise)
        return (zx + zh,) if additive else (zx, zh)

    noise_axes = None if noise is None else Noise(None, 0, 0)
    row = row_of(fused, additive=additive, return_carries=return_carries)
    rows = jax.vmap(row, in_axes=(None, 0, 0, 0, noise_axes))

    def forward(
        params: Params, inputs: Inputs, carry: Any, initial: Any, noise: Noise | None
    ) -> tuple[Any, Any]:
        def step(carry: Any, now: Inputs) -> tuple[Any, Any]:
            drawn = at_step(noise, now.noise)
            if now.reset is not None:
                carry = where_rows(now.reset, initial, carry)
            zx = now.x if schedule.hoist else input_product(params, masked(now).x)
            z = gates_input(params, zx, carry.h, drawn)
            new, out = rows(extras_of(params), carry, z, now.valid, drawn)
            return new, (out, (carry, z))

        read = inputs
        if schedule.hoist:
            read = inputs._replace(x=input_product(params, masked(inputs).x))
        carry, (outs, saved) = lax.scan(
            step, carry, read, reverse=reverse, unroll=schedule.unroll
        )
        return (carry, outs), (params, inputs, noise, saved)

    def backward(residuals: Any, cotangents: Any) -> tuple[Any, ...]:
        params, inputs, noise, saved = residuals

        def step(totals: Any, at: Any) -> tuple[Any, Any]:
            dcarry, dinitial, dextras = totals
            now, (carry, z), dout = at
            drawn = at_step(noise, now.noise)
            _, pull = jax.vjp(
                lambda extras, carry, z: rows(extras, carry, z, now.valid, drawn),
                extras_of(params),
                carry,
                z,
            )
            dextra, dcarry, dz = pull((dcarry, dout))
            dh = pull_recurrent(dz[-1], carry.h, drawn)
            dcarry = dcarry._replace(h=dcarry.h + dh)
            if now.reset is not None:
                lost = _cotangents(
                    lambda d: where_rows(now.reset, d, jnp.zeros_like(d)), dcarry
                )
                dinitial = _add(dinitial, lost)
                dcarry = _cotangents(
                    lambda d: where_rows(now.reset, jnp.zeros_like(d), d), dcarry
                )
            return (dcarry, dinitial, _add(dextras, dextra)), dz

        def pull_recurrent(dzh: Array, h: Array, noise: Noise | None) -> Array:
            if fused.recurrent is None:
                return transposed_product(dzh, params["recurrent_kernel"], fused.dtype)
            _, pull = jax.vjp(lambda h: recurrent_product(fused, params, h, noise), h)
            return pull(dzh)[0]

        def chunk(totals: Any, at: Any) -> tuple[Any, Array]:
            rest, gradient = totals
            inputs, (carries, z), douts = at
            inputs = masked(inputs)
            rest, dzs = lax.scan(
                step,
                rest,
                (inputs._replace(x=None), (carries, z), douts),
                reverse=not reverse,
                unroll=schedule.unroll,
            )
            dxs = transposed_product(dzs[0], params["kernel"], fused.dtype)
            inputs, xs = inputs._replace(x=dxs.astype(inputs.x.dtype)), inputs.x
            drawn = at_step(noise, inputs.noise)
            part = weight_gradient(fused, params, xs, carries.h, dzs, drawn)
            gradient = gradient | _add({k: gradient[k] for k in part}, part)
            return (rest, gradient), masked(inputs).x

        dcarry, douts = cotangents
        dinitial = _cotangents(jnp.zeros_like, dcarry)
        dextras, gradient = jax.tree.map(_zero_cotangent, (extras_of(params), params))
        totals = ((dcarry, dinitial, dextras), gradient)
        totals, dxs = _scan_chunks(
            chunk,
            totals,
            (inputs, saved, douts),
            reverse=not reverse,
            length=schedule.chunk,
        )
        (dcarry, dinitial, dextras), gradient = totals
        gradient = gradient | _add({k: gradient[k] for k in dextras}, dextras)
        return gradient, Inputs(dxs, None, None, None), dcarry, dinitial, None

    if sharding.divides(inputs.x.shape[1]):
        forward, backward = on_each_device(noise, forward, backward)

    # All that may be traced is an argument, nothing a closure.
    @jax.custom_vjp
    def run(
        params: Params, inputs: Inputs, carry: Any, initial: Any, noise: Noise | None
    ) -> Any:
        return forward(params, inputs, carry, initial, noise)[0]

    run.defvjp(forward, backward)
    return run(params, inputs, carry, initial, noise)


def row_of(fused: Fused, *, additive: bool, return_carries: bool) -> Callable[..., Any]:
    """The gates of one row, and what a masked step does."""

    def row(
        extras: Params, carry: Any, z: tuple[Array, ...], valid: Any, noise: Any
    ) -> tuple[Any, PyTree]:
        zx, zh = (*z, jnp.zeros_like(z[0])) if additive else z
        new, y = fused.gates(extras, carry, zx, zh, noise)
        if valid is not None:
            new = jax.tree.map(lambda a, b: jnp.where(valid, a, b), new, carry)
            y = jax.tree.map(lambda a: jnp.where(valid, a, jnp.zeros_like(a)), y)
        return new, (y, new if return_carries else ())

    return row


def on_each_device(
    noise: Noise | None, forward: Callable[..., Any], backward: Callable[..., Any]
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Both passes on each device's rows, weight gradients summed after the loop."""
    none, first, second = sharding.Rows()
    drawn = None if noise is None else Noise(none, first, second)
    outs = (first, second)
    residuals = (none, second, drawn, second)

    def summed(residuals: Any, cotangents: Any) -> tuple[Any, ...]:
        gradient, *rest = backward(residuals, cotangents)
        return _cotangents(sharding.total, gradient), *rest

    return (
        sharding.on_each_device(
            forward, (none, second, first, first, drawn), (outs, residuals)
        ),
        sharding.on_each_device(
            summed, (residuals, outs), (none, second, first, first, None)
        ),
    )


def transposed_product(
    dz: Float[Array, "*batch G_H"],
    kernel: Float[Array, "features G_H"],
    dtype: DTypeLike | None,
) -> Float[Array, "*batch features"]:
    """dz @ kernel.T, its operands cast as those of `lstm_jax.cells.product`."""
    operand = kernel.dtype if dtype is None else dtype
    over_last = (((dz.ndim - 1,), (1,)), ((), ()))
    return lax.dot_general(
        dz.astype(operand),
        kernel.astype(operand),
        over_last,
        preferred_element_type=kernel.dtype,
    )


def weight_gradient(
    fused: Fused,
    params: Params,
    xs: Float[Array, "K B D"],
    hs: Float[Array, "K B H"],
    dzs: tuple[Array, ...],
    noise: Noise | None,
) -> Params:
    """Gradient of the products' parameters, summed over K steps."""

    def of_kernel(xs: Array, dzs: Array) -> Array:
        # Not `jax.vjp` of the product, which gives (dz^T x)^T: x^T dz is the faster
        # way round, by a fifth of a training step.
        operand = dzs.dtype if fused.dtype is None else fused.dtype
        over_steps_and_rows = (((0, 1), (0, 1)), ((), ()))
        return lax.dot_general(
            xs.astype(operand),
            dzs.astype(operand),
            over_steps_and_rows,
            preferred_element_type=dzs.dtype,
        )

    dzx, dzh = dzs[0], dzs[-1]
    gradient = {"kernel": of_kernel(xs, dzx), "bias": jnp.sum(dzx, axis=(0, 1))}
    if fused.recurrent is None:
        return gradient | {"recurrent_kernel": of_kernel(hs, dzh)}
    axes = None if noise is None else Noise(None, None, 0)

    def step(params: Params, h: Float[Array, "B H"], noise: Noise | None) -> Array:
        return recurrent_product(fused, params, h, noise)

    steps = jax.vmap(step, in_axes=(None, 0, axes))
    _, pull = jax.vjp(lambda params: steps(params, hs, noise), params)
    own = pull(dzh)[0]
    return own | _add({k: own[k] for k in gradient}, gradient)


def masked(inputs: Inputs) -> Inputs:
    """x is zero at masked steps: no content of the padding reaches a product."""
    if inputs.valid is None:
        return inputs
    x = jnp.where(jnp.expand_dims(inputs.valid, -1), inputs.x, 0)
    return inputs._replace(x=x)


def where_rows(rows: Array, new: PyTree, old: PyTree) -> PyTree:
    """Takes from `new` the rows [B] that are True, from `old` the others."""
    return jax.tree.map(
        lambda a, b: jnp.where(jnp.expand_dims(rows, tuple(range(1, a.ndim))), a, b),
        new,
        old,
    )


def _add(a: PyTree, b: PyTree) -> PyTree:
    return _cotangents(jnp.add, a, b)


def _cotangents(function: Callable[..., Array], *trees: PyTree) -> PyTree:
    """Maps over cotangents, except those of integers: they are float0, and empty."""
    return jax.tree.map(
        lambda a, *rest: a if a.dtype == float0 else function(a, *rest), *trees
    )


def _zero_cotangent(primal: Array) -> Array | np.ndarray:
    if jnp.issubdtype(primal.dtype, jnp.inexact):
        return jnp.zeros_like(primal)
    return np.zeros(primal.shape, float0)


def _scan_chunks(
    chunk: Callable[[Any, Any], tuple[Any, Array]],
    totals: Any,
    over_time: Any,
    *,
    reverse: bool,
    length: int,
) -> tuple[Any, Array]:
    """`lax.scan` over chunks of `length` steps or a few less; the last may be short."""
    time = jax.tree.leaves(over_time)[0].shape[0]
    if length >= time:
        return chunk(totals, over_time)
    size = next((k for k in range(length, length // 2, -1) if time % k == 0), length)
    whole = time - time % size
    chunks = jax.tree.map(
        lambda a: a[:whole].reshape(whole // size, size, *a.shape[1:]), over_time
    )
    tail, tail_out = jax.tree.map(lambda a: a[whole:], over_time), []
    if reverse and whole < time:
        totals, out = chunk(totals, tail)
        tail_out = [out]
    totals, out = lax.scan(chunk, totals, chunks, reverse=reverse)
    out = out.reshape(whole, *out.shape[2:])
    if not reverse and whole < time:
        totals, last = chunk(totals, tail)
        tail_out = [last]
    return totals, jnp.concatenate([out, *tail_out]) if tail_out else out

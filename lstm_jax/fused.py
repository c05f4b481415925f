"""The fused path: a loop over time whose backward pass is scheduled by hand.

The gates stay the user's: their derivative is `jax.vjp` of `gates` and nothing else.
What this file schedules is everything around them:

- Arrays are features first, [features, B], inside the loop: a gate is then a
  contiguous block, which the CPU compiler vectorises. Rows first it does not.
- One product a step, [kernel; recurrent_kernel]^T @ [x; h], where the gates use
  only zx + zh (found by tracing them); else one for x and one for h.
- Forward saves the carry before each step and the gates' input: 6 arrays
  [T, H, B] for an LSTM, where differentiating through `lax.scan` saves 13.
- Backward runs in chunks of steps; the weight gradient is one large product a
  chunk in place of a small one a step.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree

from lstm_jax.cells import Fused, Noise, Params, extras_of

# Steps whose weight gradient is one product: enough for a product at full speed,
# few enough for the chunk to stay in the cache.
CHUNK = 20

# Tokens from which a transposed copy of the kernels costs less than it saves.
RELAYOUT = 64


class Inputs(NamedTuple):
    """What the loop reads; here leaves are [T, ...], in a step the axis T is gone.

    Attributes:
      x: [T, B, D].
      valid: [T, B] bool, or () where every step is valid.
      reset: [T, B] bool, or () where nothing is reset.
      noise: `Noise.step`, leaves [T, ..., B].
    """

    x: Float[Array, "T B D"]
    valid: Any
    reset: Any
    noise: PyTree


class Products(NamedTuple):
    """The products of a step, features first, and their transposes.

    Attributes:
      forward: (x [B, D], h [H, B], noise) -> z, the gates' input: (zx + zh,) or
        (zx, zh), each [G*H, B].
      backward: (dz, noise) -> (dx [D, B], dh [H, B]).
      weights: (xs [K, B, D], hs [K, H, B], dzs, noise) -> gradient of the kernels,
        summed over K steps.
    """

    forward: Callable[..., tuple[Array, ...]]
    backward: Callable[..., tuple[Array, Array]]
    weights: Callable[..., Params]


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
) -> tuple[Any, PyTree]:
    """Runs a gated cell over time.

    Args:
      fused: the cell's `fused`.
      params: its parameters.
      inputs: what each step reads.
      carry: state before the first step, leaves [..., B], features first.
      initial: the state that a reset goes back to, likewise.
      noise: None, or a `Noise` whose `sequence` leaves are [..., B]; its `step` is
        in `inputs`.
      reverse: run from the last step to the first.
      return_carries: also return the carry after each step.

    Returns:
      The carry after the last step, and (ys, carries), leaves [T, ..., B]; carries
      is () unless asked for.

    Raises:
      TypeError: `gates` or `recurrent` closes over a traced value.
    """
    additive = _trace_gates(fused, params, inputs, carry, noise)
    time, batch, _ = inputs.x.shape
    # The CPU's product wants its operands row-major: over a transposed one it takes
    # two to five times as long. A transposed copy outside the loop pays, except for
    # a few steps of a few rows, where the copy is the larger part.
    make_products = functools.partial(
        _products,
        fused,
        hidden_size=carry.h.shape[0],
        additive=additive,
        relayout=time * batch >= RELAYOUT,
    )

    def step_noise(per_step: PyTree) -> Noise | None:
        return None if noise is None else noise._replace(step=per_step)

    def gate(
        extras: Params, carry: Any, z: tuple[Array, ...], valid: Any, noise: Any
    ) -> tuple[Any, PyTree]:
        """One row: the gates, and what a masked step does."""
        zx, zh = z if len(z) == 2 else (z[0], jnp.zeros_like(z[0]))
        new, y = fused.gates(extras, carry, zx, zh, noise)
        if not isinstance(valid, tuple):
            new = jax.tree.map(lambda a, b: jnp.where(valid, a, b), new, carry)
            y = jax.tree.map(lambda a: jnp.where(valid, a, 0), y)
        return new, (y, new if return_carries else ())

    noise_axes = None if noise is None else Noise(None, -1, -1)
    rows = jax.vmap(gate, in_axes=(None, -1, -1, -1, noise_axes), out_axes=-1)

    def forward(
        params: Params, inputs: Inputs, carry: Any, initial: Any
    ) -> tuple[Any, Any]:
        products = make_products(params)
        extras = extras_of(params)

        def step(carry: Any, now: Inputs) -> tuple[Any, Any]:
            drawn = step_noise(now.noise)
            if not isinstance(now.reset, tuple):
                carry = _where(now.reset, initial, carry)
            z = products.forward(_masked(now).x, carry.h, drawn)
            new, out = rows(extras, carry, z, now.valid, drawn)
            return new, (out, (carry, z))

        carry, (outs, saved) = lax.scan(step, carry, inputs, reverse=reverse)
        return (carry, outs), (params, inputs, initial, saved)

    def backward(residuals: Any, cotangents: Any) -> tuple[Any, ...]:
        params, inputs, initial, saved = residuals
        products = make_products(params)
        extras = extras_of(params)

        def step(acc: Any, at: Any) -> tuple[Any, Any]:
            dcarry, dinitial, dextras = acc
            now, (carry, z), dout = at
            drawn = step_noise(now.noise)
            _, pull = jax.vjp(
                lambda extras, carry, z: rows(extras, carry, z, now.valid, drawn),
                extras,
                carry,
                z,
            )
            dextra, dcarry, dz = pull((dcarry, dout))
            dx, dh = products.backward(dz, drawn)
            dcarry = dcarry._replace(h=dcarry.h + dh)
            if not isinstance(now.reset, tuple):
                zeros = jax.tree.map(jnp.zeros_like, dcarry)
                lost = _where(now.reset, dcarry, zeros)
                dinitial = jax.tree.map(jnp.add, dinitial, lost)
                dcarry = _where(now.reset, zeros, dcarry)
            dextras = jax.tree.map(jnp.add, dextras, dextra)
            return (dcarry, dinitial, dextras), (dx, dz)

        def chunk(acc: Any, at: Any) -> tuple[Any, Array]:
            rest, gradient = acc
            inputs, (carries, z), douts = at
            small = inputs._replace(x=())  # x is for the weight gradient alone
            rest, (dx, dz) = lax.scan(
                step, rest, (small, (carries, z), douts), reverse=not reverse
            )
            inputs = _masked(inputs)
            drawn = step_noise(inputs.noise)
            gradient = _add(gradient, products.weights(inputs.x, carries.h, dz, drawn))
            dx = jnp.swapaxes(dx, -1, -2).astype(inputs.x.dtype)
            return (rest, gradient), _masked(inputs._replace(x=dx)).x

        dcarry, douts = cotangents
        rest = (dcarry, *jax.tree.map(jnp.zeros_like, (initial, extras)))
        gradient = jax.tree.map(jnp.zeros_like, params)
        (rest, gradient), dx = _scan_chunks(
            chunk, (rest, gradient), (inputs, saved, douts), reverse=not reverse
        )
        dcarry, dinitial, dextras = rest
        return _add(gradient, dextras), Inputs(dx, None, None, None), dcarry, dinitial

    @jax.custom_vjp
    def run(params: Params, inputs: Inputs, carry: Any, initial: Any) -> Any:
        return forward(params, inputs, carry, initial)[0]

    run.defvjp(forward, backward)
    return run(params, inputs, carry, initial)


def _products(
    fused: Fused, params: Params, hidden_size: int, additive: bool, relayout: bool
) -> Products:
    kernel, recurrent_kernel = params["kernel"], params["recurrent_kernel"]
    bias = jnp.expand_dims(params["bias"], -1)
    out = kernel.dtype
    operand = out if fused.dtype is None else fused.dtype

    def dot(a: Array, b: Array) -> Array:
        return jnp.matmul(
            a.astype(operand), b.astype(operand), preferred_element_type=out
        )

    def transpose_dot(a: Array, b: Array) -> Array:
        """a.T @ b."""
        contract = (((0,), (0,)), ((), ()))
        a, b = a.astype(operand), b.astype(operand)
        return lax.dot_general(a, b, contract, preferred_element_type=out)

    def weights_of(xs: Array, dzs: Array) -> Array:
        """sum_k x_k^T dz_k^T for xs [K, B, I], dzs [K, G*H, B]."""
        contract = (((0, 1), (0, 2)), ((), ()))
        xs, dzs = xs.astype(operand), dzs.astype(operand)
        return lax.dot_general(xs, dzs, contract, preferred_element_type=out)

    def input_weights(xs: Array, dzx: Array) -> Params:
        return {"kernel": weights_of(xs, dzx), "bias": jnp.sum(dzx, axis=(0, 2))}

    def dense_weights(hs: Array, dzh: Array) -> Params:
        return {"recurrent_kernel": weights_of(jnp.swapaxes(hs, 1, 2), dzh)}

    def both_weights(xs: Array, hs: Array, dz: Any, noise: Any) -> Params:
        del noise
        return input_weights(xs, dz[0]) | dense_weights(hs, dz[-1])

    if additive and relayout and fused.recurrent is None:
        both = jnp.concatenate([kernel, recurrent_kernel])
        both_t = both.T

        def joint_forward(x: Array, h: Array, noise: Any) -> tuple[Array, ...]:
            del noise
            xh = jnp.concatenate([x.T.astype(operand), h.astype(operand)])
            return (dot(both_t, xh) + bias,)

        def joint_backward(dz: tuple[Array, ...], noise: Any) -> tuple[Array, Array]:
            del noise
            dxh = dot(both, dz[0])
            return dxh[: kernel.shape[0]], dxh[kernel.shape[0] :]

        return Products(joint_forward, joint_backward, both_weights)

    def projection(kernel: Array) -> Callable[[Array], Array]:
        """x -> kernel.T @ x."""
        if not relayout:
            return functools.partial(transpose_dot, kernel)
        return functools.partial(dot, kernel.T)

    project = projection(kernel)

    if fused.recurrent is None:
        project_h = projection(recurrent_kernel)

        def recur(h: Array, noise: Any) -> Array:
            del noise
            return project_h(h)

        def recur_back(dzh: Array, noise: Any) -> Array:
            del noise
            return dot(recurrent_kernel, dzh)

        weights = both_weights
    else:
        own = fused.recurrent

        def own_recurrent(params: Params, h: Array, noise: Any) -> Array:
            noise = None if noise is None else _rows_first(noise)
            return own(params, h.T, noise).T

        recur = functools.partial(own_recurrent, params)

        def recur_back(dzh: Array, noise: Any) -> Array:
            # Linear in h: the pullback is the same at every h.
            zeros = jnp.zeros((hidden_size, dzh.shape[-1]), out)
            _, pull = jax.vjp(lambda h: recur(h, noise), zeros)
            return pull(dzh)[0]

        def weights(xs: Array, hs: Array, dz: Any, noise: Any) -> Params:
            axes = None if noise is None else Noise(None, None, 0)
            steps = jax.vmap(own_recurrent, in_axes=(None, 0, axes))
            _, pull = jax.vjp(lambda params: steps(params, hs, noise), params)
            return _add(pull(dz[-1])[0], input_weights(xs, dz[0]))

    def forward(x: Array, h: Array, noise: Any) -> tuple[Array, ...]:
        zx, zh = project(x.T) + bias, recur(h, noise)
        return (zx + zh,) if additive else (zx, zh)

    def backward(dz: tuple[Array, ...], noise: Any) -> tuple[Array, Array]:
        return dot(kernel, dz[0]), recur_back(dz[-1], noise)

    return Products(forward, backward, weights)


def _trace_gates(
    fused: Fused, params: Params, inputs: Inputs, carry: Any, noise: Noise | None
) -> bool:
    """Refuses closures over traced values; tells whether the gates are additive.

    The custom derivative knows its arguments alone: the gradient of a traced value
    that the gates close over would silently be lost.

    Returns:
      Whether the gates use zx and zh through zx + zh only: the two then have the
      same cotangent, as the same variable of the traced derivative.
    """
    step = None if noise is None else noise._replace(step=_at(inputs.noise, 0))
    row = jax.tree.map(lambda a: a[..., 0], carry)
    row_noise = None
    if step is not None:
        sequence, per_step = jax.tree.map(
            lambda a: a[..., 0], (step.sequence, step.step)
        )
        row_noise = Noise(step.shared, sequence, per_step)
    zx = jnp.zeros(params["bias"].shape, params["bias"].dtype)

    def pull_gates(
        extras: Params, carry: Any, zx: Array, zh: Array, noise: Noise | None
    ) -> tuple[Array, Array]:
        primal, pull = jax.vjp(
            lambda zx, zh: fused.gates(extras, carry, zx, zh, noise), zx, zh
        )
        return pull(jax.tree.map(jnp.ones_like, primal))

    traced = jax.make_jaxpr(pull_gates)(extras_of(params), row, zx, zx, row_noise)
    _refuse_closure(traced, "gates")
    if fused.recurrent is not None:
        rows = None if step is None else _rows_first(step)
        own = jax.make_jaxpr(fused.recurrent)(params, carry.h.T, rows)
        _refuse_closure(own, "recurrent")
    dzx, dzh = traced.jaxpr.outvars
    return dzx is dzh


def _refuse_closure(traced: Any, name: str) -> None:
    if any(isinstance(const, Tracer) for const in traced.consts):
        raise TypeError(
            f"{name} closes over a traced value, whose gradient would be lost: hand "
            "it over in the extras (init_extra) or the noise, or use "
            'implementation="autodiff"'
        )


def _scan_chunks(
    chunk: Callable[[Any, Any], tuple[Any, Array]],
    acc: Any,
    over_time: Any,
    *,
    reverse: bool,
) -> tuple[Any, Array]:
    """`lax.scan` over chunks of steps; the last chunk in time may be shorter."""
    time = jax.tree.leaves(over_time)[0].shape[0]
    size = next((k for k in range(CHUNK, CHUNK // 2, -1) if time % k == 0), CHUNK)
    size = min(size, time)
    whole = time - time % size
    tail = jax.tree.map(lambda a: a[whole:], over_time)
    chunks = jax.tree.map(
        lambda a: a[:whole].reshape(whole // size, size, *a.shape[1:]), over_time
    )
    tail_out = None
    if reverse and whole < time:
        acc, tail_out = chunk(acc, tail)
    acc, out = lax.scan(chunk, acc, chunks, reverse=reverse)
    out = out.reshape(whole, *out.shape[2:])
    if not reverse and whole < time:
        acc, tail_out = chunk(acc, tail)
    return acc, out if tail_out is None else jnp.concatenate([out, tail_out])


def _add(total: Params, part: Params) -> Params:
    """Adds the entries that `part` has."""
    summed = {name: jax.tree.map(jnp.add, total[name], part[name]) for name in part}
    return total | summed


def _masked(inputs: Inputs) -> Inputs:
    """x is zero at masked steps: no content of the padding reaches a product."""
    if isinstance(inputs.valid, tuple):
        return inputs
    valid = jnp.expand_dims(inputs.valid, -1)
    return inputs._replace(x=jnp.where(valid, inputs.x, 0))


def _where(rows: Array, new: PyTree, old: PyTree) -> PyTree:
    """Selects rows of features-first arrays [..., B]."""
    return jax.tree.map(
        lambda a, b: jnp.where(jnp.expand_dims(rows, tuple(range(a.ndim - 1))), a, b),
        new,
        old,
    )


def _at(tree: PyTree, step: int) -> PyTree:
    return jax.tree.map(lambda a: a[step], tree)


def _rows_first(noise: Noise) -> Noise:
    """The noise of a step as `Cell.step` and `recurrent` take it, leaves [B, ...]."""
    sequence, step = jax.tree.map(
        lambda a: jnp.moveaxis(a, -1, 0), (noise.sequence, noise.step)
    )
    return Noise(noise.shared, sequence, step)

"""Cells whose gates see no state, which can be run over all steps at once.

h' = a h + b with a and b of the input alone is a linear recurrence, which
`jax.lax.associative_scan` solves in about 2 log2(T) passes over [B, T, H] in place of T
steps. A processor with many rows has no use for that: it runs the fused loop, which
passes over the memory once. Shapes are those of `lstm_jax.cells`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, DTypeLike, Float, PRNGKeyArray

from lstm_jax import callers_mesh, sharding
from lstm_jax.cells import (
    Cell,
    Fused,
    HiddenCarry,
    Initializer,
    Noise,
    Params,
    fused_step,
    product,
)
from lstm_jax.schedule import parallel_over_time
from lstm_jax.unroll import Implementation, effective_resets, unroll

# From x @ kernel + bias [..., G * H] to a and b [..., H].
Coefficients = Callable[[Array], tuple[Array, Array]]


def min_gru(hidden_size: int, **options: Any) -> Cell:
    """The minGRU: h' = (1 - z) h + z n, where z = sig(zz) and n = zn are of x alone.

    Args:
      hidden_size: H.
      **options: `kernel_init`, `bias_init`, `dtype`, as of `lstm_jax.gated`.

    References:
      Feng et al., Were RNNs all we needed?, arXiv:2410.01201 (2024), section 3.1.
    """

    def coefficients(z: Array) -> tuple[Array, Array]:
        gate, new = jnp.split(z, 2, axis=-1)
        gate = jax.nn.sigmoid(gate)
        return 1 - gate, gate * new

    return _linear(hidden_size, 2, coefficients, **options)


def min_lstm(hidden_size: int, **options: Any) -> Cell:
    """The minLSTM: h' = (f h + i n) / (f + i), where f, i = sig(.), n are of x alone.

    Gates in the order f, i, n. In float32 a gate below 1e-35 counts as about 1e-38: f
    and i that both are lose their ratio.

    Args:
      hidden_size: H.
      **options: `kernel_init`, `bias_init`, `dtype`, as of `lstm_jax.gated`.

    References:
      Feng et al., Were RNNs all we needed?, arXiv:2410.01201 (2024), section 3.2.
    """

    def coefficients(z: Array) -> tuple[Array, Array]:
        f, i, new = jnp.split(z, 3, axis=-1)
        # f / (f + i) is the sigmoid of log f - log i, which does not overflow; at half
        # the cost of `jax.nn.log_sigmoid`. Quotients of exponentials, exact of any
        # gates, took 1.2 times as long.
        tiny = jnp.finfo(z.dtype).tiny
        f, i = (jnp.log(jax.nn.sigmoid(gate) + tiny) for gate in (f, i))
        kept = jax.nn.sigmoid(f - i)
        return kept, (1 - kept) * new

    return _linear(hidden_size, 3, coefficients, **options)


def _linear(
    hidden_size: int,
    num_gates: int,
    coefficients: Coefficients,
    *,
    kernel_init: Initializer = jax.nn.initializers.glorot_uniform(),
    bias_init: Initializer = jax.nn.initializers.zeros,
    dtype: DTypeLike | None = None,
) -> Cell:
    """A cell with h' = a h + b."""
    if hidden_size < 1:
        raise ValueError(f"hidden_size must be at least 1, got {hidden_size}")
    width = num_gates * hidden_size

    def init(key: PRNGKeyArray, input_size: int) -> Params:
        if input_size < 1:
            raise ValueError(f"input_size must be at least 1, got {input_size}")
        kernel_key, bias_key = jax.random.split(key)
        return {
            "kernel": kernel_init(kernel_key, (input_size, width)),
            "bias": bias_init(bias_key, (width,)),
        }

    def initial_carry(params: Params, batch_size: int) -> HiddenCarry:
        return HiddenCarry(jnp.zeros((batch_size, hidden_size), params["bias"].dtype))

    def of_inputs(params: Params, x: Float[Array, "... D"]) -> tuple[Array, Array]:
        bias = params["bias"].reshape((1,) * (x.ndim - 1) + (width,))
        return coefficients(product(x, params["kernel"], dtype) + bias)

    def gates(
        extras: Params, carry: HiddenCarry, zx: Array, zh: Array, noise: Noise | None
    ) -> tuple[HiddenCarry, Float[Array, " H"]]:
        del extras, noise
        a, b = coefficients(zx + zh)  # zh is zero; the fused path saves but the sum
        h = a * carry.h + b
        return HiddenCarry(h), h

    def recurrent(params: Params, h: Array, noise: Noise | None) -> Array:
        del params, noise
        return jnp.zeros((h.shape[0], width), h.dtype)

    fused = Fused(gates, recurrent, dtype)
    looped = Cell(init, initial_carry, fused_step(fused), fused=fused)

    def run(
        params: Params,
        xs: Float[Array, "B T D"],
        carry: HiddenCarry,
        *,
        mask: Bool[Array, "B T"] | None,
        resets: Bool[Array, "B T"] | None,
        reverse: bool,
        return_carries: bool,
        implementation: Implementation,
        **unused: Any,
    ) -> tuple[Any, ...]:
        del unused  # no noise
        if implementation not in ("auto", "autodiff", "fused"):
            raise ValueError(
                f"implementation={implementation!r} cannot run this: a cell whose "
                "gates see no state has no recurrent product"
            )
        run = functools.partial(
            run_rows,
            reverse=reverse,
            return_carries=return_carries,
            implementation=implementation,
        )
        return callers_mesh.on_rows(run, params, (xs, carry, mask, resets))

    def run_rows(
        params: Params,
        rows: tuple[Any, ...],
        *,
        reverse: bool,
        return_carries: bool,
        implementation: Implementation,
    ) -> tuple[Any, ...]:
        xs, carry, mask, resets = rows
        each = xs.shape[0] // sharding.shards(xs.shape[0])
        parallel = parallel_over_time(jax.default_backend(), each, xs.shape[1])
        if implementation == "fused" or (implementation == "auto" and not parallel):
            return unroll(
                looped,
                params,
                xs,
                carry,
                mask=mask,
                resets=resets,
                reverse=reverse,
                return_carries=return_carries,
                implementation="fused",
            )
        if xs.shape[1] == 0:
            hs = jnp.zeros((*xs.shape[:2], hidden_size), carry.h.dtype)
            return carry, hs, *((HiddenCarry(hs),) if return_carries else ())
        a, b = of_inputs(params, xs)
        if resets is not None:  # to zeros
            begins = jnp.expand_dims(effective_resets(resets, mask, reverse), -1)
            a = jnp.where(begins, 0, a)
        if mask is not None:
            valid = jnp.expand_dims(mask, -1)
            a, b = jnp.where(valid, a, 1), jnp.where(valid, b, 0)
        first = -1 if reverse else 0
        b = b.at[:, first].add(a[:, first] * carry.h)
        hs = _recurrence(a, b, reverse)
        if mask is not None:
            hs = _held(hs, mask, carry.h, reverse)
        last = HiddenCarry(hs[:, 0] if reverse else hs[:, -1])
        ys = hs if mask is None else jnp.where(jnp.expand_dims(mask, -1), hs, 0)
        return last, ys, *((HiddenCarry(hs),) if return_carries else ())

    return Cell(init, initial_carry, looped.step, unroll=run)


def _recurrence(
    a: Float[Array, "B T H"], b: Float[Array, "B T H"], reverse: bool
) -> Float[Array, "B T H"]:
    """h[t] = a[t] h[t - 1] + b[t] from zeros; in reverse, of h[t + 1].

    A linear system, (I - A S) h = b with S the shift by a step, so that its derivative
    is the transposed one, solved by one scan more. To differentiate the scan itself
    keeps the arrays of its 2 log2(T) levels.
    """

    def shifted(x: Array, later: bool) -> Array:
        x = x[:, :-1] if later else x[:, 1:]
        return jnp.pad(x, ((0, 0), (1, 0) if later else (0, 1), (0, 0)))

    def combine(
        before: tuple[Array, Array], after: tuple[Array, Array]
    ) -> tuple[Array, Array]:
        return before[0] * after[0], before[1] * after[0] + after[1]

    def solve(_: Any, b: Array) -> Array:
        return lax.associative_scan(combine, (a, b), reverse=reverse, axis=1)[1]

    def transposed(_: Any, b: Array) -> Array:
        factors = shifted(a, later=reverse)
        return lax.associative_scan(combine, (factors, b), reverse=not reverse, axis=1)[
            1
        ]

    return lax.custom_linear_solve(
        lambda h: h - a * shifted(h, later=not reverse), b, solve, transposed
    )


def _held(
    hs: Float[Array, "B T H"],
    mask: Bool[Array, "B T"],
    first: Float[Array, "B H"],
    reverse: bool,
) -> Float[Array, "B T H"]:
    """The states, at masked steps those of the last valid step before, to the bit.

    The scan multiplies them by ones in another order at each step: equal by rounding.
    """
    time = mask.shape[1]
    steps = jnp.expand_dims(jnp.arange(time, dtype=jnp.int32), 0)
    if reverse:
        at = lax.cummin(jnp.where(mask, steps, time), axis=1, reverse=True)
    else:
        at = lax.cummax(jnp.where(mask, steps, -1), axis=1)
    at = jnp.expand_dims(at, -1)
    held = jnp.take_along_axis(hs, jnp.clip(at, 0, time - 1), axis=1)
    return jnp.where((at >= 0) & (at < time), held, jnp.expand_dims(first, 1))

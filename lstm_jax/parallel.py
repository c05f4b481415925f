"""Cells whose gates see no state, run over all steps at once.

h' = a h + b with a and b of the input alone is a linear recurrence, which
`jax.lax.associative_scan` solves in about 2 log2(T) passes over [B, T, H] in place of T
steps. Shapes are those of `lstm_jax.cells`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, DTypeLike, Float, PRNGKeyArray

from lstm_jax.cells import Cell, HiddenCarry, Initializer, Params, product
from lstm_jax.unroll import effective_resets

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

    Gates in the order f, i, n.

    Args:
      hidden_size: H.
      **options: `kernel_init`, `bias_init`, `dtype`, as of `lstm_jax.gated`.

    References:
      Feng et al., Were RNNs all we needed?, arXiv:2410.01201 (2024), section 3.2.
    """

    def coefficients(z: Array) -> tuple[Array, Array]:
        f, i, new = jnp.split(z, 3, axis=-1)
        # f / (f + i) is the sigmoid of log f - log i, which does not overflow.
        kept = jax.nn.sigmoid(jax.nn.log_sigmoid(f) - jax.nn.log_sigmoid(i))
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

    def step(
        params: Params, carry: HiddenCarry, x: Float[Array, "B D"]
    ) -> tuple[HiddenCarry, Float[Array, "B H"]]:
        a, b = of_inputs(params, x)
        h = a * carry.h + b
        return HiddenCarry(h), h

    def unroll(
        params: Params,
        xs: Float[Array, "B T D"],
        carry: HiddenCarry,
        *,
        mask: Bool[Array, "B T"] | None,
        resets: Bool[Array, "B T"] | None,
        reverse: bool,
        return_carries: bool,
        **unused: Any,
    ) -> tuple[Any, ...]:
        del unused  # no noise, and one way to run it
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

        hs = _solve(a, b, reverse)
        last = HiddenCarry(hs[:, 0] if reverse else hs[:, -1])
        ys = hs if mask is None else jnp.where(jnp.expand_dims(mask, -1), hs, 0)
        return last, ys, *((HiddenCarry(hs),) if return_carries else ())

    return Cell(init, initial_carry, step, None, None, unroll)


def _solve(
    a: Float[Array, "B T H"], b: Float[Array, "B T H"], reverse: bool
) -> Float[Array, "B T H"]:
    """h of h' = a h + b after each step, from zero."""
    if not isinstance(a.shape[1], int):  # exported for any number of steps

        def step(h: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
            h = at[0] * h + at[1]
            return h, h

        by_step = jnp.swapaxes(a, 0, 1), jnp.swapaxes(b, 0, 1)
        _, hs = lax.scan(step, jnp.zeros_like(b[:, 0]), by_step, reverse=reverse)
        return jnp.swapaxes(hs, 0, 1)

    def combine(
        before: tuple[Array, Array], after: tuple[Array, Array]
    ) -> tuple[Array, Array]:
        return before[0] * after[0], before[1] * after[0] + after[1]

    return lax.associative_scan(combine, (a, b), reverse=reverse, axis=1)[1]

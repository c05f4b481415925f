"""More recurrent cells, each its gate equations.

Shapes are those of `lstm_jax.cells`.
"""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from lstm_jax.cells import (
    Activation,
    Cell,
    Fused,
    HiddenCarry,
    Noise,
    Params,
    gated,
    simple_rnn,
)


def mgu(hidden_size: int, **options: Any) -> Cell:
    """The minimal gated unit: one gate, which forgets, resets and lets in.

    f = sig(zf), n = tanh(xn + f hn), h' = (1 - f) h + f n. Gates in the order f, n. The
    paper resets before the product, n = tanh(xn + (f h) Un); here it is after it, as
    in a GRU with `reset_after`, which the fused path can run.

    Args:
      hidden_size: H.
      **options: `kernel_init`, `recurrent_init`, `bias_init`, `dtype` of `gated`.

    References:
      Zhou et al., Minimal gated unit for recurrent neural networks,
      arXiv:1603.09420 (2016).
    """

    def gates(
        extras: Params, carry: HiddenCarry, zx: Array, zh: Array
    ) -> tuple[HiddenCarry, Array]:
        del extras
        (xf, xn), (hf, hn) = jnp.split(zx, 2), jnp.split(zh, 2)
        f = jax.nn.sigmoid(xf + hf)
        h = (1 - f) * carry.h + f * jnp.tanh(xn + f * hn)
        return HiddenCarry(h), h

    return gated(hidden_size, 2, gates, HiddenCarry, **options)


def indrnn(
    hidden_size: int, activation: Activation = jax.nn.relu, **options: Any
) -> Cell:
    """Units that see of the state themselves alone: h' = act(x W + u h + b).

    `recurrent_kernel` is u [H], drawn from [0, 1).

    Args:
      hidden_size: H.
      activation: act.
      **options: `kernel_init`, `bias_init`, `dtype` of `gated`.

    References:
      Li et al., Independently recurrent neural network (IndRNN), arXiv:1803.04831
      (2018).
    """

    def recurrent(params: Params, h: Array, noise: Noise | None) -> Array:
        del noise
        return h * jnp.expand_dims(params["recurrent_kernel"], 0)

    def recurrent_init(key: PRNGKeyArray, shape: tuple[int, ...]) -> Array:
        return jax.random.uniform(key, shape[:1])

    return simple_rnn(
        hidden_size,
        activation,
        recurrent=recurrent,
        recurrent_init=recurrent_init,
        **options,
    )


class SLSTMCarry(NamedTuple):
    """State of an sLSTM, each [B, H].

    Attributes:
      h: hidden state.
      c: cell state, over exp(m).
      n: normaliser, over exp(m); at least 1 after a step.
      m: stabiliser: the greatest exponent in c and n.
    """

    h: Array
    c: Array
    n: Array
    m: Array


def slstm(hidden_size: int, **options: Any) -> Cell:
    """The sLSTM: an exponential input gate, and a normaliser to go with it.

    With m' = max(log sig(zf) + m, zi), i = exp(zi - m'), f = exp(log sig(zf) + m - m'):
    c' = f c + i tanh(zg), n' = f n + i, h' = sig(zo) c' / n'. The stabiliser m keeps
    the exponents from overflow and cancels in h', so no gradient goes through it. Gates
    in the order i, f, g, o. In blocks of heads, as the paper has it:
    `block_diagonal(slstm(H), heads)`.

    Args:
      hidden_size: H.
      **options: `kernel_init`, `recurrent_init`, `bias_init`, `dtype` of `gated`.

    References:
      Beck et al., xLSTM: extended long short-term memory, arXiv:2405.04517 (2024),
      equations 8 to 17; the forget gate is the sigmoid of its two.
    """

    def gates(
        extras: Params, carry: SLSTMCarry, zx: Array, zh: Array
    ) -> tuple[SLSTMCarry, Float[Array, " H"]]:
        del extras
        i, f, g, o = jnp.split(zx + zh, 4)
        kept = jax.nn.log_sigmoid(f) + carry.m
        m = lax.stop_gradient(jnp.maximum(kept, i))
        i, f = jnp.exp(i - m), jnp.exp(kept - m)
        c = f * carry.c + i * jnp.tanh(g)
        n = f * carry.n + i
        h = jax.nn.sigmoid(o) * c / n
        return SLSTMCarry(h, c, n, m), h

    def initial_carry(params: Params, batch_size: int) -> SLSTMCarry:
        zeros = jnp.zeros((batch_size, hidden_size), params["kernel"].dtype)
        # So low that the first step's exponent is the greatest: n is 1 after it.
        lowest = jnp.full_like(zeros, -1e30)
        return SLSTMCarry(zeros, zeros, zeros, lowest)

    cell = gated(
        hidden_size, 4, gates, SLSTMCarry, initial_carry=initial_carry, **options
    )
    return cell._replace(fused=cast(Fused, cell.fused)._replace(joint=True))

"""Functions from cell to cell; each result keeps the fused path."""

import jax
from jaxtyping import Array, PRNGKeyArray

from lstm_jax.cells import Cell, Noise, Params, fused_step, recurrent_product


def recurrent_dropout(cell: Cell, rate: float) -> Cell:
    """Drops units of h on their way into the recurrent product, and nowhere else.

    One mask a sequence, the same at every step, drawn outside the loop over time;
    without a key nothing is dropped.

    >>> import jax, jax.numpy as jnp, lstm_jax as lj
    >>> from lstm_jax.combinators import recurrent_dropout
    >>> cell = recurrent_dropout(lj.lstm(hidden_size=8), 0.5)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> carry, ys = lj.unroll(cell, params, jnp.ones((2, 5, 3)), key=jax.random.key(1))

    Args:
      cell: a cell made by `lstm_jax.gated`.
      rate: share that is dropped, in [0, 1); the rest is scaled by 1 / (1 - rate).

    Raises:
      ValueError: a rate outside [0, 1), or a cell without gates.

    References:
      Gal and Ghahramani, A theoretically grounded application of dropout in
      recurrent neural networks, arXiv:1512.05287 (2016). One mask for all gates,
      where Keras draws one for each.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"rate must be in [0, 1), got {rate}")
    inner = cell.fused
    if inner is None:
        raise ValueError("recurrent_dropout takes a cell made by gated")

    def inside(noise: Noise | None) -> Noise | None:
        """What the cell itself drew."""
        if noise is None or cell.noise is None:
            return None
        return noise._replace(sequence=noise.sequence[1])

    def draw(key: PRNGKeyArray, params: Params, batch_size: int, time: int) -> Noise:
        mask_key, inner_key = jax.random.split(key)
        own = Noise()
        if cell.noise is not None:
            own = cell.noise(inner_key, params, batch_size, time)
        h = cell.initial_carry(params, batch_size).h
        kept = jax.random.bernoulli(mask_key, 1 - rate, h.shape)
        mask = kept.astype(h.dtype) / (1 - rate)
        return own._replace(sequence=(mask, own.sequence))

    def recurrent(params: Params, h: Array, noise: Noise | None) -> Array:
        dropped = h if noise is None else h * noise.sequence[0]
        return recurrent_product(inner, params, dropped, inside(noise))

    def gates(
        extras: Params, carry: object, zx: Array, zh: Array, noise: Noise | None
    ) -> tuple[object, object]:
        return inner.gates(extras, carry, zx, zh, inside(noise))

    fused = inner._replace(gates=gates, recurrent=recurrent)
    return cell._replace(step=fused_step(fused), noise=draw, fused=fused)

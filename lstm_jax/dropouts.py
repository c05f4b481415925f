"""Combinators that draw noise: once a sequence batch, outside of the loop over time.

Without a key a cell is deterministic.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from lstm_jax.cells import Cell, Fused, Noise, Params, recurrent_product, with_fused
from lstm_jax.gate_tracing import run_gates

_LEVELS = 2**16  # of the bits that zoneout draws for an entry


def gates_of(cell: Cell, combinator: str, *, of_carry: bool = False) -> Fused:
    """The gates that a combinator wraps.

    Args:
      cell: the cell.
      combinator: its name.
      of_carry: it takes each array of the carry by itself.

    Raises:
      ValueError: the cell has none, or changes their output afterwards; or its carry
        cannot be taken so.
    """
    if cell.fused is None or cell.unroll is not None:
        raise ValueError(
            f"{combinator} takes a cell made by gated or by a combinator of one: "
            "residual, project and stack stand outside of it"
        )
    if of_carry and cell.fused.joint:
        raise ValueError(
            f"{combinator} takes each array of the carry by itself, and those of this "
            "cell mean something together alone, as an slstm's over exp(m)"
        )
    return cell.fused


def is_real(a: Array) -> bool:
    """Whether an array of the carry is of real numbers: a counter is left alone."""
    return jnp.issubdtype(a.dtype, jnp.floating)


def usual_product(fused: Fused) -> bool:
    """Whether the recurrent product is h @ recurrent_kernel, but for noise."""
    return fused.recurrent is None or fused.any_width


def check_rate(rate: float) -> None:
    """Raises a ValueError outside [0, 1)."""
    if not 0 <= rate < 1:
        raise ValueError(f"rate must be in [0, 1), got {rate}")


def recurrent_dropout(cell: Cell, rate: float) -> Cell:
    """Drops units of h on their way into the recurrent product, and nowhere else.

    One mask a sequence, the same at every step.

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
    check_rate(rate)
    inner = gates_of(cell, "recurrent_dropout")

    def draw(key: PRNGKeyArray, params: Params, batch_size: int, time: int) -> Array:
        h = cell.initial_carry(params, batch_size).h
        if usual_product(inner):  # in `project` it is of another width
            h = h[:, : len(params["recurrent_kernel"])]
        return _mask(key, rate, h)

    def recurrent(
        params: Params, h: Array, mask: Array | None, noise: Noise | None
    ) -> Array:
        dropped = h if mask is None else h * mask
        return recurrent_product(inner, params, dropped, noise)

    return _noisy(cell, inner, "sequence", draw, recurrent=recurrent)


def drop_connect(cell: Cell, rate: float) -> Cell:
    """Drops entries of the recurrent kernel, the same for all rows and steps.

    Args:
      cell: a cell made by `lstm_jax.gated`.
      rate: share that is dropped, in [0, 1); the rest is scaled by 1 / (1 - rate).

    Raises:
      ValueError: a rate outside [0, 1), or a cell without gates.

    References:
      Wan et al., Regularization of neural networks using DropConnect, ICML 2013;
      Merity, Keskar and Socher, Regularizing and optimizing LSTM language models,
      arXiv:1708.02182 (2017).
    """
    check_rate(rate)
    inner = gates_of(cell, "drop_connect")

    def draw(key: PRNGKeyArray, params: Params, batch_size: int, time: int) -> Array:
        return _mask(key, rate, params["recurrent_kernel"])

    def recurrent(
        params: Params, h: Array, mask: Array | None, noise: Noise | None
    ) -> Array:
        kernel = params["recurrent_kernel"]
        kernel = kernel if mask is None else kernel * mask
        return recurrent_product(inner, params | {"recurrent_kernel": kernel}, h, noise)

    return _noisy(cell, inner, "shared", draw, recurrent=recurrent)


def zoneout(cell: Cell, rate: float) -> Cell:
    """Keeps entries of the carry as they were, drawn for each row and step.

    Without a key an entry is the expectation: rate times the old one, 1 - rate times
    the new. Where the cell's output is its new h, so it is here. Integers in the carry
    are always the new ones.

    Args:
      cell: a cell made by `lstm_jax.gated`.
      rate: share that is kept, in [0, 1), of every array of the carry; drawn as a
        multiple of 2^-16.

    Raises:
      ValueError: a rate outside [0, 1) or so near to one of both that none or every
        entry would be kept, a cell without gates, or one like `slstm`,
        whose c and n are over exp(m).

    References:
      Krueger et al., Zoneout: regularizing RNNs by randomly preserving hidden
      activations, arXiv:1606.01305 (2017).
    """
    check_rate(rate)
    inner = gates_of(cell, "zoneout", of_carry=True)
    if rate == 0:
        return cell
    if not 0 < round(rate * _LEVELS) < _LEVELS:
        raise ValueError(f"rate is drawn as a multiple of 1 / {_LEVELS}, got {rate}")

    def draw(key: PRNGKeyArray, params: Params, batch_size: int, time: int) -> Any:
        leaves, tree = jax.tree.flatten(cell.initial_carry(params, batch_size))
        sizes = [math.prod(leaf.shape[1:]) for leaf in leaves]
        # Two entries of each random number: a draw an entry takes longer than an LSTM.
        shape = (batch_size, time, -(-sum(sizes) // 2))
        bits = jax.random.bits(key, shape, jnp.uint32)
        bits = jnp.concatenate([bits & 0xFFFF, bits >> 16], axis=-1)
        kept = jnp.split(bits < round(rate * _LEVELS), np.cumsum(sizes), axis=-1)
        parts = zip(kept, leaves, strict=False)  # one bit may be left over
        return jax.tree.unflatten(
            tree,
            [part.reshape(*shape[:2], *leaf.shape[1:]) for part, leaf in parts],
        )

    def gates(
        extras: Params, carry: Any, zx: Array, zh: Array, kept: Any, noise: Noise | None
    ) -> tuple[Any, Any]:
        new, y, is_h = run_gates(inner.gates, extras, carry, zx, zh, noise)
        if kept is None:
            kept = jax.tree.map(lambda _: rate, new)

        def mix(part: Any, old: Array, now: Array) -> Array:
            if not is_real(now):
                return now
            if isinstance(part, float):
                return part * old + (1 - part) * now
            return jnp.where(part, old, now)

        mixed = jax.tree.map(mix, kept, carry, new)
        return mixed, mixed.h if is_h else y

    return _noisy(cell, inner, "step", draw, gates=gates)


def _mask(key: PRNGKeyArray, rate: float, like: Array) -> Array:
    """What an array is multiplied by: 0 where it is dropped, else 1 / (1 - rate)."""
    # float32: the same entries whether float64 is enabled or not.
    kept = jax.random.bernoulli(key, jnp.float32(1 - rate), like.shape)
    return kept.astype(like.dtype) / (1 - rate)


def _noisy(
    cell: Cell,
    inner: Fused,
    kind: str,
    draw: Callable[[PRNGKeyArray, Params, int, int], Any],
    *,
    gates: Callable[..., tuple[Any, Any]] | None = None,
    recurrent: Callable[..., Array] | None = None,
) -> Cell:
    """A cell with noise of its own beside that of the cell it wraps.

    Args:
      cell: the wrapped cell.
      inner: its gates.
      kind: the field of `Noise` that the new noise is of.
      draw: `draw(key, params, batch_size, time)`, as `Cell.noise`, of that field.
      gates: the new gates; they get what was drawn, or None, before the noise.
      recurrent: the new recurrent product; likewise.
    """

    def part(noise: Noise | None) -> tuple[Any, Noise | None]:
        """What is drawn here, and what the wrapped cell drew."""
        if noise is None:
            return None, None
        own, theirs = getattr(noise, kind)
        return own, None if cell.noise is None else noise._replace(**{kind: theirs})

    def new_noise(
        key: PRNGKeyArray, params: Params, batch_size: int, time: int
    ) -> Noise:
        own_key, inner_key = jax.random.split(key)
        noise = Noise()
        if cell.noise is not None:
            noise = cell.noise(inner_key, params, batch_size, time)
        own = draw(own_key, params, batch_size, time)
        return noise._replace(**{kind: (own, getattr(noise, kind))})

    def new_gates(
        extras: Params, carry: Any, zx: Array, zh: Array, noise: Noise | None
    ) -> tuple[Any, Any]:
        own, theirs = part(noise)
        if gates is None:
            return inner.gates(extras, carry, zx, zh, theirs)
        return gates(extras, carry, zx, zh, own, theirs)

    def new_recurrent(params: Params, h: Array, noise: Noise | None) -> Array:
        own, theirs = part(noise)
        if recurrent is None:
            return recurrent_product(inner, params, h, theirs)
        return recurrent(params, h, own, theirs)

    fused = inner._replace(gates=new_gates)
    if recurrent is not None or inner.recurrent is not None:
        any_width = usual_product(inner)
        fused = fused._replace(recurrent=new_recurrent, any_width=any_width)
    return with_fused(cell, fused, noise=new_noise)

"""Recurrent layers in Flax Linen: thin wrappers of the pure functions.

Shapes: B batch, T time, D features, Y outputs. A layer holds its cell's parameters
under the name "cell". Noise and dropout draw from the stream "dropout", and only where
`deterministic` is False.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Integer

from lstm_jax import sharding
from lstm_jax.cells import Cell, Initializer
from lstm_jax.gate_tracing import outputs_state
from lstm_jax.unroll import Implementation, unroll


class Recurrent(nn.Module):
    """One recurrent layer: `lstm_jax.unroll` with parameters of its own.

    Attributes:
      cell: the cell.
      reverse: run from the last step to the first.
      implementation: as in `lstm_jax.unroll`.
    """

    cell: Cell
    reverse: bool = False
    implementation: Implementation = "auto"

    @nn.compact
    def __call__(
        self,
        xs: Float[Array, "B T D"],
        carry: Any = None,
        *,
        lengths: Integer[Array, " B"] | None = None,
        mask: Bool[Array, "B T"] | None = None,
        resets: Bool[Array, "B T"] | None = None,
        deterministic: bool = True,
    ) -> tuple[Any, Any]:
        """Returns (carry, ys); arguments as in `lstm_jax.unroll`."""
        params = self.param("cell", self.cell.init, xs.shape[-1])
        noisy = self.cell.noise is not None and not deterministic
        return unroll(
            self.cell,
            params,
            xs,
            carry,
            lengths=lengths,
            mask=mask,
            resets=resets,
            reverse=self.reverse,
            key=self.make_rng("dropout") if noisy else None,
            implementation=self.implementation,
        )


class Bidirectional(nn.Module):
    """Two layers over the same inputs, one in each direction, outputs concatenated.

    Attributes:
      cell: the cell of both directions; each has parameters of its own.
      implementation: as in `lstm_jax.unroll`.

    References:
      Schuster and Paliwal, Bidirectional recurrent neural networks, IEEE
      Transactions on Signal Processing 45 (1997).
    """

    cell: Cell
    implementation: Implementation = "auto"

    @nn.compact
    def __call__(
        self, xs: Float[Array, "B T D"], carry: Any = None, **options: Any
    ) -> tuple[Any, Float[Array, "B T Y"]]:
        """Returns ((forward carry, backward carry), ys); `options` as `Recurrent`."""
        forward = Recurrent(self.cell, False, self.implementation, name="forward")
        backward = Recurrent(self.cell, True, self.implementation, name="backward")
        carry = (None, None) if carry is None else carry
        forward_carry, forward_ys = forward(xs, carry[0], **options)
        backward_carry, backward_ys = backward(xs, carry[1], **options)
        ys = jnp.concatenate([forward_ys, backward_ys], axis=-1)
        return (forward_carry, backward_carry), ys


class Stack(nn.Module):
    """Recurrent layers one after the other, with dropout between them.

    Attributes:
      cells: the cell of each layer.
      dropout: share of each layer's outputs that is dropped before the next layer.
      input_dropout: share of the features of each layer's inputs that is dropped, the
        same ones at every step of a sequence.
      bidirectional: every layer runs in both directions.
    """

    cells: tuple[Cell, ...]
    dropout: float = 0.0
    input_dropout: float = 0.0
    bidirectional: bool = False

    @nn.compact
    def __call__(
        self,
        xs: Float[Array, "B T D"],
        carries: tuple[Any, ...] | None = None,
        *,
        last_only: bool = False,
        deterministic: bool = True,
        **options: Any,
    ) -> tuple[tuple[Any, ...], Float[Array, "B *T Y"]]:
        """Returns (carries, ys), a carry a layer; `options` as `Recurrent`.

        With `last_only` ys are [B, Y]: y at each row's last valid step in running
        order, zeros for an empty row. It takes `lengths`, not `mask`.
        """
        final, size = [], xs.shape[-1]
        for i, cell in enumerate(self.cells):
            if i > 0 and self.dropout:
                xs = nn.Dropout(self.dropout)(xs, deterministic=deterministic)
            if self.input_dropout:
                whole = nn.Dropout(self.input_dropout, broadcast_dims=(1,))
                xs = whole(xs, deterministic=deterministic)
            layer = Bidirectional if self.bidirectional else Recurrent
            given = () if carries is None else (carries[i],)
            size = xs.shape[-1]
            carry, xs = layer(cell, name=f"layer_{i}")(
                xs, *given, deterministic=deterministic, **options
            )
            final.append(carry)
        if not last_only:
            return tuple(final), xs
        lengths = options.get("lengths")
        if final and xs.shape[1] and outputs_state(self.cells[-1], size):
            # No array of all outputs is written.
            return tuple(final), _last_state(final[-1], lengths, self.bidirectional)
        return tuple(final), _last_output(xs, lengths, self.bidirectional)


def _last_state(
    carry: Any, lengths: Integer[Array, " B"] | None, bidirectional: bool
) -> Float[Array, "B Y"]:
    """As `_last_output`, where outputs are states."""
    carries = carry if bidirectional else (carry,)
    last = jnp.concatenate([carry.h for carry in carries], axis=-1)
    if lengths is None:
        return last
    return jnp.where(jnp.expand_dims(lengths > 0, -1), last, 0)


def _last_output(
    ys: Float[Array, "B T Y"], lengths: Integer[Array, " B"] | None, bidirectional: bool
) -> Float[Array, "B Y"]:
    """y at the last valid step in running order; zeros for an empty row."""
    batch, time, size = ys.shape
    if time == 0:
        return jnp.zeros((batch, size), ys.dtype)
    if lengths is None:
        last = ys[:, -1]
    else:
        # ys is zero at masked steps, so an empty row may read any of them.
        at = jnp.clip(lengths - 1, 0, time - 1).reshape(-1, 1, 1)
        last = jnp.take_along_axis(ys, at, axis=1)[:, 0]
    if not bidirectional:
        return last
    forward, _ = jnp.split(last, 2, axis=-1)
    _, backward = jnp.split(ys[:, 0], 2, axis=-1)
    return jnp.concatenate([forward, backward], axis=-1)


class Embedding(nn.Module):
    """A vector a symbol, of a table that may be divided over devices.

    Attributes:
      vocab_size: V.
      size: D.
      init: initialiser of the table.
    """

    vocab_size: int
    size: int
    init: Initializer = nn.linear.default_embed_init

    @nn.compact
    def __call__(self, symbols: Integer[Array, "*B"]) -> Float[Array, "*B D"]:
        """Returns the vectors of symbols."""
        shape = (self.vocab_size, self.size)
        table = self.param("embedding", self.init, shape, jnp.float32)
        look_up = sharding.with_gathered(lambda table, at: jnp.take(table, at, axis=0))
        return look_up(table, symbols)


def dense(features: int, **options: Any) -> nn.Dense:
    """`nn.Dense`, its kernel possibly divided over devices."""

    def dot_general(x: Array, kernel: Array, dims: Any, **options: Any) -> Array:
        def product(kernel: Array, x: Array) -> Array:
            return lax.dot_general(x, kernel, dims, **options)

        return sharding.with_gathered(product)(kernel, x)

    return nn.Dense(features, dot_general=dot_general, **options)

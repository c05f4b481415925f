"""Flax Linen modules: thin wrappers of the pure functions.

Shapes: B batch, T time, D features, V symbols, C classes. A module holds its cell's
parameters under the name "cell". Noise and dropout draw from the stream "dropout",
and only where `deterministic` is False.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from lstm_jax.cells import Cell, Initializer
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
        lengths: Int[Array, " B"] | None = None,
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
        self, xs: Float[Array, "B T D"], carry: Any = (None, None), **options: Any
    ) -> tuple[Any, Float[Array, "B T Y"]]:
        """Returns ((forward carry, backward carry), ys); `options` as `Recurrent`."""
        forward = Recurrent(self.cell, False, self.implementation, name="forward")
        backward = Recurrent(self.cell, True, self.implementation, name="backward")
        forward_carry, forward_ys = forward(xs, carry[0], **options)
        backward_carry, backward_ys = backward(xs, carry[1], **options)
        ys = jnp.concatenate([forward_ys, backward_ys], axis=-1)
        return (forward_carry, backward_carry), ys


class Stack(nn.Module):
    """Recurrent layers one after the other, with dropout between them.

    Attributes:
      cells: the cell of each layer.
      dropout: share of each layer's outputs that is dropped before the next layer.
      bidirectional: every layer runs in both directions.
    """

    cells: tuple[Cell, ...]
    dropout: float = 0.0
    bidirectional: bool = False

    @nn.compact
    def __call__(
        self,
        xs: Float[Array, "B T D"],
        carries: tuple[Any, ...] | None = None,
        *,
        deterministic: bool = True,
        **options: Any,
    ) -> tuple[tuple[Any, ...], Float[Array, "B T Y"]]:
        """Returns (carries, ys), a carry a layer; `options` as `Recurrent`."""
        final = []
        for i, cell in enumerate(self.cells):
            if i > 0:
                xs = nn.Dropout(self.dropout)(xs, deterministic=deterministic)
            layer = Bidirectional if self.bidirectional else Recurrent
            given = () if carries is None else (carries[i],)
            carry, xs = layer(cell, name=f"layer_{i}")(
                xs, *given, deterministic=deterministic, **options
            )
            final.append(carry)
        return tuple(final), xs


class SequenceClassifier(nn.Module):
    """Class logits of a sequence, from the last output of a stack of layers.

    Attributes:
      cells: the cell of each layer.
      num_classes: C.
      vocab_size: V, where the inputs are symbols; None: they are vectors.
      embedding_size: size of a symbol's vector. None: a symbol is fed as the one
        number that it is.
      dropout: between the layers and before the head.
      bidirectional: every layer runs in both directions.
      head_kernel_init: initialiser of the head's kernel.
      head_bias_init: initialiser of the head's bias.
    """

    cells: tuple[Cell, ...]
    num_classes: int
    vocab_size: int | None = None
    embedding_size: int | None = None
    dropout: float = 0.0
    bidirectional: bool = False
    head_kernel_init: Initializer = jax.nn.initializers.glorot_uniform()
    head_bias_init: Initializer = jax.nn.initializers.zeros

    @nn.compact
    def __call__(
        self,
        inputs: Shaped[Array, "B T *D"],
        *,
        lengths: Int[Array, " B"] | None = None,
        deterministic: bool = True,
    ) -> Float[Array, "B C"]:
        """Logits of inputs [B, T] (symbols) or [B, T, D] (vectors)."""
        xs = _features(inputs, self.vocab_size, self.embedding_size)
        stack = Stack(self.cells, self.dropout, self.bidirectional, name="recurrent")
        _, ys = stack(xs, lengths=lengths, deterministic=deterministic)
        last = _last_output(ys, lengths, self.bidirectional)
        last = nn.Dropout(self.dropout)(last, deterministic=deterministic)
        return nn.Dense(
            self.num_classes,
            kernel_init=self.head_kernel_init,
            bias_init=self.head_bias_init,
            name="head",
        )(last)


class LanguageModel(nn.Module):
    """Logits of the next symbol at every step.

    Attributes:
      cells: the cell of each layer.
      vocab_size: V.
      embedding_size: size of a symbol's vector.
      dropout: between the layers and before the head.
    """

    cells: tuple[Cell, ...]
    vocab_size: int
    embedding_size: int
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self,
        inputs: Int[Array, "B T"],
        carries: tuple[Any, ...] | None = None,
        *,
        deterministic: bool = True,
        **options: Any,
    ) -> tuple[tuple[Any, ...], Float[Array, "B T V"]]:
        """Returns (carries, logits); `options` as `Recurrent`."""
        xs = _features(inputs, self.vocab_size, self.embedding_size)
        stack = Stack(self.cells, self.dropout, name="recurrent")
        carries, ys = stack(xs, carries, deterministic=deterministic, **options)
        ys = nn.Dropout(self.dropout)(ys, deterministic=deterministic)
        return carries, nn.Dense(self.vocab_size, name="head")(ys)


def summarize(module: nn.Module, *inputs: Any) -> str:
    """A table of the module's layers: outputs, parameters, and their total."""
    table = module.tabulate(
        jax.random.key(0),
        *inputs,
        depth=1,
        console_kwargs={"width": 100, "force_terminal": False},
    )
    return "\n".join(line.rstrip() for line in table.strip("\n").splitlines()) + "\n"


def _features(
    inputs: Shaped[Array, "B T *D"], vocab_size: int | None, size: int | None
) -> Float[Array, "B T D"]:
    if vocab_size is None:
        return inputs
    if size is None:
        return jnp.expand_dims(inputs.astype(jnp.float32), -1)
    return nn.Embed(vocab_size, size, name="embedding")(inputs)


def _last_output(
    ys: Float[Array, "B T Y"], lengths: Int[Array, " B"] | None, bidirectional: bool
) -> Float[Array, "B Y"]:
    """y at the last valid step in running order; zeros for an empty row."""
    if lengths is None:
        last = ys[:, -1]
    else:
        # ys is zero at masked steps, so an empty row may read any of them.
        at = jnp.maximum(lengths - 1, 0).reshape(-1, 1, 1)
        last = jnp.take_along_axis(ys, at, axis=1)[:, 0]
    if not bidirectional:
        return last
    forward, _ = jnp.split(last, 2, axis=-1)
    _, backward = jnp.split(ys[:, 0], 2, axis=-1)
    return jnp.concatenate([forward, backward], axis=-1)

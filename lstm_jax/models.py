"""Models in Flax Linen, and the layers that they are made of.

Shapes: B batch, T time, D features, V symbols, C classes. Dropout draws from the stream
"dropout", and only where `deterministic` is False.
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer, Shaped

from lstm_jax.cells import Activation, Cell, Initializer
from lstm_jax.layers import Bidirectional, Embedding, Recurrent, Stack, dense

__all__ = [
    "Bidirectional",
    "LanguageModel",
    "Recurrent",
    "SequenceClassifier",
    "SequenceTagger",
    "Stack",
]

Pooling = Literal["last", "mean", "max"]


class SequenceClassifier(nn.Module):
    """Class logits of a sequence: recurrent layers, pooled over time, dense layers.

    Attributes:
      cells: the cell of each recurrent layer. With none the embedded inputs are
        pooled.
      num_classes: C; 1 for a sigmoid's logit.
      vocab_size: V, where the inputs are symbols; None: they are vectors.
      embedding_size: size of a symbol's vector. None: a symbol is fed as the one
        number that it is.
      embedding_dropout: of single entries of the embedded inputs.
      input_dropout: as in `Stack`.
      dropout: after each recurrent layer.
      bidirectional: every recurrent layer runs in both directions.
      pooling: over the valid steps; "last": the last output in running order.
      dense: sizes of the dense layers before the head.
      dense_activation: of the dense layers.
      dense_dropout: after each dense layer.
      embedding_init: initialiser of the embedding.
      head_kernel_init: initialiser of the kernels of the head and the dense layers.
      head_bias_init: initialiser of the head's bias.
    """

    cells: tuple[Cell, ...]
    num_classes: int
    vocab_size: int | None = None
    embedding_size: int | None = None
    embedding_dropout: float = 0.0
    input_dropout: float = 0.0
    dropout: float = 0.0
    bidirectional: bool = False
    pooling: Pooling = "last"
    dense: tuple[int, ...] = ()
    dense_activation: Activation = jax.nn.relu
    dense_dropout: float = 0.0
    embedding_init: Initializer = nn.linear.default_embed_init
    head_kernel_init: Initializer = jax.nn.initializers.glorot_uniform()
    head_bias_init: Initializer = jax.nn.initializers.zeros

    @nn.compact
    def __call__(
        self,
        inputs: Shaped[Array, "B T *D"],
        *,
        lengths: Integer[Array, " B"] | None = None,
        deterministic: bool = True,
    ) -> Float[Array, "B C"]:
        """Logits of inputs [B, T] (symbols) or [B, T, D] (vectors)."""
        if lengths is not None:  # a small type may not count to T
            lengths = lengths.astype(jnp.int32)

        def drop(rate: float, a: Array) -> Array:
            return nn.Dropout(rate)(a, deterministic=deterministic) if rate else a

        size, init = self.embedding_size, self.embedding_init
        xs = drop(
            self.embedding_dropout, _features(inputs, self.vocab_size, size, init)
        )
        last_only = self.pooling == "last"
        stack = Stack(
            self.cells,
            self.dropout,
            self.input_dropout,
            self.bidirectional,
            name="recurrent",
        )
        _, ys = stack(
            xs, last_only=last_only, lengths=lengths, deterministic=deterministic
        )
        out = drop(self.dropout, ys if last_only else _pool(ys, lengths, self.pooling))
        for i, features in enumerate(self.dense):
            layer = dense(
                features, kernel_init=self.head_kernel_init, name=f"dense_{i}"
            )
            out = drop(self.dense_dropout, self.dense_activation(layer(out)))
        return dense(
            self.num_classes,
            kernel_init=self.head_kernel_init,
            bias_init=self.head_bias_init,
            name="head",
        )(out)


class SequenceTagger(nn.Module):
    """Logits of a label for every step; 0 at steps past a row's length.

    Attributes:
      cells: the cell of each recurrent layer.
      num_classes: C.
      vocab_size: V, where the inputs are symbols; None: they are vectors.
      embedding_size: size of a symbol's vector.
      dropout: after each recurrent layer.
      bidirectional: every layer runs in both directions.
    """

    cells: tuple[Cell, ...]
    num_classes: int
    vocab_size: int | None = None
    embedding_size: int | None = None
    dropout: float = 0.0
    bidirectional: bool = False

    @nn.compact
    def __call__(
        self,
        inputs: Shaped[Array, "B T *D"],
        *,
        lengths: Integer[Array, " B"] | None = None,
        deterministic: bool = True,
    ) -> Float[Array, "B T C"]:
        """Logits of inputs [B, T] (symbols) or [B, T, D] (vectors)."""
        if lengths is not None:  # a small type may not count to T
            lengths = lengths.astype(jnp.int32)
        xs = _features(inputs, self.vocab_size, self.embedding_size)
        stack = Stack(
            self.cells, self.dropout, bidirectional=self.bidirectional, name="recurrent"
        )
        _, ys = stack(xs, lengths=lengths, deterministic=deterministic)
        if self.dropout:
            ys = nn.Dropout(self.dropout)(ys, deterministic=deterministic)
        logits = dense(self.num_classes, name="head")(ys)
        if lengths is None:
            return logits
        return jnp.where(jnp.expand_dims(_valid(ys, lengths), -1), logits, 0)


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
        if self.dropout:
            ys = nn.Dropout(self.dropout)(ys, deterministic=deterministic)
        return carries, dense(self.vocab_size, name="head")(ys)


def _features(
    inputs: Shaped[Array, "B T *D"],
    vocab_size: int | None,
    size: int | None,
    init: Initializer = nn.linear.default_embed_init,
) -> Float[Array, "B T D"]:
    if vocab_size is None:
        return inputs
    if size is None:
        return jnp.expand_dims(inputs.astype(jnp.float32), -1)
    return Embedding(vocab_size, size, init, name="embedding")(inputs)


def _pool(
    ys: Float[Array, "B T Y"],
    lengths: Integer[Array, " B"] | None,
    pooling: Pooling,
) -> Float[Array, "B Y"]:
    """Mean or max over a row's valid steps; zeros for an empty row."""
    if lengths is None:
        lengths = jnp.full(ys.shape[0], ys.shape[1])
    count = jnp.expand_dims(jnp.clip(lengths, 0, ys.shape[1]), -1)
    valid = jnp.expand_dims(_valid(ys, lengths), -1)
    if pooling == "mean":
        return jnp.sum(ys, 1, where=valid) / jnp.maximum(count, 1).astype(ys.dtype)
    highest = jnp.max(ys, axis=1, where=valid, initial=-jnp.inf)
    return jnp.where(count > 0, highest, 0)


def _valid(
    ys: Float[Array, "B T Y"], lengths: Integer[Array, " B"]
) -> Bool[Array, "B T"]:
    steps = jnp.expand_dims(jnp.arange(ys.shape[1]), 0)
    return steps < jnp.expand_dims(lengths, 1)

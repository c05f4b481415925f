"""From the group `model` of a config to Flax modules."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
from jax.nn import initializers

from lstm_jax.cell_grammar import parse_cell
from lstm_jax.cells import Cell
from lstm_jax.combinators import recurrent_dropout
from lstm_jax.config import Config, refuse_unread
from lstm_jax.errors import UserError
from lstm_jax.models import LanguageModel, SequenceClassifier, SequenceTagger

_MOST_LAYERS = 1000  # each is traced by itself: more would take hours
_RATES = (
    "embedding_dropout",
    "input_dropout",
    "recurrent_dropout",
    "dropout",
    "dense_dropout",
)
_HEAD_INITS = {
    "glorot": (initializers.glorot_uniform(), initializers.zeros),
    "normal": (initializers.normal(1.0), initializers.normal(1.0)),
}
# Keras's embedding lies within 0.05 of zero.
_EMBEDDING_INITS: dict[str, Callable[..., Any]] = {
    "normal": nn.linear.default_embed_init,
    "uniform": lambda *args: 0.1 * initializers.uniform(1.0)(*args) - 0.05,
}
# Fields that only symbols have a use for.
_EMBEDDING = ("embedding_size", "embedding_init")
# Fields that the classifier alone reads.
_CLASSIFIER = (
    *("embedding_init", "embedding_dropout", "input_dropout", "pooling"),
    *("dense", "dense_dropout", "head", "head_init"),
)


def make_cells(model: Config) -> tuple[Cell, ...]:
    """The cell of each recurrent layer.

    Raises:
      UserError: a field of the group is no use.
    """
    for field in ("hidden_size", "num_layers"):
        if model[field] < 1:
            raise UserError(f"model.{field}={model[field]} must be at least 1")
    if model.num_layers > _MOST_LAYERS:
        raise UserError(
            f"model.num_layers={model.num_layers} must be at most {_MOST_LAYERS}"
        )
    for field in _RATES:
        if not 0 <= model[field] < 1:
            raise UserError(f"model.{field}={model[field]} must be in [0, 1)")
    cell = parse_cell(model.cell, model.hidden_size)
    if model.recurrent_dropout:
        if cell.fused is None:
            raise UserError(
                f"model.recurrent_dropout={model.recurrent_dropout} cannot be had with "
                f"model.cell={model.cell!r}, which is no gated cell: set it to 0"
            )
        cell = recurrent_dropout(cell, model.recurrent_dropout)
    return (cell,) * model.num_layers


def make_classifier(
    model: Config, num_classes: int, vocab_size: int | None
) -> SequenceClassifier:
    """The classifier of a config.

    Args:
      model: the group `model`.
      num_classes: classes of the softmax; "sigmoid" takes two and has one logit.
      vocab_size: number of symbols; None: the inputs are vectors.

    Raises:
      UserError: a field of the group is no use.
    """
    _check_embedding(model)
    for field, known in (
        ("head", ("softmax", "sigmoid")),
        ("pooling", ("last", "mean", "max")),
        ("head_init", tuple(_HEAD_INITS)),
        ("embedding_init", tuple(_EMBEDDING_INITS)),
    ):
        if model[field] not in known:
            raise UserError(
                f"unknown model.{field} {model[field]!r}: choose one of "
                f"{', '.join(known)}"
            )
    if any(not isinstance(size, int) or size < 1 for size in model.dense):
        raise UserError(f"model.dense={model.dense} must hold sizes of at least 1")
    if model.head == "sigmoid" and num_classes != 2:
        raise UserError(
            f"model.head='sigmoid' tells two classes apart and the data has "
            f"{num_classes}: use softmax"
        )
    if vocab_size is None:
        refuse_unread("model", model, _EMBEDDING, "inputs that are vectors")
    kernel_init, bias_init = _HEAD_INITS[model.head_init]
    return SequenceClassifier(
        cells=make_cells(model),
        num_classes=1 if model.head == "sigmoid" else num_classes,
        vocab_size=vocab_size,
        embedding_size=model.embedding_size or None,
        embedding_dropout=model.embedding_dropout,
        input_dropout=model.input_dropout,
        dropout=model.dropout,
        bidirectional=model.bidirectional,
        pooling=model.pooling,
        dense=tuple(model.dense),
        dense_dropout=model.dense_dropout,
        embedding_init=_EMBEDDING_INITS[model.embedding_init],
        head_kernel_init=kernel_init,
        head_bias_init=bias_init,
    )


def make_tagger(model: Config, num_classes: int, vocab_size: int) -> SequenceTagger:
    """The tagger of a config: a label for every step.

    Raises:
      UserError: a field of the group is no use.
    """
    refuse_unread("model", model, _CLASSIFIER, "a tagger")
    _check_embedding(model)
    return SequenceTagger(
        cells=make_cells(model),
        num_classes=num_classes,
        vocab_size=vocab_size,
        embedding_size=model.embedding_size or None,
        dropout=model.dropout,
        bidirectional=model.bidirectional,
    )


def make_language_model(model: Config, vocab_size: int) -> LanguageModel:
    """The language model of a config.

    Raises:
      UserError: a field of the group is no use.
    """
    refuse_unread("model", model, _CLASSIFIER, "a language model")
    if model.embedding_size < 1:
        raise UserError(
            f"model.embedding_size={model.embedding_size} must be at least 1"
        )
    if model.bidirectional:
        raise UserError(
            "model.bidirectional=True: a language model sees the past alone"
        )
    return LanguageModel(
        cells=make_cells(model),
        vocab_size=vocab_size,
        embedding_size=model.embedding_size,
        dropout=model.dropout,
    )


def _check_embedding(model: Config) -> None:
    if model.embedding_size < 0:
        raise UserError(
            f"model.embedding_size={model.embedding_size} must be at least 0 (0: a "
            "word is fed as the one number that it is)"
        )

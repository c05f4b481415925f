"""A label for every word of a sequence."""

import json
import reprlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree
from tokenizers import Tokenizer

from lstm_jax.cells import Params
from lstm_jax.config import Config
from lstm_jax.data import reviews, spelling
from lstm_jax.data.brackets import Tagged
from lstm_jax.data.buckets import split_buckets
from lstm_jax.data.fingerprint import fingerprint
from lstm_jax.data.tables import label_names
from lstm_jax.data.tagged import (
    WORDS,
    Rows,
    flat,
    hold_out_sequences,
    load_tagged,
    tagged_rows,
)
from lstm_jax.errors import UserError
from lstm_jax.model_config import make_tagger
from lstm_jax.models import SequenceTagger
from lstm_jax.summary import summarize
from lstm_jax.tasks.classification import class_logits, class_losses, class_sums
from lstm_jax.tasks.classify_text import check_rows
from lstm_jax.tasks.task import (
    LABELS_FILE,
    VOCABULARY_FILE,
    Buckets,
    Examples,
    Sums,
    Task,
)

_SHOWN = 40  # words at the end of a run


def tag(config: Config, stored: Tokenizer | None = None) -> Task:
    """A label for every word: of brackets, or of what the user's own file holds.

    Sequences are padded at the right. One longer than `data.length` is cut into
    pieces, so that no word goes without its label. Loss and accuracy are means over
    words.

    Args:
      config: of the run.
      stored: the vocabulary of a run that goes on, whose spelling is kept.

    Raises:
      UserError: the data or a field of the config is no use.
    """
    data = config.data
    check_rows(data)
    if data.padding != "right":
        raise UserError(
            f"data.padding={data.padding!r} is nothing for tags: set data.padding=right"
        )
    parts = dict(zip(("train", "test"), load_tagged(data), strict=True))
    names = label_names(flat(flat(part.labels for part in parts.values())))
    if len(names) == 1:
        raise UserError(
            f"{data.path}: all labels are {reprlib.repr(names[0])}; give at least two"
        )
    if data.holdout:
        rest, held_out = hold_out_sequences(parts["train"], data.holdout, config.seed)
        parts = {"train": rest, "validation": held_out, "test": parts["test"]}
    normalizer = spelling.stored_or(stored, spelling.tokens())
    texts = map(" ".join, parts["train"].words)
    vocabulary = reviews.cap_vocabulary(
        reviews.train_vocabulary(texts, WORDS, normalizer=normalizer), data.vocab_size
    )
    model = make_tagger(config.model, len(names), vocabulary.get_vocab_size())
    arrays = {
        name: tagged_rows(part, vocabulary, names, data.length)
        for name, part in parts.items()
    }
    splits = {name: _buckets(rows, data.buckets) for name, rows in arrays.items()}
    first = jnp.asarray(arrays["train"][0][:1])
    return Task(
        init=lambda key: dict(model.init(key, first)["params"]),
        loss=_loss(model),
        examples=splits.pop("train"),
        order=None,
        splits=splits,
        summary=summarize(model, first),
        files={
            "data.sha256": fingerprint(*flat(arrays.values())) + "\n",
            VOCABULARY_FILE: vocabulary.to_str(pretty=True),
            LABELS_FILE: json.dumps(names) + "\n",
        },
        demonstrate=_demonstration(model, vocabulary, names, parts["test"]),
    )


def _buckets(rows: Rows, count: int) -> Buckets:
    ids, lengths, labels = rows
    return tuple(
        bucket | {"labels": bucket["labels"][:, : bucket["inputs"].shape[1]]}
        for bucket in split_buckets(ids, lengths, count, labels=labels)
    )


def _loss(model: SequenceTagger) -> Callable[..., tuple[Sums, PyTree]]:
    def loss(
        params: Params,
        examples: Examples,
        weight: Float[Array, " B"],
        key: PRNGKeyArray | None,
        carry: PyTree,
    ) -> tuple[Sums, PyTree]:
        logits = class_logits(model, params, examples, key)
        losses, hits = class_losses(logits, examples["labels"])
        steps = jnp.expand_dims(jnp.arange(losses.shape[1]), 0)
        valid = steps < jnp.expand_dims(examples["lengths"], 1)
        weights = jnp.where(valid, jnp.expand_dims(weight, 1), 0)
        return class_sums(weights, losses, hits), carry

    return loss


def _demonstration(
    model: SequenceTagger, vocabulary: Tokenizer, names: Sequence[str], test: Tagged
) -> Callable[[Params], str]:
    """The first test sequence with the labels that the model gives its words."""
    shown = Tagged(*([rows[0][:_SHOWN]] for rows in test))

    def demonstrate(params: Params) -> str:
        ids, lengths, _ = tagged_rows(shown, vocabulary, names, _SHOWN)
        examples = {"inputs": jnp.asarray(ids), "lengths": jnp.asarray(lengths)}
        # Compiled: step by step, a loop over time takes longer than that.
        logits = jax.jit(lambda params: class_logits(model, params, examples))(params)
        said = [names[i] for i in np.argmax(logits[0], -1)]
        return " ".join(
            f"{word}/{label}" if label == true else f"{word}/{label} (is {true})"
            for word, label, true in zip(
                shown.words[0], said, shown.labels[0], strict=True
            )
        )

    return demonstrate

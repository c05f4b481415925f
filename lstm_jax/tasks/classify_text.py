"""A label for a text: sentiment, attacks, or what the user's own file holds."""

import json
import textwrap
from collections.abc import Callable

import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer

from lstm_jax.cells import Params
from lstm_jax.config import Config
from lstm_jax.data import reviews
from lstm_jax.data.corpus import Corpus, read_corpus
from lstm_jax.data.reviews import Ragged
from lstm_jax.data.tables import hold_out
from lstm_jax.errors import UserError
from lstm_jax.model_config import make_classifier
from lstm_jax.models import SequenceClassifier
from lstm_jax.tasks.classification import (
    Split,
    classification,
    confusion_picture,
    predict_probabilities,
    take_rows,
)
from lstm_jax.tasks.task import LABELS_FILE, VOCABULARY_FILE, Examples, Task

_SHOWN = 3  # texts at the end of a run
_DRAWN = 200  # classes, above which a confusion matrix is no picture


def classify_text(config: Config, stored: Tokenizer | None = None) -> Task:
    """Labelled texts, as rows of word numbers.

    Args:
      config: of the run.
      stored: the vocabulary of a run that goes on, whose spelling is kept.

    Raises:
      UserError: the data or a field of the config is no use.
    """
    data = config.data
    check_rows(data)
    corpus = read_corpus(data, stored)
    rows = None
    if data.holdout:
        rows = hold_out(corpus.train_labels, data.holdout, config.seed)
        corpus = _with_vocabulary_of(corpus, rows[0])
    vocabulary = reviews.cap_vocabulary(corpus.vocabulary, data.vocab_size)
    size = vocabulary.get_vocab_size()
    model = make_classifier(config.model, len(corpus.names), size)

    def split(texts: Ragged, labels: Int[np.ndarray, " N"]) -> Split:
        examples = encoded(config, texts, size)
        return (examples.pop("inputs"), labels, *examples.values())

    train = split(corpus.train, corpus.train_labels)
    splits = {"test": split(corpus.test, corpus.test_labels)}
    if rows is not None:
        kept, held_out = rows
        splits = {"validation": take_rows(train, held_out), **splits}
        train = take_rows(train, kept)
    inputs, labels, *lengths = train
    task = classification(
        model,
        inputs,
        labels,
        splits,
        lengths=lengths[0] if lengths else None,
        buckets=data.buckets,
    )
    if 2 < len(corpus.names) <= _DRAWN:
        pictures = confusion_picture(
            model, task.splits["test"], corpus.names, config.batch_size
        )
        task = task._replace(pictures=pictures)
    return task._replace(
        files={
            **task.files,
            VOCABULARY_FILE: vocabulary.to_str(pretty=True),
            LABELS_FILE: json.dumps(corpus.names) + "\n",
        },
        demonstrate=_demonstration(config, model, vocabulary, corpus),
    )


def _with_vocabulary_of(corpus: Corpus, rows: Int[np.ndarray, " rows"]) -> Corpus:
    """What is held out is not counted: its other words are unknown."""
    vocabulary, numbers = reviews.recount_vocabulary(
        corpus.vocabulary, reviews.take_texts(corpus.train, rows)
    )
    train, test = (
        Ragged(numbers[texts.ids], texts.offsets)
        for texts in (corpus.train, corpus.test)
    )
    return corpus._replace(vocabulary=vocabulary, train=train, test=test)


def check_rows(data: Config) -> None:
    """Raises a `UserError` where the texts cannot be made into rows."""
    if data.length < 1:
        raise UserError(f"data.length={data.length} must be at least 1")
    if data.padding not in ("front", "right"):
        raise UserError(f"unknown data.padding {data.padding!r}: choose front or right")
    if not 1 <= data.buckets <= 5:
        raise UserError(f"data.buckets={data.buckets} must be from 1 to 5")
    if data.buckets > 1 and data.padding != "right":
        raise UserError(
            f"data.buckets={data.buckets} batches by length: set data.padding=right"
        )


def encoded(config: Config, texts: Ragged, vocab_size: int) -> Examples:
    """The model's inputs for texts: "inputs", and "lengths" if padded at the right."""
    data = config.data
    ids, lengths = reviews.pad(texts, data.length, vocab_size, data.padding)
    return {"inputs": ids} | ({"lengths": lengths} if data.padding == "right" else {})


def _demonstration(
    config: Config, model: SequenceClassifier, vocabulary: Tokenizer, corpus: Corpus
) -> Callable[[Params], str]:
    """Some texts of the test split, with what the model says and what is true."""
    size = vocabulary.get_vocab_size()
    rows = np.unique(np.linspace(0, len(corpus.test_labels) - 1, _SHOWN).astype(int))

    def demonstrate(params: Params) -> str:
        texts = reviews.take_texts(corpus.test, rows)
        texts = texts._replace(ids=reviews.cap_ids(texts.ids, size))
        examples = encoded(config, texts, size)
        shares = predict_probabilities(model, params, examples)
        lines = []
        for i, row in enumerate(np.asarray(shares)):
            start, end = texts.offsets[i : i + 2]
            said, true = int(row.argmax()), int(corpus.test_labels[rows[i]])
            text = reviews.decode(vocabulary, texts.ids[start:end])
            lines.append(
                f"{corpus.names[said]} {row[said]:.3f} (is {corpus.names[true]}): "
                f"{textwrap.shorten(text, 60)}"
            )
        return "\n".join(lines)

    return demonstrate

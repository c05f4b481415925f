"""Labelled texts as rows of word numbers, wherever they come from."""

import reprlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer
from tokenizers.normalizers import Lowercase, Normalizer

from lstm_jax.config import Config
from lstm_jax.data import reviews, sources, spelling, tables, web_traffic
from lstm_jax.data.cache import cached
from lstm_jax.data.fingerprint import source_key
from lstm_jax.data.reviews import Ragged
from lstm_jax.errors import UserError

# Of the user's own file, where no other one is named to test on.
TEST_SHARE = 0.2
# Words of the user's own file, in whatever script.
OWN_WORDS = "[\\w'\u2019]+"  # with both apostrophes


class Corpus(NamedTuple):
    """Labelled texts, encoded with all words of the training split.

    Attributes:
      vocabulary: of the training split.
      train: what is trained on.
      train_labels: its classes.
      test: the split that is evaluated.
      test_labels: its classes.
      names: of the classes.
    """

    vocabulary: Tokenizer
    train: Ragged
    train_labels: Int[np.ndarray, " N"]
    test: Ragged
    test_labels: Int[np.ndarray, " M"]
    names: tuple[str, ...]


def read_corpus(data: Config, stored: Tokenizer | None = None) -> Corpus:
    """The labelled texts that the group `data` of a config names.

    Args:
      data: the group.
      stored: the vocabulary of a run that goes on, which reads texts as it did.

    Raises:
      UserError: there are none, or they are no use.
    """
    path = data.path
    normalizer = spelling.stored_or(stored, reviews.LOWERED)
    if path == "tfds:imdb_reviews":
        return _imdb(data.tfds_dir, normalizer)
    if path == "synthetic:web_traffic":
        return _web_traffic()
    if path.startswith(("tfds:", "synthetic:")):
        raise UserError(
            f"data.path={path!r} is unknown: choose tfds:imdb_reviews, "
            "synthetic:web_traffic or a .csv, .tsv or .jsonl file"
        )
    return _own_file(data, normalizer)


def _imdb(tfds_dir: str, normalizer: Normalizer | None) -> Corpus:
    opened = {s: sources.open_source("imdb_reviews", s, tfds_dir) for s in _SPLITS}

    def encode() -> dict[str, np.ndarray]:
        texts, train_labels = sources.read_texts(opened["train"])
        vocabulary = reviews.train_vocabulary(texts, normalizer=normalizer)
        train = reviews.encode_texts(vocabulary, texts)
        texts, test_labels = sources.read_texts(opened["test"])
        test = reviews.encode_texts(vocabulary, texts)
        return {
            "vocabulary": np.frombuffer(vocabulary.to_str().encode(), np.uint8),
            "train_ids": train.ids,
            "train_offsets": train.offsets,
            "train_labels": train_labels,
            "test_ids": test.ids,
            "test_offsets": test.offsets,
            "test_labels": test_labels,
        }

    rules = {"words": reviews.WORDS, "normalizer": spelling.as_json(normalizer)}
    key = source_key(opened) | rules
    arrays = cached("imdb_reviews", key, encode)
    return Corpus(
        vocabulary=Tokenizer.from_str(arrays["vocabulary"].tobytes().decode()),
        train=Ragged(arrays["train_ids"], arrays["train_offsets"]),
        train_labels=arrays["train_labels"],
        test=Ragged(arrays["test_ids"], arrays["test_offsets"]),
        test_labels=arrays["test_labels"],
        names=("negative", "positive"),
    )


_SPLITS = ("train", "test")


def _web_traffic() -> Corpus:
    train, test = (web_traffic.web_traffic(split) for split in _SPLITS)
    # An attack may lie in what a reader takes for the same, so that only case goes.
    rules = web_traffic.TOKENS, Lowercase()
    return _encode(train[0], train[1], test[0], test[1], *rules)


def _own_file(data: Config, normalizer: Normalizer | None) -> Corpus:
    columns = data.text_column, data.label_column
    texts, labels = tables.read_labelled(data.path, *columns)
    test_texts, test_labels = [], []
    if data.test_path:
        test_texts, test_labels = tables.read_labelled(data.test_path, *columns)
    names = spelling.first_spellings([*labels, *test_labels])
    labels, test_labels = ([names[n] for n in part] for part in (labels, test_labels))
    if len(set(labels)) == 1:
        raise UserError(
            f"{data.path}: all labels are {reprlib.repr(labels[0])} in column "
            f"{data.label_column!r}; a classifier needs at least two classes"
        )
    if data.test_path:
        unknown = sorted(set(test_labels) - set(labels))
        if unknown:
            raise UserError(
                f"{data.test_path}: the label {unknown[0]!r} does not occur in "
                f"{data.path}, which is trained on"
            )
    else:
        kept, held_out = tables.hold_out(labels, TEST_SHARE, seed=0)
        test_texts = [texts[i] for i in held_out]
        test_labels = [labels[i] for i in held_out]
        texts, labels = [texts[i] for i in kept], [labels[i] for i in kept]
    rules = OWN_WORDS, normalizer
    return _encode(texts, labels, test_texts, test_labels, *rules)


def _encode(
    texts: Sequence[str],
    labels: Sequence[str],
    test_texts: Sequence[str],
    test_labels: Sequence[str],
    pattern: str,
    normalizer: Normalizer | None,
) -> Corpus:
    names = tables.label_names([*labels, *test_labels])
    number = {name: i for i, name in enumerate(names)}
    vocabulary = reviews.train_vocabulary(texts, pattern, normalizer=normalizer)
    return Corpus(
        vocabulary=vocabulary,
        train=reviews.encode_texts(vocabulary, texts),
        train_labels=np.array([number[label] for label in labels], np.int32),
        test=reviews.encode_texts(vocabulary, test_texts),
        test_labels=np.array([number[label] for label in test_labels], np.int32),
        names=tuple(names),
    )

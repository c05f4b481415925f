"""Sequences with a label for every word: the user's file, or synthetic brackets."""

import itertools
import re
import reprlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer

from lstm_jax.config import Config
from lstm_jax.data import reviews, spelling
from lstm_jax.data.brackets import Tagged, brackets
from lstm_jax.data.corpus import TEST_SHARE
from lstm_jax.data.files import read_utf8
from lstm_jax.data.tables import hold_out
from lstm_jax.errors import UserError

WORDS = r"\S+"  # words hold no spaces, so that spaces can join and split them

# Word numbers, the rows' lengths, and the labels' numbers in the places of the words.
Rows = tuple[Int[np.ndarray, "N T"], Int[np.ndarray, " N"], Int[np.ndarray, "N T"]]


def load_tagged(data: Config) -> tuple[Tagged, Tagged]:
    """The sequences to train on and those to test on.

    Raises:
      UserError: there are none, or they are no use.
    """
    path, test_path = data.path, data.test_path
    if path == "synthetic:brackets":
        return brackets("train"), brackets("test")
    if path.startswith(("synthetic:", "tfds:")):
        raise UserError(
            f"data.path={path!r} is unknown: choose synthetic:brackets or a file of "
            "words and labels"
        )
    tagged = read_tagged(path)
    test = read_tagged(test_path) if test_path else Tagged([], [])
    names = spelling.first_spellings(flat(tagged.labels + test.labels))
    tagged, test = (
        part._replace(labels=[[names[n] for n in row] for row in part.labels])
        for part in (tagged, test)
    )
    if not test_path:
        if len(tagged.words) == 1:
            raise UserError(
                f"{path} is one sequence, of which no part can be held out: put blank "
                "lines between sequences, or name another file in data.test_path"
            )
        return hold_out_sequences(tagged, TEST_SHARE, seed=0)
    unknown = sorted(set(flat(test.labels)) - set(flat(tagged.labels)))
    if unknown:
        raise UserError(
            f"{test_path}: the label {reprlib.repr(unknown[0])} does not occur in "
            f"{path}, which is trained on"
        )
    return tagged, test


def read_tagged(path: str) -> Tagged:
    r"""The sequences of a file in two columns, CoNLL's style.

    A line is a word, a tab and its label; blank lines part the sequences. Case is kept,
    spaces around a word or label dropped.

    Raises:
      UserError: the file cannot be read or is malformed (the message names the line).
    """
    text = read_utf8(
        path, "data.path takes a file of lines with a word, a tab and a label"
    )
    sequences: list[list[list[str]]] = [[]]
    # Not splitlines: a label may hold other line separators as they are.
    for line, row in enumerate(re.split(r"\r\n|\r|\n", text), start=1):
        if not row.strip(" "):
            sequences.append([])
            continue
        fields = [field.strip() for field in row.split("\t")]
        if len(fields) != 2:
            wrong = f"{len(fields) - 1} tabs, where one parts a word and its label"
        elif not all(map(spelling.is_visible, fields)):
            empty = "label" if spelling.is_visible(fields[0]) else "word"
            wrong = f"the {empty} is empty"
        elif len(fields[0].split()) > 1:
            wrong = f"the word {reprlib.repr(fields[0])} holds a space: part it by _"
        else:
            sequences[-1].append(fields)
            continue
        raise UserError(f"{path}, line {line}: {wrong}")
    sequences = [sequence for sequence in sequences if sequence]
    if not sequences:
        raise UserError(f"{path} holds no words: give a word, a tab and a label a line")
    words, labels = ([[pair[i] for pair in s] for s in sequences] for i in (0, 1))
    return Tagged(words, labels)


def tagged_rows(
    tagged: Tagged, vocabulary: Tokenizer, names: Sequence[str], length: int
) -> Rows:
    """A row for each sequence, or for each `length` words of a longer one."""
    ids, offsets = reviews.encode_texts(vocabulary, map(" ".join, tagged.words))
    number = {name: i for i, name in enumerate(names)}
    labels = np.array([number[label] for label in flat(tagged.labels)], np.int32)
    starts = [np.arange(*ends, length) for ends in itertools.pairwise(offsets)]
    lengths = np.diff(np.concatenate([*starts, offsets[-1:]])).astype(np.int32)
    # Row by row, the places that hold words are as many as the words.
    places = np.arange(lengths.max()) < lengths[:, None]
    rows = np.zeros((2, *places.shape), np.int32)
    rows[:, places] = ids, labels
    return rows[0], lengths, rows[1]


def hold_out_sequences(
    tagged: Tagged, share: float, seed: int
) -> tuple[Tagged, Tagged]:
    """What is left, and what is held out, by whole sequences."""
    # As if all were of one class: a sequence has many labels.
    kept, held_out = hold_out([""] * len(tagged.words), share, seed)
    first, second = (
        Tagged(*([part[i] for i in chosen] for part in tagged))
        for chosen in (kept, held_out)
    )
    return first, second


def flat(lists: Iterable[Iterable[Any]]) -> list[Any]:
    """The lists as one."""
    return list(itertools.chain.from_iterable(lists))

"""Many short texts: words numbered by frequency, texts as rows of numbers.

Keras's numbering of IMDB: 0 padding, 1 the start of a text, 2 an unknown word, then
the words from the most frequent one. So the words below any cap are a prefix: texts
are encoded once, with all words, and `pad` caps, cuts and pads them.
"""

import itertools
import os
import sys
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import tokenizers
from jaxtyping import Int
from tokenizers import Tokenizer
from tokenizers.normalizers import Normalizer

from lstm_jax.data import spelling
from lstm_jax.errors import UserError

SPECIALS = ("<PAD>", "<START>", "<UNK>")
PAD, START, UNKNOWN = range(3)

# A pattern matches the words of the normalized text; what lies between separates.
WORDS = "[a-z0-9']+"
LOWERED = spelling.words(lowercase=True)

# The library's threads do not survive a fork: told to start them a forked process
# hangs, and told nothing older versions warn at each fork. One thread encodes
# 25,000 reviews in six seconds.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Texts encoded at once: what the library holds of a word is many times its id.
_BATCH = 1000


class Ragged(NamedTuple):
    """Rows of different lengths: row i is `ids[offsets[i] : offsets[i + 1]]`."""

    ids: Int[np.ndarray, " words"]
    offsets: Int[np.ndarray, " N+1"]


def train_vocabulary(
    texts: Iterable[str],
    pattern: str = WORDS,
    vocab_size: int | None = None,
    normalizer: Normalizer | None = LOWERED,
) -> Tokenizer:
    """Numbers the words of the texts by frequency, ties by the alphabet.

    Args:
      texts: what is counted; read once.
      pattern: regular expression (Oniguruma's dialect) of a word.
      vocab_size: numbers in use, the three of `SPECIALS` among them; None: all words.
      normalizer: what a text goes through before it is split; None: it stays.

    Raises:
      UserError: the texts hold no word, the pattern is malformed, or `vocab_size`
        leaves no number for a word.
    """
    _check_vocab_size(vocab_size)
    counted = _tokenizer([], pattern, normalizer)
    # A generator, as the library sees Ctrl-C and errors only where it asks Python for
    # a text. And without special tokens: a text that spells one would move it.
    counted.train_from_iterator(
        (text for text in texts),
        tokenizers.trainers.WordLevelTrainer(
            vocab_size=sys.maxsize, show_progress=False
        ),
    )
    words = [word for word in _entries(counted) if word not in SPECIALS]
    if not words:
        raise UserError(
            f"the texts hold no word that matches {pattern}: give texts with words, "
            "or another pattern"
        )
    return _tokenizer([*SPECIALS, *words][:vocab_size], pattern, normalizer)


def cap_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> Tokenizer:
    """The same splitting with the first `vocab_size` entries.

    Raises:
      UserError: `vocab_size` leaves no number for a word.
    """
    _check_vocab_size(vocab_size)
    return _with_words(tokenizer, _entries(tokenizer)[:vocab_size])


def recount_vocabulary(
    tokenizer: Tokenizer, texts: Ragged
) -> tuple[Tokenizer, Int[np.ndarray, " V"]]:
    """What `train_vocabulary` would make of some of the texts that it was made of.

    Args:
      tokenizer: the vocabulary of all texts.
      texts: those that count, encoded with it.

    Returns:
      Their vocabulary, and the new number of each old one.
    """
    words = np.array(_entries(tokenizer), dtype=object)  # each as long as it is
    counts = np.bincount(texts.ids, minlength=len(words))
    known = np.arange(len(SPECIALS), len(words))
    known = known[counts[known] > 0]
    # Stable, after the alphabet's order.
    known = known[np.argsort(words[known], kind="stable")]
    known = known[np.argsort(-counts[known], kind="stable")]
    numbers = np.full(len(words), UNKNOWN, np.int32)
    numbers[: len(SPECIALS)] = range(len(SPECIALS))
    numbers[known] = len(SPECIALS) + np.arange(len(known))
    return _with_words(tokenizer, [*SPECIALS, *words[known].tolist()]), numbers


def take_texts(texts: Ragged, rows: Int[np.ndarray, " rows"]) -> Ragged:
    """Some of the texts, in the order given."""
    counts = np.diff(texts.offsets)[rows]
    offsets = np.concatenate([[0], np.cumsum(counts)])
    places = np.arange(offsets[-1]) + np.repeat(
        texts.offsets[rows] - offsets[:-1], counts
    )
    return Ragged(texts.ids[places], offsets)


def encode_texts(tokenizer: Tokenizer, texts: Iterable[str]) -> Ragged:
    """The words' numbers, a row a text, without the start id.

    >>> encode_texts(train_vocabulary(["b a", "b"]), ["a c b", "", "B!"])
    Ragged(ids=array([4, 2, 3, 3], dtype=int32), offsets=array([0, 3, 3, 4]))

    Raises:
      UserError: the vocabulary is damaged.
    """
    ids, counts = [np.empty(0, np.int32)], [0]
    texts = iter(texts)
    while batch := list(itertools.islice(texts, _BATCH)):
        try:
            rows = [e.ids for e in tokenizer.encode_batch_fast(batch)]
        except BaseException as error:
            # The library's own faults, as with a normalizer of a damaged file, are
            # panics, and these no Exceptions.
            if type(error).__name__ != "PanicException":
                raise
            raise UserError(
                f"the vocabulary cannot number these texts ({error}): its file is "
                "damaged, restore it or train again"
            ) from None
        counts.extend(map(len, rows))
        ids.append(np.fromiter(itertools.chain.from_iterable(rows), np.int32))
    # A pattern may match <PAD> or <START> where a text spells it: no word is either.
    return Ragged(
        np.maximum(np.concatenate(ids), UNKNOWN), np.cumsum(counts, dtype=np.int64)
    )


def cap_ids(
    ids: Int[np.ndarray, "*shape"], vocab_size: int
) -> Int[np.ndarray, "*shape"]:
    """The numbers that `cap_vocabulary` would give: `UNKNOWN` from `vocab_size` on.

    Raises:
      UserError: `vocab_size` leaves no number for a word.
    """
    _check_vocab_size(vocab_size)
    return np.where(ids < vocab_size, ids, np.asarray(UNKNOWN, ids.dtype))


def pad(
    ragged: Ragged, length: int, vocab_size: int, padding: str = "front"
) -> tuple[Int[np.ndarray, "N length"], Int[np.ndarray, " N"]]:
    """Rows of one length: a start id and the words, of which the last ones are kept.

    >>> ids, lengths = pad(Ragged(np.array([7, 3, 5]), np.array([0, 2, 3])), 3, 6)
    >>> ids.tolist(), lengths.tolist()
    ([[1, 2, 3], [0, 1, 5]], [3, 2])

    Args:
      ragged: words without start ids, numbered with any vocabulary.
      length: ids a row.
      vocab_size: words from this number on become `UNKNOWN`.
      padding: the side of the zeros, "front" or "right".

    Returns:
      The rows, and how many ids of each are no padding.

    Raises:
      UserError: an unknown side, a length below 1, or `vocab_size` leaves no number
        for a word.
    """
    if padding not in ("front", "right"):
        raise UserError(f"padding={padding}: choose front or right")
    if length < 1:
        raise UserError(f"length={length}: a row holds at least 1 id")
    rows = len(ragged.offsets) - 1
    ids = np.insert(cap_ids(ragged.ids, vocab_size), ragged.offsets[:-1], START)
    offsets = ragged.offsets + np.arange(rows + 1)  # each row is one id longer
    counts = np.diff(offsets)
    lengths = np.minimum(counts, length).astype(np.int32)
    kept = np.arange(len(ids)) >= np.repeat(offsets[1:] - length, counts)
    columns, real = np.arange(length), lengths[:, None]
    # Row by row, the places that hold ids are as many as the ids kept.
    places = columns >= length - real if padding == "front" else columns < real
    padded = np.full((rows, length), PAD, np.int32)
    padded[places] = ids[kept]
    return padded, lengths


def decode(tokenizer: Tokenizer, ids: Int[np.ndarray, " words"]) -> str:
    """The words of the numbers, with a space between each two.

    >>> decode(train_vocabulary(["b a", "b"]), np.array([0, 1, 4, 2, 3]))
    '<PAD> <START> a <UNK> b'
    """
    return tokenizer.decode(ids.tolist(), skip_special_tokens=False)


def _check_vocab_size(vocab_size: int | None) -> None:
    if vocab_size is not None and vocab_size <= len(SPECIALS):
        raise UserError(
            f"vocab_size={vocab_size}: give at least {len(SPECIALS) + 1}, as "
            f"{', '.join(SPECIALS)} count too"
        )


def _with_words(tokenizer: Tokenizer, words: list[str]) -> Tokenizer:
    """The same splitting with other entries."""
    other = Tokenizer(_model(words))
    other.normalizer = tokenizer.normalizer
    other.pre_tokenizer = tokenizer.pre_tokenizer
    return other


def _entries(tokenizer: Tokenizer) -> list[str]:
    """The vocabulary in the order of its numbers."""
    numbers = tokenizer.get_vocab()
    return sorted(numbers, key=numbers.__getitem__)


def _model(entries: Sequence[str]) -> tokenizers.models.WordLevel:
    numbers = {word: number for number, word in enumerate(entries)}
    return tokenizers.models.WordLevel(numbers, unk_token=SPECIALS[UNKNOWN])


def _tokenizer(
    entries: Sequence[str], pattern: str, normalizer: Normalizer | None
) -> Tokenizer:
    try:
        regex = tokenizers.Regex(pattern)
    except Exception as error:  # the library has no exception of its own
        raise UserError(f"pattern {pattern} is malformed: {error}") from None
    tokenizer = Tokenizer(_model(entries))
    # Inverted: the matches are kept, what lies between them goes.
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(
        regex, behavior="removed", invert=True
    )
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    return tokenizer

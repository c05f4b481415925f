"""Text as a stream of symbols, cut into rows that go on from batch to batch."""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer
from tokenizers.normalizers import Normalizer

from lstm_jax.config import Config
from lstm_jax.data import reviews, sources, spelling
from lstm_jax.data.cache import cached
from lstm_jax.data.fingerprint import source_key
from lstm_jax.data.reviews import PAD, START, Ragged
from lstm_jax.data.text import read_text
from lstm_jax.errors import UserError

# Held out at the end: of the texts, or of the symbols of a single text.
HELD_OUT = 0.05
# Words with their apostrophes, and punctuation sign by sign.
WORDS = r"[\w']+|[^\w\s]"
CHARACTERS = r"[\s\S]"
_SPACE = re.compile(r"\s")
# What a target is past the end of a row.
NO_TARGET = -1


class Streams(NamedTuple):
    """Symbols to train on and symbols held out, START before each text.

    Attributes:
      vocabulary: of the training part.
      train: its symbols.
      held_out: the held-out part's.
    """

    vocabulary: Tokenizer
    train: Int[np.ndarray, " train"]
    held_out: Int[np.ndarray, " held_out"]


def read_streams(data: Config, stored: Tokenizer | None = None) -> Streams:
    """The text that the group `data` of a config names.

    Args:
      data: the group.
      stored: the vocabulary of a run that goes on, which reads the text as it did.

    Raises:
      UserError: there is none, or it is no use.
    """
    if data.level not in ("word", "char"):
        raise UserError(f"unknown data.level {data.level!r}: choose word or char")
    if data.limit < 0:
        raise UserError(f"data.limit={data.limit} must be at least 0 (0: all)")
    if data.path == "tfds:imdb_reviews":
        vocabulary, train, held_out = _imdb(data, stored)
    elif data.path.startswith(("tfds:", "synthetic:")):
        raise UserError(
            f"data.path={data.path!r} is unknown: choose tfds:imdb_reviews or a text"
        )
    else:
        if data.limit:
            raise UserError(
                f"data.limit={data.limit} is nothing for a text of your own: leave it "
                "at 0"
            )
        text = read_text(data.path)
        if stored is None or stored.normalizer is not None:
            # Else the cut would depend on the form.
            text = unicodedata.normalize("NFC", text)
        cut = round(len(text) * (1 - HELD_OUT))
        space = _SPACE.search(text, cut)
        if data.level == "word" and space is not None:  # not inside of one
            cut = space.start()
        parts = text[:cut], text[cut:]
        pattern, normalizer = _rule(data.level, stored, parts[0], lowercase=False)
        vocabulary = reviews.train_vocabulary(
            pieces(parts[0]), pattern, None, normalizer
        )
        train, held_out = (
            reviews.encode_texts(vocabulary, pieces(part)) for part in parts
        )
        # One text each.
        train, held_out = (
            Ragged(part.ids, part.offsets[[0, -1]]) for part in (train, held_out)
        )
    capped = reviews.cap_vocabulary(vocabulary, data.vocab_size)
    size = capped.get_vocab_size()
    return Streams(capped, *(_stream(part, size) for part in (train, held_out)))


def pieces(text: str, size: int = 1000) -> Iterator[str]:
    """Cuts a text where white space is, so that a long one needs little memory.

    >>> list(pieces("one two three", size=4))
    ['one two', ' three']
    """
    start = 0
    while start < len(text):
        space = _SPACE.search(text, start + size)
        end = space.start() if space else len(text)
        yield text[start:end]
        start = end


def _imdb(data: Config, stored: Tokenizer | None) -> tuple[Tokenizer, Ragged, Ragged]:
    """The unlabelled reviews, in lower case, without their line breaks."""
    opened = {
        "texts": sources.open_source("imdb_reviews", "unsupervised", data.tfds_dir)
    }
    count = min(data.limit or opened["texts"].size, opened["texts"].size)
    if count < 2:
        raise UserError(f"data.limit={data.limit}: at least 2 texts are needed")
    kept = min(round(count * (1 - HELD_OUT)), count - 1)
    pattern, normalizer = _rule(data.level, stored, "", lowercase=True)

    def encode() -> dict[str, np.ndarray]:
        texts, _ = sources.read_texts(opened["texts"], count)
        texts = [text.replace("<br />", " ") for text in texts]
        vocabulary = reviews.train_vocabulary(texts[:kept], pattern, None, normalizer)
        arrays = {"vocabulary": np.frombuffer(vocabulary.to_str().encode(), np.uint8)}
        for name, part in (("train", texts[:kept]), ("held_out", texts[kept:])):
            ragged = reviews.encode_texts(vocabulary, part)
            arrays |= {f"{name}_ids": ragged.ids, f"{name}_offsets": ragged.offsets}
        return arrays

    key = source_key(opened) | {
        "pattern": pattern,
        "normalizer": spelling.as_json(normalizer),
        "texts": [kept, count],
    }
    arrays = cached("imdb_stream", key, encode)
    train, held_out = (
        Ragged(arrays[f"{name}_ids"], arrays[f"{name}_offsets"])
        for name in ("train", "held_out")
    )
    vocabulary = Tokenizer.from_str(arrays["vocabulary"].tobytes().decode())
    return vocabulary, train, held_out


def _rule(
    level: str, stored: Tokenizer | None, text: str, *, lowercase: bool
) -> tuple[str, Normalizer | None]:
    """The pattern of a symbol, and what the text goes through before it is split."""
    if level == "char":
        return CHARACTERS, spelling.stored_or(stored, spelling.characters(text))
    return WORDS, spelling.stored_or(stored, spelling.words(lowercase))


def _stream(texts: Ragged, vocab_size: int) -> Int[np.ndarray, " symbols"]:
    ids = reviews.cap_ids(texts.ids, vocab_size)
    return np.insert(ids, texts.offsets[:-1], START).astype(np.int32)


def until_start(ids: Int[np.ndarray, " symbols"]) -> Int[np.ndarray, " rest"]:
    """The symbols before the first `START`, at which another text begins."""
    starts = np.flatnonzero(ids == START)
    return ids[: starts[0]] if starts.size else ids


def rows(
    stream: Int[np.ndarray, " symbols"], batch_size: int, steps: int
) -> dict[str, np.ndarray]:
    """Cuts a stream into rows, and the rows into batches that go on where one ended.

    >>> batches = rows(np.arange(10, 17), batch_size=2, steps=2)
    >>> batches["inputs"].reshape(2, 2, 2).tolist()  # [batch, row, step]
    [[[10, 11], [13, 14]], [[12, 0], [15, 0]]]
    >>> batches["targets"].reshape(2, 2, 2).tolist()
    [[[11, 12], [14, 15]], [[13, -1], [16, -1]]]

    Args:
      stream: the symbols.
      batch_size: number of rows.
      steps: of a batch.

    Returns:
      "inputs" and "targets" [batches * batch_size, steps]: the symbols and those that
      follow them, each once; `PAD` and `NO_TARGET` past the end of a row.

    Raises:
      UserError: the stream has no symbol for each row.
    """
    size = len(stream) - 1
    if size < batch_size:
        raise UserError(
            f"{len(stream)} symbols, in the text or in the last twentieth of it, which "
            f"is held out, are too few for {batch_size} rows: give a longer text, a "
            "smaller batch_size, or data.level=char"
        )
    # Rows as even as can be: their lengths differ by one at most.
    bounds = np.arange(batch_size + 1) * size // batch_size
    lengths = np.diff(bounds)
    batches = -(-int(lengths.max()) // steps)
    columns = np.arange(batches * steps)
    real = columns < lengths[:, None]
    places = np.minimum(bounds[:-1, None] + columns, size - 1)

    def batched(ids: np.ndarray, fill: int) -> np.ndarray:
        filled = np.where(real, ids[places], fill).astype(np.int32)
        in_turn = filled.reshape(batch_size, batches, steps).swapaxes(0, 1)
        return np.ascontiguousarray(in_turn.reshape(-1, steps))

    return {
        "inputs": batched(stream[:-1], PAD),
        "targets": batched(stream[1:], NO_TARGET),
    }


def decode_stream(vocabulary: Tokenizer, ids: Sequence[int], level: str) -> str:
    """The text of symbols: words with a space between, or characters."""
    symbols = [str(vocabulary.id_to_token(int(i))) for i in ids]
    return (" " if level == "word" else "").join(symbols)

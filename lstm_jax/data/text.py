"""Text: reading a file, splitting it into words, numbering the words."""

import collections
import importlib.resources
from pathlib import Path

import numpy as np
import tokenizers
from jaxtyping import Int
from tokenizers import Tokenizer
from tokenizers.normalizers import Normalizer

from lstm_jax.data import spelling
from lstm_jax.data.files import read_utf8
from lstm_jax.errors import UserError

# Words and runs of punctuation, split at spaces.
_SPLITTER = tokenizers.pre_tokenizers.Whitespace()
SPELLING = spelling.words(lowercase=False)


def read_text(path: str) -> str:
    """The text of a file; a bare name may be that of a text in this package.

    Raises:
      UserError: there is no such file, or it is not UTF-8.
    """
    packaged = importlib.resources.files("lstm_jax.data") / "texts"
    names = sorted(text.name for text in packaged.iterdir())
    if path in names and not Path(path).exists():
        return (packaged / path).read_text(encoding="utf-8")
    return read_utf8(path, f"give data.path a text, or one of {', '.join(names)}")


def split_words(text: str, normalizer: Normalizer | None = SPELLING) -> list[str]:
    """Words and punctuation in their order, case kept.

    The normalizer is that of the vocabulary; None: the text is split as it stands.

    >>> split_words("long ago, the mice")
    ['long', 'ago', ',', 'the', 'mice']
    """
    if normalizer is not None:
        text = normalizer.normalize_str(text)
    return [word for word, _ in _SPLITTER.pre_tokenize_str(text)]


def build_vocabulary(
    words: list[str], normalizer: Normalizer | None = SPELLING
) -> Tokenizer:
    """Numbers words by frequency, 0 the most frequent, ties by first appearance.

    Args:
      words: of `split_words`.
      normalizer: what they have gone through; for other readers of the vocabulary.
    """
    counts = collections.Counter(words).most_common()
    ids = {word: number for number, (word, _) in enumerate(counts)}
    vocabulary = Tokenizer(tokenizers.models.WordLevel(ids, unk_token=counts[0][0]))
    vocabulary.pre_tokenizer = _SPLITTER
    if normalizer is not None:
        vocabulary.normalizer = normalizer
    return vocabulary


def encode(vocabulary: Tokenizer, words: list[str]) -> Int[np.ndarray, " words"]:
    """The words' numbers.

    Raises:
      UserError: words are not in the vocabulary; the message names them.
    """
    ids = [vocabulary.token_to_id(word) for word in words]
    unknown = [word for word, i in zip(words, ids, strict=True) if i is None]
    if unknown:
        raise UserError(f"not in the vocabulary: {', '.join(dict.fromkeys(unknown))}")
    return np.asarray(ids, np.int32)


def decode(vocabulary: Tokenizer, ids: Int[np.ndarray, " words"]) -> str:
    """The words of the numbers, with a space between each two."""
    return " ".join(str(vocabulary.id_to_token(int(i))) for i in ids)

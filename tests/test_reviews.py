"""Tests of lstm_jax.data.reviews."""

import collections
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from lstm_jax.data import reviews, spelling
from lstm_jax.data.reviews import (
    WORDS,
    Ragged,
    cap_ids,
    cap_vocabulary,
    decode,
    encode_texts,
    pad,
    recount_vocabulary,
    take_texts,
    train_vocabulary,
)
from lstm_jax.errors import UserError

SPECIALS = ["<PAD>", "<START>", "<UNK>"]
PIECES = [
    *("the", "The", "movie", "don't", "'90s", "10", "x2", "<br />", "<PAD>", "<UNK>"),
    *(" ", "\n", "\t", ". ", ", ", "-", "_", "'", "!?", "é", "İ", "日本", "\u2028"),
]


def random_texts(count: int, seed: int) -> list[str]:
    """Common pieces and rare words, mostly with a space between each two."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("abcdEFG'01"))
    texts = []
    for length in rng.integers(0, 40, count):
        rare = [
            "".join(rng.choice(letters, size)) for size in rng.integers(1, 4, length)
        ]
        pieces = np.stack([rng.choice(PIECES, length), rare], axis=1).ravel()
        glue = rng.choice([" ", "", "\n"], 2 * length, p=[0.8, 0.1, 0.1])
        texts.append("".join(np.stack([pieces, glue], axis=1).ravel()))
    texts[3:5] = ["", " .. é"]
    return texts


def slow_words(text: str, pattern: str = WORDS, lowercase: bool = True) -> list[str]:
    return re.findall(pattern, spelling.words(lowercase).normalize_str(text))


def slow_vocabulary(
    texts: list[str], pattern: str = WORDS, lowercase: bool = True
) -> list[str]:
    counts = collections.Counter(
        word for text in texts for word in slow_words(text, pattern, lowercase)
    )
    counts = collections.Counter({w: n for w, n in counts.items() if w not in SPECIALS})
    return SPECIALS + sorted(counts, key=lambda word: (-counts[word], word))


def slow_ids(words: list[str], vocabulary: list[str]) -> list[int]:
    numbers = {word: i for i, word in enumerate(vocabulary)}
    return [max(numbers.get(word, 2), 2) for word in words]


def entries(tokenizer: Tokenizer) -> list[str]:
    return [str(tokenizer.id_to_token(i)) for i in range(tokenizer.get_vocab_size())]


def rows_of(ragged: Ragged) -> list[list[int]]:
    assert ragged.ids.dtype == np.int32
    assert ragged.offsets.dtype == np.int64
    assert ragged.offsets[0] == 0
    assert ragged.offsets[-1] == len(ragged.ids)
    bounds = itertools.pairwise(ragged.offsets)
    return [ragged.ids[a:b].tolist() for a, b in bounds]


@pytest.mark.parametrize("seed", [0, 1])
def test_words_are_numbered_by_frequency_then_by_the_alphabet(seed: int) -> None:
    texts = random_texts(300, seed)
    expected = slow_vocabulary(texts)
    assert entries(train_vocabulary(texts)) == expected
    assert entries(train_vocabulary(iter(texts))) == expected
    assert {"br", "don't", "'90s", "pad"} <= set(expected[:40])
    for size in (4, 50, len(expected) - 1, len(expected), len(expected) + 10):
        assert entries(train_vocabulary(texts, vocab_size=size)) == expected[:size]
    # Ties are met, in more than one place.
    counts = collections.Counter(word for text in texts for word in slow_words(text))
    ties = [counts[a] == counts[b] for a, b in itertools.pairwise(expected[3:])]
    assert sum(ties) > 100


def test_texts_become_the_numbers_of_their_words() -> None:
    train, test = random_texts(300, 2), random_texts(1100, 3)
    tokenizer = train_vocabulary(train)
    vocabulary = slow_vocabulary(train)
    expected = [slow_ids(slow_words(text), vocabulary) for text in test]
    assert rows_of(encode_texts(tokenizer, test)) == expected
    assert rows_of(encode_texts(tokenizer, iter(test))) == expected
    assert expected[3] == expected[4] == []
    assert sum(row.count(2) for row in expected) > 10
    assert sum(map(len, expected)) > 10_000
    assert rows_of(encode_texts(tokenizer, [])) == []
    assert rows_of(encode_texts(tokenizer, ["", "!"])) == [[], []]


@pytest.mark.parametrize(
    ("pattern", "lowercase"),
    [
        (r"[A-Za-z]+|[^A-Za-z\s]", False),
        (r"[\s\S]", False),
        (r"\S+", True),
        ("e", True),
    ],
)
def test_another_splitting_rule(pattern: str, lowercase: bool) -> None:
    texts = random_texts(100, 4)
    normalizer = spelling.words(lowercase)
    tokenizer = train_vocabulary(texts, pattern, normalizer=normalizer)
    vocabulary = slow_vocabulary(texts, pattern, lowercase)
    assert entries(tokenizer) == vocabulary
    expected = [slow_ids(slow_words(t, pattern, lowercase), vocabulary) for t in texts]
    assert rows_of(encode_texts(tokenizer, texts)) == expected


def test_a_text_that_spells_a_special_entry_is_unknown_there() -> None:
    texts = ["<PAD> <START> a <UNK> <PAD> <PAD> b b"]
    tokenizer = train_vocabulary(texts, r"\S+", normalizer=None)
    assert entries(tokenizer) == [*SPECIALS, "b", "a"]
    assert rows_of(encode_texts(tokenizer, texts)) == [[2, 2, 4, 2, 2, 2, 3, 3]]
    tokenizer = train_vocabulary(texts)
    assert entries(tokenizer) == [*SPECIALS, "pad", "b", "a", "start", "unk"]
    assert rows_of(encode_texts(tokenizer, texts)) == [[3, 6, 5, 7, 3, 3, 4, 4]]


def test_a_capped_vocabulary_numbers_as_capped_ids() -> None:
    texts = random_texts(200, 5)
    whole = train_vocabulary(texts)
    everything = encode_texts(whole, texts)
    for size in (4, 17, 100, whole.get_vocab_size(), 10_000):
        capped = cap_vocabulary(whole, size)
        assert entries(capped) == entries(whole)[:size]
        assert capped.to_str() == train_vocabulary(texts, vocab_size=size).to_str()
        expected = [[i if i < size else 2 for i in row] for row in rows_of(everything)]
        assert rows_of(encode_texts(capped, texts)) == expected
        ids = cap_ids(everything.ids, size)
        assert rows_of(Ragged(ids, everything.offsets)) == expected
    assert rows_of(everything) == expected  # and nothing was changed in place


def test_a_recounted_vocabulary_is_that_of_the_texts() -> None:
    texts = random_texts(200, 6)
    whole = train_vocabulary(texts)
    everything = encode_texts(whole, texts)
    rows = np.random.default_rng(0).choice(200, 70, replace=False)
    some = take_texts(everything, rows)
    assert rows_of(some) == [rows_of(everything)[row] for row in rows]
    recounted, numbers = recount_vocabulary(whole, some)
    again = train_vocabulary([texts[row] for row in rows])
    assert recounted.to_str() == again.to_str()
    assert len(entries(again)) < len(entries(whole))
    renumbered = Ragged(numbers[everything.ids], everything.offsets)
    assert rows_of(renumbered) == rows_of(encode_texts(again, texts))


def test_a_saved_vocabulary_is_the_same() -> None:
    texts = random_texts(100, 6)
    for pattern, lowercase in ((WORDS, True), (r"\w+|[^\w\s]+", False)):
        tokenizer = train_vocabulary(texts, pattern, 60, spelling.words(lowercase))
        again = Tokenizer.from_str(tokenizer.to_str(pretty=True))
        assert entries(again) == entries(tokenizer)
        assert rows_of(encode_texts(again, texts)) == rows_of(
            encode_texts(tokenizer, texts)
        )
        capped = cap_vocabulary(again, 20)
        assert capped.to_str() == cap_vocabulary(tokenizer, 20).to_str()


def slow_pad(
    rows: list[list[int]], length: int, vocab_size: int, padding: str
) -> tuple[list[list[int]], list[int]]:
    padded, lengths = [], []
    for row in rows:
        kept = [1] + [i if i < vocab_size else 2 for i in row]
        kept = kept[max(len(kept) - length, 0) :]
        zeros = [0] * (length - len(kept))
        padded.append(zeros + kept if padding == "front" else kept + zeros)
        lengths.append(len(kept))
    return padded, lengths


@pytest.mark.parametrize("padding", ["front", "right"])
def test_padding(padding: str) -> None:
    rng = np.random.default_rng(7)
    for length in (1, 2, 7, 20, 33):
        rows = [rng.integers(2, 60, rng.integers(0, 30)).tolist() for _ in range(50)]
        rows += [[], [5] * length, [5] * (length - 1), [6] * (length + 1), []]
        counts = [0] + [len(row) for row in rows]
        flat = np.array([i for row in rows for i in row], np.int32)
        ragged = Ragged(flat, np.cumsum(counts))
        before = flat.copy()
        for vocab_size in (4, 30, 60):
            ids, lengths = pad(ragged, length, vocab_size, padding)
            assert ids.dtype == lengths.dtype == np.int32
            expected_ids, expected_lengths = slow_pad(rows, length, vocab_size, padding)
            assert ids.tolist() == expected_ids
            assert lengths.tolist() == expected_lengths
        assert (flat == before).all()
    none = Ragged(np.empty(0, np.int32), np.zeros(1, np.int64))
    assert pad(none, 3, 9, padding)[0].shape == (0, 3)
    empty = Ragged(np.empty(0, np.int32), np.zeros(3, np.int64))
    row = [0, 0, 1] if padding == "front" else [1, 0, 0]
    assert pad(empty, 3, 9, padding)[0].tolist() == [row, row]


def test_front_is_the_padding_of_keras() -> None:
    ragged = encode_texts(train_vocabulary(["the end", "the"]), ["the end", "end"])
    assert pad(ragged, 4, 9)[0].tolist() == [[0, 1, 3, 4], [0, 0, 1, 4]]
    assert pad(ragged, 2, 9)[0].tolist() == [[3, 4], [1, 4]]


def test_ids_are_shown_as_words() -> None:
    texts = random_texts(50, 8)
    tokenizer = train_vocabulary(texts)
    ids, lengths = pad(encode_texts(tokenizer, texts), 30, tokenizer.get_vocab_size())
    for text, row, length in zip(texts, ids, lengths, strict=True):
        words = ["<START>", *slow_words(text)][-30:]
        assert decode(tokenizer, row) == " ".join(["<PAD>"] * (30 - length) + words)
    tokenizer = train_vocabulary(["i really liked the movie", "the movie"])
    ids, _ = pad(encode_texts(tokenizer, ["The movie, I disliked!"]), 7, 1000)
    assert decode(tokenizer, ids[0]) == "<PAD> <PAD> <START> the movie i <UNK>"
    assert decode(tokenizer, np.empty(0, np.int32)) == ""


@pytest.mark.parametrize("vocab_size", [3, 0, -1])
def test_no_number_left_for_a_word(vocab_size: int) -> None:
    tokenizer = train_vocabulary(["a"])
    ragged = encode_texts(tokenizer, ["a"])
    message = (
        rf"^vocab_size={vocab_size}: give at least 4, as <PAD>, <START>, <UNK> count"
    )
    with pytest.raises(UserError, match=message):
        train_vocabulary(["a"], vocab_size=vocab_size)
    with pytest.raises(UserError, match=message):
        cap_vocabulary(tokenizer, vocab_size)
    with pytest.raises(UserError, match=message):
        cap_ids(ragged.ids, vocab_size)
    with pytest.raises(UserError, match=message):
        pad(ragged, 3, vocab_size)


def test_refusals() -> None:
    for texts in ([], ["", ". é"]):
        with pytest.raises(UserError, match=r"^the texts hold no word that matches "):
            train_vocabulary(texts)
    with pytest.raises(UserError, match=r"^pattern \[a is malformed: .*char-class$"):
        train_vocabulary(["a"], "[a")
    ragged = encode_texts(train_vocabulary(["a"]), ["a"])
    with pytest.raises(UserError, match=r"^padding=left: choose front or right$"):
        pad(ragged, 3, 9, "left")
    with pytest.raises(UserError, match=r"^length=0: a row holds at least 1 id$"):
        pad(ragged, 0, 9)


def test_an_error_of_the_texts_is_not_hidden() -> None:
    def broken() -> Iterator[str]:
        yield "a b"
        raise UserError("row 2 is malformed")

    with pytest.raises(UserError, match=r"^row 2 is malformed$"):
        train_vocabulary(broken())
    with pytest.raises(UserError, match=r"^row 2 is malformed$"):
        encode_texts(train_vocabulary(["a b"]), broken())


def test_a_fork_after_encoding_is_quiet_and_does_not_hang() -> None:
    script = """if True:
        import os, sys
        from lstm_jax.data.reviews import encode_texts, train_vocabulary
        tokenizer = train_vocabulary(["a b"] * 2000)
        encode_texts(tokenizer, ["a b"] * 2000)
        child = os.fork()
        same = encode_texts(tokenizer, ["a b"] * 2000).ids.tolist() == [3, 4] * 2000
        if not child:
            os._exit(0 if same else 1)
        sys.exit(os.waitpid(child, 0)[1])
    """
    environment = {k: v for k, v in os.environ.items() if k != "TOKENIZERS_PARALLELISM"}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        env=environment,
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (run.returncode, run.stderr, run.stdout) == (0, "", "")


def test_a_slice_of_imdb() -> None:
    beside = Path(__file__).parents[2] / "shared" / "tfds"
    folder = Path(os.environ.get("TFDS_DATA_DIR", beside))
    if not (folder / "imdb_reviews").is_dir():
        pytest.skip("IMDB is not prepared here")
    tfds = pytest.importorskip("tensorflow_datasets")
    source = tfds.data_source(
        "imdb_reviews", split="train", data_dir=folder, download=False
    )
    texts = [example["text"].decode() for example in source.__getitems__(range(300))]
    vocabulary = slow_vocabulary(texts)
    tokenizer = train_vocabulary(texts, vocab_size=5000)
    assert entries(tokenizer) == vocabulary[:5000]
    assert entries(tokenizer)[3:8] == ["the", "a", "and", "of", "to"]
    rows = [slow_ids(slow_words(text), vocabulary) for text in texts]
    ids, lengths = pad(encode_texts(train_vocabulary(texts), texts), 500, 5000)
    expected_ids, expected_lengths = slow_pad(rows, 500, 5000, "front")
    assert (ids == np.array(expected_ids)).all()
    assert lengths.tolist() == expected_lengths


class PanicException(BaseException):
    """As the library's own is called."""


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("error", "seen"),
    [(PanicException("index out of bounds"), UserError), (SystemExit(3), SystemExit)],
)
def test_a_vocabulary_that_breaks_its_library(
    error: BaseException, seen: type[BaseException]
) -> None:
    """Where its file is damaged, the library panics, which is no Exception."""

    class Broken:
        def encode_batch_fast(self, batch: list[str]) -> Any:
            raise error

    broken: Any = Broken()
    with pytest.raises(seen, match=r"^(the vocabulary .*index out of bounds.*|3)"):
        reviews.encode_texts(broken, ["a"])

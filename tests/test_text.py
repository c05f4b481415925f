"""Tests of lstm_jax.data.text."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from lstm_jax.data.text import build_vocabulary, decode, encode, read_text, split_words
from lstm_jax.errors import UserError


def test_fable_has_the_tutorials_counts() -> None:
    words = split_words(read_text("fable.txt"))
    vocabulary = build_vocabulary(words)
    assert len(words) == 203
    assert vocabulary.get_vocab_size() == 112
    assert words[:5] == ["long", "ago", ",", "the", "mice"]
    ids = encode(vocabulary, words)
    assert ids.dtype == np.int32
    counts = np.bincount(ids, minlength=112)
    assert [(vocabulary.id_to_token(i), counts[i]) for i in range(4)] == [
        (",", 13),
        ("the", 11),
        (".", 8),
        ("and", 7),
    ]
    assert (np.diff(counts) <= 0).all()
    assert counts.min() == 1


def test_words_of_one_count_are_numbered_as_they_appear() -> None:
    words = read_text("fable.txt").replace(",", " , ").replace(".", " . ")
    words = words.replace("?", " ? ").split()
    ids = encode(build_vocabulary(words), words)
    counts = np.bincount(ids)
    first = np.array([np.flatnonzero(ids == i)[0] for i in range(len(counts))])
    same = counts[1:] == counts[:-1]
    assert same.sum() > 90
    assert (np.diff(first)[same] > 0).all()


def test_numbers_of_a_small_text() -> None:
    words = split_words("b a c, a b! A")
    assert words == ["b", "a", "c", ",", "a", "b", "!", "A"]
    vocabulary = build_vocabulary(words)
    tokens = [vocabulary.id_to_token(i) for i in range(vocabulary.get_vocab_size())]
    assert tokens == ["b", "a", "c", ",", "!", "A"]
    assert encode(vocabulary, words).tolist() == [0, 1, 2, 3, 1, 0, 4, 5]


def test_runs_of_punctuation_and_other_alphabets_are_words() -> None:
    words = split_words("Wait... what?! It's naïve — 日本 x_1\n\t2.5")
    assert words == [
        *("Wait", "...", "what", "?!", "It", "'", "s"),
        *("naïve", "—", "日本", "x_1", "2", ".", "5"),
    ]


def test_round_trip() -> None:
    words = split_words(read_text("fable.txt"))
    vocabulary = build_vocabulary(words)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 112, 500)
    assert (encode(vocabulary, decode(vocabulary, ids).split()) == ids).all()
    assert decode(vocabulary, encode(vocabulary, words)).split() == words
    # As a run keeps it beside its checkpoints.
    again = Tokenizer.from_str(vocabulary.to_str(pretty=True))
    assert (encode(again, words) == encode(vocabulary, words)).all()
    assert again.encode(" ".join(words)).ids == encode(vocabulary, words).tolist()


def test_unknown_words_are_named_once_in_their_order() -> None:
    vocabulary = build_vocabulary(["the", "cat", "sat"])
    with pytest.raises(UserError, match=r"^not in the vocabulary: dog, The, bat$"):
        encode(vocabulary, ["dog", "the", "The", "cat", "dog", "bat"])


def test_vocabulary_of_one_word() -> None:
    vocabulary = build_vocabulary(["na"] * 4)
    assert vocabulary.get_vocab_size() == 1
    assert encode(vocabulary, ["na", "na"]).tolist() == [0, 0]


def test_a_file_goes_before_a_text_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packaged = read_text("fable.txt")
    assert packaged.startswith("long ago, the mice had")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fable.txt").write_text("mine, ünïcode", encoding="utf-8")
    assert read_text("fable.txt") == "mine, ünïcode"
    assert read_text(str(tmp_path / "fable.txt")) == "mine, ünïcode"


def test_missing_file_names_the_texts_there_are(tmp_path: Path) -> None:
    for path in ("nowhere.txt", str(tmp_path), str(tmp_path / "nowhere.txt")):
        with pytest.raises(UserError) as error:
            read_text(path)
        reason = "Is a directory" if path == str(tmp_path) else "No such file or direc"
        assert str(error.value).startswith(f"cannot read {path!r} ({reason}")
        assert str(error.value).endswith(
            "): give data.path a text, or one of fable.txt, meditations.txt"
        )


@pytest.mark.parametrize("path", ["", ".", "x" * 5000, "a\0b"])
def test_names_that_are_no_file_are_one_line(path: str) -> None:
    with pytest.raises(UserError, match=r"^cannot read |is no path here") as error:
        read_text(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "windows.txt"
    path.write_bytes("\ufeffthe cät \ufeff sat".encode())
    assert read_text(str(path)) == "the cät \ufeff sat"


def test_file_of_another_encoding_names_the_byte(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes("a café".encode("latin-1"))
    with pytest.raises(
        UserError, match=r"latin.txt, line 1: not UTF-8 \(byte 5\); convert"
    ):
        read_text(str(path))

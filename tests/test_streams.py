"""Tests of lstm_jax.data.streams: text as rows that go on from batch to batch."""

from pathlib import Path

import numpy as np
import pytest
from tiny_datasets import prepare_tiny_imdb
from tokenizers import Tokenizer

from lstm_jax.config import base_config
from lstm_jax.data.reviews import START
from lstm_jax.data.streams import NO_TARGET, decode_stream, pieces, read_streams, rows
from lstm_jax.errors import UserError


@pytest.mark.parametrize(
    ("size", "batch_size", "steps"), [(2, 1, 1), (50, 1, 7), (50, 4, 5), (41, 8, 100)]
)
def test_rows_hold_every_symbol_once_and_go_on(
    size: int, batch_size: int, steps: int
) -> None:
    stream = np.random.default_rng(size).integers(3, 1000, size).astype(np.int32)
    batches = rows(stream, batch_size, steps)
    inputs, targets = (
        batches[name].reshape(-1, batch_size, steps).swapaxes(0, 1)
        for name in ("inputs", "targets")
    )
    seen, following = [], []
    for row, wanted in zip(
        inputs.reshape(batch_size, -1), targets.reshape(batch_size, -1), strict=True
    ):
        real = wanted != NO_TARGET
        count = int(real.sum())
        assert real[:count].all()  # nothing but the end of a row is padded
        assert (row[count:] == 0).all()
        assert row[1:count].tolist() == wanted[: count - 1].tolist()
        seen += row[:count].tolist()
        following += wanted[:count].tolist()
    assert seen == stream[:-1].tolist()
    assert following == stream[1:].tolist()


def test_too_short_for_the_rows() -> None:
    with pytest.raises(UserError, match=r"^3 symbols, in .* are too few for 4 rows"):
        rows(np.arange(3), 4, 5)


def config(**fields: object) -> object:
    data = base_config().data
    data.update(fields)
    return data


def shown(vocabulary: Tokenizer, ids: np.ndarray, level: str = "word") -> str:
    return decode_stream(vocabulary, ids.tolist(), level)


@pytest.mark.parametrize("level", ["word", "char"])
def test_a_long_text_is_read_in_pieces(level: str, tmp_path: Path) -> None:
    words = [f"w{i}" for i in range(2000)]
    text = "\n".join(words)
    (tmp_path / "text.txt").write_text(text)
    streams = read_streams(config(path=str(tmp_path / "text.txt"), level=level))
    assert len(list(pieces(text))) > 5
    assert (streams.train == START).sum() == (streams.held_out == START).sum() == 1
    both = [
        shown(streams.vocabulary, ids[ids != START], level)
        for ids in (streams.train, streams.held_out)
    ]
    if level == "char":
        assert "".join(both) == text
        assert len(both[1]) == pytest.approx(0.05 * len(text), abs=1)
    else:  # no word is cut in two: those held out are unknown, or begin the part
        assert both[0].split() == words[: len(both[0].split())]
        assert set(both[1].split()) == {"<UNK>"}
        assert len(both[0].split()) + len(both[1].split()) == 2000


def test_a_text_is_split_at_its_end(tmp_path: Path) -> None:
    words = [f"W{i % 7}" for i in range(200)]
    text = " ".join(words)
    path = tmp_path / "text.txt"
    path.write_text(text)
    streams = read_streams(config(path=str(path)))
    vocabulary = streams.vocabulary
    assert streams.train[0] == streams.held_out[0] == START
    cut = round(len(text) * 0.95)
    assert shown(vocabulary, streams.train[1:]) == text[:cut].strip()
    held_out = shown(vocabulary, streams.held_out[1:]).split()
    assert held_out[1:] == text[cut:].split()[1:]  # the first may be cut in two

    letters = read_streams(config(path=str(path), level="char"))
    assert shown(letters.vocabulary, letters.train[1:], "char") == text[:cut]
    assert letters.vocabulary.get_vocab_size() == 3 + len(set(text))

    capped = read_streams(config(path=str(path), vocab_size=5))
    assert capped.vocabulary.get_vocab_size() == 5
    frequent = sorted(
        set(words), key=lambda word: (-text[:cut].split().count(word), word)
    )
    first = shown(capped.vocabulary, capped.train[1:8]).split()
    assert first == [w if w in frequent[:2] else "<UNK>" for w in words[:7]]


def test_reviews_begin_with_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    texts, _ = prepare_tiny_imdb(tmp_path, train=2, test=2, unsupervised=40)[
        "unsupervised"
    ]
    data = config(path="tfds:imdb_reviews", tfds_dir=str(tmp_path))
    for _ in range(2):  # made, and from the cache
        streams = read_streams(data)
        for part, stream in (
            (texts[:38], streams.train),
            (texts[38:], streams.held_out),
        ):
            assert (stream == START).sum() == len(part)
        first = shown(streams.vocabulary, streams.train)
        words = first.split("<START>")[1].split()
        plain = texts[0].lower().replace("<br />", " ")
        assert "".join(words) == "".join(plain.split())
    data.limit = 10
    assert (read_streams(data).train == START).sum() == 9
    data.limit = 4
    few = read_streams(data)
    assert [(part == START).sum() for part in few[1:]] == [3, 1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"level": "line"}, "unknown data.level 'line': choose word or char"),
        ({"limit": -1}, "data.limit=-1 must be at least 0"),
        ({"path": "nowhere.txt"}, "cannot read 'nowhere.txt'"),
        ({"vocab_size": 3}, "vocab_size=3"),
    ],
)
def test_errors_name_the_field(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_streams(config(**{"path": "fable.txt"} | fields))

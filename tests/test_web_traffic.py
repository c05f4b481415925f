"""Tests of lstm_jax.data.web_traffic and benchmarks.bag_of_tokens."""

import hashlib
import re
from collections import Counter
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote_plus

import jaxtyping
import numpy as np
import pytest

from lstm_jax.data.reviews import encode_texts, train_vocabulary
from lstm_jax.data.web_traffic import (
    FAMILIES,
    ORDINARY,
    TOKENS,
    VOCABULARY_SIZE,
    Requests,
    split_request,
    web_traffic,
)
from lstm_jax.errors import UserError


@pytest.fixture(scope="module")
def splits() -> tuple[Requests, Requests]:
    # Checks of the types at each of a million small calls would take half a minute.
    jaxtyping.config.update("jaxtyping_disable", True)
    drawn = web_traffic("train"), web_traffic("test")
    jaxtyping.config.update("jaxtyping_disable", False)
    return drawn


@pytest.fixture(scope="module")
def train(splits: tuple[Requests, Requests]) -> Requests:
    return splits[0]


@pytest.fixture(scope="module")
def test(splits: tuple[Requests, Requests]) -> Requests:
    return splits[1]


@pytest.fixture
def bag_of_tokens(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    from benchmarks import bag_of_tokens

    return bag_of_tokens


def values(line: str) -> list[str]:
    """The path and the parameters' values, decoded."""
    match = re.fullmatch(
        r"(?:GET|POST|PUT|DELETE) (/[^ ?]*)(?:\?([^ ]+))?(?: HTTP/1\.1(?: ([^ ]+))?)?",
        line,
    )
    assert match, line
    path, *parts = match.groups()
    parameters = [pair for part in parts if part for pair in part.split("&")]
    return [
        unquote_plus(path),
        *(unquote_plus(pair.split("=", 1)[1]) for pair in parameters),
    ]


def closes_what_it_did_not_open(value: str) -> bool:
    depth = 0
    for step in value.split("/"):
        depth += -1 if step == ".." else bool(step)
        if depth < 0:
            return True
    opened: Counter[str] = Counter()
    for before, sign, after in zip(" " + value, value, value[1:] + " ", strict=False):
        if sign in ")]}":
            opened[sign] -= 1
        elif sign in "([{":
            opened[dict(zip("([{", ")]}", strict=True))[sign]] += 1
        elif sign in "'\"" and before != "\\" and not (before + after).isalnum():
            if opened[sign]:
                opened[sign] = 0
            else:  # it opens, unless it stands right behind a word
                opened[sign] = -1 if before.isalnum() else 1
        if opened[sign] < 0:
            return True
    return False


def test_content_is_that_of_the_seed(train: Requests, test: Requests) -> None:
    digests = [hashlib.sha256(repr(x).encode()).hexdigest()[:16] for x in (train, test)]
    assert digests == ["3c748a6dc4823960", "a5313d2e12e37ab8"]
    few, other = (web_traffic("test", seed, size=300) for seed in (0, 1))
    assert few == web_traffic("test", size=300)
    assert not set(few.texts) & set(other.texts)
    assert [len(column) for column in web_traffic("train", size=11)] == [11] * 3
    assert Counter(web_traffic("train", size=11).labels) == {"attack": 6, "benign": 5}
    assert web_traffic("train", size=0) == ([], [], [])


def test_halves_are_attacks_and_no_line_comes_twice(
    train: Requests, test: Requests
) -> None:
    assert Counter(train.labels) == {"attack": 4000, "benign": 4000}
    assert Counter(test.labels) == {"attack": 1000, "benign": 1000}
    assert len(set(train.texts) | set(test.texts)) == 10_000
    for split in (train, test):
        attacks = np.asarray(split.labels) == "attack"
        assert abs(attacks[: len(attacks) // 2].mean() - 0.5) < 0.05
        assert abs((attacks[1:] == attacks[:-1]).mean() - 0.5) < 0.05


def test_labels_follow_the_rule(train: Requests, test: Requests) -> None:
    for line, label, _ in zip(*map(list.__add__, train, test), strict=True):
        found = any(map(closes_what_it_did_not_open, values(line)))
        assert found == (label == "attack"), line


def test_families_are_held_out(train: Requests, test: Requests) -> None:
    by_label = {
        (name, label): {
            family
            for family, its in zip(split.families, split.labels, strict=True)
            if its == label
        }
        for name, split in (("train", train), ("test", test))
        for label in ("attack", "benign")
    }
    assert by_label["train", "attack"] == set(FAMILIES["train"])
    assert by_label["test", "attack"] == set(FAMILIES["test"])
    assert not set(FAMILIES["train"]) & set(FAMILIES["test"])
    twins = {name: {f"like {family}" for family in FAMILIES[name]} for name in FAMILIES}
    assert by_label["train", "benign"] == {"ordinary"} | twins["train"]
    assert by_label["test", "benign"] == {"ordinary"} | twins["train"] | twins["test"]
    assert set(ORDINARY["train"]) < set(ORDINARY["test"])
    # Nor does a template of one split come back in the other under another name.
    templates = {
        name: {pair for pairs in families.values() for pair in pairs}
        for name, families in FAMILIES.items()
    }
    assert not templates["train"] & templates["test"]


def test_twins_are_made_of_the_same_tokens() -> None:
    for families in FAMILIES.values():
        for attack, twin in (pair for pairs in families.values() for pair in pairs):
            assert attack != twin
            parts = [
                Counter(re.findall(r"%..|[a-z]+|\S", x.replace("U", "D")))
                for x in (attack, twin)
            ]
            assert parts[0] == parts[1], (attack, twin)


def test_length_gives_nothing_away(train: Requests, test: Requests) -> None:
    for split in (train, test):
        lengths = np.array([len(split_request(line)) for line in split.texts])
        attacks = np.asarray(split.labels) == "attack"
        assert lengths.max() <= 60
        best = max(((lengths >= at) == attacks).mean() for at in range(61))
        assert best < 0.53


def test_benign_lines_hold_what_attacks_are_known_for(train: Requests) -> None:
    benign = [
        line
        for line, label in zip(train.texts, train.labels, strict=True)
        if label == "benign"
    ]
    for pattern in ("'", '"', "%27", "%22", r"\.\./", "--", "union", "O'Brien", ";"):
        share = np.mean([bool(re.search(pattern, line)) for line in benign])
        assert share > 0.02, pattern


def test_tokens() -> None:
    line = "POST /a_b/..%2F9.php?q=O'Neil+%22x\\\"&n=[1042] HTTP/1.1 k=é%zz"
    assert split_request(line) == [
        *("post", "/", "a_b", "/", ".", ".", "%2f", "9", ".", "php", "?", "q", "="),
        *("o", "'", "neil", "+", "%22", "x", "\\", '"', "&", "n", "=", "[", "1042"),
        *("]", "http", "/", "1", ".", "1", "k", "=", "é", "%", "zz"),
    ]
    vocabulary = train_vocabulary([line], TOKENS)
    ids, _ = encode_texts(vocabulary, [line])
    assert [vocabulary.id_to_token(int(i)) for i in ids] == split_request(line)


def test_vocabulary_knows_nearly_every_token(train: Requests, test: Requests) -> None:
    vocabulary = train_vocabulary(train.texts, TOKENS, VOCABULARY_SIZE)
    assert vocabulary.get_vocab_size() == VOCABULARY_SIZE == 1024
    for split in (train, test):
        ids, _ = encode_texts(vocabulary, split.texts)
        assert ids.max() < 1024
        assert 0 < np.mean(ids == 2) < 0.02


def test_bag_of_tokens_stays_below_90_percent(
    train: Requests, test: Requests, bag_of_tokens: ModuleType
) -> None:
    some = Requests(*(column[:3000] for column in train))
    targets, test_targets = map(bag_of_tokens.attacks, (some, test))
    for variant in bag_of_tokens.VARIANTS:
        features, test_features = bag_of_tokens.bags(some, test, variant)
        plane = bag_of_tokens.fit(features, targets, 0.1)
        # Above chance on lines that it knows: ordinary lines differ.
        assert 0.6 < bag_of_tokens.accuracy(plane, features, targets) < 0.9
        assert bag_of_tokens.accuracy(plane, test_features, test_targets) < 0.9


def test_bag_of_tokens_finds_the_minimum(
    test: Requests, bag_of_tokens: ModuleType
) -> None:
    # Lines of which one token more tells the attacks.
    some = Requests(*(column[:500] for column in test))
    texts = [
        f"{line} evil{' evil' * (i % 2)}" if label == "attack" else line
        for i, (line, label) in enumerate(zip(some.texts, some.labels, strict=True))
    ]
    told = some._replace(texts=texts)
    targets = bag_of_tokens.attacks(told)
    counts, _ = bag_of_tokens.bags(told, told, "counts")
    assert counts.sum() == sum(len(split_request(line)) for line in texts)
    presence, _ = bag_of_tokens.bags(told, told, "presence")
    assert (presence == (counts > 0)).all()
    evil = train_vocabulary(texts, TOKENS, 1024).token_to_id("evil")
    assert sorted(set(counts[targets, evil])) == [1, 2]
    plane = weights, bias = bag_of_tokens.fit(counts, targets, 1e-2)
    assert bag_of_tokens.accuracy(plane, counts, targets) == 1
    # The gradient of the mean cross-entropy and the penalty is zero.
    residual = 1 / (1 + np.exp(-counts @ weights - bias)) - targets
    gradient = counts.T @ residual / len(counts) + 1e-2 * weights
    np.testing.assert_allclose(gradient, 0, atol=1e-7)
    assert abs(residual.mean()) < 1e-7


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match=r"^unknown split 'valid': choose train or "):
        web_traffic("valid")
    with pytest.raises(UserError, match=r"^size=-1 must be at least 0$"):
        web_traffic("train", size=-1)

"""Tests of lstm_jax.data.brackets."""

import collections
import itertools

import pytest

from lstm_jax.data.brackets import SIZES, brackets, tag_brackets
from lstm_jax.errors import UserError

PAIRS = ("()", "[]", "{}")

# Strings when the scores of configs/brackets.py were measured.
FIRST = "}(xx)x}]{)}][}[[]x}]]})})x[]"
LAST = "])}{}]x]}[x{()(x)x(]x)[xx]x{x))}x}x)x}]]]])}([x]"
FIRST_OF_TEST = "]](()){}())(xx){]}"


def slow_tags(signs: str) -> list[str]:
    """As the definition has it: what is open is what is left when all pairs are out."""
    labels, kept = [], ""
    for sign in signs:
        for pair in PAIRS:
            kept = kept.replace(pair, "")
        if sign in ")]}":
            right = any(kept[-1:] + sign == pair for pair in PAIRS)
            kept += sign if right else ""
            labels.append("right" if right else "wrong")
        else:
            kept += sign if sign in "([{" else ""
            labels.append(f"depth{len(kept)}")
    return labels


def test_labels_of_small_strings() -> None:
    assert tag_brackets(list("x([)]x))")) == [
        *("depth0", "depth1", "depth2", "wrong", "right", "depth1", "right", "wrong")
    ]
    assert tag_brackets([]) == []
    for signs in itertools.product("([)]x", repeat=5):
        assert tag_brackets(list(signs)) == slow_tags("".join(signs))


@pytest.mark.parametrize(("split", "seed"), [("train", 0), ("test", 0), ("test", 5)])
def test_strings_are_what_is_promised(split: str, seed: int) -> None:
    words, labels = brackets(split, seed, 1000)
    assert len(words) == len(labels) == 1000
    for signs, tags in zip(words, labels, strict=True):
        assert tags == slow_tags("".join(signs))
    lengths = [len(signs) for signs in words]
    assert (min(lengths), max(lengths)) == (8, 48)
    assert 27 < sum(lengths) / 1000 < 29

    counts = collections.Counter(itertools.chain(*labels))
    total = sum(counts.values())
    assert set(counts) == {"depth0", "depth1", "depth2", "depth3", "right", "wrong"}
    assert min(counts.values()) > 0.03 * total
    by_sign = collections.defaultdict(collections.Counter)
    before = collections.Counter()
    for signs, tags in zip(words, labels, strict=True):
        depth = 0
        for sign, label in zip(signs, tags, strict=True):
            by_sign[sign][label] += 1
            before[depth, "x" if sign == "x" else label[:5]] += 1
            depth += (sign in "([{") - (label == "right")
    assert set(by_sign) == set("()[]{}x")
    # A sign alone tells little.
    most = sum(counter.most_common(1)[0][1] for counter in by_sign.values())
    assert 0.42 < most / total < 0.44
    # Every sign is drawn as the docstring says, whatever is open.
    for depth in range(4):
        here = {what: n for (d, what), n in before.items() if d == depth}
        every = sum(here.values())
        assert 0.18 < here["x"] / every < 0.22
        closing = here.get("right", 0) + here["wrong"]
        if depth == 0:
            assert here.get("right", 0) == 0
        else:
            assert 0.37 < here["wrong"] / closing < 0.43
        opening = here.get("depth", 0) / (opening_or_closing := every - here["x"])
        assert opening_or_closing > 500
        assert 0.46 < opening < 0.54 if depth < 3 else opening == 0


def test_strings_are_the_same_each_time() -> None:
    train, test = brackets("train"), brackets("test")
    assert (len(train.words), len(test.words)) == (8000, 1000)
    assert "".join(test.words[0]) == FIRST_OF_TEST
    assert "".join(train.words[0]) == FIRST
    assert "".join(train.words[-1]) == LAST
    strings = [{"".join(signs) for signs in part.words} for part in (train, test)]
    assert len(strings[0] & strings[1]) == 0
    assert len(strings[0]) > 7990
    assert brackets("test", 0, 10).words == test.words[:10]
    assert brackets("test", 1, 10).words != test.words[:10]
    assert brackets("test", size=0) == ([], [])
    assert list(SIZES) == ["train", "test"]


def test_values_that_are_no_use() -> None:
    with pytest.raises(UserError, match=r"^unknown split 'dev': choose train or test$"):
        brackets("dev")
    with pytest.raises(UserError, match=r"^size=-1 must be at least 0$"):
        brackets("test", size=-1)

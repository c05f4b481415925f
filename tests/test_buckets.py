"""Tests of lstm_jax.data.buckets."""

import itertools
import time

import numpy as np
import pytest

from lstm_jax.data.buckets import bucket_lengths, split_buckets
from lstm_jax.errors import UserError


def total(lengths: np.ndarray, padded: list[int]) -> int:
    """Steps of all rows, each padded to the shortest length that holds it."""
    return sum(min(p for p in padded if p >= length) for length in lengths)


def least_total(lengths: np.ndarray, count: int) -> int:
    """The least total there is, by trying every choice of lengths."""
    longest = max(int(lengths.max()), 1)
    return min(
        total(lengths, [*others, longest])
        for size in range(count)
        for others in itertools.combinations(range(1, longest), size)
    )


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_padding_is_the_least_there_is(count: int) -> None:
    rng = np.random.default_rng(count)
    several = 0
    for trial in range(15):
        high = rng.integers(1, 16)
        draw = rng.geometric(0.3, 40) if trial % 2 else rng.integers(0, high, 30)
        lengths = np.minimum(draw, 15).astype(np.int32)
        padded = bucket_lengths(lengths, count)
        assert padded == sorted(set(padded))
        assert padded[-1] == max(lengths.max(), 1)
        assert len(padded) == min(count, len(set(np.maximum(lengths, 1))))
        assert total(lengths, padded) == least_total(lengths, count)
        several += len(padded) == count
    assert several >= 5


def test_few_lengths() -> None:
    assert bucket_lengths(np.array([7])) == [7]
    assert bucket_lengths(np.array([0])) == [1]
    assert bucket_lengths(np.array([0, 0, 1])) == [1]
    assert bucket_lengths(np.array([0, 4, 4, 2]), 5) == [1, 2, 4]
    assert bucket_lengths(np.array([4, 4, 4]), 3) == [4]
    assert bucket_lengths(np.array([], np.int32)) == []
    assert bucket_lengths(np.array([1, 100, 1, 99]), 2) == [1, 100]
    # There are no more than there are lengths, however many there may be.
    assert bucket_lengths(np.array([3, 1, 2]), 10**9) == [1, 2, 3]


def test_more_lengths_than_are_considered() -> None:
    rng = np.random.default_rng(0)
    lengths = np.unique(rng.lognormal(8, 1, 3000).astype(np.int64))
    assert len(lengths) > 2500
    padded = bucket_lengths(lengths, 3)
    assert len(padded) == 3
    assert padded[-1] == lengths[-1]
    assert set(padded) <= set(lengths.tolist())
    # Every choice of the two shorter lengths: steps[i, j] in buckets that end at i, j.
    rows = np.arange(1, len(lengths) + 1)
    steps = lengths * rows
    steps = steps[:, None] + lengths * (rows - rows[:, None]).clip(0)
    steps += lengths[-1] * (rows[-1] - np.maximum(rows, rows[:, None]))
    assert steps.min() <= total(lengths, padded) <= 1.001 * steps.min()


def test_lengths_of_a_large_set_take_no_time() -> None:
    rng = np.random.default_rng(1)
    lengths = np.minimum(rng.lognormal(5.2, 0.7, 25_000), 2500).astype(np.int32)
    start = time.process_time()
    assert len(bucket_lengths(lengths)) == 5
    assert time.process_time() - start < 1.0

    rows = np.sort(np.minimum(lengths, 900))
    padded = bucket_lengths(rows)
    steps = np.array(padded)[np.searchsorted(padded, rows)].sum()
    quintiles = rows[np.arange(1, 6) * 5000 - 1]
    assert steps < quintiles[np.searchsorted(quintiles, rows)].sum()
    # No one length can be moved to a better place.
    for k, length in itertools.product(range(4), range(1, 900, 7)):
        moved = np.sort([*padded[:k], length, *padded[k + 1 :]])
        assert steps <= moved[np.searchsorted(moved, rows)].sum()


@pytest.mark.parametrize("count", [1, 2, 5, 100])
def test_each_row_is_in_one_bucket_in_its_order(count: int) -> None:
    rng = np.random.default_rng(2)
    lengths = rng.integers(0, 20, 60).astype(np.int32)
    ids = np.zeros((60, 25), np.int32)
    for row, length in enumerate(lengths):
        ids[row, :length] = rng.integers(1, 99, length)
    labels, weights = np.arange(60), rng.normal(size=(60, 2)).astype(np.float32)
    buckets = split_buckets(ids, lengths, count, labels=labels, weights=weights)

    padded = bucket_lengths(lengths, count)
    assert [bucket["inputs"].shape[1] for bucket in buckets] == padded
    expected = [[] for _ in padded]
    for row, length in enumerate(lengths):
        expected[next(k for k, p in enumerate(padded) if p >= length)].append(row)
    assert all(expected)
    for bucket, rows, width in zip(buckets, expected, padded, strict=True):
        assert list(bucket) == ["inputs", "lengths", "labels", "weights"]
        assert bucket["labels"].tolist() == rows
        assert bucket["inputs"].dtype == bucket["lengths"].dtype == np.int32
        assert bucket["inputs"].tolist() == [ids[row, :width].tolist() for row in rows]
        assert bucket["lengths"].tolist() == [lengths[row] for row in rows]
        assert bucket["weights"].tolist() == [weights[row].tolist() for row in rows]


def test_rows_of_few_lengths() -> None:
    (bucket,) = split_buckets(np.array([[3, 4, 0]]), np.array([2]), 5)
    assert bucket["inputs"].tolist() == [[3, 4]]
    empty, full = split_buckets(np.array([[3, 4], [0, 0]]), np.array([2, 0]), 5)
    assert empty["inputs"].tolist() == [[0]]
    assert empty["lengths"].tolist() == [0]
    assert full["inputs"].tolist() == [[3, 4]]
    nothing = split_buckets(np.zeros((0, 3), np.int32), np.zeros(0, np.int32), 5)
    assert nothing == ()


def test_rows_may_be_features() -> None:
    xs = np.random.default_rng(3).normal(size=(6, 4, 3))
    first, second = split_buckets(xs, np.array([4, 1, 1, 4, 4, 1]), 2)
    assert (first["inputs"] == xs[[1, 2, 5], :1]).all()
    assert (second["inputs"] == xs[[0, 3, 4]]).all()


def test_no_bucket_is_refused() -> None:
    with pytest.raises(UserError, match=r"^buckets=0: give at least 1$"):
        bucket_lengths(np.array([3]), 0)
    with pytest.raises(UserError, match=r"^buckets=-1: give at least 1$"):
        split_buckets(np.array([[3]]), np.array([1]), -1)

"""Tests of lstm_jax.data.windows."""

import numpy as np
import pytest

from lstm_jax.data.windows import walk, windows
from lstm_jax.errors import UserError


@pytest.mark.parametrize("size", [1, 3, 29])
def test_windows_are_the_slices_of_the_sequence(size: int) -> None:
    ids = np.random.default_rng(size).integers(0, 9, 30, dtype=np.int32)
    inputs, targets = windows(ids, size)
    assert inputs.shape == (30 - size, size)
    assert targets.shape == (30 - size,)
    assert inputs.dtype == targets.dtype == np.int32
    for i in range(30 - size):
        assert inputs[i].tolist() == ids[i : i + size].tolist()
        assert targets[i] == ids[i + size]


def test_sequence_too_short_for_a_window() -> None:
    for length in (0, 2, 3):
        with pytest.raises(
            UserError,
            match=f"^the text has {length} words: data.window=3 needs at least 4$",
        ):
            windows(np.arange(length), 3)
    assert windows(np.arange(4), 3)[1].tolist() == [3]
    with pytest.raises(UserError, match=r"^data.window=0: "):
        windows(np.arange(4), 0)


def test_walk_follows_the_tutorials_rule() -> None:
    size, num_windows = 3, 200
    offsets = walk(5, num_windows, size, 20_000)
    assert offsets.dtype == np.int32
    restarts = np.flatnonzero(np.diff(offsets) != size + 1) + 1
    # It restarts only where the next window would not be in the text, and always there.
    assert (offsets[restarts - 1] + size + 1 >= num_windows).all()
    assert (offsets[:-1] + size + 1 < num_windows).sum() + len(restarts) == 19_999
    starts = offsets[np.concatenate([[0], restarts])]
    counts = np.bincount(starts)
    # Uniform over 0..size+1: about 400 restarts, 80 of each.
    assert len(starts) == pytest.approx(400, abs=10)
    assert len(counts) == size + 2
    assert counts.min() > 50
    assert counts.max() < 110
    # Every window is visited.
    assert (np.bincount(offsets, minlength=num_windows) > 0).all()


def test_longer_walk_begins_with_the_shorter() -> None:
    long = walk(3, 50, 3, 500)
    for steps in (0, 1, 13, 499):
        assert walk(3, 50, 3, steps).tolist() == long[:steps].tolist()
    assert walk(4, 50, 3, 500).tolist() != long.tolist()


@pytest.mark.parametrize("num_windows", [1, 2, 4, 5])
def test_walk_of_a_tiny_text_stays_in_it(num_windows: int) -> None:
    offsets = walk(0, num_windows, 3, 300)
    assert (np.bincount(offsets, minlength=num_windows) > 0).all()
    assert offsets.max() == num_windows - 1
    assert offsets.min() == 0

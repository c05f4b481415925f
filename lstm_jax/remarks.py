"""Lines of a run about what goes wrong while every number is finite.

The loss jumps, or updates do not change the parameters.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt32

from lstm_jax.pictures import show_number

# A loss has jumped that is so many times its least running mean over two rows, of so
# many rows, and that is further above it than so many times what a row was above the
# one before: with a row each step, losses of small batches are several times others.
_TIMES, _RECENT, _RISES = 1.5, 8, 2.5
# Less of the first loss than that is the noise of a run that has converged. Of 800 rows
# of a step each of `fable` none counts as a jump, of 375 rows of five steps of
# `mnist_rnn` two.
_LEAST = 0.1

# A few updates may be none: the first of a warm-up, the last of a cosine.
_STEPS = 10


def jump(losses: Sequence[float], loss: float) -> str | None:
    """Return a line about a training loss that is far above those before it.

    Args:
      losses: of all rows before it, the newest last.
      loss: of the new row.
    """
    pairs = [*itertools.pairwise(losses[-_RECENT:])]
    if len(pairs) < 3:
        return None
    mean = min(sum(pair) / 2 for pair in pairs)
    rise = max(new - old for old, new in pairs)
    least = max(_RISES * rise, _LEAST * losses[0])
    # A mean below 0 has no multiples.
    if not (0 < _TIMES * mean <= loss and loss - mean >= least):
        return None
    return (
        f"the loss jumped from {show_number(mean)} to {show_number(loss)}: if it stays "
        "there, lower optimizer.learning_rate or set optimizer.clip_norm"
    )


class Updates(NamedTuple):
    """Which parameters the updates change, of a run or of each replica of a sweep.

    Attributes:
      step: of the row from which on it is looked for changes.
      sums: checksums of the parameters then, as of `lstm_jax.steps.checksums`.
      unchanged: arrays that were the same at the next row looked at.
      checked: arrays of which it is known whether they have a gradient.
    """

    step: int
    sums: UInt32[np.ndarray, "*M L"]
    unchanged: Bool[np.ndarray, "*M L"]
    checked: Bool[np.ndarray, "*M L"]


def begin(step: int, sums: UInt32[np.ndarray, "*M L"]) -> Updates:
    """Return what is known before the first row."""
    return Updates(step, sums, np.zeros_like(sums, bool), np.zeros_like(sums, bool))


def compare(updates: Updates, step: int, sums: UInt32[np.ndarray, "*M L"]) -> Updates:
    """Return what is known after a row."""
    if step - updates.step < _STEPS:
        return updates
    return updates._replace(step=step, sums=sums, unchanged=sums == updates.sums)


def unchecked(updates: Updates) -> Bool[np.ndarray, "*M L"]:
    """Return the unchanged arrays whose gradient is to be computed."""
    return updates.unchanged & ~updates.checked


def line_about(names: Sequence[str], unchanged: Bool[np.ndarray, " L"]) -> str:
    """Return a line about parameters that do not change though they have a gradient.

    Args:
      names: of all arrays of the parameters.
      unchanged: which of them it is about.
    """
    chosen = [name for name, same in zip(names, unchanged, strict=True) if same]
    which = "any parameter"
    if len(chosen) < len(names):
        more = f" and {len(chosen) - 3} more" if len(chosen) > 3 else ""
        which = ", ".join(chosen[:3]) + more
    return (
        f"the updates of {_STEPS} steps or more did not change {which}, though the "
        "gradient is not 0: the run has converged, or optimizer.learning_rate is too "
        "low for a change within a parameter's precision"
    )

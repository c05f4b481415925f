"""What a run says of itself beside its rows, where every number is finite.

A loss that jumps, and parameters that no update changes.
"""

import itertools
import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt32

from lstm_jax.pictures import Row, show_number

# A loss has jumped that is so many times its running mean, of so many rows, and that is
# so many times further above it than a row was above the one before, of the last few:
# with a row each step, losses of small batches are several times each other. Of 800
# such rows of `fable` 5 count as jumps, of its 16 rows of 50 steps none.
_TIMES, _MEAN_OF = 1.5, 2
_RISES, _LEAST, _MOST = 3.0, 4, 8


def jump(earlier: Iterable[Row], row: Row) -> str | None:
    """Return a line about a row of training whose loss is far above those before it.

    Args:
      earlier: rows of the same run, or of the same member of a sweep, newest first.
      row: the new one.
    """
    train = (r for r in earlier if r["split"] == "train" and r["loss"] is not None)
    losses = [r["loss"] for r in itertools.islice(train, _MOST)]
    if len(losses) < _LEAST:
        return None
    mean, loss = statistics.fmean(losses[:_MEAN_OF]), row["loss"]
    rise = max(new - old for new, old in itertools.pairwise(losses))
    # A mean below 0 has no multiples.
    if not (0 < _TIMES * mean <= loss and loss - mean >= _RISES * rise):
        return None
    return (
        f"the loss jumped from {show_number(mean)} to {show_number(loss)}: if it stays "
        "there, lower optimizer.learning_rate or set optimizer.clip_norm"
    )


class Watch(NamedTuple):
    """Which parameters training changes, of a run or of each member of a sweep.

    Attributes:
      marks: of each array at the last row, as of `lstm_jax.steps.marks`.
      resting: arrays that did not change between the last two rows.
      asked: arrays of which it is known whether they have a gradient.
    """

    marks: UInt32[np.ndarray, "*M L"]
    resting: Bool[np.ndarray, "*M L"]
    asked: Bool[np.ndarray, "*M L"]


def begin(marks: UInt32[np.ndarray, "*M L"]) -> Watch:
    """Return what is known before the first row."""
    return Watch(marks, np.zeros_like(marks, bool), np.zeros_like(marks, bool))


def look(watch: Watch, marks: UInt32[np.ndarray, "*M L"]) -> Watch:
    """Return what is known after a row."""
    return watch._replace(marks=marks, resting=marks == watch.marks)


def to_ask(watch: Watch) -> Bool[np.ndarray, "*M L"]:
    """Return the arrays whose gradient is to be computed: resting, and never asked."""
    return watch.resting & ~watch.asked


def at_rest(names: Sequence[str], resting: Bool[np.ndarray, " L"]) -> str:
    """Return a line about parameters that rest though they have a gradient.

    Args:
      names: of all arrays of the parameters.
      resting: which of them it is about.
    """
    found = [name for name, rests in zip(names, resting, strict=True) if rests]
    which = "any parameter"
    if len(found) < len(names):
        rest = f" and {len(found) - 3} more" if len(found) > 3 else ""
        which = ", ".join(found[:3]) + rest
    return (
        f"the updates since the row before did not change {which}, though the gradient "
        "is not 0: raise optimizer.learning_rate (a change below a parameter's "
        "precision is none)"
    )

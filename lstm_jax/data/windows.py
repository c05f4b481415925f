"""Windows of a sequence of symbols: some symbols, and the one that follows them."""

import numpy as np
from jaxtyping import Int

from lstm_jax.errors import UserError


def windows(
    ids: Int[np.ndarray, " N"], size: int
) -> tuple[Int[np.ndarray, "M size"], Int[np.ndarray, " M"]]:
    """Every window of the sequence and its target.

    >>> inputs, targets = windows(np.array([5, 6, 7, 8]), 2)
    >>> inputs.tolist(), targets.tolist()
    ([[5, 6], [6, 7]], [7, 8])

    Raises:
      UserError: the sequence holds no window and target.
    """
    if size < 1:
        raise UserError(f"data.window={size}: a window holds at least 1 word")
    if len(ids) <= size:
        raise UserError(
            f"the text has {len(ids)} words: data.window={size} needs at least "
            f"{size + 1}"
        )
    inputs = np.lib.stride_tricks.sliding_window_view(ids, size)[:-1]
    return np.ascontiguousarray(inputs), ids[size:]


def walk(
    seed: int, num_windows: int, size: int, steps: int
) -> Int[np.ndarray, " steps"]:
    """The order in which the TF1 tutorials visit the windows, a window a step.

    The offset starts at a random 0..size+1, advances by size+1, and restarts at a
    random 0..size+1 past the end. A longer walk begins with the shorter one.
    """
    rng = np.random.default_rng(seed)
    offsets = np.empty(steps, np.int32)
    restart = min(size + 1, num_windows - 1)
    offset = rng.integers(0, restart, endpoint=True)
    for step in range(steps):
        if offset >= num_windows:
            offset = rng.integers(0, restart, endpoint=True)
        offsets[step] = offset
        offset += size + 1
    return offsets

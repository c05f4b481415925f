"""Length buckets: rows of about one length, padded to a few lengths."""

import numpy as np
from jaxtyping import Integer, Shaped

from lstm_jax.errors import UserError

# Padded lengths that are considered; above, quantiles stand for all. The tables of
# `bucket_lengths` hold the square of it.
_CANDIDATES = 1000


def bucket_lengths(lengths: Integer[np.ndarray, " N"], count: int = 5) -> list[int]:
    """The at most `count` padded lengths that take the least padding in all.

    Exact up to 1,000 distinct lengths. No length is without rows; the last is the
    longest row's, and rows without a step are padded to one.

    >>> bucket_lengths(np.array([2, 9, 3, 3, 8, 9]), 2)
    [3, 9]

    Raises:
      UserError: `count` is below 1.
    """
    if count < 1:
        raise UserError(f"buckets={count}: give at least 1")
    lengths = np.maximum(lengths, 1).astype(np.int64)
    candidates = np.unique(lengths)
    if len(candidates) > _CANDIDATES:
        quantiles = np.linspace(0, 1, _CANDIDATES)
        candidates = np.unique(np.quantile(lengths, quantiles, method="higher"))
    # Rows that fit into the first 0, 1, ... candidates.
    fitting = np.searchsorted(np.sort(lengths), candidates, side="right")
    fitting = np.concatenate([[0], fitting])
    widths = np.concatenate([[0], candidates])

    # cost[i, j]: steps of the rows that fit into j candidates, not into i, as one
    # bucket. least[j]: steps of all rows that fit into j, in the buckets so far.
    cost = (widths * (fitting - fitting[:, None])).astype(np.float64)
    cost[np.tril_indices_from(cost, -1)] = np.inf
    least, choices = cost[0], []
    for _ in range(min(count, len(candidates)) - 1):
        totals = least[:, None] + cost
        choices.append(np.argmin(totals, axis=0))
        least = np.min(totals, axis=0)

    # From the longest bucket down, each at the choice for what is left.
    ends = [len(candidates)]
    for choice in reversed(choices):
        ends.append(int(choice[ends[-1]]))
    return widths[sorted({end for end in ends if end > 0})].tolist()


def split_buckets(
    ids: Shaped[np.ndarray, "N T *shape"],
    lengths: Integer[np.ndarray, " N"],
    count: int = 5,
    **others: Shaped[np.ndarray, "N ..."],
) -> tuple[dict[str, np.ndarray], ...]:
    """Cuts right-padded rows into length buckets, the shortest first.

    Every row is in one bucket; within it rows keep their order.

    Args:
      ids: rows, padded at the right.
      lengths: steps of each row that are no padding.
      count: the most buckets there may be.
      **others: what goes with the rows, such as labels.

    Returns:
      For each bucket `inputs` `[N_k, T_k, ...]`, `lengths` `[N_k]` and the others
      `[N_k, ...]`. No bucket is empty.

    Raises:
      UserError: `count` is below 1.
    """
    widths = bucket_lengths(lengths, count)
    bucket = np.searchsorted(widths, lengths)
    members = [np.flatnonzero(bucket == k) for k in range(len(widths))]
    return tuple(
        {
            "inputs": ids[rows, :width],
            "lengths": lengths[rows],
            **{name: other[rows] for name, other in others.items()},
        }
        for rows, width in zip(members, widths, strict=True)
    )

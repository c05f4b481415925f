"""How the fused path lays out its loops, by backend and shape."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lstm_jax.cells import Fused, Noise, Params, extras_of
from lstm_jax.gate_tracing import mixes_units
from lstm_jax.layout import FIRST, LAST, RowAxis

# Rows of a device from which a processor's products are as fast or faster rows last.
_ROWS_LAST_FROM = 32
# Rows from which a product with a transposed kernel earns the transposing.
_TRANSPOSED_FROM = 8
# Rows from which a processor's loop over time beats a scan in parallel.
_LOOPED_FROM = 8
# Rows of a chunk, all its steps together: enough for a product at full speed, few
# enough to stay in the cache.
_CHUNK_ROWS = 640
# Of many rows as well: one product of two steps is a twentieth faster than two.
_LEAST_CHUNK = 2


class Schedule(NamedTuple):
    """The layout of the forward and the backward loop over time; it changes no result.

    Attributes:
      rows: the axis of the rows in a step's arrays, see `lstm_jax.layout`; the first
        with `hoist`.
      hoist: the product of the inputs is one, before the loop; else one a step.
      transposed: rows first, the recurrent kernel is transposed before the backward
        loop; else the product at each step reads it as it is.
      chunk: steps whose weight gradient is one product; the last may have fewer.
      unroll: steps in one iteration of the compiled loop.
      why: the reason, for people.
    """

    rows: RowAxis
    hoist: bool
    transposed: bool
    chunk: int
    unroll: int
    why: str


def schedule_for(
    backend: str,
    fused: Fused,
    params: Params,
    carry: Any,
    batch: int,
    time: int,
    noise: Noise | None = None,
) -> Schedule:
    """What the measurements in docs/performance.md favour.

    Args:
      backend: as `jax.default_backend` names it.
      fused: the cell's `fused`.
      params: the cell's parameters, of which the shapes count, as of all arrays here.
      carry: the cell's carry, leaves [rows, ...].
      batch: rows on a device.
      time: steps of the loop. Where this or `batch` is a symbol of `jax.export`, the
        program is for any size, and may run on any backend.
      noise: None, or the loop's; `step` leaves are [T, rows, ...].
    """
    own_product = fused.recurrent is not None
    exported = not (isinstance(batch, int) and isinstance(time, int))
    if backend == "cpu" and not exported:
        # Where a row meets a matrix or is reduced, `jax.vmap` would move the rows first
        # at each step.
        read = extras_of(params)
        read = {name: read[name] for name in read if name not in fused.unread}
        matrices = any(a.ndim > 1 for a in jax.tree.leaves(read))
        # So it does where a product of the cell's own meets numbers of each row, or is
        # no product of matrices: a transpose between the two stays one.
        entrywise = own_product and (
            jnp.ndim(params.get("recurrent_kernel", 0)) == 1
            or (noise is not None and len(jax.tree.leaves(noise.sequence)) > 0)
        )
        last = not (
            batch < _ROWS_LAST_FROM
            or matrices
            or entrywise
            or mixes_units(fused, params, carry, noise)
        )
        return Schedule(
            rows=LAST if last else FIRST,
            hoist=False,
            transposed=not last and not own_product and batch >= _TRANSPOSED_FROM,
            chunk=_divisor(time, _CHUNK_ROWS // max(batch, 1)),
            unroll=1,
            why="on a processor what a chunk of steps reads has to stay in the cache",
        )
    unroll = 1
    if isinstance(time, int):
        # A longer body takes seconds more to compile, and 500 steps ran no faster.
        unroll = 8 if time <= 256 else 4
    return Schedule(
        rows=FIRST,
        hoist=True,
        transposed=False,
        chunk=time,
        unroll=unroll,
        why="on an accelerator an iteration costs more than its arithmetic",
    )


def parallel_over_time(backend: str, batch: int, time: int) -> bool:
    """Whether a linear recurrence is faster by `jax.lax.associative_scan` than looped.

    Args:
      backend: as `jax.default_backend` names it.
      batch: rows on a device.
      time: steps; where this is a symbol of `jax.export`, the scan cannot be.
    """
    if not isinstance(time, int):
        return False
    return backend != "cpu" or not isinstance(batch, int) or batch < _LOOPED_FROM


def _divisor(time: int, chunk: int) -> int:
    """A chunk that leaves no shorter one over, if one of half the size or more does."""
    chunk = min(time, max(chunk, _LEAST_CHUNK))
    return next((k for k in range(chunk, chunk // 2, -1) if time % k == 0), chunk)

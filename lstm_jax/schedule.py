"""How the fused path lays out its loops, by backend and shape."""

from typing import NamedTuple


class Schedule(NamedTuple):
    """The layout of the forward and the backward loop over time; it changes no result.

    Attributes:
      hoist: the product of the inputs is one, before the loop; else one a step.
      chunk: steps whose weight gradient is one product.
      unroll: steps in one iteration of the compiled loop.
      why: the reason, for people.
    """

    hoist: bool
    chunk: int
    unroll: int
    why: str


def schedule_for(backend: str, time: int) -> Schedule:
    """What the measurements in docs/performance.md favour.

    Args:
      backend: as `jax.default_backend` names it.
      time: steps of the loop.
    """
    if backend == "cpu":
        # Enough steps for a product at full speed, few enough for the cache.
        why = "on a processor what a chunk of steps reads has to stay in the cache"
        return Schedule(hoist=False, chunk=20, unroll=1, why=why)
    # Longer bodies take seconds more to compile, and 500 steps ran no faster with 8.
    why = "on an accelerator an iteration costs more than its arithmetic"
    return Schedule(hoist=True, chunk=time, unroll=8 if time <= 256 else 4, why=why)

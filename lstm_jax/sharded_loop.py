"""A loop over time with a backward pass of its own, on each device's rows."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import PyTree

from lstm_jax import sharding
from lstm_jax.cells import Noise, Params
from lstm_jax.gated_steps import Inputs
from lstm_jax.layout import FIRST, RowAxis


def on_each_device(
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    params: Params,
    inputs: Inputs,
    carry: Any,
    noise: Noise | None,
    rows: RowAxis = FIRST,
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Both passes on each device's rows, weight gradients summed after the loop.

    Divided parameters are gathered before it.

    Args:
      forward: of `lstm_jax.fused.fused_unroll` or another loop of the same arguments.
      backward: of the same.
      params: of the loop.
      inputs: of the loop.
      carry: state before the first step.
      noise: of the loop.
      rows: the axis of the rows in what `forward` saves.
    """
    none, first, second = sharding.Rows()
    specs = sharding.param_specs(params)
    drawn = None if noise is None else Noise(none, first, second)
    outs = (first, second)
    saved = (none, second, drawn, second)
    if rows != FIRST:
        saved = _saved_rows_last(inputs, carry, noise)

    def gathered(params: Params, *rest: Any) -> Any:
        return forward(sharding.gather(params, specs), *rest)

    def summed(saved: Any, cotangents: Any) -> tuple[Any, ...]:
        gradient, *rest = backward(saved, cotangents)
        return sharding.total(gradient, specs), *rest

    return (
        sharding.on_each_device(
            gathered, (specs, second, first, first, drawn), (outs, saved)
        ),
        sharding.on_each_device(
            summed, (saved, outs), (specs, second, first, first, None)
        ),
    )


def _saved_rows_last(inputs: Inputs, carry: Any, noise: Noise | None) -> PyTree:
    def last(tree: PyTree, more: int = 0) -> PyTree:
        return jax.tree.map(lambda a: sharding.rows_last(a.ndim + more), tree)

    none, _, second = sharding.Rows()
    if noise is not None:
        noise = noise._replace(shared=none, sequence=last(noise.sequence))
    read = Inputs(second, second, second, last(inputs.noise))
    return none, read, noise, (last(carry, more=1), sharding.rows_last(3))

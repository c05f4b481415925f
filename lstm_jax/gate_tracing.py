"""What the fused path learns of a cell by tracing its gates."""

from typing import Any

import jax
from jax.core import Tracer
from jaxtyping import PyTree

from lstm_jax.cells import Fused, Noise, Params, extras_of


def trace_gates(fused: Fused, params: Params, carry: Any, noise: Noise | None) -> bool:
    """Refuses closures over traced values; tells whether the gates are additive.

    The custom derivative knows its arguments alone: the gradient of a traced value
    that the gates close over would silently be lost.

    Args:
      fused: the cell's `fused`.
      params: its parameters.
      carry: its carry, leaves [B, ...].
      noise: None, or its noise; `step` leaves are [T, B, ...].

    Returns:
      Whether the gates use zx and zh in one place only: the sum zx + zh.

    Raises:
      TypeError: `gates` or `recurrent` closes over a traced value.
    """

    def without(axes: int, tree: PyTree) -> PyTree:
        return jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape[axes:], a.dtype), tree
        )

    at_step, axes = None, None
    if noise is not None:
        at_step = noise._replace(step=without(1, noise.step))
        at_step, axes = without(0, at_step), Noise(None, 0, 0)
    bias = params["bias"]
    z = jax.ShapeDtypeStruct((carry.h.shape[0], *bias.shape), bias.dtype)
    before = (without(0, extras_of(params)), without(0, carry))
    rows = jax.vmap(fused.gates, in_axes=(None, 0, 0, 0, axes))
    traced = jax.make_jaxpr(rows)(*before, z, z, at_step)
    _refuse_closure("gates", traced)
    if fused.recurrent is not None:
        of_recurrent = jax.make_jaxpr(fused.recurrent)(
            without(0, params), without(0, carry.h), at_step
        )
        _refuse_closure("recurrent", of_recurrent)
    first = len(jax.tree.leaves(before))
    zx, zh = traced.jaxpr.invars[first : first + 2]

    def among(variables: Any) -> list[bool]:
        return [any(v is z for v in variables) for z in (zx, zh)]

    users = [e for e in traced.jaxpr.eqns if any(among(e.invars))]
    return (
        [user.primitive.name for user in users] == ["add"]
        and all(among(users[0].invars))
        and not any(among(traced.jaxpr.outvars))
    )


def _refuse_closure(name: str, traced: Any) -> None:
    if any(isinstance(const, Tracer) for const in traced.consts):
        raise TypeError(
            f"{name} closes over a traced value, whose gradient would be lost: hand "
            "it over in the extras (init_extra) or the noise, or use "
            'implementation="autodiff"'
        )

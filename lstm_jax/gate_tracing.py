"""What is learnt of a cell by tracing it."""

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.extend.core import Jaxpr
from jaxtyping import Array, PyTree

from lstm_jax.cells import Cell, Fused, Noise, Params, extras_of

# Calls of a function with the same arguments and results as what they call.
_CALLS = ("jit", "pjit", "remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call")
# Operations of which an entry needs others of the same row.
_MIXING = (
    *("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and"),
    *("reduce_or", "argmax", "argmin", "cumsum", "cumprod", "cummax", "cummin"),
    *("cumlogsumexp", "sort", "dot_general"),
)


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
    traced = _traced(fused, params, carry, noise)
    _refuse_closure("gates", traced)
    if fused.recurrent is not None:
        of_recurrent = jax.make_jaxpr(fused.recurrent)(
            _shapes(params), _shapes(carry.h), _at_step(noise)
        )
        _refuse_closure("recurrent", of_recurrent)
    first = len(jax.tree.leaves((extras_of(params), carry)))
    zx, zh = traced.jaxpr.invars[first : first + 2]

    def among(variables: Any) -> list[bool]:
        return [any(v is z for v in variables) for z in (zx, zh)]

    users = [e for e in traced.jaxpr.eqns if any(among(e.invars))]
    return (
        [user.primitive.name for user in users] == ["add"]
        and all(among(users[0].invars))
        and not any(among(traced.jaxpr.outvars))
    )


def mixes_units(fused: Fused, params: Params, carry: Any, noise: Noise | None) -> bool:
    """Whether the gates reduce over units or multiply by a matrix.

    Args:
      fused: the cell's `fused`.
      params: its parameters.
      carry: its carry, leaves [B, ...].
      noise: None, or its noise; `step` leaves are [T, B, ...].
    """

    def mixes(jaxpr: Jaxpr) -> bool:
        return any(
            equation.primitive.name in _MIXING or any(map(mixes, _called(equation)))
            for equation in jaxpr.eqns
        )

    return mixes(_traced(fused, params, carry, noise).jaxpr)


def _traced(fused: Fused, params: Params, carry: Any, noise: Noise | None) -> Any:
    """The gates of all rows; what `jax.make_jaxpr` gives."""
    bias = params["bias"]
    z = jax.ShapeDtypeStruct((carry.h.shape[0], *bias.shape), bias.dtype)
    axes = None if noise is None else Noise(None, 0, 0)
    rows = jax.vmap(fused.gates, in_axes=(None, 0, 0, 0, axes))
    before = _shapes((extras_of(params), carry))
    return jax.make_jaxpr(rows)(*before, z, z, _at_step(noise))


def _at_step(noise: Noise | None) -> Noise | None:
    if noise is None:
        return None
    return _shapes(noise._replace(step=jax.tree.map(_first, noise.step)))


def _first(a: Any) -> Any:
    return jax.ShapeDtypeStruct(a.shape[1:], a.dtype)


def _shapes(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tree)


def _called(equation: Any) -> list[Jaxpr]:
    """The function that an operation calls, if it is a call."""
    if equation.primitive.name not in _CALLS:
        return []
    params: Params = equation.params
    called = params["jaxpr" if "jaxpr" in params else "call_jaxpr"]
    return [getattr(called, "jaxpr", called)]  # a class that jax 0.11 lacks


def outputs_state(cell: Cell, features: int) -> bool:
    """Whether a step's output is the h that it carries on, with noise and without.

    Args:
      cell: any cell.
      features: of its inputs.
    """
    if cell.unroll is not None:
        return False

    def step(key: Any, x: Array, noisy: bool) -> Any:
        params = cell.init(key, features)
        carry, noise = cell.initial_carry(params, 1), ()
        if noisy:
            assert cell.noise is not None
            drawn = cell.noise(key, params, 1, 1)
            noise = (drawn._replace(step=jax.tree.map(lambda a: a[0], drawn.step)),)
        return cell.step(params, carry, x, *noise)

    def is_state(noisy: bool) -> bool:
        traced, shapes = jax.make_jaxpr(step, static_argnums=2, return_shape=True)(
            jax.random.key(0), jnp.zeros((1, features)), noisy
        )
        return _outputs_h(traced.jaxpr, shapes)

    return is_state(False) and (cell.noise is None or is_state(True))


def run_gates(gates: Callable[..., Any], *arguments: Any) -> tuple[Any, PyTree, bool]:
    """Runs gates, and tells whether their output is the h that they carry on.

    Args:
      gates: as `Fused.gates`.
      *arguments: of them.

    Returns:
      (carry, y, whether y is the carry's h).
    """
    new, y = gates(*arguments)
    if y is new.h:
        return new, y, True
    # A call (`jax.jit` of the gates) hands the same value out twice.
    traced, shapes = jax.make_jaxpr(gates, return_shape=True)(*arguments)
    return new, y, _outputs_h(traced.jaxpr, shapes)


def _outputs_h(jaxpr: Jaxpr, shapes: PyTree) -> bool:
    """Of a traced function that gives (carry, y)."""
    new, y = jax.tree.unflatten(jax.tree.structure(shapes), jaxpr.outvars)
    h, y = _source(jaxpr, getattr(new, "h", None)), _source(jaxpr, y)
    return len(h) == len(y) and all(map(operator.is_, h, y))


def _source(jaxpr: Jaxpr, value: Any) -> tuple[Any, ...]:
    """Where a value is computed: the calls that it is in, and its variable there."""
    for equation in jaxpr.eqns:
        places = [out is value for out in equation.outvars]
        if any(places) and (calls := _called(equation)):
            (called,) = calls
            found = _source(called, called.outvars[places.index(True)])
            places = [variable is found[-1] for variable in called.invars]
            if any(places):  # an argument, handed back
                return _source(jaxpr, equation.invars[places.index(True)])
            return (equation, *found)
    return (value,)


def _refuse_closure(name: str, traced: Any) -> None:
    if any(isinstance(const, Tracer) for const in traced.consts):
        raise TypeError(
            f"{name} closes over a traced value, whose gradient would be lost: hand "
            "it over in the extras (init_extra) or the noise, or use "
            'implementation="autodiff"'
        )

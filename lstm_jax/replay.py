"""A traced function run once more, its inner values seen or changed."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax.extend.core import Jaxpr, Literal, Var
from jaxtyping import Array

# `see(primitive, values)`: what an operation of that name has computed.
See = Callable[[str, Sequence[Array]], None]

# Calls whose operations are run in their place: seen, and added to, as if they stood
# outside. Others (`scan`, a function with a derivative of its own) are run whole.
_CALLS = ("jit", "pjit")


def replay(
    jaxpr: Jaxpr,
    consts: Sequence[Any],
    arguments: Sequence[Array],
    *,
    see: See | None = None,
    added: Mapping[Var, Array] | None = None,
) -> list[Array]:
    """The outputs of a traced function.

    Args:
      jaxpr: `.jaxpr` of what `jax.make_jaxpr` gives, whose class is another before
        jax 0.11 than after it.
      consts: `.consts` of it.
      arguments: the leaves of its arguments.
      see: called with the results of every operation, in the order of the program.
      added: what is added to a variable where it is computed: all that is computed of
        it sees the sum. An argument is not computed, and none may be among them.
    """
    added = dict(added or {})
    known: dict[Var, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    known |= zip(jaxpr.invars, arguments, strict=True)

    def read(atom: Any) -> Any:
        if isinstance(atom, Literal):  # jax 0.10 keeps a float of its own there
            aval: Any = atom.aval  # whose class declares no dtype
            return jnp.asarray(atom.val, aval.dtype)
        return known[atom]

    for equation in jaxpr.eqns:
        name = equation.primitive.name
        values = [read(atom) for atom in equation.invars]
        if name in _CALLS:
            inner = equation.params["jaxpr"]
            # Added in there, where what else the call computes of it sees it too.
            within = {}
            for own, variable in zip(
                inner.jaxpr.outvars, equation.outvars, strict=True
            ):
                if variable in added and is_computed(inner.jaxpr, own):
                    within[own] = added.pop(variable)
            out = replay(inner.jaxpr, inner.consts, values, see=see, added=within)
        else:
            bound = equation.primitive.get_bind_params(equation.params)
            # Until jax 0.11 a pair, functions before the parameters.
            functions, params = bound if isinstance(bound, tuple) else ((), bound)
            out = equation.primitive.bind(*functions, *values, **params)
            out = out if equation.primitive.multiple_results else [out]
            if see is not None:
                see(name, out)
        for variable, value in zip(equation.outvars, out, strict=True):
            known[variable] = value + added[variable] if variable in added else value
    return [read(atom) for atom in jaxpr.outvars]


def is_computed(jaxpr: Jaxpr, output: Any) -> bool:
    """Whether an output is computed: neither a number nor an argument handed back."""
    given = (*jaxpr.invars, *jaxpr.constvars)
    return not isinstance(output, Literal) and all(output is not a for a in given)

"""Digests of traced functions: what they compute, however it is written.

A function is hashed from its results: each value by its operation and by the values
that this is computed of. So the names of variables, the order of independent operations
and what no result needs count for nothing, and a value of one function can be looked
for in another.
"""

import enum
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal
from jaxtyping import PyTree

# Calls of a function with the same arguments and results as what they call.
_CALLS = {
    *("jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint"),
    *("custom_jvp_call", "custom_vjp_call"),
}
# Operations that hand on what they are given: where it is, or when it is computed.
_HANDED_ON = {"sharding_constraint", "optimization_barrier", "name"}
# Parameters of an operation that change nothing of what it computes.
_BESIDE = {"name", "debug_info", "name_and_src_info", "metadata", "unroll"}


class Traced(NamedTuple):
    """What a traced function computes.

    Attributes:
      digest: of its results and their names.
      results: digest of each result, in the order of the leaves.
      values: of every value on the way to them.
      shapes: types and shapes of the results.
    """

    digest: str
    results: tuple[str, ...]
    values: frozenset[str]
    shapes: PyTree


def trace(function: Callable[..., Any], **arguments: PyTree) -> Traced:
    """Return what a function computes of arguments of these shapes and types.

    Equal in every process: no address, no path of a file and no number of a device is
    part of it. The bytes of arrays that the function closes over are. Of a Python
    function that the device calls back its name is all that is known.

    >>> import jax, jax.numpy as jnp
    >>> x = jax.ShapeDtypeStruct((3,), jnp.float32)
    >>> double = trace(lambda x: 2 * x, x=x)
    >>> double.digest == trace(lambda x: (jnp.cos(x), 2 * x)[1], x=x).digest
    True
    >>> double.digest == trace(lambda x: 3 * x, x=x).digest
    False
    >>> double.results[0] in trace(lambda x: jnp.sin(2 * x), x=x).values
    True

    Args:
      function: what is traced.
      **arguments: its arguments by name, trees of arrays or of their shapes.
    """
    paths, structure = jax.tree.flatten_with_path(arguments)

    def of_leaves(leaves: list[Any]) -> Any:
        return function(**jax.tree.unflatten(structure, leaves))

    leaves = [leaf for _, leaf in paths]
    traced, shapes = jax.make_jaxpr(of_leaves, return_shape=True)(leaves)
    names = [jax.tree_util.keystr(path) for path, _ in paths]
    values: set[str] = set()
    arguments_hashed = [
        _hash("argument", name, _type(variable.aval))
        for name, variable in zip(names, traced.jaxpr.invars, strict=True)
    ]
    results, order = _run(traced.jaxpr, traced.consts, arguments_hashed, values)
    named = [jax.tree_util.keystr(p) for p, _ in jax.tree.leaves_with_path(shapes)]
    digest = _hash("function", *named, *results, order)
    return Traced(digest, tuple(results), frozenset(values), shapes)


def _run(
    jaxpr: Any, consts: Sequence[Any], arguments: Sequence[str], values: set[str]
) -> tuple[list[str], str]:
    """Digests of the results of a jaxpr, and one of what it does beside them."""
    known = dict(zip(jaxpr.invars, arguments, strict=True))
    known |= {v: _constant(c) for v, c in zip(jaxpr.constvars, consts, strict=True)}
    order = ""

    def read(atom: Any) -> str:
        if isinstance(atom, Literal):  # jax 0.10 keeps a float of its own there
            aval: Any = atom.aval
            return _constant(np.asarray(atom.val, aval.dtype))
        return known[atom]

    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        inputs = [read(atom) for atom in equation.invars]
        if name in _CALLS:
            called = params["jaxpr" if "jaxpr" in params else "call_jaxpr"]
            inner = getattr(called, "jaxpr", called)
            outs, done = _run(inner, getattr(called, "consts", ()), inputs, values)
            order = _hash(order, done) if done else order
        elif name in _HANDED_ON:
            outs = inputs
        elif name.startswith("debug_"):  # it prints
            outs = []
        else:
            key = _hash(name, _described(params), *inputs)
            if _writes(equation):
                order = key = _hash(order, key)
            outs = [_hash(key, str(number)) for number in range(len(equation.outvars))]
        values.update(outs)
        known |= zip(equation.outvars, outs, strict=True)
    return [read(atom) for atom in jaxpr.outvars], order


def _writes(equation: Any) -> bool:
    """Whether an operation does more than give results: kernels write to references."""
    kinds = [type(effect).__name__ for effect in equation.effects]
    return any("Debug" not in kind for kind in kinds)


def _constant(value: Any) -> str:
    if isinstance(value, jax.Array) and jnp.issubdtype(
        value.dtype, jax.dtypes.prng_key
    ):
        return _hash("key", str(value.dtype), _constant(jax.random.key_data(value)))
    array = np.asarray(value)
    return _hash("constant", _type(array), array.tobytes())


def _type(array: Any) -> str:
    if not hasattr(array, "dtype"):  # a token
        return type(array).__name__
    return f"{array.dtype}{list(array.shape)}"


def _described(value: Any) -> str:
    """A parameter of an operation, as text that is the same in every process."""
    if hasattr(value, "eqns"):
        inner = getattr(value, "jaxpr", value)
        arguments = [
            _hash("argument", str(number), _type(variable.aval))
            for number, variable in enumerate(inner.invars)
        ]
        results, order = _run(inner, getattr(value, "consts", ()), arguments, set())
        return _hash("function", *results, order)
    match value:
        case Mapping():
            kept = {str(name): value[name] for name in value if name not in _BESIDE}
            return _hash(*(f"{name}={_described(kept[name])}" for name in sorted(kept)))
        case tuple() | list():
            return f"({','.join(map(_described, value))})"
        case set() | frozenset():
            return f"{{{','.join(sorted(map(_described, value)))}}}"
        case np.ndarray() | np.generic() | jax.Array():
            return _constant(value)
        case enum.Enum() | None | bool() | int() | float() | complex() | str():
            return str(value)
    # What else there is, such as a function, by its name, without its address.
    return re.sub(r"0x[0-9a-fA-F]+", "", f"{type(value).__qualname__} {value}")


def _hash(*parts: str | bytes) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        digest.update(f"{len(content)}:".encode())
        digest.update(content)
    return digest.hexdigest()

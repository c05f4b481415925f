"""What all conversions share: checks of names, shapes and types, and blocks of gates.

Shapes: D input features, H hidden units, G gates. Here gates are blocks of the last
axis: i, f, g, o of `lstm`; r, z, n of `gru`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from lstm_jax.cells import Params
from lstm_jax.errors import UserError

Weights = dict[str, Any]

GATES = {"lstm": 4, "gru": 3, "gru(reset_after=False)": 3, "simple_rnn": 1}


def check_cell(cell: str, has: Sequence[str], library: str) -> None:
    """Refuses a cell that is unknown, or that the library lacks.

    Raises:
      UserError: it does.
    """
    if cell not in GATES:
        raise UserError(f"no conversion of the cell {cell!r}: {', '.join(GATES)} have")
    if cell not in has:
        raise UserError(f"{library} has no {cell}: it has {', '.join(has)}")


def check_names(weights: Any) -> None:
    """Refuses what is no dict by names.

    Raises:
      UserError: it is none.
    """
    if not isinstance(weights, Mapping):
        kind = type(weights).__name__
        raise UserError(f"weights are a dict of arrays by their names, not {kind}")
    for name in weights:
        if not isinstance(name, str):
            raise UserError(f"weights are named by strings, and {name!r} is none")


def listed(names: Iterable[str]) -> str:
    """Names for a message."""
    return ", ".join(names) or "nothing"


def params_shapes(cell: str, features: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a cell's parameters here, by name."""
    width = GATES[cell] * hidden
    shapes = {
        "kernel": (features, width),
        "recurrent_kernel": (hidden, width),
        "bias": (width,),
    }
    return shapes | ({"recurrent_bias": (width,)} if cell == "gru" else {})


def own_params(params: Mapping[str, Any], cell: str) -> Params:
    """Copies of a cell's parameters, checked.

    Raises:
      UserError: they are not this cell's.
    """
    arrays = copied(params)
    features, hidden = (
        size(arrays, name, 0) for name in ("kernel", "recurrent_kernel")
    )
    check(arrays, params_shapes(cell, features, hidden), f"of {cell}")
    return arrays


def copied(arrays: Mapping[str, Any]) -> Weights:
    """Copies as NumPy's arrays; jax's stay jax's, which may be traced.

    Raises:
      UserError: what is there is no array.
    """
    check_names(arrays)
    return {name: _copied(name, array) for name, array in arrays.items()}


def _copied(name: str, array: Any) -> Any:
    if hasattr(array, "aval"):
        return array
    try:
        found = np.array(array)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: PyTorch's
        raise UserError(
            f"{name} is no array of numbers that NumPy has: {error}"
        ) from None
    return found


def size(arrays: Weights, name: str, axis: int) -> int:
    """A matrix's size along an axis.

    Raises:
      UserError: there is no such matrix.
    """
    if name not in arrays:
        raise UserError(f"there is no {name} among {listed(arrays)}")
    if arrays[name].ndim != 2:
        raise UserError(f"{name} is {list(arrays[name].shape)}: it must be a matrix")
    return arrays[name].shape[axis]


def check(arrays: Weights, shapes: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Refuses anything but floating-point arrays of one type by these names and shapes.

    Args:
      arrays: what was given.
      shapes: what must be given.
      what: whose arrays these are, for the message.

    Raises:
      UserError: a name is missing or unknown, or a shape or a type does not fit.
    """
    for name in arrays:
        if name not in shapes:
            raise UserError(
                f"{name} is not known {what}, which has {', '.join(shapes)}"
            )
    types = {}
    for name, shape in shapes.items():
        if name not in arrays:
            raise UserError(f"there is no {name} {what} among {listed(arrays)}")
        array = arrays[name]
        if array.shape != shape:
            raise UserError(
                f"{name} is {list(array.shape)} where {what} and its other sizes "
                f"{list(shape)} is meant"
            )
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise UserError(f"{name} is {array.dtype}: weights are floating-point")
        types[str(array.dtype)] = name
    if len(types) > 1:
        both = " and ".join(f"{name} is {dtype}" for dtype, name in types.items())
        raise UserError(f"{both}: weights must be of one type")


def blocks(array: Any, count: int) -> list[Any]:
    """The blocks of the last axis, a gate each."""
    return array.__array_namespace__().split(array, count, axis=-1)


def join(parts: Sequence[Any], axis: int = -1) -> Any:
    """The arrays one after the other along an axis."""
    return parts[0].__array_namespace__().concat(parts, axis=axis)


def reordered(array: Any, order: Sequence[int]) -> Any:
    """The blocks of the last axis in another order."""
    parts = blocks(array, len(order))
    return join([parts[i] for i in order])


def flat(tree: Mapping[str, Any], path: str = "") -> Weights:
    """The arrays of a tree of dicts by their path; a flat dict stays as it is.

    Raises:
      UserError: it is no dict, or has a name that is no string.
    """
    check_names(tree)
    found: Weights = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{path}{name}/")
        else:
            found[f"{path}{name}"] = value
    return found

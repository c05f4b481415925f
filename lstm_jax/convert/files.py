"""Weights in safetensors files, and all layers of a file at once.

A file's names are paths, with "/" between their parts, but for PyTorch's own. Here they
are those of `lstm_jax.layers.Stack`: "layer_0/cell/kernel", of a bidirectional one
"layer_0/forward/cell/kernel".
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from lstm_jax.cells import Params
from lstm_jax.convert import flax, keras, tf1, torch
from lstm_jax.convert.stacks import placed, stacked, unstacked
from lstm_jax.convert.weights import Weights, flat, listed, own_params
from lstm_jax.errors import UserError


class Layout(NamedTuple):
    """How one layer's one direction is written in a library whose names are paths.

    Attributes:
      take: from its arrays to a cell's parameters.
      give: the way back.
      key: by cell, the name that shows where its arrays are.
    """

    take: Callable[[Mapping[str, Any], str], Params]
    give: Callable[[Mapping[str, Any], str], Params]
    key: Mapping[str, str]


LAYOUTS = {
    "lstm_jax": Layout(own_params, own_params, dict.fromkeys(keras.CELLS, keras.KEY)),
    "keras": Layout(
        keras.from_keras, keras.to_keras, dict.fromkeys(keras.CELLS, keras.KEY)
    ),
    "flax": Layout(flax.from_flax, flax.to_flax, flax.KEYS),
    "tf1": Layout(tf1.from_tf1, tf1.to_tf1, tf1.KEYS),
}
LIBRARIES = ("torch", *LAYOUTS)


def take_stack(
    tree: Mapping[str, Any],
    library: str,
    cell: str,
    prefixes: Sequence[str] = (),
    bidirectional: bool = False,
    forget_bias: float = 1.0,
) -> Params:
    """Parameters of `lstm_jax.layers.Stack` from a file's arrays.

    Args:
      tree: the arrays, as `lstm_jax.weights.load_weights` gives them.
      library: whose names they have: one of `LIBRARIES`.
      cell: of all layers.
      prefixes: where each layer's arrays are, from the first layer to the last, of a
        bidirectional one forward and backward; of PyTorch the one prefix of all, which
        may be the one of this package as well. They may be left out where there is no
        choice.
      bidirectional: whether the prefixes are of layers in both directions.
      forget_bias: that TensorFlow 1's LSTM adds.

    Raises:
      UserError: arrays that are not those of such layers, or several choices.
    """
    arrays = flat(tree)
    if library == "torch" and len(prefixes) > 1:
        raise UserError(
            f"{len(prefixes)} prefixes: of torch give one, that of the whole module"
        )
    if library == "lstm_jax" and len(prefixes) == 1:
        arrays = _under(arrays, *prefixes)
        prefixes = ()
    if bidirectional and (library == "torch" or not prefixes):
        raise UserError(
            "bidirectional is said of the prefixes of single cells: leave it out, "
            "here the names tell"
        )
    if library == "torch":
        return torch.from_torch(arrays, cell, *prefixes)
    layout = LAYOUTS[library]
    if not prefixes:
        prefixes = _find(arrays, layout.key.get(cell, keras.KEY))
        bidirectional = prefixes[0].endswith("/forward/cell")
    if bidirectional and len(prefixes) % 2:
        raise UserError(
            f"{len(prefixes)} prefixes: each layer in both directions has two"
        )
    take = layout.take
    if library == "tf1":
        take = functools.partial(tf1.from_tf1, forget_bias=forget_bias)
    cells = []
    for prefix in prefixes:
        try:
            cells.append(take(_under(arrays, prefix), cell))
        except UserError as error:
            raise UserError(f"{prefix}: {error}" if prefix else str(error)) from None
    return stacked(cells, bidirectional)


def give_stack(
    params: Mapping[str, Any], library: str, cell: str, forget_bias: float = 1.0
) -> Params:
    """A library's arrays from parameters of `lstm_jax.layers.Stack`.

    Args:
      params: of the stack.
      library: one of `LIBRARIES`. But for PyTorch's, the layers have the names they
        have here.
      cell: of all layers.
      forget_bias: that TensorFlow 1's LSTM is made with.

    Raises:
      UserError: parameters that are not those of such layers, or that the library
        cannot have.
    """
    if library == "torch":
        return torch.to_torch(params, cell)
    cells, bidirectional = unstacked(params)
    give = LAYOUTS[library].give
    if library == "tf1":
        give = functools.partial(tf1.to_tf1, forget_bias=forget_bias)
    return placed([give(own, cell) for own in cells], bidirectional)


def _under(arrays: Weights, prefix: str = "") -> Weights:
    """The arrays in a folder, by the rest of their names."""
    start = f"{prefix.rstrip('/')}/" if prefix else ""
    return {
        name.removeprefix(start): array
        for name, array in arrays.items()
        if name.startswith(start)
    }


def _find(arrays: Weights, key: str) -> list[str]:
    """Where the cells are: one, or those that have the names of a stack's.

    Raises:
      UserError: none, or several.
    """
    found = [
        name.removesuffix(key).rstrip("/")
        for name in arrays
        if f"/{name}".endswith(f"/{key}")
    ]
    if not found:
        raise UserError(f"no cell: there is no {key} among {listed(arrays)}")
    paths = [
        f"layer_{i}/{direction}cell"
        for i in range(len(found))
        for direction in ("", "forward/", "backward/")
    ]
    if len(found) == 1 or set(found) <= set(paths):
        return sorted(found, key=paths.index) if found[0] in paths else found
    raise UserError(
        f"{len(found)} cells with a {key}: choose by their prefixes, in the order of "
        f"the layers, of {', '.join(found)}"
    )

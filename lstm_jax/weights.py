"""Parameters as one safetensors file: named arrays, and nothing that is executed.

An array's name is its place in the nested dict, joined by "/": "head/kernel".
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from jaxtyping import PyTree

from lstm_jax.cells import Params
from lstm_jax.errors import UserError
from lstm_jax.reporting import write_file

_SEPARATOR = "/"


def save_weights(params: Params, path: str | Path) -> None:
    """Writes a nested dict of arrays; `load_weights` gives back the same bits.

    Args:
      params: the dict; no dict in it is empty, and no name has a "/".
      path: of the file, which is replaced if there is one.

    Raises:
      ValueError: params are no such dict.
      UserError: the file cannot be written.
    """
    named = named_leaves(params)
    if jax.tree.structure(_nested(named)) != jax.tree.structure(params):
        raise ValueError(
            "params must be a nested dict of arrays, no dict in it empty and no name "
            f'with a "{_SEPARATOR}"'
        )
    # Contiguous: the library writes memory as it lies.
    arrays = {name: np.array(array, order="C") for name, array in named.items()}
    try:
        write_file(path, safetensors.numpy.save(arrays))
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror})") from None


def load_weights(path: str | Path) -> Params:
    """Reads a safetensors file into a nested dict of NumPy's arrays.

    Raises:
      UserError: there is no such file, or it is damaged or of another kind.
    """
    if not Path(path).is_file():
        raise UserError(f"no file {path}: name a .safetensors file")
    try:
        return _nested(safetensors.numpy.load_file(path))
    except Exception as error:  # whatever a stranger's bytes make the library raise
        raise UserError(
            f"{path} is no safetensors file of weights, or damaged ({error}); a "
            "PyTorch model writes one by "
            "safetensors.torch.save_file(model.state_dict(), path)"
        ) from None


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree by their place: keys, fields and numbers joined by "/"."""
    return {
        jax.tree_util.keystr(path, simple=True, separator=_SEPARATOR): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def put_leaves(tree: PyTree, named: Mapping[str, Any]) -> PyTree:
    """The tree with other leaves, by the names that `named_leaves` gives them."""
    leaves = [named[name] for name in named_leaves(tree)]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def _nested(named: dict[str, Any]) -> Params:
    """The nested dict that `named_leaves` makes these names of."""
    tree: Params = {}
    for name, leaf in named.items():
        *above, last = name.split(_SEPARATOR)
        node = tree
        for part in above:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise ValueError(f"{name} is below an array")
        if last in node:
            raise ValueError(f"{name} is an array and has others below it")
        node[last] = leaf
    return tree

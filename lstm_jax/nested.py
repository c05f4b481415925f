"""Trees of arrays by name: of every leaf its place, and nested dicts made of such.

A name is the keys, fields and numbers on the way to a leaf, joined by "/".
"""

from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import PyTree

_SEPARATOR = "/"


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree by name: "head/kernel"."""
    return {
        jax.tree_util.keystr(path, simple=True, separator=_SEPARATOR): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def put_leaves(tree: PyTree, named: Mapping[str, Any]) -> PyTree:
    """The tree with other leaves, by the names that `named_leaves` gives them."""
    leaves = [named[name] for name in named_leaves(tree)]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def nested(named: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dict that `named_leaves` makes these names of.

    Raises:
      ValueError: no dict has such names, as "a" beside "a/b".
    """
    tree: dict[str, Any] = {}
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


def check_nested(params: PyTree) -> None:
    """Raises a ValueError where files would give back something else than `params`."""
    if jax.tree.structure(nested(named_leaves(params))) != jax.tree.structure(params):
        raise ValueError(
            "params must be a nested dict of arrays, no dict in it empty and no name "
            f'with a "{_SEPARATOR}"'
        )

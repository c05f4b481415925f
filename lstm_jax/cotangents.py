"""Trees of cotangents; those of integers are float0: arrays without content."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.dtypes import float0
from jaxtyping import Array, PyTree


def map_cotangents(function: Callable[..., Array], *trees: PyTree) -> PyTree:
    """Maps over cotangents, those of integers excepted."""
    return jax.tree.map(
        lambda a, *rest: a if a.dtype == float0 else function(a, *rest), *trees
    )


def add(a: PyTree, b: PyTree) -> PyTree:
    """The sum of two trees."""
    return map_cotangents(jnp.add, a, b)


def zero(primal: Any) -> Any:
    """The zero cotangent of an array."""
    if jnp.issubdtype(primal.dtype, jnp.inexact):
        return jnp.zeros(primal.shape, primal.dtype)
    return np.zeros(primal.shape, float0)


def drop_zeros(tree: PyTree) -> PyTree:
    """None in place of each symbolic zero: the cotangent of what nothing read."""
    return jax.tree.map(lambda a: None if isinstance(a, SymbolicZero) else a, tree)


def fill_zeros(tree: PyTree, primals: PyTree) -> PyTree:
    """Zeros again in place of None, shaped as the primals are."""

    def fill(cotangent: Any, primal: Any) -> Any:
        return zero(primal) if cotangent is None and primal is not None else cotangent

    return jax.tree.map(fill, tree, primals, is_leaf=lambda a: a is None)

"""Flax modules with random parameters, and inputs for them."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

BATCH, TIME, INPUT, HIDDEN = 4, 6, 3, 5
LENGTHS = jnp.array([TIME, 0, 1, 4])


def draw_like(tree: Any, seed: int) -> Any:
    """Normal draws: the zeros that `init` and carries begin with hide mistakes."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape), leaf.dtype), tree
    )


def draw_params(module: nn.Module, *inputs: Any) -> Any:
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return draw_like(shapes["params"], seed=0)


def draw_inputs(seed: int = 1) -> Float[Array, "B T D"]:
    # NumPy's draws: each operation of JAX would be compiled on its own.
    shape = (BATCH, TIME, INPUT)
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def draw_ids(size: int = 11) -> Int[Array, "B T"]:
    ids = np.random.default_rng(2).integers(0, size, (BATCH, TIME))
    return jnp.asarray(ids, jnp.int32)


def assert_close(got: Any, want: Any, atol: float = 1e-5) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)

"""Flax modules with random parameters, inputs for them, and what they must give."""

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


def rnn_outputs(
    layer: Any, xs: Any, lengths: Any = None, activation: Any = np.tanh
) -> Float[np.ndarray, "B T Y"]:
    """The outputs of a layer of simple cells, one or two directions; 0 if masked."""
    xs = np.asarray(xs, np.float64)
    lengths = [xs.shape[1]] * len(xs) if lengths is None else lengths.tolist()
    parts = []
    for direction in ("forward", "backward") if "forward" in layer else ("",):
        cell = jax.tree.map(np.asarray, (layer[direction] if direction else layer))
        kernel, recurrent, bias = (
            cell["cell"][name] for name in ("kernel", "recurrent_kernel", "bias")
        )
        ys = np.zeros((*xs.shape[:2], len(recurrent)))
        for row, length in enumerate(lengths):
            h = np.zeros(len(recurrent))
            steps = range(length)
            for t in reversed(steps) if direction == "backward" else steps:
                h = ys[row, t] = activation(xs[row, t] @ kernel + h @ recurrent + bias)
        parts.append(ys)
    return np.concatenate(parts, -1)


def head(params: Any, last: Any) -> Float[np.ndarray, "B C"]:
    kernel, bias = params["head"]["kernel"], params["head"]["bias"]
    return np.asarray(last) @ np.asarray(kernel) + np.asarray(bias)


def draws(module: nn.Module, params: Any, inputs: Array) -> Any:
    """The logits of a training step, and what every module in it gave."""

    @jax.jit  # one compilation, not one of each operation
    def run(params: Any, inputs: Array) -> Any:
        return module.apply(
            {"params": params},
            inputs,
            deterministic=False,
            rngs={"dropout": jax.random.key(0)},
            capture_intermediates=True,
            mutable="intermediates",
        )

    logits, seen = run(params, inputs)
    return logits, seen["intermediates"]


def dropped_of(seen: Any) -> list[Array]:
    """What the dropouts gave, in their order."""
    names = sorted(name for name in seen if name.startswith("Dropout_"))
    return [seen[name]["__call__"][0] for name in names]

"""Ways to run `unroll` and compare it with its loop."""

import contextlib
import functools
from typing import Any

import jax
import numpy as np
from jaxtyping import Array
from schedules import scheduled

import lstm_jax as lj
from lstm_jax.lab.python_loop import effective_resets, python_unroll, weighted_sum
from lstm_jax.schedule import Schedule

__all__ = [
    "assert_close",
    "assert_same_bits",
    "effective_resets",
    "outputs_and_gradients",
    "python_unroll",
    "weighted_sum",
]


@functools.partial(
    jax.jit,
    static_argnames=("cell", "schedule", "implementation", "reverse", "return_carries"),
)
def outputs_and_gradients(
    cell: lj.Cell,
    params: Any,
    xs: Array,
    carry: Any = None,
    schedule: Schedule | None = None,
    **options: Any,
) -> tuple[Any, Any]:
    """Returns what `unroll` returns, and gradients by params, xs and carry.

    Given a schedule, the fused path has it.
    """

    def loss(params: Any, xs: Array, carry: Any) -> tuple[Array, Any]:
        with scheduled(schedule) if schedule else contextlib.nullcontext():
            outputs = lj.unroll(cell, params, xs, carry, **options)
        return weighted_sum(outputs), outputs

    gradients, outputs = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(
        params, xs, carry
    )
    return outputs, gradients


def assert_close(actual: Any, expected: Any, tolerance: float = 1e-9) -> None:
    """Trees are equal up to `tolerance`, relative and absolute; NaN equals nothing."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    paths = jax.tree_util.tree_leaves_with_path(actual)
    for (path, a), b in zip(paths, jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype, jax.tree_util.keystr(path)
        np.testing.assert_allclose(
            a,
            b,
            rtol=tolerance,
            atol=tolerance,
            equal_nan=False,
            err_msg=jax.tree_util.keystr(path),
        )


def assert_same_bits(actual: Any, expected: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    paths = jax.tree_util.tree_leaves_with_path(actual)
    for (path, a), b in zip(paths, jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype, jax.tree_util.keystr(path)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), jax.tree_util.keystr(
            path
        )

"""Resets: boundaries in a sequence that the carry does not cross."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from example_cells import CELLS, INPUT, RUNS, random_carry, random_params
from reference import (
    assert_close,
    assert_same_bits,
    effective_resets,
    outputs_and_gradients,
    python_unroll,
    weighted_sum,
)

import lstm_jax as lj

pytestmark = pytest.mark.usefixtures("strict", "x64")

BATCH, TIME = 4, 7
WITH_LEARNED = [*RUNS, ("learned_initial", "autodiff"), ("learned_initial", "fused")]


def random_inputs() -> Any:
    return jax.random.normal(jax.random.key(2), (BATCH, TIME, INPUT))


def at(*steps: int) -> Any:
    """Resets of every row at these steps."""
    return jnp.zeros((BATCH, TIME), bool).at[:, jnp.array(steps)].set(True)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("name", "implementation"), WITH_LEARNED)
def test_equals_splitting_the_sequence(
    name: str, implementation: str, reverse: bool
) -> None:
    cell = CELLS[name]
    params = random_params(cell)
    carry = random_carry(cell, params, BATCH)
    xs = random_inputs()
    boundaries = (2, 5)

    def split(params: Any, xs: Any, carry: Any) -> Any:
        """The pieces on their own; only the first in running order sees `carry`."""
        run = functools.partial(python_unroll, cell, params, reverse=reverse)
        pieces = [xs[:, :2], xs[:, 2:5], xs[:, 5:]]
        starts = [carry, None, None]
        outputs = [
            run(piece, start)
            for piece, start in zip(
                pieces, reversed(starts) if reverse else starts, strict=True
            )
        ]
        final = outputs[0 if reverse else -1][0]
        ys = jnp.concatenate([ys for _, ys, _ in outputs], axis=1)
        return weighted_sum((final, ys)), (final, ys)

    expected_gradients, expected = jax.grad(split, argnums=(0, 1, 2), has_aux=True)(
        params, xs, carry
    )
    outputs, gradients = outputs_and_gradients(
        cell,
        params,
        xs,
        carry,
        resets=at(*boundaries),
        reverse=reverse,
        implementation=implementation,
    )
    assert_close(outputs, expected)
    assert_close(gradients, expected_gradients)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("name", "implementation"), WITH_LEARNED)
def test_random_masks_and_resets(name: str, implementation: str, reverse: bool) -> None:
    cell = CELLS[name]
    params = random_params(cell)
    carry = random_carry(cell, params, BATCH)
    xs = random_inputs()
    run = jax.jit(
        lambda mask, resets: lj.unroll(
            cell,
            params,
            xs,
            carry,
            mask=mask,
            resets=resets,
            reverse=reverse,
            return_carries=True,
            implementation=implementation,
        )
    )
    rng = np.random.default_rng(0)
    for probability in (0.2, 0.5, 0.8):
        for _ in range(3):
            mask = rng.random((BATCH, TIME)) < probability
            resets = rng.random((BATCH, TIME)) < 0.4
            expected = python_unroll(
                cell, params, xs, carry, valid=mask, resets=resets, reverse=reverse
            )
            actual = run(jnp.asarray(mask), jnp.asarray(resets))
            assert_close(actual, expected)


def test_reference_of_waiting_resets() -> None:
    """The rule itself, on a row that can be read."""
    valid = np.array([[0, 1, 0, 0, 1, 1, 0]], bool)
    resets = np.array([[1, 0, 0, 1, 0, 0, 1]], bool)
    forward = effective_resets(valid, resets, reverse=False)
    np.testing.assert_array_equal(forward, [[0, 1, 0, 0, 1, 0, 0]])
    backward = effective_resets(valid, resets, reverse=True)
    np.testing.assert_array_equal(backward, [[0, 1, 0, 0, 0, 1, 0]])


@pytest.mark.parametrize("implementation", ["autodiff", "fused"])
@pytest.mark.parametrize(
    ("reverse", "reset", "masked", "same_as"),
    [
        (False, 2, (2, 3), 4),  # waits over both masked steps
        (True, 4, (2, 3), 2),  # stands before step 3, waits for step 1
        (False, 5, (5, 6), None),  # no valid step is left
        (True, 2, (0, 1), None),
        (True, 0, (), None),  # nothing runs after step 0
    ],
)
def test_reset_waits_for_the_next_valid_step(
    reverse: bool,
    reset: int,
    masked: tuple[int, ...],
    same_as: int | None,
    implementation: str,
) -> None:
    cell = CELLS["learned_initial"]
    params = random_params(cell)
    carry = random_carry(cell, params, BATCH)
    mask = jnp.ones((BATCH, TIME), bool).at[:, np.array(masked, int)].set(False)
    run = functools.partial(
        outputs_and_gradients,
        cell,
        params,
        random_inputs(),
        carry,
        mask=mask,
        reverse=reverse,
        return_carries=True,
        implementation=implementation,
    )
    none = run(resets=jnp.zeros((BATCH, TIME), bool))
    actual = run(resets=at(reset))
    if same_as is None:
        assert_same_bits(actual, none)
    else:
        assert_same_bits(actual, run(resets=at(same_as)))
        assert float(jnp.min(jnp.abs(actual[0][0].h - none[0][0].h))) > 1e-9


@pytest.mark.parametrize(("reverse", "first"), [(False, 0), (True, TIME - 1)])
@pytest.mark.parametrize(("name", "implementation"), WITH_LEARNED)
def test_reset_goes_to_initial_carry_not_to_the_argument(
    name: str, implementation: str, reverse: bool, first: int
) -> None:
    cell = CELLS[name]
    params = random_params(cell)
    run = functools.partial(
        outputs_and_gradients,
        cell,
        params,
        random_inputs(),
        reverse=reverse,
        implementation=implementation,
        # Reversed, the boundary before step 5 stands at 6: step 6 sees the argument.
        mask=jnp.ones((BATCH, TIME), bool).at[:, TIME - 1].set(not reverse),
        resets=at(first),
    )
    carry = random_carry(cell, params, BATCH)
    outputs, (gradient, dxs, dcarry) = run(carry)
    unaware, (same_gradient, same_dxs, _) = run(
        random_carry(cell, params, BATCH, seed=9)
    )
    assert_same_bits((outputs, gradient, dxs), (unaware, same_gradient, same_dxs))
    for leaf in jax.tree.leaves(dcarry):
        assert np.all(np.asarray(leaf) == 0)
    expected, (expected_gradient, *_) = run(cell.initial_carry(params, BATCH))
    assert_same_bits(outputs, expected)
    if name == "learned_initial":
        for leaf in jax.tree.leaves(gradient["initial"]):
            assert np.all(np.abs(np.asarray(leaf)) > 1e-9)
        assert_close(gradient, expected_gradient)

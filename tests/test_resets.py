"""Resets: boundaries in a sequence that the carry does not cross."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from example_cells import (
    CELLS,
    MARKED_RUNS,
    MORE_RUNS,
    RUNS,
    random_carry,
    random_params,
    random_xs,
)
from reference import (
    assert_close,
    assert_same_bits,
    effective_resets,
    outputs_and_gradients,
    python_unroll,
    weighted_sum,
)

pytestmark = pytest.mark.usefixtures("strict", "x64")

BATCH, TIME = 4, 7


def everywhere_but(*steps: int) -> Any:
    return jnp.ones((BATCH, TIME), bool).at[:, np.array(steps, int)].set(False)


def only_at(*steps: int) -> Any:
    return ~everywhere_but(*steps)


@pytest.mark.parametrize(("name", "implementation", "reverse"), MARKED_RUNS)
def test_equals_splitting_the_sequence(
    name: str, implementation: str, reverse: bool
) -> None:
    cell = CELLS[name]
    params = random_params(cell)
    carry = random_carry(cell, params, BATCH)
    xs = random_xs(BATCH, TIME)

    def split(params: Any, xs: Any, carry: Any) -> Any:
        """The pieces on their own; only the first in running order sees `carry`."""
        pieces = [slice(2), slice(2, 5), slice(5, None)]
        starts = [None, None, carry] if reverse else [carry, None, None]
        outputs = [
            python_unroll(cell, params, xs, start, reverse=reverse, steps=piece)
            for piece, start in zip(pieces, starts, strict=True)
        ]
        final = outputs[0 if reverse else -1][0]
        ys, carries = (
            jax.tree.map(lambda *a: jnp.concatenate(a, axis=1), *parts)
            for parts in list(zip(*outputs, strict=True))[1:]
        )
        return weighted_sum((final, ys, carries)), (final, ys, carries)

    expected_gradients, expected = jax.grad(split, argnums=(0, 1, 2), has_aux=True)(
        params, xs, carry
    )
    outputs, gradients = outputs_and_gradients(
        cell,
        params,
        xs,
        carry,
        mask=everywhere_but(),
        resets=only_at(2, 5),
        implementation=implementation,
        reverse=reverse,
        return_carries=True,
    )
    assert_close(outputs, expected)
    assert_close(gradients, expected_gradients)


@pytest.mark.parametrize(("name", "implementation", "reverse"), MARKED_RUNS)
def test_random_masks_and_resets(name: str, implementation: str, reverse: bool) -> None:
    cell = CELLS[name]
    params = random_params(cell)
    carry = random_carry(cell, params, BATCH)
    xs = random_xs(BATCH, TIME)
    rng = np.random.default_rng(0)
    for probability in (0.3, 0.5, 0.8):
        mask = rng.random((BATCH, TIME)) < probability
        resets = rng.random((BATCH, TIME)) < 0.4
        actual, _ = outputs_and_gradients(
            cell,
            params,
            xs,
            carry,
            mask=jnp.asarray(mask),
            resets=jnp.asarray(resets),
            implementation=implementation,
            reverse=reverse,
            return_carries=True,
        )
        expected = python_unroll(
            cell, params, xs, carry, valid=mask, resets=resets, reverse=reverse
        )
        assert_close(actual, expected)


def test_reference_of_waiting_resets() -> None:
    """The rule itself, on a row that can be read."""
    valid = np.array([[0, 1, 0, 0, 1, 1, 0]], bool)
    resets = np.array([[1, 0, 0, 1, 0, 0, 1]], bool)
    forward = effective_resets(valid, resets, reverse=False)
    np.testing.assert_array_equal(forward, [[0, 1, 0, 0, 1, 0, 0]])
    backward = effective_resets(valid, resets, reverse=True)
    np.testing.assert_array_equal(backward, [[0, 1, 0, 0, 0, 1, 0]])


@pytest.mark.parametrize(
    ("name", "implementation", "reverse", "reset", "masked", "same_as"),
    [
        (name, implementation, reverse, *case)
        for name, implementation, reverse in RUNS + MORE_RUNS
        if name in ("lstm", "gru")
        for case in (
            [
                (4, (2, 3), 2),  # stands before step 3, waits for step 1
                (2, (0, 1), None),  # no valid step is left
                (0, (), None),  # nothing runs after step 0
            ]
            if reverse
            else [(2, (2, 3), 4), (5, (5, 6), None)]
        )
    ],
)
def test_reset_waits_for_the_next_valid_step(
    name: str,
    implementation: str,
    reverse: bool,
    reset: int,
    masked: tuple[int, ...],
    same_as: int | None,
) -> None:
    cell = CELLS[name]
    params = random_params(cell)
    run = functools.partial(
        outputs_and_gradients,
        cell,
        params,
        random_xs(BATCH, TIME),
        random_carry(cell, params, BATCH),
        mask=everywhere_but(*masked),
        implementation=implementation,
        reverse=reverse,
        return_carries=True,
    )
    no_reset = run(resets=only_at())
    actual = run(resets=only_at(reset))
    if same_as is None:
        assert_same_bits(actual, no_reset)
    else:
        assert_same_bits(actual, run(resets=only_at(same_as)))
        assert float(jnp.min(jnp.abs(actual[0][0].h - no_reset[0][0].h))) > 1e-9


@pytest.mark.parametrize(("name", "implementation", "reverse"), MARKED_RUNS)
def test_reset_goes_to_initial_carry_not_to_the_argument(
    name: str, implementation: str, reverse: bool
) -> None:
    cell = CELLS[name]
    params = random_params(cell)
    run = functools.partial(
        outputs_and_gradients,
        cell,
        params,
        random_xs(BATCH, TIME),
        # Reversed, no boundary stands before the last step: it is masked.
        mask=everywhere_but(TIME - 1),
        resets=only_at(TIME - 1 if reverse else 0),
        implementation=implementation,
        reverse=reverse,
        return_carries=True,
    )
    given = random_carry(cell, params, BATCH)
    (carry, ys, carries), (dparams, dxs, dcarry) = run(given)
    (same_carry, same_ys, _), _ = run(cell.initial_carry(params, BATCH))
    assert_same_bits((carry, ys), (same_carry, same_ys))
    _, (same_dparams, same_dxs, _) = run(random_carry(cell, params, BATCH, seed=9))
    assert_same_bits((dparams, dxs), (same_dparams, same_dxs))
    for leaf in jax.tree.leaves(dparams.get("initial", ())):
        assert np.all(np.abs(np.asarray(leaf)) > 1e-9)

    def as_returned(given: Any) -> Any:
        """The argument is the carry "after" the masked last step, and no other."""
        last = TIME - 1
        seen = jax.tree.map(lambda a, b: a.at[:, last].set(b), carries, given)
        return weighted_sum((carry, ys, seen if reverse else carries))

    assert_same_bits(dcarry, jax.grad(as_returned)(given))

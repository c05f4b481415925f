"""Masked steps: past a row's length, or where mask is False."""

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
    outputs_and_gradients,
    python_unroll,
)
from schedules import ROWS_LAST

import lstm_jax as lj
from lstm_jax.schedule import Schedule

pytestmark = pytest.mark.usefixtures("strict", "x64")

BATCH, TIME = 4, 7
LENGTHS = np.array([TIME, 0, 1, 4])
RAGGED = np.arange(TIME) < LENGTHS[:, None]
HOLES = np.array(
    [
        [1, 0, 1, 1, 0, 0, 1],
        [0, 0, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 1, 0],
        [1, 1, 0, 1, 1, 0, 0],
    ],
    bool,
)
NO_RESETS = jnp.zeros((BATCH, TIME), bool)


def random_resets() -> np.ndarray:
    return np.random.default_rng(5).random((BATCH, TIME)) < 0.4


@pytest.mark.parametrize("valid", [RAGGED, HOLES], ids=["ragged", "holes"])
@pytest.mark.parametrize(("name", "implementation", "reverse"), MARKED_RUNS)
def test_masked_steps_keep_the_carry_and_give_zero(
    name: str, implementation: str, reverse: bool, valid: np.ndarray
) -> None:
    cell = CELLS[name]
    params = random_params(cell)
    given = random_carry(cell, params, BATCH)
    xs = random_xs(BATCH, TIME)
    (carry, ys, carries), _ = outputs_and_gradients(
        cell,
        params,
        xs,
        given,
        mask=jnp.asarray(valid),
        resets=NO_RESETS,
        implementation=implementation,
        reverse=reverse,
        return_carries=True,
    )
    expected = python_unroll(cell, params, xs, given, valid=valid, reverse=reverse)
    assert_close((carry, ys, carries), expected)
    assert np.all(np.asarray(ys)[~valid] == 0)
    assert np.all(np.asarray(ys)[valid] != 0)
    # The final carry is that of the last valid step in running order, bit for bit.
    for row in range(BATCH):
        steps = np.flatnonzero(valid[row])
        for got, kept, start in zip(carry, carries, given, strict=True):
            last = start[row]
            if steps.size:
                last = kept[row, steps[0] if reverse else steps[-1]]
            assert_same_bits(got[row], last)


@pytest.mark.parametrize("implementation", ["autodiff", "fused"])
def test_lengths_are_a_mask(implementation: str) -> None:
    cell = CELLS["lstm"]
    run = functools.partial(
        lj.unroll,
        cell,
        random_params(cell),
        random_xs(BATCH, TIME),
        implementation=implementation,
    )
    by_lengths = run(lengths=jnp.asarray(LENGTHS))
    assert_same_bits(by_lengths, run(mask=jnp.asarray(RAGGED)))
    np.testing.assert_array_equal(by_lengths[1][..., 0] != 0, RAGGED)


@pytest.mark.parametrize(
    ("name", "implementation", "reverse", "schedule"),
    [
        *((*run, None) for run in RUNS),
        ("lstm", "fused", True, ROWS_LAST),
        *(pytest.param(*run, None, marks=pytest.mark.slow) for run in MORE_RUNS),
    ],
)
def test_padding_content_changes_no_bit(
    name: str, implementation: str, reverse: bool, schedule: Schedule | None
) -> None:
    cell = CELLS[name]
    params = random_params(cell)
    carry = random_carry(cell, params, BATCH)
    xs = random_xs(BATCH, TIME)
    valid = jnp.asarray(HOLES)[..., None]
    resets = jnp.asarray(random_resets())

    def run(padding: Any) -> Any:
        return outputs_and_gradients(
            cell,
            params,
            jnp.where(valid, xs, padding),
            carry,
            schedule,
            mask=jnp.asarray(HOLES),
            resets=resets,
            implementation=implementation,
            reverse=reverse,
            return_carries=True,
        )

    expected = run(0.0)
    assert all(bool(jnp.all(jnp.isfinite(a))) for a in jax.tree.leaves(expected))
    gradient = np.asarray(expected[1][1])
    assert np.all(gradient[~HOLES] == 0)
    assert np.all(gradient[HOLES] != 0)
    mixed = np.resize([np.nan, np.inf, -np.inf, 1e300, 3.0], xs.shape)
    for padding in (jnp.nan, jnp.inf, jnp.asarray(mixed)):
        assert_same_bits(run(padding), expected)


@pytest.mark.parametrize(
    ("name", "implementation", "reverse"),
    [("lstm", "fused", True), ("gru_before", "autodiff", False)],
)
def test_amount_of_padding_changes_rounding_only(
    name: str, implementation: str, reverse: bool
) -> None:
    cell = CELLS[name]
    params = random_params(cell)
    carry = random_carry(cell, params, BATCH)

    def run(amount: int) -> Any:
        pad = ((0, 0), (0, amount))
        xs = jnp.pad(random_xs(BATCH, TIME), (*pad, (0, 0)), constant_values=jnp.nan)
        (final, ys), (dparams, dxs, _) = outputs_and_gradients(
            cell,
            params,
            xs,
            carry,
            mask=jnp.asarray(np.pad(HOLES, pad)),
            resets=jnp.asarray(np.pad(random_resets(), pad)),
            implementation=implementation,
            reverse=reverse,
        )
        for padded in (ys, dxs):
            assert np.all(np.asarray(padded[:, TIME:]) == 0)
        return final, ys[:, :TIME], dparams, dxs[:, :TIME]

    assert_close(run(16), run(0), 1e-12)


@pytest.mark.parametrize(("name", "implementation", "reverse"), MARKED_RUNS)
def test_deleting_masked_steps_changes_nothing(
    name: str, implementation: str, reverse: bool
) -> None:
    cell = CELLS[name]
    params = random_params(cell)
    xs = random_xs(BATCH, TIME)
    carry = random_carry(cell, params, BATCH)
    kept = np.array([1, 2, 4, 6])
    mask = np.zeros((BATCH, TIME), bool)
    mask[:, kept] = True
    resets = random_resets()
    assert resets[:, [3, 5]].any()
    # A boundary is a place between steps: when the steps on its right are deleted, it
    # stands before the next one that is kept.
    moved = np.zeros((BATCH, len(kept)), bool)
    for row, t in zip(*np.nonzero(resets), strict=True):
        moved[row, np.searchsorted(kept, t)] = True

    (final, ys, carries), _ = outputs_and_gradients(
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
    short = python_unroll(
        cell, params, xs[:, kept], carry, resets=moved, reverse=reverse
    )
    assert_close((final, ys[:, kept], carries[0][:, kept]), (*short[:2], short[2][0]))
    assert np.all(np.asarray(ys)[~mask] == 0)

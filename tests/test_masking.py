"""Masked steps: past a row's length, or where mask is False."""

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
    outputs_and_gradients,
    python_unroll,
    weighted_sum,
)

import lstm_jax as lj

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
WITH_INVENTED = [
    *RUNS,
    *[(name, way) for name in ("memory", "layer_norm") for way in ("autodiff", "fused")],
]


def random_inputs() -> Any:
    return jax.random.normal(jax.random.key(2), (BATCH, TIME, INPUT))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("valid", [RAGGED, HOLES], ids=["ragged", "holes"])
@pytest.mark.parametrize(("name", "implementation"), RUNS)
def test_masked_steps_keep_the_carry_and_give_zero(
    name: str, implementation: str, valid: np.ndarray, reverse: bool
) -> None:
    cell = CELLS[name]
    params = random_params(cell)
    given = random_carry(cell, params, BATCH)
    xs = random_inputs()
    run = functools.partial(
        jax.jit(
            lambda xs, **options: lj.unroll(
                cell,
                params,
                xs,
                given,
                reverse=reverse,
                return_carries=True,
                implementation=implementation,
                **options,
            )
        ),
        xs,
    )
    carry, ys, carries = run(mask=jnp.asarray(valid))
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
    if valid is RAGGED:
        assert_same_bits(run(lengths=jnp.asarray(LENGTHS)), (carry, ys, carries))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("name", "implementation"), WITH_INVENTED)
def test_padding_content_changes_no_bit(
    name: str, implementation: str, reverse: bool
) -> None:
    cell = CELLS[name]
    params = random_params(cell)
    carry = random_carry(cell, params, BATCH)
    xs = random_inputs()
    valid = jnp.expand_dims(jnp.asarray(HOLES), -1)
    resets = jnp.asarray(np.random.default_rng(3).random((BATCH, TIME)) < 0.3)

    def run(padding: Any) -> Any:
        return outputs_and_gradients(
            cell,
            params,
            jnp.where(valid, xs, padding),
            carry,
            mask=jnp.asarray(HOLES),
            resets=resets,
            reverse=reverse,
            return_carries=True,
            implementation=implementation,
        )

    expected = run(0.0)
    assert all(bool(jnp.all(jnp.isfinite(a))) for a in jax.tree.leaves(expected))
    gradient = np.asarray(expected[1][1])
    assert np.all(gradient[~HOLES] == 0)
    assert np.all(gradient[HOLES] != 0)
    mixed = np.resize([np.nan, np.inf, -np.inf, 1e300, 3.0], xs.shape)
    for padding in (jnp.nan, jnp.inf, jnp.asarray(mixed)):
        assert_same_bits(run(padding), expected)


@pytest.mark.parametrize(("name", "implementation"), RUNS)
def test_amount_of_padding_changes_rounding_only(
    name: str, implementation: str
) -> None:
    cell = CELLS[name]
    params = random_params(cell)
    xs = random_inputs()
    amount = 16
    padded = jnp.pad(xs, ((0, 0), (0, amount), (0, 0)), constant_values=jnp.nan)
    run = functools.partial(
        outputs_and_gradients, cell, params, implementation=implementation
    )
    lengths = jnp.asarray(LENGTHS)
    (carry, ys), (dparams, dxs, _) = run(xs=xs, lengths=lengths)
    # The weights of the loss depend on the shape: weigh the same entries the same.

    def loss(params: Any, xs: Any) -> Any:
        carry, ys = lj.unroll(
            cell, params, xs, lengths=lengths, implementation=implementation
        )
        return weighted_sum((carry, ys[:, :TIME])), (carry, ys)

    gradients, (padded_carry, padded_ys) = jax.jit(
        jax.grad(loss, argnums=(0, 1), has_aux=True)
    )(params, padded)
    assert_close(padded_carry, carry, 1e-12)
    assert_close(padded_ys[:, :TIME], ys, 1e-12)
    assert np.all(np.asarray(padded_ys[:, TIME:]) == 0)
    assert_close((gradients[0], gradients[1][:, :TIME]), (dparams, dxs), 1e-12)
    assert np.all(np.asarray(gradients[1][:, TIME:]) == 0)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("name", "implementation"), RUNS)
def test_deleting_masked_steps_changes_nothing(
    name: str, implementation: str, reverse: bool
) -> None:
    cell = CELLS[name]
    params = random_params(cell)
    xs = random_inputs()
    carry = random_carry(cell, params, BATCH)
    kept = np.array([1, 2, 4, 6])
    mask = np.zeros((BATCH, TIME), bool)
    mask[:, kept] = True
    rng = np.random.default_rng(5)
    resets = rng.random((BATCH, TIME)) < 0.5
    assert resets[:, [3, 5]].any()
    # A boundary is a place between steps: when steps on its right are deleted, it
    # stands before the next step that is kept.
    moved = np.zeros((BATCH, len(kept)), bool)
    for row, t in zip(*np.nonzero(resets), strict=True):
        moved[row, np.searchsorted(kept, t)] = True

    run = jax.jit(
        lambda xs, **options: lj.unroll(
            cell,
            params,
            xs,
            carry,
            reverse=reverse,
            return_carries=True,
            implementation=implementation,
            **options,
        )
    )
    final, ys, carries = run(xs, mask=jnp.asarray(mask), resets=jnp.asarray(resets))
    short = run(xs[:, kept], resets=jnp.asarray(moved))
    compact = jax.tree.map(lambda a: a[:, kept], (ys, carries))
    assert_close((final, *compact), short, 1e-12)
    assert np.all(np.asarray(ys)[~mask] == 0)


@pytest.mark.parametrize("implementation", ["autodiff", "fused"])
def test_trees_of_outputs_are_masked(implementation: str) -> None:
    cell = CELLS["memory"]
    params = random_params(cell)
    carry = random_carry(cell, params, BATCH)
    xs = random_inputs()
    actual = lj.unroll(
        cell,
        params,
        xs,
        carry,
        mask=jnp.asarray(HOLES),
        return_carries=True,
        implementation=implementation,
    )
    assert_close(actual, python_unroll(cell, params, xs, carry, valid=HOLES))
    for leaf in jax.tree.leaves(actual[1]):
        assert np.all(np.asarray(leaf)[~HOLES] == 0)

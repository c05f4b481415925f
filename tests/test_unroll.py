"""unroll is a loop of step: forward, reversed, in pieces, with noise, without steps."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from example_cells import CELLS, HIDDEN, INPUT, RUNS, random_carry, random_params
from reference import (
    assert_close,
    assert_same_bits,
    outputs_and_gradients,
    python_unroll,
    weighted_sum,
)

import lstm_jax as lj

pytestmark = pytest.mark.usefixtures("strict", "x64")

BATCH, TIME = 3, 6


def random_inputs(seed: int = 2) -> Any:
    return jax.random.normal(jax.random.key(seed), (BATCH, TIME, INPUT))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("name", "implementation"), RUNS)
def test_equals_python_loop_of_step(
    name: str, implementation: str, reverse: bool
) -> None:
    cell = CELLS[name]
    params = random_params(cell)
    carry = random_carry(cell, params, BATCH)
    xs = random_inputs()

    def loss(params: Any, xs: Any, carry: Any) -> Any:
        outputs = python_unroll(cell, params, xs, carry, reverse=reverse)
        return weighted_sum(outputs), outputs

    expected, expected_outputs = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(
        params, xs, carry
    )
    outputs, gradients = outputs_and_gradients(
        cell,
        params,
        xs,
        carry,
        implementation=implementation,
        reverse=reverse,
        return_carries=True,
    )
    assert_close(outputs, expected_outputs)
    assert_close(gradients, expected)


@pytest.mark.parametrize("implementation", ["autodiff", "fused", "auto"])
def test_carry_defaults_to_initial_carry(implementation: str) -> None:
    cell = CELLS["learned_initial"]
    params = random_params(cell)
    xs = random_inputs()
    initial = cell.initial_carry(params, BATCH)
    assert float(jnp.min(jnp.abs(initial.h))) > 0
    run = functools.partial(lj.unroll, cell, params, xs, implementation=implementation)
    assert_same_bits(run(), run(initial))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("name", "implementation"), RUNS)
def test_concatenation(name: str, implementation: str, reverse: bool) -> None:
    cell = CELLS[name]
    params = random_params(cell)
    carry = random_carry(cell, params, BATCH)
    rng = np.random.default_rng(3)
    mask = rng.random((BATCH, TIME)) < 0.7
    resets = (rng.random((BATCH, TIME)) < 0.4) & mask
    first = slice(0, 4)
    second = slice(4, TIME)
    # Reversed, a boundary at the seam belongs to neither part.
    resets[:, 4] &= not reverse
    assert resets[:, second].any()

    run = jax.jit(
        lambda carry, xs, mask, resets: lj.unroll(
            cell,
            params,
            xs,
            carry,
            mask=mask,
            resets=resets,
            reverse=reverse,
            implementation=implementation,
        )
    )
    everything = (random_inputs(), jnp.asarray(mask), jnp.asarray(resets))
    parts = [[a[:, part] for a in everything] for part in (first, second)]
    if reverse:
        between, ys_second = run(carry, *parts[1])
        final, ys_first = run(between, *parts[0])
    else:
        between, ys_first = run(carry, *parts[0])
        final, ys_second = run(between, *parts[1])
    assert_close(
        run(carry, *everything),
        (final, jnp.concatenate([ys_first, ys_second], axis=1)),
    )


@pytest.mark.parametrize("implementation", ["autodiff", "fused"])
@pytest.mark.parametrize("with_carry", [False, True])
@pytest.mark.parametrize("name", ["lstm", "memory", "all_noise", "learned_initial"])
def test_no_steps_returns_the_carry(
    name: str, with_carry: bool, implementation: str
) -> None:
    cell = CELLS[name]
    params = random_params(cell)
    initial = cell.initial_carry(params, BATCH)
    given = random_carry(cell, params, BATCH) if with_carry else None
    carry, ys, carries = lj.unroll(
        cell,
        params,
        jnp.zeros((BATCH, 0, INPUT)),
        given,
        lengths=jnp.zeros(BATCH, jnp.int32),
        resets=jnp.zeros((BATCH, 0), bool),
        key=jax.random.key(0),
        return_carries=True,
        implementation=implementation,
    )
    assert_same_bits(carry, initial if given is None else given)
    _, one_y = cell.step(params, initial, jnp.zeros((BATCH, INPUT)))
    empty = jax.tree.map(lambda a: jnp.zeros((BATCH, 0, *a.shape[1:])), one_y)
    assert jax.tree.map(jnp.shape, ys) == jax.tree.map(jnp.shape, empty)
    assert jax.tree.map(jnp.shape, carries) == jax.tree.map(
        lambda a: (BATCH, 0, *a.shape[1:]), carry
    )


@pytest.mark.parametrize("implementation", ["autodiff", "fused"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", ["zoneout", "all_noise"])
def test_noise_is_drawn_once_a_sequence(
    name: str, reverse: bool, implementation: str
) -> None:
    cell = CELLS[name]
    params = random_params(cell)
    xs = random_inputs()
    assert cell.noise is not None
    run = jax.jit(
        functools.partial(
            lj.unroll,
            cell,
            reverse=reverse,
            return_carries=True,
            implementation=implementation,
        )
    )
    draws = []
    for seed in (0, 1):
        key = jax.random.key(seed)
        noise = cell.noise(key, params, BATCH, TIME)
        expected = python_unroll(cell, params, xs, reverse=reverse, noise=noise)
        draws.append(run(params, xs, key=key))
        assert_close(draws[-1], expected)
    difference = jnp.abs(draws[0][1] - draws[1][1])
    assert float(jnp.min(jnp.max(difference, axis=(1, 2)))) > 1e-3


@pytest.mark.parametrize("implementation", ["autodiff", "fused"])
def test_without_a_key_zoneout_takes_its_expectation(implementation: str) -> None:
    cell = CELLS["zoneout"]
    params = random_params(cell)
    carry = random_carry(cell, params, BATCH)
    x = random_inputs()[:, 0]
    plain, _ = CELLS["lstm"].step(params, carry, x)
    expected = jax.tree.map(lambda old, new: 0.3 * old + 0.7 * new, carry, plain)
    actual, ys = lj.unroll(
        cell, params, x[:, None], carry, implementation=implementation
    )
    assert_close(actual, expected)
    assert_close(ys[:, 0], expected.h)


@pytest.mark.parametrize("implementation", ["autodiff", "fused"])
def test_no_gradient_flows_into_noise(implementation: str) -> None:
    def gates(extras: Any, carry: Any, zx: Any, zh: Any, noise: Any) -> Any:
        h = jnp.tanh(zx + zh + noise.step * extras["weight"])
        return lj.HiddenCarry(h), h

    def noise(key: Any, params: Any, batch: int, time: int) -> lj.Noise:
        scale = params["scale"] * params["weight"]
        return lj.Noise(step=scale * jax.random.normal(key, (batch, time, HIDDEN)))

    def init_extra(key: Any, input_size: int) -> Any:
        return {"scale": jnp.ones(()), "weight": jnp.ones(())}

    cell = lj.gated(HIDDEN, 1, gates, noise=noise, init_extra=init_extra)
    params = random_params(cell)
    key, xs = jax.random.key(4), random_inputs()
    _, (gradient, *_) = outputs_and_gradients(
        cell, params, xs, key=key, implementation=implementation
    )
    assert float(gradient["scale"]) == 0
    assert abs(float(gradient["weight"])) > 1e-3

    # The same noise as a constant.
    drawn = noise(key, params, BATCH, TIME)

    def loss(params: Any) -> Any:
        carry, ys, _ = python_unroll(cell, params, xs, noise=drawn)
        return weighted_sum((carry, ys))

    assert_close(gradient, jax.grad(loss)(params))


def test_a_cell_may_bring_its_own_unroll() -> None:
    looped = CELLS["lstm"]
    params = random_params(looped)
    carry = random_carry(looped, params, BATCH)
    given = {}

    def own_unroll(params: Any, xs: Any, carry: Any, **options: Any) -> Any:
        given.update(options)
        return lj.unroll(looped, params, 2 * xs, carry, **options)

    cell = looped._replace(unroll=own_unroll)
    xs = random_inputs()
    lengths = jnp.array([TIME, 2, 0])
    resets = jnp.zeros((BATCH, TIME), bool).at[:, 3].set(True)
    options = {"resets": resets, "reverse": True, "return_carries": True}
    assert_close(
        lj.unroll(cell, params, xs, carry, lengths=lengths, **options),
        lj.unroll(looped, params, 2 * xs, carry, lengths=lengths, **options),
    )
    assert set(given) == {
        "mask",
        "resets",
        "reverse",
        "key",
        "return_carries",
        "implementation",
    }
    np.testing.assert_array_equal(
        given["mask"], np.arange(TIME) < np.array([[TIME], [2], [0]])
    )


@pytest.mark.parametrize("implementation", ["autodiff", "fused"])
def test_one_compilation_a_shape(implementation: str) -> None:
    cell = CELLS["lstm"]
    run = jax.jit(functools.partial(lj.unroll, cell, implementation=implementation))
    for seed in (0, 1):
        params = random_params(cell, seed)
        lengths = jnp.array([seed, TIME, 1])
        run(params, random_inputs(seed), lengths=lengths)
    assert run._cache_size() == 1
    run(params, random_inputs()[:, 1:], lengths=lengths)
    assert run._cache_size() == 2

"""unroll is a loop of step: forward, reversed, in pieces, with noise, without steps."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from example_cells import (
    CELLS,
    HIDDEN,
    INPUT,
    noise_key,
    random_carry,
    random_params,
    random_xs,
)
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


@pytest.mark.parametrize(
    ("name", "implementation", "reverse"),
    [
        ("lstm", "autodiff", True),
        ("gru", "fused", True),
        ("gru_before", "autodiff", False),
        *(
            pytest.param(name, "fused", False, marks=pytest.mark.slow)
            for name in ("lstm", "simple_rnn")
        ),
    ],
)
def test_equals_python_loop_of_step(
    name: str, implementation: str, reverse: bool
) -> None:
    cell = CELLS[name]
    params = random_params(cell)
    carry = random_carry(cell, params, BATCH)
    xs = random_xs(BATCH, TIME)

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
    xs = random_xs(BATCH, TIME)
    initial = cell.initial_carry(params, BATCH)
    assert float(jnp.min(jnp.abs(initial.h))) > 0
    carry, ys = lj.unroll(cell, params, xs, implementation=implementation)
    expected = python_unroll(cell, params, xs, initial)
    assert_close((carry, ys), expected[:2])


@pytest.mark.parametrize(
    ("name", "implementation", "reverse"),
    [
        ("lstm", "autodiff", False),
        ("lstm", "fused", True),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                *(("lstm", "autodiff", True), ("lstm", "fused", False)),
                ("gru_before", "autodiff", True),
            )
        ),
    ],
)
def test_concatenation(name: str, implementation: str, reverse: bool) -> None:
    cell = CELLS[name]
    params = random_params(cell)
    carry = random_carry(cell, params, BATCH)
    rng = np.random.default_rng(3)
    mask = rng.random((BATCH, 2 * TIME)) < 0.7
    resets = rng.random((BATCH, 2 * TIME)) < 0.3
    # A reset that waits does not reach the other part, and reversed, one at the seam
    # belongs to neither.
    if reverse:
        resets[:, 1:] &= mask[:, :-1]
        resets[:, TIME] = False
    else:
        resets &= mask
    assert resets[:, :TIME].any()
    assert resets[:, TIME:].any()
    xs = random_xs(BATCH, 2 * TIME)

    @jax.jit
    def run(carry: Any, xs: Any, mask: Any, resets: Any) -> Any:
        return lj.unroll(
            cell,
            params,
            xs,
            carry,
            mask=mask,
            resets=resets,
            reverse=reverse,
            implementation=implementation,
        )

    first, second = (
        [jnp.asarray(a)[:, part] for a in (xs, mask, resets)]
        for part in (slice(TIME), slice(TIME, None))
    )
    if reverse:
        between, ys_second = run(carry, *second)
        final, ys_first = run(between, *first)
    else:
        between, ys_first = run(carry, *first)
        final, ys_second = run(between, *second)
    whole = run(carry, xs, jnp.asarray(mask), jnp.asarray(resets))
    assert_close(whole, (final, jnp.concatenate([ys_first, ys_second], axis=1)))


@pytest.mark.parametrize("implementation", ["autodiff", "fused"])
@pytest.mark.parametrize(
    ("name", "with_carry"),
    [("memory", False), ("all_noise", True), ("learned_initial", False)],
)
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
        key=noise_key(0),
        return_carries=True,
        implementation=implementation,
    )
    assert_same_bits(carry, initial if given is None else given)

    def no_steps(one: Any) -> Any:
        return jax.tree.map(lambda a: (BATCH, 0, *a.shape[1:]), one)

    one = jax.eval_shape(cell.step, params, initial, jnp.zeros((BATCH, INPUT)))
    assert jax.tree.map(jnp.shape, (carries, ys)) == no_steps(one)


@pytest.mark.parametrize(
    ("name", "implementation", "reverse"),
    [
        ("zoneout", "autodiff", False),
        ("zoneout", "fused", True),
        ("all_noise", "autodiff", True),
        ("all_noise", "fused", False),
    ],
)
def test_noise_is_drawn_once_a_sequence(
    name: str, implementation: str, reverse: bool
) -> None:
    cell = CELLS[name]
    params = random_params(cell)
    xs = random_xs(BATCH, TIME)
    run = jax.jit(
        functools.partial(
            lj.unroll,
            cell,
            reverse=reverse,
            return_carries=True,
            implementation=implementation,
        )
    )
    assert cell.noise is not None
    draws = []
    for seed in (0, 1):
        key = noise_key(seed)
        noise = jax.jit(cell.noise, static_argnums=(2, 3))(key, params, BATCH, TIME)
        draws.append(run(params, xs, key=key))
        expected = python_unroll(cell, params, xs, reverse=reverse, noise=noise)
        assert_close(draws[-1], expected)
    difference = jnp.max(jnp.abs(draws[0][1] - draws[1][1]), axis=(1, 2))
    assert float(jnp.min(difference)) > 1e-3


@pytest.mark.parametrize("implementation", ["autodiff", "fused"])
def test_without_a_key_zoneout_takes_its_expectation(implementation: str) -> None:
    cell = CELLS["zoneout"]
    params = random_params(cell)
    carry = random_carry(cell, params, BATCH)
    x = random_xs(BATCH, TIME)[:, 0]
    plain, _ = CELLS["lstm"].step(params, carry, x)
    expected = jax.tree.map(lambda old, new: 0.3 * old + 0.7 * new, carry, plain)
    actual, ys = lj.unroll(
        cell, params, x[:, None], carry, implementation=implementation
    )
    assert_close((actual, ys[:, 0]), (expected, expected.h))


def test_no_gradient_flows_into_noise() -> None:
    def gates(extras: Any, carry: Any, zx: Any, zh: Any, noise: Any) -> Any:
        h = jnp.tanh(zx + zh + noise.step * extras["weight"])
        return lj.HiddenCarry(h), h

    def noise(key: Any, params: Any, batch: int, time: int) -> lj.Noise:
        scale = params["scale"] * params["weight"]
        return lj.Noise(step=scale * jax.random.uniform(key, (batch, time, HIDDEN)))

    def init_extra(key: Any, input_size: int) -> Any:
        return {"scale": jnp.ones(()), "weight": jnp.ones(())}

    cell = lj.gated(HIDDEN, 1, gates, noise=noise, init_extra=init_extra)
    params = random_params(cell)
    autodiff, fused = (
        outputs_and_gradients(
            cell,
            params,
            random_xs(BATCH, TIME),
            key=noise_key(4),
            implementation=implementation,
        )
        for implementation in ("autodiff", "fused")
    )
    assert_close(fused, autodiff)
    for _, (gradient, *_) in (autodiff, fused):
        assert float(gradient["scale"]) == 0
        assert abs(float(gradient["weight"])) > 1e-3


def test_a_cell_may_bring_its_own_unroll() -> None:
    looped = CELLS["lstm"]
    params = random_params(looped)
    carry = random_carry(looped, params, BATCH)
    given = {}

    def own_unroll(params: Any, xs: Any, carry: Any, **options: Any) -> Any:
        given.update(options)
        return lj.unroll(looped, params, 2 * xs, carry, **options)

    cell = looped._replace(unroll=own_unroll)
    xs = random_xs(BATCH, TIME)
    lengths = np.array([TIME, 2, 0, 5])
    valid = np.arange(TIME) < lengths[:, None]
    resets = np.zeros((BATCH, TIME), bool)
    resets[:, 3] = True
    actual = lj.unroll(
        cell,
        params,
        xs,
        carry,
        lengths=jnp.asarray(lengths),
        resets=jnp.asarray(resets),
        reverse=True,
        return_carries=True,
    )
    expected = python_unroll(
        looped, params, 2 * xs, carry, valid=valid, resets=resets, reverse=True
    )
    assert_close(actual, expected)
    np.testing.assert_array_equal(given["mask"], valid)
    assert set(given) == {
        "mask",
        "resets",
        "reverse",
        "key",
        "return_carries",
        "implementation",
    }


@pytest.mark.parametrize("implementation", ["autodiff", "fused"])
def test_one_compilation_a_shape(implementation: str) -> None:
    cell = CELLS["simple_rnn"]
    run = jax.jit(functools.partial(lj.unroll, cell, implementation=implementation))
    xs = random_xs(BATCH, TIME)
    lengths = jnp.array([TIME, 2, 0, 5])
    first = run(random_params(cell), xs, lengths=lengths)
    again = run(random_params(cell, seed=8), xs + 1, lengths=lengths - 2)
    assert run._cache_size() == 1
    assert float(jnp.max(jnp.abs(first[0].h - again[0].h))) > 0.1
    run(random_params(cell), xs[:, 1:], lengths=lengths - 1)
    assert run._cache_size() == 2

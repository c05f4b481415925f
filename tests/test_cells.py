"""What cells start from, and what makes a cell or refuses to."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from example_cells import CELLS, HIDDEN, INPUT, random_carry, random_params

import lstm_jax as lj

pytestmark = pytest.mark.usefixtures("strict")

GATES = {"simple_rnn": 1, "lstm": 4, "gru": 3, "gru_before": 3}


UNITS, INPUTS = 12, 40  # enough to see a distribution


def make(name: str, **options: Any) -> lj.Cell:
    if name == "gru_before":
        return lj.gru(UNITS, reset_after=False, **options)
    return getattr(lj, name)(UNITS, **options)


def glorot_bound(inputs: int, outputs: int) -> float:
    return np.sqrt(6 / (inputs + outputs))


@pytest.mark.parametrize(("name", "num_gates"), GATES.items())
def test_default_initialisers(name: str, num_gates: int) -> None:
    """Over all gates at once: Glorot-uniform, orthogonal, and zero biases."""
    params = make(name).init(jax.random.key(0), INPUTS)
    width = num_gates * UNITS
    biases = ["bias", "recurrent_bias"] if name == "gru" else ["bias"]
    assert sorted(params) == sorted(["kernel", "recurrent_kernel", *biases])

    kernel = np.asarray(params["kernel"])
    assert kernel.shape == (INPUTS, width)
    bound = glorot_bound(INPUTS, width)
    assert 0.98 * bound < np.max(np.abs(kernel)) <= bound
    # A uniform variable's standard deviation.
    np.testing.assert_allclose(np.std(kernel), bound / np.sqrt(3), rtol=0.1)

    kernel = np.asarray(params["recurrent_kernel"])
    assert kernel.shape == (UNITS, width)
    np.testing.assert_allclose(kernel @ kernel.T, np.eye(UNITS), atol=1e-5)

    for bias in biases:
        zeros = np.zeros(width)
        if name == "lstm":
            zeros[UNITS : 2 * UNITS] = 1  # forget_bias
        np.testing.assert_array_equal(params[bias], zeros)


@pytest.mark.parametrize("name", GATES)
def test_kernels_are_drawn_from_different_keys(name: str) -> None:
    uniform = jax.nn.initializers.uniform()
    cell = make(name, kernel_init=uniform, recurrent_init=uniform)
    params = cell.init(jax.random.key(2), UNITS)
    assert params["kernel"].shape == params["recurrent_kernel"].shape
    assert np.mean(params["kernel"] == params["recurrent_kernel"]) < 0.1
    other = cell.init(jax.random.key(3), UNITS)
    assert np.mean(params["kernel"] == other["kernel"]) < 0.1


@pytest.mark.parametrize("forget_bias", [1.0, -0.5])
def test_forget_bias_is_the_second_block(forget_bias: float) -> None:
    options = {} if forget_bias == 1.0 else {"forget_bias": forget_bias}
    constant = jax.nn.initializers.constant(0.25)
    cell = lj.lstm(3, bias_init=constant, recurrent_init=None, **options)
    bias = cell.init(jax.random.key(0), 2)["bias"]
    rest = [0.25] * 3
    np.testing.assert_array_equal(bias, [*rest, *[forget_bias] * 3, *rest, *rest])


def test_forward_pass_adds_no_forget_bias() -> None:
    params = random_params(CELLS["lstm"])
    carry = random_carry(CELLS["lstm"], params, 2)
    x = jnp.ones((2, INPUT))
    one = lj.lstm(HIDDEN, forget_bias=1.0).step(params, carry, x)
    five = lj.lstm(HIDDEN, forget_bias=5.0).step(params, carry, x)
    jax.tree.map(np.testing.assert_array_equal, one, five)


@pytest.mark.parametrize("name", GATES)
def test_one_draw_for_both_kernels(name: str) -> None:
    """TF1 and Haiku: one initialiser over [D + H, G*H]."""
    drawn = []

    def init(key: Any, shape: Any) -> Any:
        drawn.append(jax.nn.initializers.glorot_uniform()(key, shape))
        return drawn[-1]

    cell = make(name, kernel_init=init, recurrent_init=None)
    params = cell.init(jax.random.key(0), INPUTS)
    width = GATES[name] * UNITS
    (joint,) = drawn
    assert joint.shape == (INPUTS + UNITS, width)
    np.testing.assert_array_equal(params["kernel"], joint[:INPUTS])
    np.testing.assert_array_equal(params["recurrent_kernel"], joint[INPUTS:])
    bound = glorot_bound(INPUTS + UNITS, width)
    for kernel in (params["kernel"], params["recurrent_kernel"]):
        assert 0.97 * bound < np.max(np.abs(kernel)) <= bound


def test_initialisers_see_their_shapes() -> None:
    shapes = {}

    def record(name: str) -> Any:
        def init(key: Any, shape: Any) -> Any:
            shapes.setdefault(name, []).append(shape)
            return jnp.full(shape, 0.5)

        return init

    options = {f"{name}_init": record(name) for name in ("kernel", "recurrent", "bias")}
    params = lj.gru(4, **options).init(jax.random.key(0), 3)
    assert shapes == {
        "kernel": [(3, 12)],
        "recurrent": [(4, 12)],
        "bias": [(12,), (12,)],
    }
    assert all(np.all(np.asarray(value) == 0.5) for value in params.values())


@pytest.mark.parametrize("clash", ["kernel", "recurrent_kernel", "bias"])
def test_an_extra_named_like_a_kernel_is_an_error(clash: str) -> None:
    def gates(extras: Any, carry: Any, zx: Any, zh: Any) -> Any:
        return carry, carry.h

    cell = lj.gated(
        4,
        1,
        gates,
        init_extra=lambda key, input_size: {clash: jnp.zeros(4)},
        recurrent_init=None,
    )
    with pytest.raises(ValueError, match=f"'{clash}'"):
        cell.init(jax.random.key(0), 3)


@pytest.mark.parametrize("size", [0, -2])
def test_sizes_below_one_are_errors(size: int) -> None:
    for cell in (lj.lstm, lj.gru, lj.simple_rnn):
        with pytest.raises(ValueError, match=f"got {size}"):
            cell(size)
    with pytest.raises(ValueError, match=f"got {size}"):
        lj.gru(size, reset_after=False)
    with pytest.raises(ValueError, match=f"and {size}"):
        lj.gated(4, size, lambda extras, carry, zx, zh: (carry, zx))
    with pytest.raises(ValueError, match=f"input_size.*{size}"):
        lj.lstm(4).init(jax.random.key(0), size)


def test_carry_type_needs_h() -> None:
    class NoHidden(NamedTuple):
        state: Any

    for carry in (NoHidden, tuple):
        with pytest.raises(ValueError, match="field h"):
            lj.gated(4, 1, lambda extras, carry, zx, zh: (carry, zx), carry)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16])
@pytest.mark.parametrize("name", ["lstm", "gru", "simple_rnn", "gru_before"])
def test_initial_carry_is_zeros_of_the_parameters_type(name: str, dtype: Any) -> None:
    cell = CELLS[name]
    params = jax.tree.map(lambda a: a.astype(dtype), random_params(cell))
    carry = cell.initial_carry(params, 5)
    assert isinstance(carry, lj.LSTMCarry if name == "lstm" else lj.HiddenCarry)
    for leaf in carry:
        assert (leaf.shape, leaf.dtype) == ((5, HIDDEN), dtype)
        assert np.all(np.asarray(leaf) == 0)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


@pytest.mark.usefixtures("x64")
def test_steps_equal_their_equations() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, INPUT))
    h, c = rng.normal(size=(2, 2, HIDDEN))

    def inputs_of(cell: lj.Cell) -> tuple[Any, ...]:
        params = random_params(cell)
        kernel, recurrent, bias = (
            np.asarray(params[name]) for name in ("kernel", "recurrent_kernel", "bias")
        )
        return params, x @ kernel + bias, h @ recurrent, recurrent

    def check(cell: lj.Cell, params: Any, carry: Any, expected: Any) -> None:
        new, y = cell.step(params, jax.tree.map(jnp.asarray, carry), jnp.asarray(x))
        for actual, value in zip((*new, y), (*expected, expected[0]), strict=True):
            np.testing.assert_allclose(actual, value, rtol=1e-12, atol=1e-14)

    cell = lj.lstm(HIDDEN, activation=jnp.sin, gate_activation=jnp.cos)
    params, zx, zh, _ = inputs_of(cell)
    i, f, g, o = np.split(zx + zh, 4, axis=1)
    new_c = np.cos(f) * c + np.cos(i) * np.sin(g)
    expected = np.cos(o) * np.sin(new_c), new_c
    check(cell, params, lj.LSTMCarry(h, c), expected)

    cell = lj.simple_rnn(HIDDEN, activation=jnp.sin)
    params, zx, zh, _ = inputs_of(cell)
    check(cell, params, lj.HiddenCarry(h), [np.sin(zx + zh)])

    cell = lj.gru(HIDDEN, activation=jnp.sin, gate_activation=jnp.cos)
    params, zx, zh, _ = inputs_of(cell)
    zh = zh + np.asarray(params["recurrent_bias"])
    r, z = np.cos(zx + zh)[:, : 2 * HIDDEN].reshape(2, 2, HIDDEN).swapaxes(0, 1)
    n = np.sin(zx[:, 2 * HIDDEN :] + r * zh[:, 2 * HIDDEN :])
    check(cell, params, lj.HiddenCarry(h), [(1 - z) * n + z * h])

    cell = lj.gru(
        HIDDEN, reset_after=False, activation=jnp.sin, gate_activation=jnp.cos
    )
    params, zx, zh, recurrent = inputs_of(cell)
    r, z = np.cos(zx + zh)[:, : 2 * HIDDEN].reshape(2, 2, HIDDEN).swapaxes(0, 1)
    n = np.sin(zx[:, 2 * HIDDEN :] + (r * h) @ recurrent[:, 2 * HIDDEN :])
    check(cell, params, lj.HiddenCarry(h), [(1 - z) * n + z * h])

"""Arguments of unroll that do not fit are refused, or clamped where traced."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from example_cells import CELLS, HIDDEN, INPUT, random_carry, random_params
from reference import assert_same_bits

import lstm_jax as lj

BATCH, TIME = 3, 5

pytestmark = pytest.mark.usefixtures("strict", "unchecked_types")


def unroll(name: str = "lstm", **options: Any) -> Any:
    cell = CELLS[name]
    xs = jnp.asarray(
        np.random.default_rng(0).normal(size=(BATCH, TIME, INPUT)), jnp.float32
    )
    return lj.unroll(cell, random_params(cell), xs, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {
                "lengths": np.array([1, 2, 3]),
                "mask": np.ones((BATCH, TIME), bool),
            },
            "lengths or mask",
        ),
        ({"lengths": np.array([1, -1, 3])}, r"\[0, 5\]"),
        ({"lengths": np.array([1, TIME + 1, 3])}, r"\[0, 5\]"),
        ({"lengths": np.array([1, 2])}, r"\[3\]"),
        ({"lengths": np.array([[1, 2, 3]])}, r"\[3\]"),
        ({"lengths": np.array([1.0, 2.0, 3.0], np.float32)}, "integers"),
        ({"mask": np.ones((BATCH, TIME + 1), bool)}, "mask must be bool"),
        ({"mask": np.ones((TIME, BATCH), bool)}, "mask must be bool"),
        ({"mask": np.ones((BATCH, TIME), np.int32)}, "mask must be bool"),
        ({"resets": np.ones(BATCH, bool)}, "resets must be bool"),
        ({"resets": np.ones((BATCH, TIME - 1), bool)}, "resets must be bool"),
        ({"resets": np.ones((BATCH, TIME), np.float32)}, "resets must be bool"),
        ({"implementation": "fast"}, "implementation"),
    ],
)
def test_wrong_arguments_are_value_errors(
    options: dict[str, Any], message: str
) -> None:
    options = {
        name: jnp.asarray(value) if isinstance(value, np.ndarray) else value
        for name, value in options.items()
    }
    with pytest.raises(ValueError, match=message):
        unroll(**options)


@pytest.mark.parametrize(
    ("batch", "size", "dtype"),
    [
        (BATCH, HIDDEN, jnp.bfloat16),
        (BATCH, HIDDEN, jnp.int32),
        (BATCH + 1, HIDDEN, jnp.float32),
        (1, HIDDEN, jnp.float32),
        (BATCH, HIDDEN + 1, jnp.float32),
    ],
)
def test_wrong_carry_is_a_value_error(batch: int, size: int, dtype: Any) -> None:
    zeros = jnp.zeros((BATCH, HIDDEN))
    wrong = jnp.zeros((batch, size), dtype)
    for carry in (lj.LSTMCarry(wrong, zeros), lj.LSTMCarry(zeros, wrong)):
        with pytest.raises(ValueError, match="carry"):
            unroll(carry=carry)


def test_carry_of_another_cell_is_a_value_error() -> None:
    zeros = jnp.zeros((BATCH, HIDDEN))
    wanted = r"carry must be a LSTMCarry\(h, c\), .* gives it, got a "
    with pytest.raises(ValueError, match=f"{wanted}HiddenCarry"):
        unroll(carry=lj.HiddenCarry(zeros))
    with pytest.raises(ValueError, match=f"{wanted}tuple"):
        unroll(carry=(zeros, zeros))
    with pytest.raises(ValueError, match="carry must be a PyTreeDef"):
        unroll(carry=lj.LSTMCarry(zeros, {"c": zeros}))


def test_a_carry_may_be_an_array_of_any_kind() -> None:
    """Of NumPy or traced, where the cell's own is neither."""

    def step(params: Any, carry: Any, x: Any) -> Any:
        return carry + params * x, x

    cell = lj.Cell(
        lambda key, size: jnp.ones(()),
        lambda params, batch: jnp.zeros((batch, 2)),
        step,
    )
    xs = jnp.ones((3, 4, 2))
    for run in (lj.unroll, jax.jit(lj.unroll, static_argnums=0)):
        last, _ = run(cell, jnp.float32(2), xs, np.full((3, 2), 5, np.float32))
        np.testing.assert_array_equal(last, np.full((3, 2), 13.0))


@pytest.mark.usefixtures("x64")
def test_float32_carry_of_a_float64_cell_is_a_value_error() -> None:
    zeros = jnp.zeros((BATCH, HIDDEN), jnp.float32)
    with pytest.raises(ValueError, match="float64"):
        unroll(carry=lj.LSTMCarry(zeros, zeros))


def test_xs_must_have_three_axes() -> None:
    cell = CELLS["lstm"]
    with pytest.raises(ValueError, match="xs must be"):
        lj.unroll(cell, random_params(cell), jnp.zeros((TIME, INPUT)))


@pytest.mark.parametrize("implementation", ["autodiff", "fused"])
def test_xs_of_another_width_are_a_value_error(implementation: str) -> None:
    cell = CELLS["lstm"]
    for batch in (BATCH, 64):  # rows first, and last
        xs = jnp.zeros((batch, TIME, INPUT + 1))
        with pytest.raises(ValueError, match="xs"):
            lj.unroll(cell, random_params(cell), xs, implementation=implementation)


def test_fused_needs_gates() -> None:
    with pytest.raises(ValueError, match="no gates"):
        unroll("gru_before", implementation="fused")


@pytest.mark.parametrize("implementation", ["autodiff", "fused"])
def test_traced_lengths_are_clamped(implementation: str) -> None:
    cell = CELLS["lstm"]
    carry = random_carry(cell, random_params(cell), BATCH)
    run = jax.jit(
        lambda lengths: unroll(
            carry=carry, lengths=lengths, implementation=implementation
        )
    )
    assert_same_bits(run(jnp.array([-4, TIME + 7, 2])), run(jnp.array([0, TIME, 2])))
    final, ys = run(jnp.array([-4, TIME + 7, 2]))
    assert_same_bits(final.h[0], carry.h[0])
    assert np.all(np.asarray(ys[1]) != 0)


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8])
def test_lengths_of_any_integer_type(dtype: Any) -> None:
    cell = CELLS["simple_rnn"]
    xs = jnp.ones((1, 300, INPUT))
    lengths = jnp.array([100], dtype)
    _, ys = lj.unroll(cell, random_params(cell), xs, lengths=lengths)
    np.testing.assert_array_equal(
        np.all(np.asarray(ys[0]) != 0, axis=-1), np.arange(300) < 100
    )


@pytest.mark.parametrize("implementation", ["autodiff", "fused"])
def test_empty_batch(implementation: str) -> None:
    cell = CELLS["lstm"]
    xs = jnp.zeros((0, TIME, INPUT))
    carry, ys = lj.unroll(cell, random_params(cell), xs, implementation=implementation)
    assert (carry.c.shape, ys.shape) == ((0, HIDDEN), (0, TIME, HIDDEN))

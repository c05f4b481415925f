"""Types: of products, carry, outputs, inputs and gradients."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from example_cells import HIDDEN, random_carry, random_params, random_xs
from reference import assert_close, assert_same_bits, outputs_and_gradients
from schedules import ROWS_LAST

import lstm_jax as lj
from lstm_jax import combinators
from lstm_jax.schedule import Schedule

pytestmark = pytest.mark.usefixtures("strict", "x64")

BATCH, TIME = 3, 20

MAKERS = {
    "lstm": lj.lstm,
    "gru": lj.gru,
    "gru_before": lambda size, **options: lj.gru(size, reset_after=False, **options),
}
WAYS = [
    ("lstm", "fused", None, TIME),
    ("lstm", "fused", ROWS_LAST, 2 * TIME + 1),  # two chunks, and one of a single step
    pytest.param("lstm", "fused", ROWS_LAST, TIME, marks=pytest.mark.slow),
    pytest.param("gru_before", "autodiff", None, TIME, marks=pytest.mark.slow),
    pytest.param("lstm", "autodiff", None, TIME, marks=pytest.mark.slow),
    pytest.param("gru", "fused", None, TIME, marks=pytest.mark.slow),
]


def cast(tree: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda a: a.astype(dtype), tree)


@pytest.mark.parametrize(("name", "implementation", "schedule", "time"), WAYS)
def test_bfloat16_products_lie_near_float64(
    name: str, implementation: str, schedule: Schedule | None, time: int
) -> None:
    cell = MAKERS[name](HIDDEN, dtype=jnp.bfloat16)
    params = cast(random_params(cell), jnp.float32)
    xs = cast(random_xs(BATCH, time), jnp.float32)
    actual = outputs_and_gradients(
        cell, params, xs, schedule=schedule, implementation=implementation
    )
    expected = outputs_and_gradients(
        MAKERS[name](HIDDEN),
        cast(params, jnp.float64),
        cast(xs, jnp.float64),
        implementation=implementation,
    )
    differences = []
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == jnp.float32
        difference = np.max(np.abs(np.asarray(a) - np.asarray(b)))
        difference /= np.max(np.abs(b))
        assert difference < 2e-2
        differences.append(difference)
    assert max(differences) > 1e-4  # the products are in bfloat16


# Of the operands' type: each cell's own products, and those of a combinator.
OTHERS = {
    "simple_rnn": lj.simple_rnn,
    "peephole": functools.partial(lj.lstm, peephole=True),
    "mgu": lj.mgu,
    "indrnn": lj.indrnn,
    "slstm": lj.slstm,
    "min_gru": lj.min_gru,
    "min_lstm": lj.min_lstm,
    "layer_norm": lambda *a, **k: combinators.layer_norm(lj.lstm(*a, **k)),
    "drop_connect": lambda *a, **k: combinators.drop_connect(lj.gru(*a, **k), 0.1),
    "block_diagonal": lambda *a, **k: combinators.block_diagonal(lj.mgu(*a, **k), 2),
    "project": lambda *a, **k: combinators.project(lj.lstm(*a, **k), 2),
    "stack": lambda *a, **k: combinators.stack(lj.gru(*a, **k), lj.mgu(*a, **k)),
}


def operands(jaxpr: Any) -> Iterator[set[Any]]:
    """The types that go into each product; none into the means of `layer_norm`."""
    for equation in jaxpr.eqns:
        exact = equation.params.get("precision") is not None
        if equation.primitive.name == "dot_general" and not exact:
            yield {atom.aval.dtype for atom in equation.invars}
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)  # of a call
            if hasattr(inner, "eqns"):
                yield from operands(inner)


OFTEN = ("indrnn", "min_lstm", "layer_norm", "block_diagonal", "project", "stack")


@pytest.mark.parametrize(
    "name",
    [
        name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow)
        for name in OTHERS
    ],
)
def test_a_step_has_bfloat16_products_alone(name: str) -> None:
    cell = OTHERS[name](HIDDEN, dtype=jnp.bfloat16)
    params = cast(random_params(cell), jnp.float32)
    carry = cast(random_carry(cell, params, BATCH), jnp.float32)
    arguments = (params, carry, cast(random_xs(BATCH, 1)[:, 0], jnp.float32))
    types = list(operands(jax.make_jaxpr(cell.step)(*arguments).jaxpr))
    assert types
    assert all(found == {jnp.dtype(jnp.bfloat16)} for found in types)
    actual = jax.jit(cell.step)(*arguments)
    expected = jax.jit(OTHERS[name](HIDDEN).step)(*cast(arguments, jnp.float64))
    differences = []
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == jnp.float32
        a, b = np.asarray(a), np.asarray(b)
        differences.append(np.max(np.abs(a - b)) / np.max(np.abs(b)))
    assert 1e-4 < max(differences) < 2e-2


@pytest.mark.parametrize("implementation", ["autodiff", "fused"])
def test_products_accumulate_in_the_parameters_type(implementation: str) -> None:
    """Operands that bfloat16 represents exactly give exact products."""
    size, inputs = 1, 512
    cell = lj.simple_rnn(size, activation=lambda x: x, dtype=jnp.bfloat16)
    params = {
        "kernel": jnp.ones((inputs, size), jnp.float32),
        "recurrent_kernel": jnp.zeros((size, size), jnp.float32),
        "bias": jnp.zeros(size, jnp.float32),
    }
    xs = jnp.ones((1, 1, inputs), jnp.float32).at[..., 0].set(2)
    _, ys = lj.unroll(cell, params, xs, implementation=implementation)
    assert float(ys[0, 0, 0]) == 513  # in bfloat16, 512 or 516


@pytest.mark.parametrize("implementation", ["autodiff", "fused"])
@pytest.mark.parametrize(
    ("product_dtype", "dtype"),
    [
        (None, jnp.float16),
        pytest.param(jnp.bfloat16, jnp.bfloat16, marks=pytest.mark.slow),
        pytest.param(None, jnp.float64, marks=pytest.mark.slow),
    ],
)
def test_gradients_have_the_type_of_what_they_belong_to(
    product_dtype: Any, implementation: str, dtype: Any
) -> None:
    cell = lj.simple_rnn(HIDDEN, dtype=product_dtype)
    params = cast(random_params(cell), jnp.float32)
    xs = cast(random_xs(BATCH, TIME), dtype)
    mask = jnp.asarray(np.random.default_rng(0).random((BATCH, TIME)) < 0.7)
    outputs, (dparams, dxs, _) = outputs_and_gradients(
        cell, params, xs, implementation=implementation, mask=mask
    )
    expected, (expected_dparams, expected_dxs, _) = outputs_and_gradients(
        cell, params, cast(xs, jnp.float32), implementation=implementation, mask=mask
    )
    assert dxs.dtype == dtype
    tolerance = 1e-6 if product_dtype is None else 2e-2
    assert_close((outputs, dparams), (expected, expected_dparams), tolerance)
    error = np.abs(np.asarray(cast(dxs, jnp.float32) - expected_dxs))
    assert np.max(error) < 2e-2 * np.max(np.abs(expected_dxs))


@pytest.mark.parametrize(
    ("implementation", "schedule"),
    [
        pytest.param("autodiff", None, marks=pytest.mark.slow),
        *(("fused", None), ("fused", ROWS_LAST)),
    ],
)
def test_everything_has_the_parameters_type(
    implementation: str, schedule: Schedule | None
) -> None:
    cell = lj.lstm(HIDDEN)
    params = cast(random_params(cell), jnp.bfloat16)
    xs = cast(random_xs(BATCH, TIME), jnp.float32)
    outputs, (dparams, dxs, _) = outputs_and_gradients(
        cell, params, xs, schedule=schedule, implementation=implementation
    )
    types = {leaf.dtype for leaf in jax.tree.leaves((outputs, dparams))}
    assert types == {jnp.dtype(jnp.bfloat16)}
    assert dxs.dtype == jnp.float32
    wide = cast(params, jnp.float64)
    expected = lj.unroll(cell, wide, cast(xs, jnp.float64))
    assert_close(cast(outputs, jnp.float64), expected, 5e-2)


@pytest.mark.parametrize("implementation", ["autodiff", "fused"])
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8, jnp.bool])
def test_integer_inputs(dtype: Any, implementation: str) -> None:
    cell = lj.simple_rnn(HIDDEN)
    params = random_params(cell)
    xs = cast(5 * jnp.abs(random_xs(BATCH, 3)), dtype)
    actual = lj.unroll(cell, params, xs, implementation=implementation)
    expected = lj.unroll(
        cell, params, cast(xs, jnp.float64), implementation=implementation
    )
    assert_same_bits(actual, expected)
    assert np.all(np.abs(np.asarray(actual[1])) > 0)


@pytest.mark.parametrize("additive", [True, False])
def test_a_product_of_the_users_own_may_be_bfloat16(additive: bool) -> None:
    """Gates get it in the parameters' type, whether they read zx + zh or each."""

    def recurrent(params: Any, h: Any, noise: Any) -> Any:
        operands = h.astype(jnp.bfloat16), params["recurrent_kernel"]
        return jnp.matmul(operands[0], operands[1].astype(jnp.bfloat16))

    def gates(extras: Any, carry: Any, zx: Any, zh: Any) -> Any:
        assert zx.dtype == zh.dtype == jnp.float32
        h = jnp.tanh(zx + zh) if additive else jnp.tanh(zx) * jnp.cos(zh)
        return lj.HiddenCarry(h), h

    cell = lj.gated(HIDDEN, 1, gates, recurrent=recurrent)
    params = cast(random_params(cell), jnp.float32)
    xs = cast(random_xs(BATCH, TIME), jnp.float32)
    fused, autodiff = (
        outputs_and_gradients(cell, params, xs, implementation=implementation)
        for implementation in ("fused", "autodiff")
    )
    for a, b in zip(jax.tree.leaves(fused), jax.tree.leaves(autodiff), strict=True):
        assert a.dtype == b.dtype == jnp.float32
        assert np.max(np.abs(a - b)) < 2e-2 * np.max(np.abs(b))
    assert float(jnp.max(jnp.abs(fused[1][0]["recurrent_kernel"]))) > 0.1

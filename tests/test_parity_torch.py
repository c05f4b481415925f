"""Values and gradients equal PyTorch's (golden/make_torch.py wrote its numbers)."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

import lstm_jax as lj

pytestmark = pytest.mark.usefixtures("x64", "strict")

GOLDEN = pathlib.Path(__file__).parent / "golden"

CELLS = {
    "lstm": lj.lstm(5),
    "gru": lj.gru(5),
    "rnn_tanh": lj.simple_rnn(5),
    "rnn_relu": lj.simple_rnn(5, activation=jax.nn.relu),
}
CASES = (
    "plain",
    "carry",
    "ragged",
    "reversed",
    "ragged_reversed",
    "ragged_reversed_carry",
)


def read_golden(cell: str) -> dict[str, dict[str, Array]]:
    """Returns the arrays of a golden file by case, parameters under "params"."""
    arrays = {}
    with np.load(GOLDEN / f"torch_{cell}.npz") as golden:
        for key in golden:
            case, _, name = key.rpartition("/")
            if case:
                arrays.setdefault(case, {})[name] = jnp.asarray(golden[key])
    return arrays


# One function for all cases, so that cases that differ in numbers only share a
# compilation.
@functools.partial(jax.jit, static_argnames=("cell_name", "reverse", "implementation"))
def run(
    params: dict[str, Array],
    case: dict[str, Array],
    cell_name: str,
    reverse: bool,
    implementation: str,
) -> dict[str, Array]:
    """Returns the values and the loss's gradients by their golden names."""
    leaves = [name for name in ("h", "c") if f"{name}_initial" in case]
    carry_type = lj.LSTMCarry if leaves == ["h", "c"] else lj.HiddenCarry

    def loss(
        variables: dict[str, Array],
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        final, ys = lj.unroll(
            CELLS[cell_name],
            {name: variables[name] for name in params},
            variables["xs"],
            carry_type(*[variables[f"{name}_initial"] for name in leaves]),
            lengths=case.get("lengths"),
            reverse=reverse,
            implementation=implementation,
        )
        values = {"ys": ys}
        values |= {f"{name}_final": getattr(final, name) for name in leaves}
        terms = [jnp.sum(case[f"weight_{name}"] * values[name]) for name in values]
        return sum(terms[1:], start=terms[0]), values

    inputs = ("xs", *[f"{name}_initial" for name in leaves])
    variables = params | {name: case[name] for name in inputs}
    gradients, values = jax.grad(loss, has_aux=True)(variables)
    return values | {f"grad_{name}": array for name, array in gradients.items()}


@pytest.mark.parametrize(
    ("implementation", "case_name"),
    # That both implementations are the same, test_fused.py shows.
    [*(("fused", case) for case in CASES), ("autodiff", CASES[-1])],
)
@pytest.mark.parametrize("cell_name", CELLS)
def test_values_and_gradients_equal_torch(
    cell_name: str, case_name: str, implementation: str
) -> None:
    golden = read_golden(cell_name)
    case = golden[case_name]
    reverse = bool(case.pop("reverse"))

    actual = run(golden["params"], case, cell_name, reverse, implementation)

    gradients = {name for name in case if name.startswith("grad_")}
    assert {"ys", "h_final"} | gradients <= set(actual)
    for name, array in actual.items():
        assert array.dtype == jnp.float64, name
        np.testing.assert_allclose(
            array, case[name], rtol=1e-6, atol=1e-12, err_msg=name
        )

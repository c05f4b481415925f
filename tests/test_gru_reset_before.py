"""gru(reset_after=False) against its equations, written out in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float, Int

import lstm_jax as lj

pytestmark = pytest.mark.usefixtures("x64", "strict")

# Not 5 hidden units: the CPU compiler of jax 0.10.2 gets the gradient of that very
# loop wrong (batch 4, float64, no mask), without this package too; jax 0.12 does not.
BATCH, TIME, INPUT, HIDDEN = 4, 7, 3, 6
RAGGED_LENGTHS = np.array([TIME, 1, 0, 4], np.int32)

Arrays = dict[str, np.ndarray]


def draw_variables(rng: np.random.Generator, nonzero_carry: bool) -> Arrays:
    """Returns random parameters, inputs and initial carry by name."""
    return {
        "kernel": rng.uniform(-0.8, 0.8, (INPUT, 3 * HIDDEN)),
        "recurrent_kernel": rng.uniform(-0.8, 0.8, (HIDDEN, 3 * HIDDEN)),
        "bias": rng.uniform(-0.8, 0.8, 3 * HIDDEN),
        "xs": rng.normal(size=(BATCH, TIME, INPUT)),
        "h": nonzero_carry * rng.normal(size=(BATCH, HIDDEN)),
    }


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def reference(
    variables: Arrays, lengths: np.ndarray, reverse: bool
) -> tuple[Float[np.ndarray, "batch hidden"], Float[np.ndarray, "batch time hidden"]]:
    """Returns the final h and the outputs, a row and a step at a time."""
    w_r, w_z, w_n = np.split(variables["kernel"], 3, axis=1)
    u_r, u_z, u_n = np.split(variables["recurrent_kernel"], 3, axis=1)
    b_r, b_z, b_n = np.split(variables["bias"], 3)
    final = variables["h"].copy()
    ys = np.zeros((BATCH, TIME, HIDDEN))
    for row in range(BATCH):
        h = final[row]
        steps = range(lengths[row])
        for t in reversed(steps) if reverse else steps:
            x = variables["xs"][row, t]
            r = sigmoid(x @ w_r + b_r + h @ u_r)
            z = sigmoid(x @ w_z + b_z + h @ u_z)
            n = np.tanh(x @ w_n + b_n + (r * h) @ u_n)
            h = (1 - z) * n + z * h
            ys[row, t] = h
        final[row] = h
    return final, ys


@functools.partial(jax.jit, static_argnames=("reverse", "implementation"))
def run(
    variables: dict[str, Array],
    weights: dict[str, Array],
    lengths: Int[Array, " batch"] | None,
    reverse: bool,
    implementation: str,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Returns the gradients of sum(weights * values), and the values."""

    def loss(
        variables: dict[str, Array],
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        names = ("kernel", "recurrent_kernel", "bias")
        carry, ys = lj.unroll(
            lj.gru(HIDDEN, reset_after=False),
            {name: variables[name] for name in names},
            variables["xs"],
            lj.HiddenCarry(variables["h"]),
            lengths=lengths,
            reverse=reverse,
            implementation=implementation,
        )
        values = {"h": carry.h, "ys": ys}
        total = jnp.sum(weights["h"] * carry.h) + jnp.sum(weights["ys"] * ys)
        return total, values

    return jax.grad(loss, has_aux=True)(variables)


def test_init_has_one_bias() -> None:
    cell = lj.gru(HIDDEN, reset_after=False)
    params = jax.eval_shape(lambda key: cell.init(key, INPUT), jax.random.key(0))
    shapes = {name: array.shape for name, array in params.items()}
    assert shapes == {
        "kernel": (INPUT, 3 * HIDDEN),
        "recurrent_kernel": (HIDDEN, 3 * HIDDEN),
        "bias": (3 * HIDDEN,),
    }


@pytest.mark.parametrize("nonzero_carry", [False, True])
@pytest.mark.parametrize("implementation", ["autodiff", "auto"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("ragged", [pytest.param(False, marks=pytest.mark.slow), True])
def test_values_and_gradients_equal_equations(
    ragged: bool, reverse: bool, nonzero_carry: bool, implementation: str
) -> None:
    rng = np.random.default_rng(0)
    variables = draw_variables(rng, nonzero_carry)
    weights = {
        "h": rng.normal(size=(BATCH, HIDDEN)),
        "ys": rng.normal(size=(BATCH, TIME, HIDDEN)),
    }
    lengths = RAGGED_LENGTHS if ragged else np.full(BATCH, TIME)

    def reference_loss(variables: Arrays) -> float:
        h, ys = reference(variables, lengths, reverse)
        return np.sum(weights["h"] * h) + np.sum(weights["ys"] * ys)

    gradients, values = run(
        jax.tree.map(jnp.asarray, variables),
        jax.tree.map(jnp.asarray, weights),
        jnp.asarray(lengths) if ragged else None,
        reverse,
        implementation,
    )

    h, ys = reference(variables, lengths, reverse)
    np.testing.assert_allclose(values["h"], h, rtol=0, atol=1e-12)
    np.testing.assert_allclose(values["ys"], ys, rtol=0, atol=1e-12)

    # With directions of length one the differences' own error is about 1e-10.
    epsilon = 1e-5
    for _ in range(3):
        # One variable at a time, so that a failure names it.
        for name, array in variables.items():
            direction = rng.normal(size=array.shape)
            direction /= np.linalg.norm(direction)
            ahead = variables | {name: array + epsilon * direction}
            behind = variables | {name: array - epsilon * direction}
            expected = (reference_loss(ahead) - reference_loss(behind)) / (2 * epsilon)
            actual = np.sum(np.asarray(gradients[name]) * direction)
            np.testing.assert_allclose(actual, expected, rtol=1e-6, err_msg=name)

"""A step of each further cell and combinator beside its published equations."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from example_cells import (
    INPUT,
    noise_key,
    random_carry,
    random_params,
    random_xs,
)
from reference import assert_close

import lstm_jax as lj
from lstm_jax import combinators

pytestmark = pytest.mark.usefixtures("strict", "x64")

H, BATCH, HEADS = 4, 3, 2

Arrays = tuple[np.ndarray, ...]


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def blocks(z: np.ndarray, count: int) -> list[np.ndarray]:
    """Of each gate."""
    return [z[:, k * H : (k + 1) * H] for k in range(count)]


def products(p: Any, h: np.ndarray, x: np.ndarray) -> np.ndarray:
    return x @ p["kernel"] + p["bias"] + h @ p["recurrent_kernel"]


def lstm_of(z: np.ndarray, c: np.ndarray) -> Arrays:
    """Gers et al. 2000, of the gates before their activations."""
    i, f, g, o = blocks(z, 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def peephole(p: Any, carry: Arrays, x: np.ndarray) -> Arrays:
    """Gers, Schraudolph and Schmidhuber 2002: o sees the new c."""
    h, c = carry
    i, f, g, o = blocks(products(p, h, x), 4)
    of = p["peephole"]
    new = sigmoid(f + of["f"] * c) * c + sigmoid(i + of["i"] * c) * np.tanh(g)
    return sigmoid(o + of["o"] * new) * np.tanh(new), new


def coupled(p: Any, carry: Arrays, x: np.ndarray) -> Arrays:
    """Greff et al. 2015: what is not forgotten is not written."""
    h, c = carry
    f, g, o = blocks(products(p, h, x), 3)
    c = sigmoid(f) * c + (1 - sigmoid(f)) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def mgu(p: Any, carry: Arrays, x: np.ndarray) -> Arrays:
    """Zhou et al. 2016, reset after the product."""
    (h,) = carry
    f = sigmoid(blocks(products(p, h, x), 2)[0])
    own = (h @ p["recurrent_kernel"])[:, H:]
    new = np.tanh((x @ p["kernel"] + p["bias"])[:, H:] + f * own)
    return ((1 - f) * h + f * new,)


def indrnn(p: Any, carry: Arrays, x: np.ndarray) -> Arrays:
    """Li et al. 2018, equation 4."""
    return (
        np.maximum(x @ p["kernel"] + p["recurrent_kernel"] * carry[0] + p["bias"], 0),
    )


def slstm(p: Any, carry: Arrays, x: np.ndarray) -> Arrays:
    """Beck et al. 2024, equations 8 to 17, with a sigmoid as forget gate."""
    h, c, n, m = carry
    i, f, z, o = blocks(products(p, h, x), 4)
    new = np.maximum(np.log(sigmoid(f)) + m, i)
    i, f = np.exp(i - new), sigmoid(f) * np.exp(m - new)
    c, n = f * c + i * np.tanh(z), f * n + i
    return sigmoid(o) * c / n, c, n, new


def min_gru(p: Any, carry: Arrays, x: np.ndarray) -> Arrays:
    """Feng et al. 2024, section 3.1."""
    gate, new = blocks(x @ p["kernel"] + p["bias"], 2)
    return ((1 - sigmoid(gate)) * carry[0] + sigmoid(gate) * new,)


def min_lstm(p: Any, carry: Arrays, x: np.ndarray) -> Arrays:
    """Feng et al. 2024, section 3.2: the gates sum to one."""
    f, i, new = blocks(x @ p["kernel"] + p["bias"], 3)
    f, i = sigmoid(f), sigmoid(i)
    return ((f * carry[0] + i * new) / (f + i),)


def layer_norm(p: Any, carry: Arrays, x: np.ndarray) -> Arrays:
    """Ba, Kiros and Hinton 2016, equation 20, c as it is."""

    def normalized(z: np.ndarray) -> np.ndarray:
        return (z - z.mean(1, keepdims=True)) / np.sqrt(z.var(1, keepdims=True) + 1e-6)

    h, c = carry
    norm = p["layer_norm"]
    of_x = norm["x"] * normalized(x @ p["kernel"] + p["bias"]) + norm["shift"]
    of_h = norm["h"] * normalized(h @ p["recurrent_kernel"])
    return lstm_of(of_x + of_h, c)


def clip(p: Any, carry: Arrays, x: np.ndarray) -> Arrays:
    h, c = carry
    new = lstm_of(products(p, h, x), c)
    return tuple(np.clip(a, -0.2, 0.2) for a in new)


def zoneout(p: Any, carry: Arrays, x: np.ndarray) -> Arrays:
    """Krueger et al. 2017, in expectation."""
    h, c = carry
    new = lstm_of(products(p, h, x), c)
    return tuple(0.3 * a + 0.7 * b for a, b in zip(carry, new, strict=True))


def block_diagonal(p: Any, carry: Arrays, x: np.ndarray) -> Arrays:
    """Beck et al. 2024, section 2.2, by the whole matrix."""
    h, c = carry
    size = H // HEADS
    whole = np.zeros((H, 4 * H))
    for head in range(HEADS):
        rows = slice(head * size, (head + 1) * size)
        for gate in range(4):
            start = gate * H + head * size
            block = p["recurrent_kernel"][head][:, gate * size : (gate + 1) * size]
            whole[rows, start : start + size] = block
    return lstm_of(products(p | {"recurrent_kernel": whole}, h, x), c)


Step = Callable[[Any, Arrays, np.ndarray], Arrays]
# Each puts out its first array.
CELLS: dict[str, tuple[lj.Cell, Step]] = {
    "peephole": (lj.lstm(H, peephole=True), peephole),
    "coupled": (lj.lstm(H, coupled=True), coupled),
    "mgu": (lj.mgu(H), mgu),
    "indrnn": (lj.indrnn(H), indrnn),
    "slstm": (lj.slstm(H), slstm),
    "min_gru": (lj.min_gru(H), min_gru),
    "min_lstm": (lj.min_lstm(H), min_lstm),
    "layer_norm": (combinators.layer_norm(lj.lstm(H)), layer_norm),
    "clip": (combinators.clip(lj.lstm(H), 0.2), clip),
    "zoneout": (combinators.zoneout(lj.lstm(H), 0.3), zoneout),
    "block_diagonal": (combinators.block_diagonal(lj.lstm(H), HEADS), block_diagonal),
}


@pytest.mark.parametrize("name", CELLS)
def test_a_step_is_the_published_one(name: str) -> None:
    cell, reference = CELLS[name]
    params = random_params(cell)
    carry = random_carry(cell, params, BATCH)
    if name == "slstm":  # a normaliser is positive
        carry = carry._replace(n=1 + carry.n**2)
    x = random_xs(BATCH, 1)[:, 0]
    p, before = jax.tree.map(np.asarray, (params, tuple(carry)))
    new = reference(p, before, np.asarray(x))
    found, y = jax.jit(cell.step)(params, carry, x)
    assert_close((tuple(found), y), (new, new[0]), 1e-12)


def test_dropped_connections() -> None:
    """Wan et al. 2013: of the recurrent kernel, one mask for all rows."""
    cell = combinators.drop_connect(lj.simple_rnn(H), 0.5)
    params, x = random_params(cell), random_xs(BATCH, 1)[:, 0]
    carry = random_carry(cell, params, BATCH)
    assert cell.noise is not None
    drawn = cell.noise(noise_key(0), params, BATCH, 1)
    mask = drawn.shared[0]
    assert set(np.unique(mask)) == {0, 2}
    p, h, mask = jax.tree.map(np.asarray, (params, carry.h, mask))
    kernel = p["recurrent_kernel"] * mask
    new = np.tanh(products(p | {"recurrent_kernel": kernel}, h, np.asarray(x)))
    assert_close(cell.step(params, carry, x, drawn)[1], new, 1e-12)


def test_a_residual_adds_the_input_and_a_stack_hands_it_on() -> None:
    cell = combinators.stack(
        combinators.residual(lj.simple_rnn(INPUT)), lj.simple_rnn(H)
    )
    params, x = random_params(cell), random_xs(BATCH, 1)[:, 0]
    carry = random_carry(cell, params, BATCH)
    p, before, y = jax.tree.map(np.asarray, (params, carry.layers, x))
    first = np.tanh(products(p["layer_0"], before[0].h, y))
    second = np.tanh(products(p["layer_1"], before[1].h, first + y))
    found, ys = cell.step(params, carry, x)
    assert_close((found.layers[0].h, found.layers[1].h, ys), (first, second, second))

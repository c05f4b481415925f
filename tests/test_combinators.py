"""Tests of lstm_jax.combinators."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from example_cells import (
    HIDDEN,
    INVENTED,
    noise_key,
    random_carry,
    random_params,
    random_xs,
)
from reference import assert_close, assert_same_bits, outputs_and_gradients

import lstm_jax as lj
from lstm_jax.combinators import recurrent_dropout

pytestmark = pytest.mark.usefixtures("strict", "x64")

BATCH, TIME, RATE = 3, 7, 0.4
DROPPED = {
    "lstm": recurrent_dropout(lj.lstm(HIDDEN), RATE),
    "gru": recurrent_dropout(lj.gru(HIDDEN), RATE),
    "twice": recurrent_dropout(recurrent_dropout(lj.simple_rnn(HIDDEN), 0.3), RATE),
    "zoneout": recurrent_dropout(INVENTED["zoneout"], RATE),
    "all_noise": recurrent_dropout(INVENTED["all_noise"], RATE),
}


def drawn_noise(cell: lj.Cell, params: Any, key: Any) -> lj.Noise:
    assert cell.noise is not None
    return jax.tree.map(np.asarray, cell.noise(key, params, BATCH, TIME))


@pytest.mark.parametrize(
    "name",
    [
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("twice", "zoneout")),
        "all_noise",
    ],
)
def test_fused_equals_autodiff(name: str) -> None:
    cell = DROPPED[name]
    params = random_params(cell)
    xs, carry = random_xs(BATCH, TIME), random_carry(cell, params, BATCH)
    rng = np.random.default_rng(0)
    options = {
        "mask": jnp.asarray(rng.random((BATCH, TIME)) < 0.8),
        "resets": jnp.asarray(rng.random((BATCH, TIME)) < 0.2),
        "reverse": len(name) % 2 == 0,
    }

    def run(implementation: str, key: Any) -> Any:
        return outputs_and_gradients(
            cell, params, xs, carry, key=key, implementation=implementation, **options
        )

    fused = run("fused", noise_key(0))
    assert_close(fused, run("autodiff", noise_key(0)))
    for leaf in jax.tree.leaves((fused[1][0], fused[1][2])):
        assert float(np.max(np.abs(leaf))) > 1e-6


def sigmoid(z: Any) -> Any:
    return 1 / (1 + np.exp(-z))


def test_mask_is_in_the_recurrent_product_alone() -> None:
    """A GRU also reads h beside the product: h' = (1 - z) n + z h."""
    cell, plain = DROPPED["gru"], lj.gru(HIDDEN)
    params = random_params(cell)
    assert jax.tree.structure(params) == jax.tree.structure(random_params(plain))
    xs, carry = random_xs(BATCH, TIME), random_carry(cell, params, BATCH)
    mask = drawn_noise(cell, params, noise_key(3)).sequence[0]
    assert mask.shape == (BATCH, HIDDEN)
    assert set(np.unique(mask)) == {0, 1 / (1 - RATE)}
    p, h, outputs = jax.tree.map(np.asarray, params), np.asarray(carry.h), []
    for t in range(TIME):
        zx = np.asarray(xs)[:, t] @ p["kernel"] + p["bias"]
        zh = (h * mask) @ p["recurrent_kernel"] + p["recurrent_bias"]
        (xr, xz, xn), (hr, hz, hn) = np.split(zx, 3, -1), np.split(zh, 3, -1)
        r, z = sigmoid(xr + hr), sigmoid(xz + hz)
        h = (1 - z) * np.tanh(xn + r * hn) + z * h
        outputs.append(h)
    for implementation in ("fused", "autodiff"):
        final, ys = lj.unroll(
            cell, params, xs, carry, key=noise_key(3), implementation=implementation
        )
        np.testing.assert_allclose(ys, np.stack(outputs, 1), rtol=0, atol=1e-12)
        np.testing.assert_allclose(final.h, h, rtol=0, atol=1e-12)


def test_cell_keeps_noise_of_its_own() -> None:
    """Of all three kinds, in its gates and in its product, beside the mask."""
    cell = DROPPED["all_noise"]
    params = random_params(cell)
    xs, carry = random_xs(BATCH, TIME), random_carry(cell, params, BATCH)
    noise = drawn_noise(cell, params, noise_key(1))
    mask, own = noise.sequence
    assert set(np.unique(mask)) == {0, 1 / (1 - RATE)}
    # The mask and the cell's own noise are draws apart.
    assert len(np.unique(np.concatenate([own.ravel(), noise.step.ravel()]))) == (
        own.size + noise.step.size
    )
    p, h, outputs = jax.tree.map(np.asarray, params), np.asarray(carry.h), []
    for t in range(TIME):
        zx = np.asarray(xs)[:, t] @ p["kernel"] + p["bias"]
        dropped = h * mask * own * noise.step[:, t]
        z = zx + dropped @ (p["recurrent_kernel"] * noise.shared)
        h = np.tanh(z) + 0.3 * noise.step[:, t] * own + noise.shared.mean()
        outputs.append(p["gain"] * h)
    _, ys = lj.unroll(cell, params, xs, carry, key=noise_key(1))
    np.testing.assert_allclose(ys, np.stack(outputs, 1), rtol=0, atol=1e-12)


def test_zoneout_stays_what_it_is() -> None:
    zoneout = INVENTED["zoneout"]
    cell = recurrent_dropout(zoneout, 0.0)
    params = random_params(cell)
    xs, carry = random_xs(BATCH, TIME), random_carry(cell, params, BATCH)
    assert cell.noise is not None
    noise = cell.noise(noise_key(2), params, BATCH, TIME)
    state, outputs = carry, []
    for t in range(TIME):
        at_step = lj.Noise(step=jax.tree.map(lambda a, t=t: a[:, t], noise.step))
        state, y = zoneout.step(params, state, xs[:, t], at_step)
        outputs.append(y)
    _, ys = lj.unroll(cell, params, xs, carry, key=noise_key(2))
    np.testing.assert_allclose(ys, np.stack(outputs, 1), rtol=0, atol=1e-12)
    # Without a key it takes the expectation, dropout or no dropout.
    want = lj.unroll(zoneout, params, xs, carry)
    assert_same_bits(lj.unroll(DROPPED["zoneout"], params, xs, carry), want)


def test_without_a_key_or_a_rate_nothing_is_dropped() -> None:
    cell = lj.lstm(HIDDEN)
    params = random_params(cell)
    xs, carry = random_xs(BATCH, TIME), random_carry(cell, params, BATCH)

    def run(cell: lj.Cell, key: Any) -> Any:
        return outputs_and_gradients(cell, params, xs, carry, key=key)

    want = run(cell, None)
    assert_close(run(DROPPED["lstm"], None), want, 1e-12)
    assert_close(run(recurrent_dropout(cell, 0.0), noise_key(0)), want, 1e-12)
    dropped = run(DROPPED["lstm"], noise_key(0))[0][1]
    assert np.abs(dropped - want[0][1]).max() > 0.01


def test_masks_are_of_the_row_and_the_key() -> None:
    cell = recurrent_dropout(lj.lstm(200), 0.3)
    params = {
        "kernel": jnp.zeros((1, 800)),
        "recurrent_kernel": jnp.zeros((200, 800)),
    }
    masks = [drawn_noise(cell, params, noise_key(i)).sequence[0] for i in (0, 1)]
    for mask in masks:
        kept = mask > 0
        assert abs(kept.mean() - 0.7) < 4 * np.sqrt(0.3 * 0.7 / kept.size)
        assert (kept[0] != kept[1]).any()
        np.testing.assert_allclose(mask[kept], 1 / 0.7, rtol=1e-12)
    assert (masks[0] != masks[1]).any()


def test_parameters_begin_as_the_cells() -> None:
    inner = lj.lstm(HIDDEN)
    key = jax.random.key(0)
    assert_same_bits(recurrent_dropout(inner, 0.5).init(key, 3), inner.init(key, 3))


def test_bfloat16_products() -> None:
    """The cell's own type is kept; the result lies near that of float64."""
    cell = recurrent_dropout(lj.lstm(HIDDEN, dtype=jnp.bfloat16), RATE)
    params = random_params(cell)
    narrow = jax.tree.map(lambda a: a.astype(jnp.float32), params)
    xs = random_xs(BATCH, TIME)
    key = noise_key(0)
    want = outputs_and_gradients(DROPPED["lstm"], params, xs, key=key)
    narrow_xs = xs.astype(jnp.float32)
    # float32 draws masks of its own: those of float64 are handed in.
    mask = drawn_noise(DROPPED["lstm"], params, key).sequence[0]
    assert cell.noise is not None
    cell = cell._replace(
        noise=lambda *_: lj.Noise(sequence=(jnp.asarray(mask, jnp.float32), ()))
    )
    got = outputs_and_gradients(cell, narrow, narrow_xs, key=key)
    differences = []
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == jnp.float32
        difference = np.max(np.abs(np.asarray(a) - np.asarray(b)))
        differences.append(difference / np.max(np.abs(b)))
    assert 1e-4 < max(differences) < 2e-2


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan")])
def test_rates_that_are_no_use(rate: float) -> None:
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\), got "):
        recurrent_dropout(lj.lstm(HIDDEN), rate)


def test_cell_without_gates() -> None:
    with pytest.raises(ValueError, match="takes a cell made by gated"):
        recurrent_dropout(lj.gru(HIDDEN, reset_after=False), 0.5)

"""Tests of lstm_jax.optimizers against the equations of Keras, TF1 and the papers."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import assert_same_bits

from lstm_jax.config import base_config
from lstm_jax.errors import UserError
from lstm_jax.optimizers import clip_by_global_norm, learning_rate, make_optimizer

RATE = 0.1


def group(name: str = "adam", **fields: Any) -> Any:
    """The config's group `optimizer`."""
    config = base_config().optimizer
    config.update({"name": name, "learning_rate": RATE, **fields})
    return config


def draw(seed: int) -> np.ndarray:
    """Gradients of several steps, some of them tiny, where epsilon matters."""
    rng = np.random.default_rng(seed)
    gradients = rng.normal(size=(6, 2, 3))
    gradients[:, 0] *= 1e-7
    gradients[:, 1, 0] = 0
    return gradients


def path(optimizer: Any, gradients: Any, params: Any) -> np.ndarray:
    """The parameters after each step."""
    params = {"w": jnp.asarray(params, jnp.float32)}
    state = optimizer.init(params)
    visited = []
    for gradient in gradients:
        gradient = {"w": jnp.asarray(gradient, jnp.float32)}
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        visited.append(np.asarray(params["w"]))
    return np.array(visited)


def adam(
    w: np.ndarray, gradients: Any, epsilon: float, weight_decay: float = 0.0
) -> Iterator[np.ndarray]:
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(gradients, 1):
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g**2
        alpha = RATE * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)  # as Keras writes it
        w = w - alpha * m / (np.sqrt(v) + epsilon) - RATE * weight_decay * w
        yield w


def rmsprop(
    w: np.ndarray,
    gradients: Any,
    epsilon: float,
    mean_square: float,
    momentum: float = 0.0,
) -> Iterator[np.ndarray]:
    v, moved = np.full_like(w, mean_square), np.zeros_like(w)
    for g in gradients:
        v = 0.9 * v + 0.1 * g**2
        moved = momentum * moved + RATE * g / np.sqrt(v + epsilon)
        w = w - moved
        yield w


def sgd(w: np.ndarray, gradients: Any, momentum: float = 0.0) -> Iterator[np.ndarray]:
    moved = np.zeros_like(w)
    for g in gradients:
        moved = momentum * moved - RATE * g
        w = w + moved
        yield w


@pytest.mark.parametrize(
    ("config", "equations"),
    [
        (group("adam"), lambda w, g: adam(w, g, 1e-7)),
        (group("adam", epsilon=1e-3), lambda w, g: adam(w, g, 1e-3)),
        (
            group("adamw", weight_decay=0.2),
            lambda w, g: adam(w, g, 1e-7, weight_decay=0.2),
        ),
        (group("rmsprop"), lambda w, g: rmsprop(w, g, 1e-7, 0.0)),
        (group("rmsprop", epsilon=1e-3), lambda w, g: rmsprop(w, g, 1e-3, 0.0)),
        (group("rmsprop", momentum=0.8), lambda w, g: rmsprop(w, g, 1e-7, 0.0, 0.8)),
        # TF1's epsilon is fixed: the config's is for the others.
        (group("rmsprop_tf1"), lambda w, g: rmsprop(w, g, 1e-10, 1.0)),
        (
            group("rmsprop_tf1", momentum=0.8),
            lambda w, g: rmsprop(w, g, 1e-10, 1.0, 0.8),
        ),
        (group("sgd"), lambda w, g: sgd(w, g)),
        (group("sgd", momentum=0.8), lambda w, g: sgd(w, g, 0.8)),
    ],
    ids=lambda value: value.name if hasattr(value, "name") else "",
)
def test_updates_follow_the_equations(config: Any, equations: Any) -> None:
    w = np.random.default_rng(1).normal(size=(2, 3))
    gradients = draw(2)
    got = path(make_optimizer(config, 100), gradients, w)
    want = np.array(list(equations(w, gradients)))
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=2e-6)


def test_keras_rmsprop_in_numbers() -> None:
    # v = 0.1 * 0.01; step = 0.1 * 0.1 / sqrt(0.001 + 1e-7)
    got = path(make_optimizer(group("rmsprop"), 9), [[0.1]], [1.0])
    np.testing.assert_allclose(got, [[1 - 0.3162119672]], rtol=1e-6)
    # Where the gradient is tiny, an epsilon outside the root would give twice as much.
    tiny = path(make_optimizer(group("rmsprop"), 9), [[1e-6]], [0.0])
    np.testing.assert_allclose(tiny, [[-0.1 * 1e-6 / np.sqrt(1e-13 + 1e-7)]], rtol=1e-5)


def test_tf1_rmsprop_in_numbers() -> None:
    # v = 0.9 * 1 + 0.1 * 4; step = 0.1 * 2 / sqrt(1.3)
    got = path(make_optimizer(group("rmsprop_tf1"), 9), [[2.0]], [1.0])
    np.testing.assert_allclose(got, [[1 - 0.1754116039]], rtol=1e-6)
    # The mean square starts at 1 and decays; once it is small, the epsilon shows.
    gradients = np.append(np.zeros(200), 1e-6).reshape(-1, 1)
    got = path(make_optimizer(group("rmsprop_tf1"), 9), gradients, [0.0])
    want = -0.1 * 1e-6 / np.sqrt(0.9**201 + 0.1 * 1e-12 + 1e-10)
    np.testing.assert_allclose(got[-1], [want], rtol=1e-4)


def test_weight_decay_shrinks_at_zero_gradient() -> None:
    w = np.array([[2.0, -3.0]])
    config = group("adamw", weight_decay=0.5)
    got = path(make_optimizer(config, 9), np.zeros((3, 1, 2)), w)
    want = [w * 0.95, w * 0.95**2, w * 0.95**3]
    np.testing.assert_allclose(got, want, rtol=1e-6)
    still = path(make_optimizer(group("adam"), 9), np.zeros((3, 1, 2)), w)
    np.testing.assert_array_equal(still, np.broadcast_to(w, (3, 1, 2)))


def test_clipping_is_by_the_norm_of_all_leaves() -> None:
    config = group("sgd", clip_norm=6.5, learning_rate=1.0)
    optimizer = make_optimizer(config, 9)
    params = {"a": jnp.zeros(2), "b": {"c": jnp.zeros(1)}}
    state = optimizer.init(params)
    # The norm of (3, 4, 12) is 13: halved.
    gradient = {"a": jnp.array([3.0, 4.0]), "b": {"c": jnp.array([12.0])}}
    updates, state = optimizer.update(gradient, state, params)
    np.testing.assert_allclose(updates["a"], [-1.5, -2], rtol=1e-6)
    np.testing.assert_allclose(updates["b"]["c"], [-6], rtol=1e-6)
    # The norm of (0.3, 0.4, 1.2) is less: as it is.
    gradient = {"a": jnp.array([0.3, 0.4]), "b": {"c": jnp.array([1.2])}}
    updates, _ = optimizer.update(gradient, state, params)
    np.testing.assert_allclose(updates["a"], [-0.3, -0.4], rtol=1e-6)
    np.testing.assert_allclose(updates["b"]["c"], [-1.2], rtol=1e-6)


BEYOND = np.nextafter(np.float32(np.inf), np.float32(0))  # the largest float32


@pytest.mark.parametrize(
    ("gradient", "max_norm", "want"),
    [
        # The sum of squares of each of these is infinite in float32.
        ([1e20, 1, 3], 1, [1, 1e-20, 3e-20]),
        ([-1.2e19, 1.6e19, 0], 5, [-3, 4, 0]),
        ([BEYOND, -BEYOND, 0], 1, [0.5**0.5, -(0.5**0.5), 0]),
        ([1e20, 1, 3], 1e30, [1e20, 1, 3]),
        ([1e35, 1, 3], 1e30, [1e30, 1e-5, 3e-5]),
        # That of these is not; of the last it is 0.
        ([3e18, -4e18, 0], 1, [0.6, -0.8, 0]),
        ([0.3, 0.4, 0], 1, [0.3, 0.4, 0]),
        ([0, 0, 0], 1, [0, 0, 0]),
        ([1e-25, 0, 0], 1, [1e-25, 0, 0]),
    ],
)
def test_clipping_of_gradients_whose_squares_are_infinite(
    gradient: list[float], max_norm: float, want: list[float]
) -> None:
    clip = clip_by_global_norm(float(max_norm))

    def clipped(first: Any, rest: Any) -> Any:
        return clip.update({"a": first, "b": {"c": rest}}, clip.init(()))[0]

    leaves = jnp.float32(gradient[:1]), jnp.float32(gradient[1:])
    every = jax.vmap(clipped)(*jax.tree.map(lambda a: a[None], leaves))
    for got in (jax.jit(clipped)(*leaves), jax.tree.map(lambda a: a[0], every)):
        np.testing.assert_allclose(got["a"], want[:1], rtol=1e-6)
        np.testing.assert_allclose(got["b"]["c"], want[1:], rtol=1e-6)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_clipping_hides_nothing_that_is_not_finite(bad: float) -> None:
    got, _ = clip_by_global_norm(1.0).update({"a": jnp.float32([bad, 1.0])}, ())
    assert not np.isfinite(got["a"]).any()


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_ordinary_gradients_are_clipped_as_optax_clips_them(scale: float) -> None:
    gradient = {"a": jnp.float32(draw(3) * scale), "b": jnp.float32(draw(4)[0])}

    def clipped(clip: Any) -> Any:
        return jax.jit(lambda g: clip.update(g, clip.init(g))[0])(gradient)

    assert_same_bits(
        clipped(clip_by_global_norm(1.0)), clipped(optax.clip_by_global_norm(1.0))
    )


@pytest.mark.parametrize(
    ("fields", "table"),
    [
        ({}, {0: 0.1, 1: 0.1, 100: 0.1, 1000: 0.1}),
        ({"warmup_steps": 4}, {0: 0, 1: 0.025, 2: 0.05, 4: 0.1, 5: 0.1, 100: 0.1}),
        (
            {"schedule": "cosine"},
            {0: 0.1, 25: 0.05 * (1 + 0.5**0.5), 50: 0.05, 100: 0, 101: 0},
        ),
        (
            {"schedule": "cosine", "warmup_steps": 20},
            {0: 0, 10: 0.05, 19: 0.095, 20: 0.1, 40: 0.05 * (1 + 0.5**0.5), 60: 0.05}
            | {80: 0.05 * (1 - 0.5**0.5), 100: 0},
        ),
    ],
    ids=["constant", "warm-up", "cosine", "warm-up and cosine"],
)
def test_schedule(fields: Any, table: Any) -> None:
    schedule = learning_rate(group(**fields), 100)
    got = [float(schedule(jnp.int32(step))) for step in table]
    np.testing.assert_allclose(got, list(table.values()), rtol=1e-6, atol=1e-8)
    # What the optimizer does at its n-th update, on the way to these steps.
    gradients = np.ones((101, 1))
    moves = -np.diff(
        path(make_optimizer(group("sgd", **fields), 100), gradients, [0.0]),
        axis=0,
        prepend=0,
    )
    within = {step: rate for step, rate in table.items() if step <= 100}
    np.testing.assert_allclose(
        moves[list(within), 0], list(within.values()), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "adma"}, r"unknown optimizer.name 'adma': choose one of adam, adamw"),
        ({"schedule": "linear"}, "unknown optimizer.schedule 'linear': choose"),
        ({"learning_rate": -1.0}, "optimizer.learning_rate=-1.0 must be finite"),
        ({"learning_rate": float("nan")}, "optimizer.learning_rate=nan must be"),
        ({"learning_rate": float("inf")}, "optimizer.learning_rate=inf must be"),
        ({"clip_norm": -1.0}, "optimizer.clip_norm=-1.0 must be finite and at least 0"),
        ({"momentum": -1.0}, "optimizer.momentum=-1.0 must be finite and at least 0"),
        (
            {"weight_decay": -1.0},
            "optimizer.weight_decay=-1.0 must be finite and at least 0",
        ),
        ({"epsilon": -1.0}, "optimizer.epsilon=-1.0 must be finite and at least 0"),
        ({"momentum": 0.9}, "optimizer.momentum=0.9 is nothing for adam: set it to 0"),
        (
            {"name": "sgd", "epsilon": 0.1},
            "optimizer.epsilon=0.1 is nothing for sgd: set it to 1e-07, or .* rmsprop$",
        ),
        (
            {"name": "sgd", "weight_decay": 0.1},
            "weight_decay=0.1 is nothing for sgd: set it to 0.0, or .* adamw$",
        ),
        ({"warmup_steps": -1}, "optimizer.warmup_steps=-1 must be at least 0 and less"),
        ({"warmup_steps": 10}, "warmup_steps=10 must .* number of steps, 10$"),
    ],
)
def test_values_that_are_no_use(fields: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_optimizer(group(**fields), 10)

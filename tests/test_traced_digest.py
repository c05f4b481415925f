"""Tests of lstm_jax.traced_digest: what counts for a digest, and what does not."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lstm_jax as lj
from lstm_jax.traced_digest import trace
from lstm_jax.unroll import AUTO

X = jax.ShapeDtypeStruct((3,), jnp.float32)


def digest(function: Callable[[Any], Any], x: Any = X) -> str:
    return trace(lambda x: function(x), x=x).digest


def scaled(factor: Any) -> Callable[[Any], Any]:
    return lambda x: factor * x


def looped(factor: float) -> Callable[[Any], Any]:
    return lambda x: lax.scan(lambda c, _: (jnp.sin(factor * c), c), x, None, length=4)


def handed_to_the_host(x: Any) -> Any:
    return jax.pure_callback(np.sin, x, x)


@jax.custom_jvp
def rounded(x: Any) -> Any:
    return jnp.round(x)


rounded.defjvp(lambda xs, ts: (rounded(*xs), ts[0]))


@jax.custom_jvp
def rounded_steeply(x: Any) -> Any:
    return jnp.round(x)


rounded_steeply.defjvp(lambda xs, ts: (rounded_steeply(*xs), 2 * ts[0]))


def gradient(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return jax.grad(lambda x: jnp.sum(function(x)))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (scaled(2.0), scaled(2.0)),
        (scaled(np.arange(3.0, dtype=np.float32)), scaled(jnp.arange(3.0))),
        (scaled(2.0), jax.jit(scaled(2.0))),
        (scaled(2.0), jax.checkpoint(scaled(2.0))),
        (scaled(2.0), lambda x: (jnp.cos(x), 2.0 * x)[1]),
        (
            lambda x: [2.0 * x, jnp.sin(x)],
            lambda x: [jnp.sin(x), 2.0 * x][::-1],
        ),
        (looped(0.5), looped(0.5)),
        (jax.jit(looped(0.5)), looped(0.5)),
        (gradient(jnp.tanh), gradient(jnp.tanh)),
        (rounded, rounded_steeply),
        (handed_to_the_host, lambda x: handed_to_the_host(x)),
    ],
)
def test_the_same_computation(
    one: Callable[[Any], Any], other: Callable[[Any], Any]
) -> None:
    assert digest(one) == digest(other)


def test_what_is_printed_counts_for_nothing() -> None:
    def shown(x: Any) -> Any:
        def step(c: Any, _: Any) -> Any:
            jax.debug.print("c = {}", c)
            return jnp.sin(0.5 * c), c

        return lax.scan(step, x, None, length=4)

    assert digest(shown) == digest(looped(0.5))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (scaled(2.0), scaled(3.0)),
        (scaled(jnp.array([1.0, 2.0, 3.0])), scaled(jnp.array([1.0, 2.0, 4.0]))),
        (lambda x: x - jnp.flip(x), lambda x: jnp.flip(x) - x),
        (lambda x: {"loss": x}, lambda x: {"lost": x}),
        (lambda x: [2.0 * x, jnp.sin(x)], lambda x: [jnp.sin(x), 2.0 * x]),
        (looped(0.5), looped(0.25)),
        (gradient(rounded), gradient(rounded_steeply)),
        (
            lambda x: lax.reduce_precision(x, 8, 7),
            lambda x: lax.reduce_precision(x, 5, 7),
        ),
        (
            lambda x: x + jax.random.normal(jax.random.key(0), (3,)),
            lambda x: x + jax.random.normal(jax.random.key(1), (3,)),
        ),
    ],
)
def test_another_computation(
    one: Callable[[Any], Any], other: Callable[[Any], Any]
) -> None:
    assert digest(one) != digest(other)


def test_other_arguments() -> None:
    of = {digest(jnp.sin, x) for x in (X, jnp.ones((3,)), np.ones(3, np.float32))}
    assert of == {digest(jnp.sin)}
    assert digest(jnp.sin, jnp.ones((4,))) not in of
    assert digest(jnp.sin, jnp.ones((3,), jnp.bfloat16)) not in of
    assert digest(lambda x: jnp.sin(x["a"]), {"a": X}) not in of
    assert digest(lambda x: x["a"], {"a": X, "b": X}) != digest(
        lambda x: x["b"], {"a": X, "b": X}
    )


def test_a_value_is_found_in_another_function() -> None:
    inner = trace(lambda x: looped(0.5)(x)[0], x=X).results
    outer = trace(lambda x, y: jnp.sum(y * jax.jit(looped(0.5))(x)[1]), x=X, y=X)
    assert set(inner) < outer.values
    other = trace(lambda x, y: jnp.sum(y * looped(0.25)(x)[1]), x=X, y=X)
    assert not set(inner) & other.values


def test_auto_is_autodiff_where_it_is_asked_for_and_nowhere_else() -> None:
    """What was traced for a digest is not what a compiled function then runs."""
    cell = lj.lstm(4)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 2))
    xs = jax.ShapeDtypeStruct((2, 3, 2), jnp.float32)
    apply = jax.jit(lambda params, xs: lj.unroll(cell, params, xs)[1])
    with AUTO("autodiff"):
        plain = str(jax.make_jaxpr(apply)(params, xs))
        fused = lambda params, xs: lj.unroll(  # noqa: E731
            cell, params, xs, implementation="fused"
        )[1]
        asked_for = str(jax.make_jaxpr(fused)(params, xs))
    assert "custom_vjp" not in plain
    assert "custom_vjp" in asked_for
    assert "custom_vjp" in str(jax.make_jaxpr(apply)(params, xs))

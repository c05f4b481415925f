"""A program replayed: the same values, seen in order, changed where asked."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lstm_jax.replay import is_computed, replay


def test_gives_the_same_and_shows_what_is_inside() -> None:
    @jax.jit
    def inner(x: Array) -> tuple[Array, Array]:
        return jnp.tanh(x), x

    def function(x: Array, y: Array) -> Any:
        a, b = inner(x + y)
        c, _ = jax.lax.scan(lambda c, d: (c * d, None), a, jnp.stack([y, y]))
        return jax.nn.relu(jax.nn.sigmoid(c) - b), x, 2.0

    x, y = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5)))
    seen: list[tuple[str, np.ndarray]] = []
    traced = jax.make_jaxpr(function)(x, y)

    def see(name: str, a: Sequence[Array]) -> None:
        seen.append((name, np.asarray(a[0])))

    out = replay(traced.jaxpr, traced.consts, [x, y], see=see)
    assert all(isinstance(a, jax.Array) for a in out)  # the number among them too
    for got, want in zip(out, function(x, y), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)
    known = [(name, a) for name, a in seen if name in ("tanh", "logistic")]
    assert [name for name, _ in known] == ["tanh", "logistic"]
    np.testing.assert_allclose(known[0][1], jnp.tanh(x + y), rtol=1e-6)
    gate = jax.nn.sigmoid(jnp.tanh(x + y) * y**2)
    np.testing.assert_allclose(known[1][1], gate, rtol=1e-6)
    computed = [is_computed(traced.jaxpr, a) for a in traced.jaxpr.outvars]
    assert computed == [True, False, False]


def test_what_is_added_reaches_all_that_is_computed_of_it() -> None:
    @jax.jit
    def inner(x: Array) -> tuple[Array, Array, Array]:
        h = jnp.sin(x)
        return h, 3 * h, x

    def function(x: Array) -> Any:
        h, y, same = inner(x)
        doubled = 2 * x
        return h, y, h * h, same, doubled, doubled + 1

    x, d, e, f = jnp.asarray(np.random.default_rng(0).normal(size=(4, 5)))
    traced = jax.make_jaxpr(function)(x)
    outs = traced.jaxpr.outvars
    added = {outs[0]: d, outs[3]: e, outs[4]: f}
    got = replay(traced.jaxpr, traced.consts, [x], added=added)
    h = jnp.sin(x) + d
    want = (h, 3 * h, h * h, x + e, 2 * x + f, 2 * x + f + 1)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert len(added) == 3  # as it was given

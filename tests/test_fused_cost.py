"""What the fused path is for: what it keeps, and what its loops compute."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from example_cells import random_xs

import lstm_jax as lj

pytestmark = pytest.mark.usefixtures("strict")

BATCH, TIME, INPUT, HIDDEN = 5, 40, 3, 7
CELL = lj.lstm(HIDDEN)


def make_inputs() -> tuple[Any, Any]:
    return CELL.init(jax.random.key(0), INPUT), random_xs(BATCH, TIME)


def saved_bytes(implementation: str) -> int:
    """Bytes that the backward pass gets, less inputs and parameters."""
    params, xs = make_inputs()

    def outputs(params: Any, xs: Any) -> Any:
        return lj.unroll(CELL, params, xs, implementation=implementation)

    saved = jax.tree.leaves(jax.vjp(outputs, params, xs)[1])
    given = {a.shape for a in (*params.values(), xs, jnp.swapaxes(xs, 0, 1))}
    return sum(a.nbytes for a in saved if a.shape not in given)


def test_forward_saves_six_arrays() -> None:
    array = TIME * BATCH * HIDDEN * 4
    # The initial carry is small change: two arrays of one step.
    assert 5.9 * array < saved_bytes("fused") <= 6 * array + 2 * BATCH * HIDDEN * 4
    assert saved_bytes("autodiff") > 8 * array


def inner_jaxprs(jaxpr: Any) -> Iterator[tuple[str, Any]]:
    """The jaxprs in the parameters of a jaxpr's equations, with the primitive."""
    for equation in jaxpr.eqns:
        for value in equation.params.values():
            for item in value if isinstance(value, (tuple, list)) else [value]:
                inner = getattr(item, "jaxpr", item)
                if hasattr(inner, "eqns"):
                    yield equation.primitive.name, inner


def products(jaxpr: Any) -> list[tuple[int, ...]]:
    """Shapes of the products of a jaxpr, without those of loops inside it."""
    shapes = [
        equation.outvars[0].aval.shape
        for equation in jaxpr.eqns
        if equation.primitive.name == "dot_general"
    ]
    for name, inner in inner_jaxprs(jaxpr):
        if name != "scan":
            shapes += products(inner)
    return shapes


def loops(jaxpr: Any) -> list[Any]:
    """The bodies of the outermost loops of a jaxpr."""
    bodies = []
    for name, inner in inner_jaxprs(jaxpr):
        bodies += [inner] if name == "scan" else loops(inner)
    return bodies


def trace(implementation: str) -> Any:
    params, xs = make_inputs()

    def total(params: Any, xs: Any) -> Any:
        _, ys = lj.unroll(CELL, params, xs, implementation=implementation)
        return jnp.sum(ys)

    return jax.make_jaxpr(jax.grad(total, argnums=(0, 1)))(params, xs).jaxpr


WEIGHTS = {
    shape
    for rows in (INPUT, HIDDEN, INPUT + HIDDEN)
    for shape in ((rows, 4 * HIDDEN), (4 * HIDDEN, rows))
}


def test_weight_gradient_is_not_in_the_innermost_loop() -> None:
    forward, chunks = loops(trace("fused"))
    (backward,) = loops(chunks)
    print(products(forward), products(chunks), products(backward))
    assert not WEIGHTS & set(products(backward))
    assert len(WEIGHTS & set(products(chunks))) == 2

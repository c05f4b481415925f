"""What the fused path is for: what it keeps, and what its loops compute."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from example_cells import random_xs
from schedules import ROWS_FIRST, ROWS_LAST, scheduled

import lstm_jax as lj
from lstm_jax.schedule import Schedule

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


@pytest.mark.parametrize("schedule", [ROWS_FIRST, ROWS_LAST])
def test_forward_saves_six_arrays(schedule: Schedule) -> None:
    array = TIME * BATCH * HIDDEN * 4
    with scheduled(schedule):
        assert 5.9 * array < saved_bytes("fused") <= 6 * array
    assert saved_bytes("autodiff") > 8 * array


def live_equations(jaxpr: Any) -> list[Any]:
    """The equations that the jaxpr's results depend on."""
    needed = {id(variable) for variable in jaxpr.outvars}
    live = []
    for equation in reversed(jaxpr.eqns):
        if any(id(variable) in needed for variable in equation.outvars):
            needed |= {id(variable) for variable in equation.invars}
            live.append(equation)
    return live


def inner_jaxprs(equation: Any) -> list[Any]:
    """The jaxprs, closed or not, among an equation's parameters."""
    found = []
    for value in equation.params.values():
        for item in value if isinstance(value, (tuple, list)) else [value]:
            jaxpr = getattr(item, "jaxpr", item)
            if hasattr(jaxpr, "eqns"):
                found.append(jaxpr)
    return found


def dots(jaxpr: Any) -> list[Any]:
    """The products of a jaxpr, without those of loops inside it."""
    found = []
    for equation in live_equations(jaxpr):
        if equation.primitive.name == "dot_general":
            found.append(equation)
        elif equation.primitive.name != "scan":
            for inner in inner_jaxprs(equation):
                found += dots(inner)
    return found


def products(jaxpr: Any) -> list[tuple[int, ...]]:
    """The shapes of these products' results."""
    return sorted(dot.outvars[0].aval.shape for dot in dots(jaxpr))


def loops(jaxpr: Any) -> list[Any]:
    """The bodies of the outermost loops of a jaxpr, in reverse order."""
    bodies = []
    for equation in live_equations(jaxpr):
        for inner in inner_jaxprs(equation):
            bodies += [inner] if equation.primitive.name == "scan" else loops(inner)
    return bodies


def trace(implementation: str, cell: lj.Cell = CELL) -> Any:
    params, xs = make_inputs()

    def total(params: Any, xs: Any) -> Any:
        _, ys = lj.unroll(cell, params, xs, implementation=implementation)
        return jnp.sum(ys)

    return jax.make_jaxpr(jax.grad(total, argnums=(0, 1)))(params, xs).jaxpr


GATES_INPUT = (BATCH, 4 * HIDDEN)
WEIGHT_GRADIENTS = [(INPUT, 4 * HIDDEN), (HIDDEN, 4 * HIDDEN)]


@pytest.mark.parametrize("schedule", [ROWS_FIRST, ROWS_LAST])
def test_weight_gradient_is_not_in_the_innermost_loop(schedule: Schedule) -> None:
    with scheduled(schedule):
        chunks, forward = loops(trace("fused"))
    (backward,) = loops(chunks)
    assert loops(forward) == loops(backward) == []

    def shapes(*shapes: tuple[int, ...]) -> list[tuple[int, ...]]:
        turned = schedule == ROWS_LAST
        return sorted(tuple(reversed(s)) if turned else s for s in shapes)

    assert products(forward) == shapes(GATES_INPUT, GATES_INPUT)
    # The carry's gradient alone.
    assert products(backward) == shapes((BATCH, HIDDEN))
    chunk = (TIME // 2, BATCH, INPUT)
    if schedule == ROWS_LAST:
        chunk = (BATCH, TIME // 2, INPUT)
    assert products(chunks) == shapes(chunk, *WEIGHT_GRADIENTS)


def test_autodiff_has_the_weight_gradient_in_its_loop() -> None:
    """What the fused path saves; and that the count can see it."""
    backward, forward = loops(trace("autodiff"))
    assert products(forward) == [GATES_INPUT, GATES_INPUT]
    found = products(backward)
    assert len(found) == 4
    assert sum(BATCH not in shape for shape in found) == 2


@pytest.mark.parametrize("schedule", [ROWS_FIRST, ROWS_LAST])
def test_operands_are_cast(schedule: Schedule) -> None:
    with scheduled(schedule):
        chunks, forward = loops(trace("fused", lj.lstm(HIDDEN, dtype=jnp.bfloat16)))
    (backward,) = loops(chunks)
    for dot in (*dots(forward), *dots(chunks), *dots(backward)):
        assert [operand.aval.dtype for operand in dot.invars] == [jnp.bfloat16] * 2
        assert dot.outvars[0].aval.dtype == jnp.float32

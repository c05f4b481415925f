"""This package's side: its layers, their gradients, its optimizers.

The shape of a case's numbers is in `lstm_jax.certify.cases`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lstm_jax.cell_grammar import parse_cell
from lstm_jax.cells import HiddenCarry, LSTMCarry, Params
from lstm_jax.certify.cases import Arrays, Case, Problem
from lstm_jax.certify.peer import differentiated
from lstm_jax.convert.files import take_stack
from lstm_jax.layers import Recurrent, Stack


def apply(case: Case, params: Any, inputs: Any, lengths: Any) -> dict[str, Any]:
    """Values of a case, of the parameters of a stack."""
    cell = parse_cell(case.cell, case.shape.hidden)
    make = LSTMCarry if case.cell == "lstm" else HiddenCarry
    carries: list[Any] = [
        make(*[inputs[f"initial_{leaf}"][i] for leaf in case.carry])
        for i in range(case.cells)
    ]
    if case.reverse:
        layer = Recurrent(cell, reverse=True)
        found: Any = layer.apply(
            {"params": params["layer_0"]}, inputs["xs"], carries[0], lengths=lengths
        )
        final, ys = [found[0]], found[1]
    else:
        if case.bidirectional:
            carries = list(zip(carries[::2], carries[1::2], strict=True))
        stack = Stack((cell,) * case.layers, bidirectional=case.bidirectional)
        found = stack.apply(
            {"params": params}, inputs["xs"], tuple(carries), lengths=lengths
        )
        final, ys = list(found[0]), found[1]
        if case.bidirectional:
            final = [carry for pair in final for carry in pair]
    states = {
        f"final_{leaf}": jnp.stack([getattr(carry, leaf) for carry in final])
        for leaf in case.carry
    }
    return {"ys": ys} | states


def taken(case: Case, library: str, weights: Any) -> Params:
    """Parameters of a stack from a library's weights."""
    return take_stack(weights, library, case.weights)


def run(case: Case, library: str, problem: Problem) -> tuple[Arrays, Arrays]:
    """Values and gradients, those of weights by the library's names."""
    params = taken(case, library, problem.weights)
    values, gradients = differentiated(apply, case, problem._replace(weights=params))
    inputs = {name: gradients.pop(name) for name in problem.inputs}
    weights = _pulled(case, library, problem.weights, gradients)
    return values, inputs | jax.device_get(weights)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _pulled(case: Case, library: str, weights: Any, gradients: Any) -> Any:
    """The gradients by the library's weights, from those by the parameters."""
    (pulled,) = jax.vjp(functools.partial(taken, case, library), weights)[1](gradients)
    return pulled


def train(
    case: Case,
    library: str,
    problem: Problem,
    optimizer: optax.GradientTransformation,
    steps: int,
) -> Params:
    """The parameters after steps of an optimizer.

    Those that the library has not (of a GRU in Flax the recurrent bias of r and z) stay
    as they are.
    """
    params = taken(case, library, problem.weights)
    other = taken(case, library, {n: a + 1 for n, a in problem.weights.items()})
    reached = jax.tree.map(np.not_equal, other, params)
    state = optimizer.init(jax.tree.map(jnp.asarray, params))

    @jax.jit
    def step(gradients: Any, state: Any, params: Any) -> Any:
        gradients = jax.tree.map(
            lambda g, known: jnp.where(known, g, 0), gradients, reached
        )
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        here = problem._replace(weights=params)
        _, gradients = differentiated(apply, case, here)
        gradients = {name: gradients[name] for name in params}
        params, state = step(gradients, state, params)
    return jax.device_get(params)

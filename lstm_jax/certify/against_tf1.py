"""TensorFlow 1's side: what `tf.nn.rnn_cell` and `tf.nn.dynamic_rnn` define.

TensorFlow 1 cannot be installed beside a Python of today, so these are its definitions,
written out. `tests/golden/make_tf1.py` runs its own code of them, kept in `tf_keras`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lstm_jax.certify.cases import Arrays, Case, Problem
from lstm_jax.certify.peer import (
    RATE,
    Optimizer,
    Peer,
    differentiated,
    reversed_rows,
)
from lstm_jax.config import base_config
from lstm_jax.convert.tf1 import GATE_ORDERS
from lstm_jax.optimizers import make_optimizer, scale_by_adam

FORGET_BIAS = 1.0


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + jnp.exp(-x))


def _cell(case: Case, weights: dict[str, Any], x: Any, state: dict[str, Any]) -> Any:
    """A step: the state after it, whose h is the output."""

    def affine(inputs: Any, part: str = "") -> Any:
        return inputs @ weights[f"{part}kernel"] + weights[f"{part}bias"]

    h = state["h"]
    joint = jnp.concatenate([x, h], 1)
    if case.cell == "lstm":
        i, j, f, o = jnp.split(affine(joint), 4, 1)
        c = state["c"] * _sigmoid(f + FORGET_BIAS) + _sigmoid(i) * jnp.tanh(j)
        return {"h": jnp.tanh(c) * _sigmoid(o), "c": c}
    if case.cell.startswith("gru"):
        r, u = jnp.split(_sigmoid(affine(joint, "gates/")), 2, 1)
        new = jnp.tanh(affine(jnp.concatenate([x, r * h], 1), "candidate/"))
        return {"h": u * h + (1 - u) * new}
    act = {"tanh": jnp.tanh, "relu": jax.nn.relu}[case.activation]
    return {"h": act(affine(joint))}


def _dynamic_rnn(
    case: Case, weights: Any, xs: Any, state: Any, lengths: Any
) -> tuple[Any, Any]:
    """Past a row's length the output is zero and the state is copied through."""

    def step(state: Any, now: Any) -> tuple[Any, Any]:
        t, x = now
        new = _cell(case, weights, x, state)
        if lengths is None:
            return new, new["h"]
        runs = (t < lengths)[:, None]
        copied = {name: jnp.where(runs, new[name], state[name]) for name in new}
        return copied, jnp.where(runs, new["h"], 0)

    times = jnp.arange(case.shape.time), jnp.swapaxes(xs, 0, 1)
    state, ys = jax.lax.scan(step, state, times)
    return jnp.swapaxes(ys, 0, 1), state


def _apply(case: Case, weights: Any, inputs: Any, lengths: Any) -> dict[str, Any]:
    paths = ("forward/cell", "backward/cell") if case.bidirectional else ("cell",)
    outputs, states = [], []
    for i, path in enumerate(paths):
        start = f"layer_0/{path}/"
        mine = {
            name.removeprefix(start): array
            for name, array in weights.items()
            if name.startswith(start)
        }
        state = {leaf: inputs[f"initial_{leaf}"][i] for leaf in case.carry}
        xs = inputs["xs"]
        back = case.reverse or i == 1
        xs = reversed_rows(xs, lengths) if back else xs
        ys, state = _dynamic_rnn(case, mine, xs, state, lengths)
        outputs.append(reversed_rows(ys, lengths) if back else ys)
        states.append(state)
    return {"ys": jnp.concatenate(outputs, 2)} | {
        f"final_{leaf}": jnp.stack([state[leaf] for state in states])
        for leaf in case.carry
    }


def run(case: Case, problem: Problem) -> tuple[Arrays, Arrays]:
    """As `Peer.run`."""
    return differentiated(_apply, case, problem)


def _sgd(weights: Arrays) -> Callable[[Arrays], Arrays]:
    here = dict(weights)

    def update(gradients: Arrays) -> Arrays:
        for name, g in gradients.items():
            here[name] = here[name] - RATE * g
        return dict(here)

    return update


def _adam(weights: Arrays) -> Callable[[Arrays], Arrays]:
    """`tf.train.AdamOptimizer`: epsilon 1e-8 is added before the correction."""
    here, t = dict(weights), 0
    m, v = ({name: 0 * a for name, a in weights.items()} for _ in range(2))

    def update(gradients: Arrays) -> Arrays:
        nonlocal t
        t += 1
        rate = RATE * (1 - 0.999**t) ** 0.5 / (1 - 0.9**t)
        for name, g in gradients.items():
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.999 * v[name] + 0.001 * g**2
            here[name] = here[name] - rate * m[name] / (np.sqrt(v[name]) + 1e-8)
        return dict(here)

    return update


def _rmsprop(weights: Arrays) -> Callable[[Arrays], Arrays]:
    """`tf.train.RMSPropOptimizer`: the mean square begins at 1."""
    here = dict(weights)
    square = {name: np.ones_like(a) for name, a in weights.items()}

    def update(gradients: Arrays) -> Arrays:
        for name, g in gradients.items():
            square[name] = 0.9 * square[name] + 0.1 * g**2
            here[name] = here[name] - RATE * g / np.sqrt(square[name] + 1e-10)
        return dict(here)

    return update


def optimizers() -> dict[str, Optimizer]:
    """Those of `tf.train`, with their defaults but for the learning rate."""
    config = base_config().optimizer
    config.update({"name": "rmsprop_tf1", "learning_rate": RATE})
    adam = optax.chain(scale_by_adam(1e-8), optax.scale_by_learning_rate(RATE))
    return {
        "SGD": Optimizer(_sgd, optax.sgd(RATE)),
        "Adam": Optimizer(_adam, adam),
        "RMSprop": Optimizer(_rmsprop, make_optimizer(config, 1)),
    }


PEER = Peer(
    library="tf1",
    title="TensorFlow 1",
    versions=lambda: {},
    cells=(
        "lstm",
        "gru(reset_after=False)",
        "simple_rnn",
        "simple_rnn(activation=relu)",
    ),
    gate_orders=GATE_ORDERS,
    layers=1,
    run=run,
    optimizers=optimizers,
    held=lambda case, name: False,
    notes=(
        "TensorFlow 1 cannot be installed beside a Python of today: this compares with "
        "its definitions (`BasicLSTMCell` with its forget bias of 1, `GRUCell`, "
        "`BasicRNNCell`, `dynamic_rnn` with `sequence_length`, `reverse_sequence`), "
        "written out in `lstm_jax/certify/against_tf1.py` and differentiated by jax. "
        "What TensorFlow's own code of these cells gives, kept in `tf_keras`, is in "
        "`tests/golden`; the tests compare both sides with it.",
        "RMSprop is a config's `rmsprop_tf1`; Adam's epsilon is 1e-8.",
    ),
)

"""Writes what TensorFlow 1's own cells compute, as make_parity.py does.

They live on in the package tf_keras, and run in TensorFlow 2's compatible mode:

    pip install tensorflow tf_keras
    python tests/golden/make_tf1.py
"""

import os
from collections.abc import Callable
from typing import Any

os.environ["TF_USE_LEGACY_KERAS"] = "1"

import make_parity
import numpy as np
import tensorflow as tf
import tf_keras

from lstm_jax.certify.against_tf1 import PEER
from lstm_jax.certify.cases import Arrays, Case, Problem
from lstm_jax.certify.peer import RATE, Optimizer

v1 = tf.compat.v1
v1.disable_v2_behavior()


def make_cell(case: Case, name: str) -> Any:
    """The library's cell."""
    options = {"dtype": case.dtype, "name": name}
    units = case.shape.hidden
    if case.cell == "lstm":
        return v1.nn.rnn_cell.BasicLSTMCell(units, **options)
    if case.cell.startswith("gru"):
        return v1.nn.rnn_cell.GRUCell(units, **options)
    act = {"tanh": tf.tanh, "relu": tf.nn.relu}[case.activation]
    return v1.nn.rnn_cell.BasicRNNCell(units, activation=act, **options)


def run(case: Case, problem: Problem) -> tuple[Arrays, Arrays]:
    """As `Peer.run`, by `dynamic_rnn` and `bidirectional_dynamic_rnn`."""
    with tf.Graph().as_default(), v1.Session() as session:
        inputs = {name: tf.constant(array) for name, array in problem.inputs.items()}
        cells = [make_cell(case, f"cell_{i}") for i in range(case.cells)]
        states = []
        for i in range(case.cells):
            leaves = {leaf: inputs[f"initial_{leaf}"][i] for leaf in case.carry}
            if "c" in leaves:
                states.append(v1.nn.rnn_cell.LSTMStateTuple(leaves["c"], leaves["h"]))
            else:
                states.append(leaves["h"])
        xs, lengths = inputs["xs"], tf.constant(problem.lengths)
        if case.bidirectional:
            ys, final = v1.nn.bidirectional_dynamic_rnn(*cells, xs, lengths, *states)
            ys, final = tf.concat(ys, 2), list(final)
        else:
            xs = tf.reverse_sequence(xs, lengths, 1, 0)
            ys, state = v1.nn.dynamic_rnn(cells[0], xs, lengths, states[0])
            ys, final = tf.reverse_sequence(ys, lengths, 1, 0), [state]
        values = {"ys": ys} | {
            f"final_{leaf}": tf.stack([getattr(s, leaf, s) for s in final])
            for leaf in case.carry
        }
        paths = ("forward/cell", "backward/cell") if case.bidirectional else ("cell",)
        variables = {}
        for cell, path in zip(cells, paths, strict=True):
            for variable in cell.trainable_variables:
                # Of ".../gates/kernel:0", as the conversion names it.
                parts = variable.name.removesuffix(":0").split("/")
                count = 2 if parts[-2] in ("gates", "candidate") else 1
                variables[f"layer_0/{path}/{'/'.join(parts[-count:])}"] = variable
        for name, variable in variables.items():
            variable.load(problem.weights[name], session)
        loss = sum(
            tf.reduce_sum(problem.factors[name] * value)
            for name, value in values.items()
        )
        by = inputs | variables
        gradients = tf.gradients(loss, list(by.values()))
        gradients = dict(zip(by, map(tf.convert_to_tensor, gradients), strict=True))
        return session.run((values, gradients))


def updating(make: str, *options: Any) -> Callable[[Arrays], Callable[..., Arrays]]:
    """An optimizer of `tf.train`, as `Optimizer.theirs`."""

    def theirs(weights: Arrays) -> Callable[[Arrays], Arrays]:
        graph = tf.Graph()
        with graph.as_default():
            variables = {
                name: v1.get_variable(name, initializer=array, use_resource=True)
                for name, array in weights.items()
            }
            given = {
                name: v1.placeholder(array.dtype, array.shape)
                for name, array in weights.items()
            }
            optimizer = getattr(v1.train, make)(RATE, *options)
            pairs = [(given[name], variables[name]) for name in weights]
            step = optimizer.apply_gradients(pairs)
            session = v1.Session()
            session.run(v1.global_variables_initializer())

        def update(gradients: Arrays) -> Arrays:
            feed = {given[name]: np.asarray(gradients[name]) for name in weights}
            session.run(step, feed)
            return session.run(variables)

        return update

    return theirs


if __name__ == "__main__":
    import jax

    jax.config.update("jax_enable_x64", True)
    # The defaults, but not as Python's numbers, which TensorFlow rounds to float32.
    adam = map(np.float64, (0.9, 0.999, 1e-8))
    rmsprop = map(np.float64, (0.9, 0.0, 1e-10))
    makers = {
        "SGD": updating("GradientDescentOptimizer"),
        "Adam": updating("AdamOptimizer", *adam),
        "RMSprop": updating("RMSPropOptimizer", *rmsprop),
    }
    ours = {name: optimizer.ours for name, optimizer in PEER.optimizers().items()}
    make_parity.write(
        PEER._replace(
            run=run,
            versions=lambda: {
                "tensorflow": tf.__version__,
                "tf_keras": tf_keras.__version__,
            },
            optimizers=lambda: {
                name: Optimizer(maker, ours[name]) for name, maker in makers.items()
            },
        )
    )

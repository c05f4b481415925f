"""Keras's side: `LSTM`, `GRU`, `SimpleRNN` and `Bidirectional`.

On its TensorFlow backend: on the others, Keras 3 computes much of float64 in float32.
"""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import optax

from lstm_jax.certify.cases import Arrays, Case, Problem
from lstm_jax.certify.peer import RATE, Optimizer, Peer, load
from lstm_jax.config import base_config
from lstm_jax.convert.keras import GATE_ORDERS, NAMES
from lstm_jax.optimizers import make_optimizer


def _keras() -> Any:
    os.environ["KERAS_BACKEND"] = "tensorflow"  # read at the import
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # On a GPU, products of float32 are of fewer digits by default.
    load("tensorflow").config.experimental.enable_tensor_float_32_execution(False)
    return load("keras")


def _layer(case: Case) -> Any:
    layers = _keras().layers
    options: dict[str, Any] = {
        "return_sequences": True,
        "return_state": True,
        "zero_output_for_mask": True,
        "dtype": case.dtype,
    }
    units = case.shape.hidden
    if case.cell == "lstm":
        layer = layers.LSTM(units, go_backwards=case.reverse, **options)
    elif case.cell.startswith("gru"):
        after = case.cell == "gru"
        layer = layers.GRU(
            units, reset_after=after, go_backwards=case.reverse, **options
        )
    else:
        layer = layers.SimpleRNN(
            units, activation=case.activation, go_backwards=case.reverse, **options
        )
    if case.bidirectional:
        layer = layers.Bidirectional(layer, dtype=case.dtype)
    layer.build((case.shape.batch, case.shape.time, case.shape.features))
    return layer


def run(case: Case, problem: Problem) -> tuple[Arrays, Arrays]:
    """As `Peer.run`."""
    layer, tf = _layer(case), load("tensorflow")
    paths = ("forward/cell", "backward/cell") if case.bidirectional else ("cell",)
    names = [f"layer_0/{path}/{name}" for path in paths for name in NAMES]
    layer.set_weights([problem.weights[name] for name in names])
    inputs = {name: tf.constant(array) for name, array in problem.inputs.items()}
    mask = None
    if problem.lengths is not None:
        mask = tf.sequence_mask(problem.lengths, case.shape.time)
    with tf.GradientTape() as tape:
        tape.watch(list(inputs.values()))
        state = [
            inputs[f"initial_{leaf}"][i]
            for i in range(case.cells)
            for leaf in case.carry
        ]
        ys, *final = layer(inputs["xs"], initial_state=state, mask=mask)
        ys = tf.reverse(ys, [1]) if case.reverse else ys  # Keras leaves them as run
        count = len(case.carry)
        values = {"ys": ys} | {
            f"final_{leaf}": tf.stack(final[i::count])
            for i, leaf in enumerate(case.carry)
        }
        loss = sum(
            tf.reduce_sum(problem.factors[name] * value)
            for name, value in values.items()
        )
    variables = [variable.value for variable in layer.trainable_variables]
    by = inputs | dict(zip(names, variables, strict=True))
    gradients = tape.gradient(loss, by)
    return (
        {name: value.numpy() for name, value in values.items()},
        {n: tf.convert_to_tensor(g).numpy() for n, g in gradients.items()},
    )


def _updating(make: str, **options: Any) -> Callable[[Arrays], Any]:
    """An optimizer of `keras.optimizers`, as `Optimizer.theirs`."""

    def theirs(weights: Arrays) -> Callable[[Arrays], Arrays]:
        keras = _keras()
        variables = {
            name: keras.Variable(a, dtype=str(a.dtype), name=name.replace("/", "_"))
            for name, a in weights.items()
        }
        optimizer = getattr(keras.optimizers, make)(RATE, **options)

        def update(gradients: Arrays) -> Arrays:
            given = [keras.ops.convert_to_tensor(gradients[n]) for n in variables]
            optimizer.apply(given, list(variables.values()))
            return {n: np.array(v) for n, v in variables.items()}

        return update

    return theirs


def optimizers() -> dict[str, Optimizer]:
    """`keras.optimizers`, with their defaults but for the learning rate."""

    def ours(name: str) -> optax.GradientTransformation:
        config = base_config().optimizer
        config.update({"name": name, "learning_rate": RATE})
        return make_optimizer(config, 1)

    # As they are, Keras on TensorFlow rounds them to float32.
    betas = {"beta_1": np.float64(0.9), "beta_2": np.float64(0.999)}
    return {
        "SGD": Optimizer(_updating("SGD"), ours("sgd")),
        "Adam": Optimizer(_updating("Adam", **betas), ours("adam")),
        "RMSprop": Optimizer(_updating("RMSprop"), ours("rmsprop")),
    }


PEER = Peer(
    library="keras",
    title="Keras",
    versions=lambda: {
        "keras": _keras().__version__,
        "tensorflow": load("tensorflow").__version__,
    },
    cells=(
        "lstm",
        "gru",
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
        "On Keras's TensorFlow backend: on the others, Keras 3 computes much of "
        "float64 in float32. Masked by `mask` with `zero_output_for_mask`, reversed by "
        "`go_backwards`, whose outputs are turned around again.",
        "The optimizers here are those of a config: `sgd`, `adam`, `rmsprop`. Keras's "
        "Adam is given its betas as numbers of float64: Python's numbers TensorFlow "
        "rounds to float32, which changes the steps of float64 by a share of 7e-6.",
    ),
)

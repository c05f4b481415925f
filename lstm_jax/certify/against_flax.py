"""Flax Linen's side: `nn.RNN` and `nn.Bidirectional` over its cells."""

from collections.abc import Callable
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from lstm_jax.certify.cases import Arrays, Case, Problem
from lstm_jax.certify.peer import RATE, Optimizer, Peer, differentiated
from lstm_jax.convert.flax import GATE_ORDERS


def _apply(case: Case, weights: Any, inputs: Any, lengths: Any) -> dict[str, Any]:
    def layer(reverse: bool) -> nn.RNN:
        types: dict[str, Any] = dict.fromkeys(("dtype", "param_dtype"), case.dtype)
        units = case.shape.hidden
        if case.cell == "lstm":
            cell: Any = nn.OptimizedLSTMCell(units, **types)
        elif case.cell == "gru":
            cell = nn.GRUCell(units, **types)
        else:
            act = {"tanh": jnp.tanh, "relu": jax.nn.relu}[case.activation]
            cell = nn.SimpleCell(units, activation_fn=act, **types)
        return nn.RNN(cell, reverse=reverse, keep_order=True, return_carry=True)

    def tree(path: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, array in weights.items():
            if name.startswith(path):
                dense, kind = name.removeprefix(path).split("/")
                found.setdefault(dense, {})[kind] = array
        return {"cell": found}

    def carry(i: int) -> Any:
        leaves = {leaf: inputs[f"initial_{leaf}"][i] for leaf in case.carry}
        return (leaves["c"], leaves["h"]) if "c" in leaves else leaves["h"]

    options = {"seq_lengths": lengths, "return_carry": True}
    if case.bidirectional:
        module = nn.Bidirectional(layer(False), layer(False))
        params = {
            "forward_rnn": tree("layer_0/forward/cell/"),
            "backward_rnn": tree("layer_0/backward/cell/"),
        }
        result: Any = module.apply(
            {"params": params},
            inputs["xs"],
            initial_carry=(carry(0), carry(1)),
            **options,
        )
        final, ys = result
    else:
        result = layer(case.reverse).apply(
            {"params": tree("layer_0/cell/")},
            inputs["xs"],
            initial_carry=carry(0),
            **options,
        )
        final, ys = (result[0],), result[1]
    if lengths is not None:
        valid = jnp.arange(case.shape.time)[None] < lengths[:, None]
        ys = jnp.where(valid[:, :, None], ys, 0)
    at = {"h": 1, "c": 0} if case.cell == "lstm" else {}
    return {"ys": ys} | {
        f"final_{leaf}": jnp.stack([c[at[leaf]] if at else c for c in final])
        for leaf in case.carry
    }


def run(case: Case, problem: Problem) -> tuple[Arrays, Arrays]:
    """As `Peer.run`."""
    return differentiated(_apply, case, problem)


def _updating(optimizer: optax.GradientTransformation) -> Callable[[Arrays], Any]:
    """An Optax optimizer, as `Optimizer.theirs`."""

    def theirs(weights: Arrays) -> Callable[[Arrays], Arrays]:
        here: Any = jax.tree.map(jnp.asarray, weights)
        state = optimizer.init(here)

        def update(gradients: Arrays) -> Arrays:
            nonlocal here, state
            updates, state = optimizer.update(gradients, state, here)
            here = optax.apply_updates(here, updates)
            return jax.device_get(here)

        return update

    return theirs


def optimizers() -> dict[str, Optimizer]:
    """Optax's, which Flax's users take."""
    makers = {"SGD": optax.sgd, "Adam": optax.adam, "RMSprop": optax.rmsprop}
    return {
        name: Optimizer(_updating(make(RATE)), make(RATE))
        for name, make in makers.items()
    }


PEER = Peer(
    library="flax",
    title="Flax Linen",
    versions=lambda: {"flax": flax.__version__, "optax": optax.__version__},
    cells=("lstm", "gru", "simple_rnn", "simple_rnn(activation=relu)"),
    gate_orders=GATE_ORDERS,
    layers=1,
    run=run,
    optimizers=optimizers,
    held=lambda case, name: False,
    notes=(
        "Masked by `seq_lengths`; what Flax computes past a row's length is replaced "
        "by zeros, the outputs there here. Reversed by `reverse` with `keep_order`. "
        "The LSTM is `OptimizedLSTMCell`, whose parameters are those of `LSTMCell`.",
        "A GRU here has recurrent biases at r and z, which Flax has not: in the steps "
        "of the optimizers they are held.",
        "The optimizers are Optax's on both sides.",
        "With jax 0.10.2 the CPU's compiler gets Flax's gradient of the masked LSTM in "
        "float64 wrong, at batch 4 with 6 units, and nine comparisons fail. Finite "
        "differences, Flax without `jit` and jax 0.12 agree with what is computed "
        "here, and so does jax 0.10.2 with "
        "`XLA_FLAGS=--xla_cpu_use_fusion_emitters=false`.",
    ),
)

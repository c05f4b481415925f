"""This project, by the programs that `train.py` runs."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import lstm_jax as lj
from benchmarks.work import Work, arrays
from lstm_jax import sharding, steps
from lstm_jax.devices import make_mesh, use_cpus
from lstm_jax.models import SequenceClassifier
from lstm_jax.tasks import Task, classification


def make_task(work: Work) -> tuple[Task, SequenceClassifier]:
    """A work's model, and its training on random examples."""
    cells = {"lstm": lj.lstm, "gru": lj.gru, "rnn": lj.simple_rnn}
    model = SequenceClassifier(
        cells=(cells[work.cell](work.hidden),) * work.layers,
        num_classes=work.classes,
        vocab_size=None if work.features else work.vocabulary,
        embedding_size=work.embedding,
        dropout=work.dropout,
        bidirectional=work.bidirectional,
        dense=(work.dense,) if work.dense else (),
        dense_dropout=work.dropout if work.dense else 0.0,
    )
    return classification(model, *arrays(work)), model


def make(work: Work, devices: int | None) -> dict[str, Callable[[], Any]]:
    """See `benchmarks.candidates`; by default on as many as `train.py` chooses."""
    use_cpus(devices or 0, work.batch)
    task, model = make_task(work)
    stepping = steps.Stepping(task, optax.adam(1e-3), work.batch)
    keys, mesh = steps.make_keys(0), make_mesh(devices or 0, work.batch)
    zero = jnp.int32(0)

    def logits(params: Any, examples: Any) -> Any:
        def of_batch(inputs: jax.Array) -> Any:
            return model.apply({"params": params}, sharding.split_rows(inputs))

        inputs = examples["inputs"].reshape(
            work.steps, work.batch, *examples["inputs"].shape[1:]
        )
        return jax.lax.map(of_batch, inputs)

    with jax.set_mesh(mesh):
        examples = sharding.put(task.examples[0])
        init = jax.jit(functools.partial(steps.init_state, stepping))
        state = sharding.put(init(keys))
    run = jax.jit(
        functools.partial(steps.train_steps, stepping, keys), donate_argnums=0
    )
    run_forward = jax.jit(logits)

    def train() -> None:
        nonlocal state
        with jax.set_mesh(mesh):
            state = run(state, examples, zero, jnp.int32(work.steps))
        jax.block_until_ready(state)

    def forward() -> Any:
        with jax.set_mesh(mesh):
            return jax.block_until_ready(run_forward(state.params, examples))

    return {"forward": forward, "training step": train}

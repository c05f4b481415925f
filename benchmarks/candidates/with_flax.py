"""Flax Linen: `nn.RNN` over its optimised cells, the batch divided over devices."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from benchmarks.work import Work, arrays


class Classifier(nn.Module):
    """Embedding, recurrent layers, the last output, dense layers."""

    work: Work

    @nn.compact
    def __call__(self, xs: jax.Array, *, training: bool) -> jax.Array:
        """Logits [B, C] of a batch."""
        work = self.work
        if not work.features:
            xs = nn.Embed(work.vocabulary, work.embedding)(xs)

        def drop(xs: jax.Array) -> jax.Array:
            return nn.Dropout(work.dropout, deterministic=not training)(xs)

        def layer(*, reverse: bool = False) -> nn.RNN:
            cells = {"lstm": nn.OptimizedLSTMCell, "gru": nn.GRUCell}
            cell = cells.get(work.cell, nn.SimpleCell)(work.hidden)
            return nn.RNN(cell, reverse=reverse, keep_order=reverse)

        for i in range(work.layers):
            ys = layer()(xs)
            last = ys[:, -1]
            if work.bidirectional:
                back = layer(reverse=True)(xs)
                ys = jnp.concatenate([ys, back], axis=-1)
                last = jnp.concatenate([last, back[:, 0]], axis=-1)
            xs = drop(ys) if i < work.layers - 1 else drop(last)
        if work.dense:
            xs = drop(nn.relu(nn.Dense(work.dense)(xs)))
        return nn.Dense(work.classes)(xs)


def make(work: Work, devices: int | None) -> dict[str, Callable[[], Any]]:
    """See `benchmarks.candidates`."""
    model, optimizer = Classifier(work), optax.adam(1e-3)
    inputs, labels = (
        jnp.asarray(a).reshape(work.steps, work.batch, *a.shape[1:])
        for a in arrays(work)
    )
    mesh = jax.make_mesh((devices or 1,), ("rows",), axis_types=(AxisType.Auto,))
    each, rows = PartitionSpec(), PartitionSpec(None, "rows")
    params = model.init(jax.random.key(0), inputs[0, :1], training=False)
    state = optimizer.init(params)

    def loss(params: Any, xs: jax.Array, ys: jax.Array, key: jax.Array) -> jax.Array:
        logits: Any = model.apply(params, xs, training=True, rngs={"dropout": key})
        if work.classes == 1:
            losses = optax.sigmoid_binary_cross_entropy(
                logits[:, 0], ys.astype(logits.dtype)
            )
        else:
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, ys)
        return jnp.sum(losses) / work.batch

    def train(params: Any, state: Any, inputs: jax.Array, labels: jax.Array) -> Any:
        def step(i: jax.Array, carried: Any) -> Any:
            params, state = carried
            key = jax.random.fold_in(jax.random.key(1), i)
            gradient = jax.grad(loss)(params, inputs[i], labels[i], key)
            gradient = lax.psum(gradient, "rows")
            updates, state = optimizer.update(gradient, state)
            return optax.apply_updates(params, updates), state

        return lax.fori_loop(0, work.steps, step, (params, state))

    def forward(params: Any, inputs: jax.Array) -> Any:
        return lax.map(lambda xs: model.apply(params, xs, training=False), inputs)

    def divided(function: Callable[..., Any], ins: Any, outs: Any) -> Any:
        return jax.jit(
            jax.shard_map(
                function, mesh=mesh, in_specs=ins, out_specs=outs, check_vma=False
            )
        )

    run_forward = divided(forward, (each, rows), rows)
    run_train = divided(train, (each, each, rows, rows), (each, each))

    def train_once() -> None:
        nonlocal params, state
        params, state = run_train(params, state, inputs, labels)
        jax.block_until_ready(params)

    return {
        "forward": lambda: jax.block_until_ready(run_forward(params, inputs)),
        "training step": train_once,
    }

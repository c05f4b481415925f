"""Times recurrent layers against their peers: `python -m benchmarks.peers`.

One worker process a candidate, all started and warmed first; then a step of each in
turn, so that a machine whose speed drifts slows all of them alike. The ratio is the
median over rounds of (candidate / reference in the same round). The share is that of
a large float32 product's speed, measured in the same run: operations of the layers
over that speed, over the step's time.
"""

import argparse
import json
import multiprocessing
import platform
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np

REFERENCE = "flax"


class Shape(NamedTuple):
    """Sizes of a stack of LSTM layers and of its input."""

    batch: int
    time: int
    input_size: int
    hidden_size: int
    layers: int


SHAPES = {
    "S2: IMDB, 500 words": Shape(128, 500, 32, 100, 1),
    "S5: MNIST rows": Shape(32, 28, 28, 128, 2),
}


def operations(shape: Shape, training: bool) -> float:
    """Multiplications and additions of a step's products."""
    tokens, operations = shape.batch * shape.time, 0
    size = shape.input_size
    for _ in range(shape.layers):
        operations += tokens * 2 * 4 * shape.hidden_size * (size + shape.hidden_size)
        size = shape.hidden_size
    return operations * (3 if training else 1)


def jax_candidate(name: str, shape: Shape) -> dict[str, Callable[[], Any]]:
    """Forward and training step (gradients of parameters and inputs, Adam)."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import optax

    import lstm_jax as lj
    from lstm_jax.models import Stack

    class FlaxStack(nn.Module):
        @nn.compact
        def __call__(self, xs: jax.Array) -> jax.Array:
            for _ in range(shape.layers):
                xs = nn.RNN(nn.OptimizedLSTMCell(shape.hidden_size))(xs)
            return xs

    xs = jax.random.normal(
        jax.random.key(0), (shape.batch, shape.time, shape.input_size)
    )
    if name == "flax":
        model = FlaxStack()
        forward = model.apply
    else:
        model = Stack((lj.lstm(shape.hidden_size),) * shape.layers)

        def forward(params: Any, xs: jax.Array) -> Any:
            return model.apply(params, xs)[1]

    params: Any = model.init(jax.random.key(1), xs)
    optimizer = optax.adam(1e-3)
    weight = jax.random.normal(
        jax.random.key(2), (shape.batch, shape.time, shape.hidden_size)
    )

    def train(params: Any, state: Any, xs: jax.Array) -> Any:
        def loss(params: Any, xs: jax.Array) -> jax.Array:
            return jnp.mean(forward(params, xs) * weight)

        gradient, dxs = jax.grad(loss, argnums=(0, 1))(params, xs)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, dxs

    fast_forward, fast_train = jax.jit(forward), jax.jit(train)
    state = optimizer.init(params)
    return {
        "forward": lambda: jax.block_until_ready(fast_forward(params, xs)),
        "training step": lambda: jax.block_until_ready(fast_train(params, state, xs)),
    }


def product_peak() -> float:
    """Operations a second of one large float32 product."""
    import jax
    import jax.numpy as jnp

    size = 2048
    square = jnp.ones((size, size))
    multiply = jax.jit(jnp.matmul)
    multiply(square, square).block_until_ready()
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        multiply(square, square).block_until_ready()
        times.append(time.perf_counter() - begun)
    return 2 * size**3 / min(times)


def work(name: str, shape: Shape, pipe: Connection) -> None:
    """A worker: runs a named step when told to, and answers its seconds."""
    steps = jax_candidate(name, shape)
    for step in steps.values():
        step()
    pipe.send(None)
    while (which := pipe.recv()) is not None:
        begun = time.perf_counter()
        steps[which]()
        pipe.send(time.perf_counter() - begun)


def measure(shape: Shape, names: list[str], rounds: int) -> dict[str, dict[str, Any]]:
    """Seconds of each step and candidate, a list over rounds each."""
    spawn = multiprocessing.get_context("spawn")
    pipes, workers = {}, []
    for name in names:
        pipes[name], theirs = spawn.Pipe()
        worker = spawn.Process(target=work, args=(name, shape, theirs))
        worker.start()
        workers.append(worker)
    for pipe in pipes.values():
        pipe.recv()
    seconds: dict[str, dict[str, Any]] = {}
    for which in ("forward", "training step"):
        times = seconds[which] = {name: [] for name in names}
        for _ in range(rounds):
            for name, pipe in pipes.items():
                pipe.send(which)
                times[name].append(pipe.recv())
    for pipe, worker in zip(pipes.values(), workers, strict=True):
        pipe.send(None)
        worker.join()
    return seconds


def main() -> None:
    """Prints a table in markdown, and writes the figures as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", help="file for the figures")
    options = parser.parse_args()
    import flax
    import jax

    peak = product_peak()
    versions = {"jax": jax.__version__, "flax": flax.__version__}
    rows = []
    print(f"{platform.processor() or platform.machine()}, {versions}")
    print(f"large float32 product: {peak / 1e9:.0f} GFLOP/s\n")
    print("| work | step | layer | ms | ratio to Flax | share of product speed |")
    print("|---|---|---|---|---|---|")
    for work_name, shape in SHAPES.items():
        seconds = measure(shape, ["lstm_jax", REFERENCE], options.rounds)
        for which, times in seconds.items():
            floor = operations(shape, which != "forward") / peak
            for name, values in times.items():
                ratio = np.median(np.divide(values, times[REFERENCE]))
                ms = 1000 * np.median(values)
                share = floor / np.median(values)
                rows.append((work_name, which, name, ms, ratio, share))
                print(
                    f"| {work_name} | {which} | {name} | {ms:.2f} | {ratio:.2f} | "
                    f"{share:.0%} |",
                    flush=True,
                )
    if options.json:
        fields = ("work", "step", "layer", "ms", "ratio", "share")
        table = [dict(zip(fields, row, strict=True)) for row in rows]
        with open(options.json, "w") as file:
            json.dump({"versions": versions, "peak": peak, "rows": table}, file)


if __name__ == "__main__":
    main()

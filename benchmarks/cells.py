"""What a cell of one's own costs: `python -m benchmarks.cells`.

The built-in cells and two that a user might write, a peephole LSTM and one with coupled
gates, from their gate equations alone: a training step's layer and a forward pass on
the shape of `imdb_lstm`, in turn, beside `lstm`.
"""

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lstm_jax as lj
from lstm_jax import devices, sharding

ROWS, STEPS, FEATURES, UNITS = 128, 500, 32, 100


def peephole_gates(extras: Any, carry: Any, zx: Any, zh: Any) -> Any:
    """The gates see the cell state (Gers and Schmidhuber, 2000)."""
    i, f, g, o = jnp.split(zx + zh, 4)
    i = jax.nn.sigmoid(i + extras["input_peephole"] * carry.c)
    f = jax.nn.sigmoid(f + extras["forget_peephole"] * carry.c)
    c = f * carry.c + i * jnp.tanh(g)
    h = jax.nn.sigmoid(o + extras["output_peephole"] * c) * jnp.tanh(c)
    return lj.LSTMCarry(h, c), h


def coupled_gates(extras: Any, carry: Any, zx: Any, zh: Any) -> Any:
    """What is forgotten is what is written anew."""
    del extras
    f, g, o = jnp.split(zx + zh, 3)
    f = jax.nn.sigmoid(f)
    c = f * carry.c + (1 - f) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return lj.LSTMCarry(h, c), h


def peepholes(key: Any, input_size: int) -> dict[str, Any]:
    """Parameters of `peephole_gates`."""
    del key, input_size
    names = ("input_peephole", "forget_peephole", "output_peephole")
    return {name: jnp.full(UNITS, 0.1) for name in names}


CELLS = {
    "lstm": lj.lstm(UNITS),
    "gru": lj.gru(UNITS),
    "simple_rnn": lj.simple_rnn(UNITS),
    "peephole, own": lj.gated(
        UNITS, 4, peephole_gates, lj.LSTMCarry, init_extra=peepholes
    ),
    "coupled, own": lj.gated(UNITS, 3, coupled_gates, lj.LSTMCarry),
}


def programs(cell: lj.Cell) -> dict[str, Any]:
    """Compiled and warm: a forward pass, and one with its gradient."""
    params = sharding.put(cell.init(jax.random.key(0), FEATURES))
    xs = jax.random.normal(jax.random.key(1), (ROWS, STEPS, FEATURES))
    xs = sharding.put_rows(xs)

    @jax.jit
    def forward(params: Any, xs: Any) -> Any:
        return lj.unroll(cell, params, xs)[1]

    @jax.jit
    def training(params: Any, xs: Any) -> Any:
        ys, pull = jax.vjp(forward, params, xs)
        return pull(ys)

    found = {"forward": forward, "training": training}
    for program in found.values():
        jax.block_until_ready(program(params, xs))
    return {
        name: lambda run=run: jax.block_until_ready(run(params, xs))
        for name, run in found.items()
    }


def main() -> None:
    """Prints a table in markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    devices.use_cpus(0, ROWS)
    with jax.set_mesh(devices.make_mesh(0, ROWS)):
        made = {name: programs(cell) for name, cell in CELLS.items()}
        print("| cell | forward ms | of lstm's | training ms | of lstm's |")
        print("|---|---|---|---|---|")
        seconds: dict[tuple[str, str], list[float]] = {}
        for _ in range(options.rounds):
            for name, runs in made.items():
                for which, run in runs.items():
                    begun = time.perf_counter()
                    run()
                    elapsed = time.perf_counter() - begun
                    seconds.setdefault((name, which), []).append(elapsed)
    for name in CELLS:
        row = [name]
        for which in ("forward", "training"):
            ratio = np.median(np.divide(seconds[name, which], seconds["lstm", which]))
            row += [f"{1000 * np.median(seconds[name, which]):.0f}", f"{ratio:.2f}"]
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()

"""What a cell costs beside `lstm`: `python -m benchmarks.cells`.

The built-in cells, two that a user might write from their gate equations alone (a
peephole LSTM and one with coupled gates), further cells, every combinator over `lstm`,
and stacks beside as many layers one after the other: the forward pass and the training
step on the shape of `imdb_lstm`, with noise where a cell has some, in turn; and the
training step of the same by autodiff.
"""

import argparse
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lstm_jax as lj
from lstm_jax import combinators, devices, sharding

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


def wide(cell: lj.Cell) -> lj.Cell:
    """The cell on inputs spread over as many features as there are units."""
    copies = -(-UNITS // FEATURES)

    def init(key: Any, input_size: int) -> Any:
        del input_size
        return cell.init(key, UNITS)

    def run(params: Any, xs: Any, carry: Any, **options: Any) -> Any:
        xs = jnp.concatenate([xs] * copies, axis=-1)[..., :UNITS]
        return lj.unroll(cell, params, xs, carry, **options)

    return lj.Cell(init, cell.initial_carry, cell.step, unroll=run)


def layers(count: int) -> lj.Cell:
    """Layers of `lstm` one after the other, each a call of `unroll`."""
    cell = lj.lstm(UNITS)

    def init(key: Any, input_size: int) -> Any:
        sizes = [input_size] + [UNITS] * (count - 1)
        return [cell.init(key, size) for size in sizes]

    def initial_carry(params: Any, batch_size: int) -> Any:
        return [cell.initial_carry(layer, batch_size) for layer in params]

    def run(params: Any, xs: Any, carry: Any, **options: Any) -> Any:
        last = []
        for layer, state in zip(params, carry, strict=True):
            state, xs = lj.unroll(cell, layer, xs, state, **options)[:2]
            last.append(state)
        return last, xs

    return lj.Cell(init, initial_carry, cell.step, unroll=run)


CELLS = {
    "lstm": lj.lstm(UNITS),
    "gru": lj.gru(UNITS),
    "simple_rnn": lj.simple_rnn(UNITS),
    "peephole, own": lj.gated(
        UNITS, 4, peephole_gates, lj.LSTMCarry, init_extra=peepholes
    ),
    "coupled, own": lj.gated(UNITS, 3, coupled_gates, lj.LSTMCarry),
    "lstm(peephole=True)": lj.lstm(UNITS, peephole=True),
    "lstm(coupled=True)": lj.lstm(UNITS, coupled=True),
    "mgu": lj.mgu(UNITS),
    "indrnn": lj.indrnn(UNITS),
    "slstm": lj.slstm(UNITS),
    "min_gru": lj.min_gru(UNITS),
    "min_lstm": lj.min_lstm(UNITS),
    "layer_norm(lstm)": combinators.layer_norm(lj.lstm(UNITS)),
    "zoneout(lstm, 0.1)": combinators.zoneout(lj.lstm(UNITS), 0.1),
    "recurrent_dropout(lstm, 0.1)": combinators.recurrent_dropout(lj.lstm(UNITS), 0.1),
    "drop_connect(lstm, 0.1)": combinators.drop_connect(lj.lstm(UNITS), 0.1),
    "clip(lstm, 3.0)": combinators.clip(lj.lstm(UNITS), 3.0),
    "project(lstm, 50)": combinators.project(lj.lstm(UNITS), 50),
    "block_diagonal(lstm, 4)": combinators.block_diagonal(lj.lstm(UNITS), 4),
    "learned_initial_carry(lstm)": combinators.learned_initial_carry(lj.lstm(UNITS)),
    "stack(lstm)": combinators.stack(lj.lstm(UNITS)),
    "stack of 2": combinators.stack(*[lj.lstm(UNITS)] * 2),
    "2 layers": layers(2),
    "stack of 3": combinators.stack(*[lj.lstm(UNITS)] * 3),
    "3 layers": layers(3),
    "lstm, 100 features": wide(lj.lstm(UNITS)),
    "residual(lstm), 100 features": wide(combinators.residual(lj.lstm(UNITS))),
}


def programs(cell: lj.Cell) -> dict[str, Any]:
    """Compiled and warm: a forward pass, and one with its gradient, in two ways."""
    params = sharding.put(cell.init(jax.random.key(0), FEATURES))
    xs = jax.random.normal(jax.random.key(1), (ROWS, STEPS, FEATURES))
    xs = sharding.put_rows(xs)

    def forward(params: Any, xs: Any, key: Any, implementation: Any = "auto") -> Any:
        key = None if cell.noise is None else key
        return lj.unroll(cell, params, xs, key=key, implementation=implementation)[1]

    def training(params: Any, xs: Any, key: Any, implementation: Any = "auto") -> Any:
        def run(params: Any, xs: Any) -> Any:
            return forward(params, xs, key, implementation)

        ys, pull = jax.vjp(run, params, xs)
        return pull(ys)

    found = {
        "forward": jax.jit(forward),
        "training": jax.jit(training),
        "autodiff": jax.jit(functools.partial(training, implementation="autodiff")),
    }
    arguments = (params, xs, jax.random.key(2))
    for program in found.values():
        jax.block_until_ready(program(*arguments))
    return {
        name: lambda run=run: jax.block_until_ready(run(*arguments))
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
        columns = [f"{name} ms | of lstm's" for name in ("forward", "training")]
        print(f"| cell | {' | '.join(columns)} | by autodiff, of its own |")
        print("|---|---|---|---|---|---|")
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
        own = np.divide(seconds[name, "autodiff"], seconds[name, "training"])
        print(f"| {' | '.join([*row, f'{np.median(own):.2f}'])} |")


if __name__ == "__main__":
    main()

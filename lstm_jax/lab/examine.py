"""Everything that the lab finds out about a cell, as one tree of plain values."""

import datetime
import functools
import importlib.metadata
import math
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax import devices, flow
from lstm_jax.cells import Cell, gru, lstm
from lstm_jax.data.text import read_text
from lstm_jax.lab import cost, laws, trials
from lstm_jax.lab.own_cell import OwnCell, features_of
from lstm_jax.lab.trials import Trial
from lstm_jax.tasks.classify_images import read_mnist

HIDDEN = 64  # units of the cells that learn and whose gradients are followed
TEXT, ROWS, STEPS = "meditations.txt", 16, 100  # whose gradients are followed


def quick_trials() -> list[Trial]:
    """The problems of every page."""
    return [trials.adding(50), trials.copy(10), trials.fable()]


def further_trials() -> list[Trial]:
    """What `--full` adds.

    Raises:
      UserError: MNIST is not there.
    """
    digits = read_mnist("")
    return [
        trials.adding(100, 1500),
        trials.copy(100, 2000),
        trials.rows_of_digits(digits["train_images"], digits["train_labels"]),
    ]


def about(command: str) -> dict[str, Any]:
    """When, where, with what, and by which command."""
    return {
        "command": command,
        "date": datetime.date.today().isoformat(),
        "machine": f"{devices.processor()}, {devices.allowed_cpus()} cores",
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("jax", "lstm_jax")},
        },
    }


def examine(
    own: OwnCell, problems: Sequence[Trial], say: Callable[[str], None]
) -> dict[str, Any]:
    """Tries a cell, beside `lstm` and `gru`.

    Args:
      own: the cell.
      problems: that it has to learn.
      say: is given lines of progress.

    Returns:
      What JSON takes; a number that is not finite is None.

    Raises:
      UserError: the cell cannot be tried at all.
    """
    begun = time.perf_counter()
    features = {
        size: features_of(own, size, few)
        for size, few in (
            (laws.HIDDEN, laws.FEATURES),
            (cost.HIDDEN, cost.FEATURES),
            (HIDDEN, 2),
        )
    }
    beside = {own.name: own.make, "lstm": lstm, "gru": gru}
    say("laws, in float64")
    small = own.make(laws.HIDDEN)
    tried = laws.check(small, features[laws.HIDDEN], lambda name: say(f"  {name}"))
    say("time and memory")
    with jax.set_mesh(devices.make_mesh(0, cost.BATCH)):
        costs = cost.measure(
            {name: make(cost.HIDDEN) for name, make in beside.items()},
            features[cost.HIDDEN],
        )
    say("gradient flow")
    learner = own.make(HIDDEN)
    if features[HIDDEN] == HIDDEN:
        learner = trials.widened(learner, HIDDEN)
    followed = {own.name: learner, "lstm": lstm(HIDDEN), "gru": gru(HIDDEN)}
    flows = {name: follow(cell) for name, cell in followed.items()}
    curves = {}
    for problem in problems:
        say(f"learning: {problem.name}")
        curves[problem.name] = learnt(problem, learner, say)
    return plain(
        {
            "name": own.name,
            "source": own.source,
            "laws": [law._asdict() | {"holds": law.holds} for law in tried],
            "cost": {name: value._asdict() for name, value in costs.items()},
            "flow": flows,
            "problems": {p.name: describe(p) for p in problems},
            "curves": curves,
            "seconds": time.perf_counter() - begun,
        }
    )


def describe(problem: Trial) -> dict[str, Any]:
    """What a reader has to know of a problem."""
    fields = ("what", "unit", "baseline", "batch_size", "num_steps", "learning_rate")
    return {name: getattr(problem, name) for name in fields}


def learnt(problem: Trial, cell: Cell, say: Callable[[str], None]) -> dict[str, Any]:
    """A learning curve: the steps, and the losses of each seed."""
    found = trials.curve(problem, cell, say)
    return plain({"steps": found.steps.tolist(), "losses": found.losses.tolist()})


def follow(cell: Cell) -> dict[str, Any]:
    """The gradient flow of an untrained cell that reads a text by characters."""
    xs = _characters()
    params = jax.jit(cell.init, static_argnums=1)(jax.random.key(0), xs.shape[-1])
    found = jax.device_get(flow.measure(cell, params, xs))
    return {
        "lag_gains": {name: a.tolist() for name, a in found.lag_gains.items()},
        "saturation": {
            name: {"low": float(gate.low), "high": float(gate.high)}
            for name, gate in found.saturation.items()
        },
        "time_constants": {
            name: a.tolist() for name, a in found.time_constants.items()
        },
    }


@functools.cache
def _characters() -> Any:
    """One-hot characters of a text, `ROWS` rows, from different places."""
    text = read_text(TEXT)
    known = {character: number for number, character in enumerate(sorted(set(text)))}
    ids = np.asarray([known[character] for character in text])
    starts = np.linspace(0, len(ids) - STEPS, ROWS).astype(int)
    rows = np.stack([ids[start : start + STEPS] for start in starts])
    return jax.nn.one_hot(jnp.asarray(rows), len(known))


def plain(tree: Any) -> Any:
    """The tree with None for what is not finite, which JSON does not know."""
    if isinstance(tree, dict):
        return {name: plain(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [plain(value) for value in tree]
    if isinstance(tree, float):
        return tree if math.isfinite(tree) else None
    return tree

"""Everything that the lab finds out about a cell, as one tree of plain values."""

import datetime
import functools
import math
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax import checkpoints, devices, flow
from lstm_jax.cells import Cell, gru, lstm
from lstm_jax.data.text import read_text
from lstm_jax.lab import cost, laws, trials
from lstm_jax.lab.own_cell import OwnCell, check_finite, check_sizes, features_of, said
from lstm_jax.lab.trials import Trial
from lstm_jax.tasks.classify_images import read_mnist

LAWS, COST, FLOW = "Laws", "Time and memory", "Gradient flow"  # sections of a page
PEERS = {"lstm": lstm, "gru": gru}  # of whom all is measured as well
HIDDEN = 64  # units of the cells that learn and whose gradients are followed
LEARNT = 0.5  # of the baseline: what ends below it is learnt
TEXT, ROWS, STEPS = "meditations.txt", 16, 100  # whose gradients are followed

# Of the numbers of JSON; what is not here is a count, or a ratio that its name tells.
UNITS = {
    "laws": "error and tolerance: of the largest entry of an array, or of 1",
    "cost": "forward and training: ms; saved and peak: MB, on all devices",
    "flow": "lag_gains: what is left of 1, lag by lag from 0; saturation: share of a "
    "gate's values; time_constants: steps, null where nothing fades",
    "curves": "losses: the unit of the problem, a list each seed, null: not finite",
    "seconds": "s",
}


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
        trials.rows_of_digits(digits),
    ]


def about(command: str) -> dict[str, Any]:
    """When, where, with what, and by which command."""
    return {
        "command": command,
        "date": datetime.date.today().isoformat(),
        "machine": f"{devices.processor()}, {devices.allowed_cpus()} cores",
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "lstm_jax": checkpoints.version(),
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
      What JSON takes; a number that is not finite is None. Under "failed" stands what
      the cell has raised, by section of the page or by problem.

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
    check_sizes(own, laws.HIDDEN, HIDDEN, features[laws.HIDDEN])
    check_finite(own, laws.HIDDEN, features[laws.HIDDEN])
    # A file may have a peer's name.
    name = f"{own.name}.py" if own.name in PEERS else own.name
    beside = {name: own.make, **PEERS}
    failed: dict[str, str] = {}

    def tried(section: str, run: Callable[[], Any]) -> Any:
        """What a run finds, or nothing where the cell's own code fails."""
        say(section)
        try:
            return run()
        except (Exception, SystemExit) as error:
            failed[section] = said(error)
            say(f"  failed: {failed[section]}")
            return {}

    small, learner = own.make(laws.HIDDEN), own.make(HIDDEN)

    def laws_of_it() -> dict[str, Any]:
        few = features[laws.HIDDEN]
        found = laws.check(small, few, lambda law: say(f"  {law}"))
        return {"laws": found, "unreached": laws.unreached(small, few)}

    obeyed = tried(LAWS, laws_of_it)

    def cost_of_all() -> dict[str, cost.Cost]:
        layers = {name: make(cost.HIDDEN) for name, make in beside.items()}
        with jax.set_mesh(devices.make_mesh(0, cost.BATCH)):
            return cost.measure(layers, features[cost.HIDDEN])

    costs = tried(COST, cost_of_all)
    if features[HIDDEN] == HIDDEN:
        learner = trials.widened(learner, HIDDEN)
    followed = {name: learner, **{peer: make(HIDDEN) for peer, make in PEERS.items()}}
    flows = tried(FLOW, lambda: {k: follow(cell) for k, cell in followed.items()})
    curves = {
        problem.name: tried(problem.name, lambda p=problem: learnt(p, learner, say))
        for problem in problems
    }
    return plain(
        {
            "name": name,
            "source": own.source,
            "failed": failed,
            "units": UNITS,
            "laws": [
                law._asdict() | {"holds": law.holds} for law in obeyed.get("laws", ())
            ],
            "unreached": obeyed.get("unreached", []),
            "cost": {name: value._asdict() for name, value in costs.items()},
            "flow": flows,
            "problems": {p.name: describe(p) for p in problems},
            "curves": {name: curve for name, curve in curves.items() if curve},
            "seconds": time.perf_counter() - begun,
        }
    )


def describe(problem: Trial) -> dict[str, Any]:
    """What a reader has to know of a problem, and what makes a curve of it another."""
    fields = ("what", "unit", "baseline", "batch_size", "num_steps", "learning_rate")
    fields += ("embedding_size",)
    return {name: getattr(problem, name) for name in fields} | {
        "learnt_below": LEARNT * problem.baseline,
        "hidden_size": HIDDEN,
        "seeds": trials.SEEDS,
        "clip_norm": trials.CLIP_NORM,
        "sequences_measured": trials.MEASURED,
    }


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

"""Gradient flow of several cells in one experiment, before training and after it."""

import contextlib
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lstm_jax import layer_flow, steps
from lstm_jax.cells import Params
from lstm_jax.config import Config
from lstm_jax.errors import UserError
from lstm_jax.flow import Flow
from lstm_jax.flow_pictures import by_label, draw_lag_gains
from lstm_jax.members import is_sweep
from lstm_jax.reporting import drawn, write_file
from lstm_jax.tasks import make_task
from lstm_jax.training import fit
from lstm_jax.workdirs import load_params


class Variant(NamedTuple):
    """A cell, and what its recurrent kernels are multiplied by before training."""

    cell: str
    scale: float = 1.0


# The recurrent kernel U of a simple RNN begins orthogonal, so all of its singular
# values are the scale.
VARIANTS = {
    "simple_rnn, 0.5 U": Variant("simple_rnn", 0.5),
    "simple_rnn": Variant("simple_rnn"),
    "simple_rnn, 1.5 U": Variant("simple_rnn", 1.5),
    "gru": Variant("gru"),
    "lstm": Variant("lstm"),
    "lstm(forget_bias=5)": Variant("lstm(forget_bias=5)"),
}
STAGES = ("before training", "after training")
NO_SWEEP = (
    "a sweep is nothing for flow.py, which trains each cell once: leave out "
    "sweep.seeds and sweep.learning_rates"
)
_LAGS = (1, 10, 50, 100, 200)
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

# By stage and by the name of a variant, and of its layer where there are several.
Comparison = dict[str, dict[str, Flow]]


def compare(
    config: Config, workdir: Path, variants: Mapping[str, Variant] = VARIANTS
) -> Comparison:
    """Trains each variant of a config in a folder of its own, and measures it.

    Writes `gradient_flow.png` and `gradient_flow.json` to `workdir`. What was trained
    there before is not trained again; progress goes to stderr.

    Raises:
      UserError: the config or its data is no use.
    """
    if is_sweep(config):
        raise UserError(NO_SWEEP)
    found: Comparison = {stage: {} for stage in STAGES}
    for number, (name, variant) in enumerate(variants.items()):
        print(name, file=sys.stderr)
        own = config.copy_and_resolve_references()
        own.model.cell = variant.cell
        own.report.flow_every = 0  # it is measured before and after
        folder = workdir / f"variant_{number}"
        for stage, flows in zip(STAGES, _measure(own, variant, folder), strict=True):
            for layer, flow in flows.items():
                label = name if len(flows) == 1 else f"{name}, {layer}"
                found[stage][label] = flow
    gains = {
        stage: {name: flow.lag_gains for name, flow in flows.items()}
        for stage, flows in found.items()
    }
    title = "What is left of a change of the state, and of the gradient, k steps away"
    path = workdir / "gradient_flow.png"
    if picture := drawn(path.name, lambda: draw_lag_gains(gains, title)):
        write_file(path, picture)
    numbers = {
        stage: {name: _numbers(flow) for name, flow in flows.items()}
        for stage, flows in found.items()
    }
    write_file(workdir / "gradient_flow.json", json.dumps(numbers, indent=1) + "\n")
    return found


def _measure(
    config: Config, variant: Variant, workdir: Path
) -> tuple[dict[str, Flow], dict[str, Flow]]:
    """The flow through each layer, before training and after it."""
    task = make_task(config, workdir)
    begun = task.init

    def init(key: Any) -> Params:
        def scaled(path: Any, leaf: Any) -> Any:
            is_recurrent = path[-1].key == "recurrent_kernel"
            return variant.scale * leaf if is_recurrent else leaf

        return jax.tree_util.tree_map_with_path(scaled, begun(key))

    task = task._replace(init=init)
    probe = layer_flow.make_probe(task, config.batch_size)
    before = probe(jax.jit(init)(steps.make_keys(config.seed).init))
    with contextlib.redirect_stdout(sys.stderr):
        result = fit(config, task, workdir)
    return before, probe(load_params(workdir, result["step"]))


def table(found: Comparison) -> str:
    """The gains at some lags, a line each cell, part of its state and stage."""
    width = max(len(name) for flows in found.values() for name in flows) + 3
    lines = []
    for stage, flows in found.items():
        last = max(len(flow.lag_gains["h"]) for flow in flows.values())
        lags = [k for k in _LAGS if k < last]
        lines.append(f"{stage:{width}}" + "".join(f"  lag {k:<5}" for k in lags))
        for name, flow in flows.items():
            for label, values in by_label(name, flow.lag_gains).items():
                gains = "".join(f"  {float(values[k]):<9.2g}" for k in lags)
                lines.append(f"{label:{width}}{gains}")
    return "\n".join(line.rstrip() for line in lines)


def _numbers(flow: Flow) -> dict[str, Any]:
    """For JSON, where what is not finite is null."""
    loss = () if flow.loss_gradients is None else flow.loss_gradients
    return {
        "lag_gains": {
            field: _finite(values) for field, values in flow.lag_gains.items()
        },
        "loss_gradients": _finite(loss),
        "time_constants": {
            field: _quantiles(taus) for field, taus in flow.time_constants.items()
        },
        "saturation": {
            gate: _finite(shares) for gate, shares in flow.saturation.items()
        },
    }


def _quantiles(taus: Any) -> dict[str, float | None]:
    values = _finite(np.quantile(taus, _QUANTILES))
    return dict(zip(map(str, _QUANTILES), values, strict=True))


def _finite(values: Any) -> list[float | None]:
    numbers = [float(value) for value in values]
    return [number if math.isfinite(number) else None for number in numbers]

"""Gradient flow of the layers of a model under training, and what a run tells of it."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_runs import READS_CONFIG, assert_user_error
from toy_runs import (
    BATCH,
    ragged_task,
    rows_of,
    saved_state,
    stopped_at,
    toy_config,
    toy_task,
)

import lstm_jax as lj
from lstm_jax import devices, flow, flow_comparison, layer_flow, sharding
from lstm_jax.data.reviews import START
from lstm_jax.errors import UserError
from lstm_jax.flow_comparison import Variant
from lstm_jax.tasks import make_task
from lstm_jax.tasks.classification import class_losses

pytestmark = pytest.mark.usefixtures("fast_runs")


def assert_same(found: Any, want: Any) -> None:
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, want
    )


def test_is_that_of_each_layer_alone() -> None:
    """Both directions, lengths, a model that reads the last state, two devices."""
    cell = lj.lstm(8)
    task = ragged_task(1, cells=(cell,), bidirectional=True)
    params = jax.jit(task.init)(jax.random.key(0))
    probe = layer_flow.make_probe(task, BATCH)
    found = probe(params)
    examples = jax.tree.map(lambda a: jnp.asarray(a[:BATCH]), task.examples[0])
    xs, lengths = examples["inputs"], examples["lengths"]
    layer, head = params["recurrent"]["layer_0"], params["head"]
    directions = {
        name: {"lengths": lengths, "reverse": name == "backward"}
        for name in ("forward", "backward")
    }

    def loss(outputs: list[Any]) -> Any:
        last = jnp.concatenate([carry.h for carry, _ in outputs], axis=-1)
        logits = last @ head["kernel"] + head["bias"]
        return jnp.mean(class_losses(logits, examples["labels"])[0])

    @jax.jit
    def expected() -> dict[str, flow.Flow]:
        outputs = [
            lj.unroll(cell, layer[name]["cell"], xs, **options)
            for name, options in directions.items()
        ]
        cotangents = jax.grad(loss)(outputs)
        return {
            f"recurrent/layer_0/{name}": flow.measure(
                cell, layer[name]["cell"], xs, cotangents[i], **options
            )
            for i, (name, options) in enumerate(directions.items())
        }

    want = expected()
    names = [f"recurrent/layer_0/{name}" for name in directions]
    assert list(found) == names
    assert_same(found, want)
    with jax.set_mesh(devices.make_mesh(2, BATCH, fsdp=True)):
        assert_same(probe(sharding.put(params, sharding.param_specs(params))), want)
    row = layer_flow.metrics(found)
    for name in names:
        one = want[name]
        for key, field in (("gain_1", "h"), ("c_gain_1", "c")):
            gain = float(one.lag_gains[field][1])
            assert row[f"{name}/{key}"] == pytest.approx(gain, rel=1e-4)
        median = float(np.median(one.time_constants["c"]))
        assert row[f"{name}/time_constant"] == pytest.approx(median, rel=1e-4)
        assert f"{name}/gain_10" not in row  # of six steps


@pytest.mark.slow
def test_of_a_language_model() -> None:
    """Its carry and its resets, and a task that runs the model to see the carry."""
    fields = {"task": "language_model", "data.level": "char", "data.length": 12}
    config = toy_config(**fields, **{"model.cell": "gru"})
    task = make_task(config)
    task.examples[0]["inputs"][1, 7] = START  # else there is one, which begins a row
    params = jax.jit(task.init)(jax.random.key(0))
    (found,) = layer_flow.make_probe(task, BATCH)(params).values()
    examples = jax.tree.map(lambda a: jnp.asarray(a[:BATCH]), task.examples[0])
    inputs, targets = examples["inputs"], examples["targets"]
    own, head = params["recurrent"]["layer_0"]["cell"], params["head"]
    xs = params["embedding"]["embedding"][inputs]
    resets = inputs == START

    def loss(outputs: Any) -> Any:
        logits = outputs[1] @ head["kernel"] + head["bias"]
        return jnp.mean(class_losses(logits, targets)[0])

    cotangents = jax.grad(loss)(lj.unroll(lj.gru(4), own, xs, resets=resets))
    assert_same(found, flow.measure(lj.gru(4), own, xs, cotangents, resets=resets))


def test_a_run_tells_of_it_and_trains_as_without(tmp_path: Path) -> None:
    task = toy_task(cells=(lj.simple_rnn(4),))
    config = toy_config(**{"checkpoint.every": 8})
    lj.fit(config, task, tmp_path / "without")
    config.report.flow_every = 6
    with stopped_at(12, "flow"):  # after the first checkpoint
        lj.fit(config, task, tmp_path / "with")
    lj.fit(config, task, tmp_path / "with")

    states = [
        saved_state(tmp_path / name, config, task) for name in ("without", "with")
    ]
    jax.tree.map(np.testing.assert_array_equal, *states)
    rows = rows_of(tmp_path / "with")
    assert [row["step"] for row in rows if row["split"] == "flow"] == [0, 6, 12, 18, 20]
    plain = [row for row in rows if row["split"] != "flow"]
    assert plain == rows_of(tmp_path / "without")

    (flow_row,) = (row for row in rows if (row["step"], row["split"]) == (20, "flow"))
    (found,) = layer_flow.make_probe(task, BATCH)(states[0].params).values()
    assert flow_row["recurrent/layer_0/gain_1"] == pytest.approx(
        float(found.lag_gains["h"][1]), rel=1e-4
    )
    assert (tmp_path / "with" / "flow.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "without" / "flow.png").exists()


def test_a_model_without_recurrent_layers_is_refused(tmp_path: Path) -> None:
    config = toy_config(**{"report.flow_every": 2})
    with pytest.raises(UserError, match=r"report\.flow_every .* has none"):
        lj.fit(config, toy_task(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    config.report.flow_every = -1
    with pytest.raises(UserError, match=r"report\.flow_every=-1 must be at least 0"):
        lj.fit(config, toy_task(), tmp_path / "run")


@READS_CONFIG
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--config.model.cell=gru"], "model.cell is nothing for flow.py"),
        (["--config.sweep.seeds=2", "--config.report.flow_every=0"], "a sweep is noth"),
        (["--config.model.cel=gru"], "no such field"),
        (["a"], "unexpected argument 'a'"),
    ],
)
def test_flow_refuses(
    call: Any, arguments: list[str], reason: str, tmp_path: Path
) -> None:
    done = call("flow.py", f"--workdir={tmp_path / 'flow'}", *arguments)
    assert_user_error(done, reason)
    assert not (tmp_path / "flow").exists()


@pytest.mark.slow
def test_comparison(tmp_path: Path) -> None:
    fields = {"task": "language_model", "data.level": "char", "data.length": 12}
    config = toy_config(**fields, **{"num_steps": 3, "report.flow_every": 1})
    variants = {"half": Variant("simple_rnn", 0.5)}
    found = flow_comparison.compare(config, tmp_path, variants)
    assert tuple(found) == flow_comparison.STAGES
    # A step of an orthogonal kernel passes on half of the gradient, times tanh'.
    gains = np.asarray(found["before training"]["half"].lag_gains["h"])
    assert 0.3 < gains[1] < 0.5
    lines = flow_comparison.table(found).splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        *("before training", "half", "after training", "half")
    ]
    assert lines[1].split()[1] == f"{gains[1]:.2g}"
    stored = json.loads((tmp_path / "gradient_flow.json").read_text())
    stored = stored["after training"]["half"]
    trained = np.asarray(found["after training"]["half"].lag_gains["h"])
    shown = [np.nan if a is None else a for a in stored["lag_gains"]["h"]]
    np.testing.assert_allclose(shown, trained)
    assert not np.allclose(trained, gains, rtol=1e-3, equal_nan=True)
    assert (tmp_path / "gradient_flow.png").read_bytes().startswith(b"\x89PNG")

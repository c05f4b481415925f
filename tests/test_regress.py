"""Tests of lstm_jax.tasks.regress."""

import functools
import importlib
import io
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from toy_runs import toy_config

from lstm_jax import pictures, steps
from lstm_jax.config import Config, base_config
from lstm_jax.data.fingerprint import fingerprint
from lstm_jax.data.series import split_series
from lstm_jax.errors import UserError
from lstm_jax.model_config import make_classifier
from lstm_jax.tasks.regress import forecast, regress
from lstm_jax.tasks.task import Task
from lstm_jax.training import fit

WINDOW, HORIZON = 6, 3

# The package has a function of the same name.
MODULE = importlib.import_module("lstm_jax.tasks.regress")


@pytest.fixture
def numbers() -> np.ndarray:
    t = np.arange(90)
    return np.round(300 + 40 * np.sin(t / 3) + np.random.default_rng(0).normal(size=90))


@pytest.fixture
def config(tmp_path: Path, numbers: np.ndarray) -> Config:
    path = tmp_path / "series.csv"
    path.write_text("\n".join(["load", *map(str, numbers)]))
    return toy_config(
        **{
            "task": "regress",
            "data.path": str(path),
            "data.window": WINDOW,
            "data.horizon": HORIZON,
            "model.embedding_size": base_config().model.embedding_size,
        }
    )


def by_hand(params: Any, numbers: np.ndarray) -> dict[str, Any]:
    """The metrics of the test part, window by window, in the units of the data."""
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    cell, head = params["recurrent"]["layer_0"]["cell"], params["head"]
    test = len(numbers) - len(numbers) // 5
    mean, deviation = numbers[:test].mean(), numbers[:test].std()
    outputs, truths, says = [], [], []
    for t in range(test, len(numbers) - HORIZON + 1):
        h = np.zeros(4)
        for x in (numbers[t - WINDOW : t] - mean) / deviation:
            h = np.tanh(
                [x] @ cell["kernel"] + h @ cell["recurrent_kernel"] + cell["bias"]
            )
        outputs.append(h @ head["kernel"] + head["bias"])
        truths.append(numbers[t : t + HORIZON])
        says.append([numbers[t - 1]] * HORIZON)
    errors = mean + deviation * np.array(outputs) - truths
    baseline = np.array(says) - truths
    return {
        "loss": (errors**2).mean() / deviation**2,
        "mae": abs(errors).mean(),
        "rmse": (errors**2).mean() ** 0.5,
        "baseline_mae": abs(baseline).mean(),
        "baseline_rmse": (baseline**2).mean() ** 0.5,
    }


def reported(task: Task, sums: dict[str, Any]) -> dict[str, float]:
    """As `fit` makes metrics of sums."""
    known = {name: float(value) for name, value in sums.items()}
    count = known.pop("count")
    assert task.finish is not None
    return task.finish({name: value / count for name, value in known.items()})


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("batch_size", [5, pytest.param(40, marks=pytest.mark.slow)])
def test_metrics_are_those_of_all_windows(
    config: Config, numbers: np.ndarray, batch_size: int
) -> None:
    task = regress(config)
    (test,) = jax.device_put(task.splits["test"])
    assert len(test["inputs"]) == 16
    params = jax.jit(task.init)(jax.random.key(1))
    measure = jax.jit(functools.partial(steps.evaluate, task, batch_size))
    expected = by_hand(params, numbers)
    sums = measure(params, test)
    assert sums["count"] == 16
    metrics = reported(task, sums)
    assert list(metrics) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)
    # The mean of the batches' roots would be another number.
    assert metrics["rmse"] > 1.01 * metrics["mae"]
    # In parts, as several buckets are measured.
    halves = [jax.tree.map(lambda a, s=s: a[s], test) for s in (np.s_[:8], np.s_[8:])]
    parts = [measure(params, half) for half in halves]
    again = reported(task, steps.total(parts))
    for name, value in expected.items():
        np.testing.assert_allclose(again[name], value, rtol=1e-4, err_msg=name)


def test_what_pads_a_batch_counts_for_nothing(config: Config) -> None:
    task = regress(config)
    params = jax.jit(task.init)(jax.random.key(1))
    batch = jax.tree.map(lambda a: jnp.asarray(a[:5]), task.examples[0])
    weight = jnp.array([1.0, 1, 1, 0, 0])
    loss = jax.jit(lambda *args: task.loss(*args, None, ())[0])
    sums = loss(params, batch, weight)
    changed = jax.tree.map(lambda a: a.at[3:].set(7), batch)
    again = loss(params, changed, weight)
    assert sums == again
    assert sums["count"] == 3
    whole = loss(params, batch, jnp.ones(5))
    assert all(whole[name] > sums[name] for name in sums)


def test_a_run_learns_and_shows_what_it_reached(
    config: Config,
    numbers: np.ndarray,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config.batch_size = 16
    config.num_steps = 120
    config.report.evaluate_every = 60
    config.model.hidden_size = 8
    config.data.holdout = 0.25
    config.checkpoint.best = "validation_mae"
    config.report.every = 60
    drawn = []

    def draw(*args: Any) -> bytes:
        drawn.append(args)
        return pictures.draw_forecast(*args)

    monkeypatch.setattr(MODULE, "draw_forecast", draw)
    task = regress(config)
    assert list(task.splits) == ["validation", "test"]
    result = fit(config, task, tmp_path / "run")
    assert result["test_mae"] < 0.5 * result["test_baseline_mae"]
    assert result["test_rmse"] < 0.5 * result["test_baseline_rmse"]
    assert result["step"] == result["best_step"]

    # The line at the end has the same numbers, computed in another way.
    line = capsys.readouterr().out.strip().split("\n")[-1]
    assert line == "test forecast: MAE {}, RMSE {}; last value: MAE {}, RMSE {}".format(
        *(
            pictures.show_number(result[f"test_{name}"])
            for name in ("mae", "rmse", "baseline_mae", "baseline_rmse")
        )
    )
    # The picture: the last step of each window's horizon, in the units of the data.
    ((truth, said, same, first, title),) = drawn
    assert (first, title) == (2, "forecast 3 steps ahead")
    np.testing.assert_allclose(truth, numbers[72 + 2 :], rtol=1e-6)
    np.testing.assert_allclose(same, numbers[71:-3], rtol=1e-6)
    assert np.corrcoef(truth, said)[0, 1] > 0.9
    picture = (tmp_path / "run" / "forecast.png").read_bytes()
    assert Image.open(io.BytesIO(picture)).format == "PNG"

    scaling = json.loads((tmp_path / "run" / "scaling.json").read_text())
    training = numbers[:54]
    np.testing.assert_allclose(scaling["mean"], training.mean())
    np.testing.assert_allclose(scaling["deviation"], training.std())
    sha = (tmp_path / "run" / "data.sha256").read_text()
    assert sha == fingerprint(numbers) + "\n"
    rows = [
        json.loads(row)
        for row in (tmp_path / "run" / "metrics.jsonl").read_text().split("\n")[:-1]
    ]
    assert {row["split"] for row in rows} == {"train", "validation", "test"}
    deviation = scaling["deviation"]
    for row in rows:
        assert math.isclose(row["rmse"], deviation * math.sqrt(row["loss"]))
        assert row["rmse"] >= row["mae"]


def test_forecasts_of_many_windows(
    config: Config, numbers: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = regress(config)
    params = jax.jit(task.init)(jax.random.key(1))
    model = make_classifier(config.model, HORIZON, None)
    series = split_series(numbers, WINDOW, HORIZON)
    whole = forecast(model, params, series, "train")
    monkeypatch.setattr(MODULE, "_BATCH", 25)
    parts = forecast(model, params, series, "train")
    assert whole.truth.shape == (72 - WINDOW - HORIZON + 1, HORIZON)
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    np.testing.assert_allclose(whole.baseline[:, 0], numbers[5:69], rtol=1e-6)
    np.testing.assert_allclose(whole.baseline[:, 2], numbers[5:69], rtol=1e-6)
    np.testing.assert_allclose(whole.truth[:, 1], numbers[7:71], rtol=1e-6)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model.head", "sigmoid", "model.head='sigmoid' is for classes: set model.h"),
        ("model.head", "tanh", "model.head='tanh' is for classes: set model.head=s"),
        ("model.hidden_size", 0, "model.hidden_size=0 must be at least 1"),
        ("data.horizon", 0, "data.horizon=0 must be at least 1"),
        ("data.window", 70, "the train part has 72 of the series' 90 steps and needs "),
        ("data.column", "day", "line 1: no column 'day'; there are 'load': set data"),
        ("data.path", "no.csv", "cannot read 'no.csv' .No such file or directory.: "),
        ("data.path", "synthetic:bracket", "is unknown: choose synthetic:waves or a "),
    ],
)
def test_values_that_are_no_use(
    config: Config, field: str, value: Any, message: str
) -> None:
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=message):
        regress(config)

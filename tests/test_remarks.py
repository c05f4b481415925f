"""Tests of lstm_jax.remarks: what training fails to do while its numbers are finite."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_runs import (
    climbing_config,
    climbing_task,
    toy_arrays,
    toy_config,
    toy_model,
    toy_task,
)

import lstm_jax as lj
from lstm_jax import remarks, steps
from lstm_jax.tasks import Task, classification

pytestmark = pytest.mark.usefixtures("fast_runs")


@pytest.mark.parametrize(
    ("earlier", "loss", "jumps"),
    [
        ([0.69, 0.63, 0.52, 0.41, 0.37], 0.58, False),
        ([0.69, 0.63, 0.52, 0.41, 0.37], 0.59, True),
        ([0.3, 0.3, 0.2, 0.4, 0.4], 0.74, False),  # by less than 2.5 times 0.2
        ([0.3, 0.3, 0.2, 0.4, 0.4], 0.76, True),
        ([0.2, 0.4, 0.4, *[0.3] * 7], 0.46, True),  # 0.2 is too long ago
        ([0.7, 0.5, 0.3, 0.28, 0.4, 0.55], 0.69, True),  # by and by
        ([1.0, 8e-3, 8e-3, 8e-3], 0.1, False),  # noise beside the first
        ([0.9, 8e-3, 8e-3, 8e-3], 0.1, True),
        ([0.3, 0.3, 0.3], 9.0, False),
        ([], 9.0, False),
        ([-0.3] * 4, 9.0, False),
        ([0.3] * 4, float("nan"), False),
    ],
)
def test_a_jump_is_from_the_running_mean(
    earlier: list[float], loss: float, jumps: bool
) -> None:
    line = remarks.jump(earlier, loss)
    assert (line is not None) == jumps
    if line is not None:
        assert line.startswith("the loss jumped from 0.")


def jumping_task() -> Task:
    """Its loss is 1, and 5 from the tenth step on; each step adds 1 to `w`."""

    def loss(params: Any, examples: Any, weight: Any, key: Any, carry: Any) -> Any:
        w = params["w"]
        loss = jax.lax.stop_gradient(w + jnp.where(w < 10, 1.0, 5.0)) - w
        return {"count": jnp.sum(weight), "loss": jnp.sum(weight) * loss}, carry

    return climbing_task(lambda w: w)._replace(loss=loss)


def test_a_jump_is_told_beside_the_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = climbing_config(**{"num_steps": 20, "report.every": 2})
    lj.fit(config, jumping_task(), workdir=tmp_path / "run")
    told = [line for line in capsys.readouterr().err.splitlines() if "jumped" in line]
    assert told == [
        "step 12: the loss jumped from 1.0000 to 5.0000: if it stays there, lower "
        "optimizer.learning_rate or set optimizer.clip_norm",
    ]


def test_a_member_jumps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields = {"num_steps": 20, "report.every": 2, "sweep.learning_rates": (0.1, 1.0)}
    lj.fit(climbing_config(**fields), jumping_task(), workdir=tmp_path / "run")
    told = [line for line in capsys.readouterr().err.splitlines() if "jumped" in line]
    assert [line.partition(" from")[0] for line in told] == [
        "seed 0, learning rate 1: step 12: the loss jumped",
    ]


def unchanged(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if "change" in line]


@pytest.mark.parametrize("every", [5, 1000])  # 1000: the one row at the end
def test_a_rate_that_moves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], every: int
) -> None:
    config = toy_config(**{"optimizer.learning_rate": 1e-12, "report.every": every})
    # Its bias begins as 0, to which any number adds.
    lj.fit(config, toy_task(), workdir=tmp_path / "run")
    assert unchanged(capsys) == [
        "the updates of 10 steps or more did not change head/kernel, though the "
        "gradient is not 0: the run has converged, or optimizer.learning_rate is too "
        "low for a change within a parameter's precision"
    ]


def test_a_rate_of_zero_moves_nothing_at_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = {"sweep.learning_rates": (0.0, 0.03), "optimizer.weight_decay": 0.0}
    lj.fit(toy_config(**fields), toy_task(), workdir=tmp_path / "run")
    (line,) = unchanged(capsys)
    assert line.startswith(
        "seed 0, learning rate 0: the updates of 10 steps or more did not change any "
        "parameter, though"
    )


def test_parameters_without_a_gradient_may_stay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = climbing_task(lambda w: w)
    unused = task._replace(init=lambda key: {"w": jnp.zeros(()), "b": jnp.ones(3)})
    config = climbing_config(**{"report.every": 2, "optimizer.weight_decay": 0.0})
    lj.fit(config, unused, workdir=tmp_path / "run")
    assert unchanged(capsys) == []


def test_a_task_may_report_no_loss(tmp_path: Path) -> None:
    task = climbing_task(lambda w: w)._replace(finish=lambda means: {"mae": 1.0})
    config = climbing_config(**{"num_steps": 6, "report.every": 2})
    assert lj.fit(config, task, workdir=tmp_path / "run")["test_mae"] == 1.0
    config.num_steps = 8  # the rows that it reads again have none either
    assert lj.fit(config, task, workdir=tmp_path / "run")["step"] == 8


def test_a_warm_up_and_skipped_updates_are_not_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = {"report.every": 1, "optimizer.warmup_steps": 4}
    fields |= {"optimizer.schedule": "cosine", "optimizer.learning_rate": 1e-5}
    lj.fit(toy_config(**fields), toy_task(), workdir=tmp_path / "warm")
    inputs, labels = toy_arrays()
    task = classification(toy_model(), np.full_like(inputs, np.nan), labels, {})
    config = toy_config(**{"optimizer.skip_nonfinite": 100})
    lj.fit(config, task, workdir=tmp_path / "skipped")
    assert unchanged(capsys) == []


def test_training_that_goes_well_is_told_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = toy_config(**{"report.every": 3})
    lj.fit(config, toy_task(), workdir=tmp_path / "run")
    err = capsys.readouterr().err
    assert "change" not in err
    assert "jumped" not in err


@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", "float16", "float64", "complex64", "float8_e5m2"]
)
def test_a_checksum_is_of_every_bit(dtype: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        rng = np.random.default_rng(0)
        array = jnp.asarray(rng.normal(size=(3, 4)), dtype)
        bits = np.asarray(array).view(np.uint8).ravel()
        flipped = np.tile(bits, (8 * bits.size, 1))
        flipped[np.arange(8 * bits.size), np.arange(8 * bits.size) // 8] ^= np.tile(
            1 << np.arange(8, dtype=np.uint8), bits.size
        )
        others = jnp.asarray(flipped.view(array.dtype).reshape(-1, *array.shape))
        sums = jax.vmap(lambda array: steps.checksums({"a": array}))(others)
        assert steps.checksums({"a": array}).item() not in np.asarray(sums)
        assert steps.checksums({"a": others[7]}).item() == sums[7].item()

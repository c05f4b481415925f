"""What the engine says of itself is what it does."""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_runs import READS_CONFIG, TINY, run_process
from toy_runs import BATCH, ragged_task, toy_task

import lstm_jax as lj
from lstm_jax import devices, explain
from lstm_jax.combinators import residual, stack
from lstm_jax.schedule import schedule_for

TIME, FEATURES, UNITS = 40, 3, 7
CALL = explain.Call("layer", lj.lstm(UNITS), BATCH, TIME, FEATURES)


def numbers(line: str) -> list[float]:
    return [float(n) for n in re.findall(r"[\d.]+(?:e[+-]\d+)?", line)]


def lines(call: explain.Call, peak: float = 1e9) -> dict[str, str]:
    told = explain.explain(call, peak).splitlines()
    return {line.split()[0].rstrip(":"): line for line in told}


def test_fused() -> None:
    told = lines(CALL)
    assert "fused, on 1 cpu device: the cell was made by gated" in told["path"]
    array = TIME * BATCH * UNITS * 4 / 1e6
    saved, differentiated = numbers(told["saved"])
    assert saved == pytest.approx(6 * array, rel=0.02)
    assert differentiated > 8 * array
    of_rows = 2 * BATCH * TIME * 4 * UNITS * (FEATURES + UNITS) / 1e9
    seconds, operations, products, _ = numbers(told["forward"])
    assert seconds > 0
    assert (operations, products) == (pytest.approx(of_rows, rel=0.01), 2)
    _, operations, products, share = numbers(told["training"])
    assert operations == pytest.approx(3 * of_rows, rel=0.01)
    # One in the loop backward, and three a chunk.
    assert CALL.cell.fused is not None
    params = CALL.cell.init(jax.random.key(0), FEATURES)
    carry = CALL.cell.initial_carry(params, BATCH)
    schedule = schedule_for("cpu", CALL.cell.fused, params, carry, BATCH, TIME)
    chunks = TIME / schedule.chunk
    assert products == pytest.approx(3 + 3 * chunks / TIME, rel=0.01)
    assert share > 0


def test_on_devices() -> None:
    with jax.set_mesh(devices.make_mesh(2, BATCH)):
        told = lines(CALL)
    assert f"on 2 cpu devices with {BATCH // 2} rows each" in told["path"]
    of_rows = 2 * BATCH * TIME * 4 * UNITS * (FEATURES + UNITS) / 1e9
    assert numbers(told["forward"])[1] == pytest.approx(of_rows, rel=0.01)


def test_the_share_is_of_the_floor() -> None:
    shares = [numbers(lines(CALL, peak)["forward"])[-1] for peak in (1e6, 1e12)]
    assert shares[0] > 100 * shares[1]


def test_autodiff() -> None:
    cell = lj.gru(UNITS, reset_after=False)
    told = lines(CALL._replace(cell=cell))
    assert "autodiff" in told["path"]
    assert "not made by gated" in told["path"]
    assert "layout" not in told
    asked = lines(CALL._replace(implementation="autodiff"))
    assert "autodiff, asked for" in asked["path"]


def test_inside_of_a_sequence_function() -> None:
    """The loops of a stack, of what stands around a cell, and of none."""
    before = lj.gru(UNITS, reset_after=False)
    call = CALL._replace(features=UNITS)
    for cell, fast, text in (
        (residual(before), False, "autodiff, on 1 cpu device: the cell's own sequence"),
        (stack(lj.lstm(UNITS), before), False, "2 loops, of which jax differentiates "),
        (stack(lj.lstm(UNITS), residual(lj.gru(UNITS))), True, "fused, on 1 cpu"),
        (lj.min_gru(UNITS), True, "all steps at once"),
    ):
        found = explain.path(call._replace(cell=cell, batch=2))
        assert found.fast == fast
        assert text in found.text
    assert explain.path(call).fast
    assert not explain.path(call._replace(implementation="autodiff")).fast
    looped = explain.path(call._replace(cell=lj.min_gru(UNITS), batch=128))
    assert looped.text.startswith("fused, on 1 cpu device: the loop of")


def test_kernel() -> None:
    """What a kernel computes is counted, though no program shows it."""
    call = CALL._replace(cell=lj.lstm(128), batch=8, time=3, implementation="pallas")
    told = lines(call)
    assert "pallas, asked for" in told["path"]
    assert "in a kernel" in told["forward"]
    operations = 2 * 8 * 3 * 4 * 128 * (FEATURES + 128) / 1e9
    assert numbers(told["forward"])[1] == pytest.approx(operations, rel=0.01)
    assert numbers(told["training"])[1] == pytest.approx(3 * operations, rel=0.01)


def test_resets() -> None:
    """They are run with, and their mask is saved for the backward pass."""
    plain, reset = (explain.programs(CALL._replace(resets=r))[2] for r in (False, True))
    assert reset - plain == BATCH * TIME


def test_finds_the_layers_of_a_task() -> None:
    cells = (lj.lstm(3), lj.gru(4))
    task = toy_task(cells=cells, bidirectional=True)
    found = explain.calls_of(task, BATCH)
    assert [(c.name, c.reverse, c.features) for c in found] == [
        ("recurrent/layer_0/forward", False, 2),
        ("recurrent/layer_0/backward", True, 2),
        ("recurrent/layer_1/forward", False, 6),
        ("recurrent/layer_1/backward", True, 6),
    ]
    assert {(c.batch, c.time, c.masked) for c in found} == {(BATCH, 3, False)}
    ragged = ragged_task(buckets=2, cells=cells)
    longest = max(bucket["inputs"].shape[1] for bucket in ragged.examples)
    (first, _) = explain.calls_of(ragged, BATCH)
    assert (first.time, first.masked) == (longest, True)


@pytest.mark.slow
def test_peak_is_a_speed() -> None:
    peak = explain.product_peak()
    square = jnp.ones((2048, 2048))
    seconds = explain.measure(jax.jit(jnp.matmul), (square, square))
    np.testing.assert_allclose(peak, 2 * 2048**3 / seconds, rtol=0.9)


@READS_CONFIG
def test_train_explains_and_trains_nothing(tmp_path: Path, call: Any) -> None:
    workdir = tmp_path / "run"
    done = call("train.py", f"--workdir={workdir}", *TINY, "--explain_engine")
    assert done.code == 0
    assert "recurrent/layer_0: 8 rows, 3 steps, 4 features" in done.out
    assert "the cell was made by gated" in done.out
    assert not workdir.exists()


@pytest.mark.slow
def test_train_makes_the_devices(tmp_path: Path) -> None:
    done = run_process(
        *("train.py", f"--workdir={tmp_path / 'run'}", *TINY, "--explain_engine"),
        *("--config.batch_size=32", "--config.devices.count=2"),
    )
    assert done.code == 0
    assert "fused, on 2 cpu devices with 16 rows each" in done.out

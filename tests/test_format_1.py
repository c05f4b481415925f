"""Checkpoints of format 1 are read, whatever versions wrote and read them.

The run in golden/format_1 was written once, by golden/make_format_1.py with jax 0.10.
"""

import math
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from toy_runs import hashes, saved_state

from lstm_jax import checkpoints, continuation, prediction, training, workdirs
from lstm_jax.reporting import read_metrics
from lstm_jax.tasks import make_task

GOLDEN = Path(__file__).parent / "golden" / "format_1"

# Of every array of the state the first value and the sum.
ARRAYS = {
    "step": (250, 250),
    "params/embedding/embedding": (1.2388363, -16.217455256264657),
    "params/head/bias": (1.3203343, -34.86736312601715),
    "params/head/kernel": (0.8776652, -158.37106907181442),
    "params/recurrent/layer_0/cell/bias": (3.2976537, 46.07018844783306),
    "params/recurrent/layer_0/cell/kernel": (-0.00014290246, 8.349687628127867),
    "params/recurrent/layer_0/cell/recurrent_kernel": (0.22871725, 9.008167223073542),
    "opt_state/1/0/count": (250, 250),
    "opt_state/1/0/mu/embedding/embedding": (0.0037900377, -0.07055605935602216),
    "opt_state/1/0/mu/head/bias": (-0.0035468598, 5.242327461019158e-09),
    "opt_state/1/0/mu/head/kernel": (-0.00057804084, 4.922412699670531e-09),
    "opt_state/1/0/mu/recurrent/layer_0/cell/bias": (
        *(-0.0003870797, -0.04266518987424206),
    ),
    "opt_state/1/0/mu/recurrent/layer_0/cell/kernel": (
        *(0.0013433938, 0.025788965003812336),
    ),
    "opt_state/1/0/mu/recurrent/layer_0/cell/recurrent_kernel": (
        *(0.0007044517, 0.007637332918420725),
    ),
    "opt_state/1/0/nu/embedding/embedding": (0.00014293997, 0.014227395060736114),
    "opt_state/1/0/nu/head/bias": (0.0005462922, 0.007845882803962922),
    "opt_state/1/0/nu/head/kernel": (0.0003568673, 0.015232710884945266),
    "opt_state/1/0/nu/recurrent/layer_0/cell/bias": (
        *(1.1322958e-05, 0.004509928990955814),
    ),
    "opt_state/1/0/nu/recurrent/layer_0/cell/kernel": (
        *(1.2737347e-05, 0.008351603475603042),
    ),
    "opt_state/1/0/nu/recurrent/layer_0/cell/recurrent_kernel": (
        *(1.647309e-06, 0.0027422139994541794),
    ),
    "opt_state/1/1/count": (250, 250),
    "sums/accuracy": (0, 0),
    "sums/count": (0, 0),
    "sums/loss": (0, 0),
}


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN, tmp_path / "format_1"))


def first_and_sum(leaf: np.ndarray) -> tuple[np.generic, float]:
    values = np.asarray(leaf)
    return values.flat[0], math.fsum(values.ravel().tolist())


def test_whole_state_is_restored(workdir: Path) -> None:
    before = hashes(workdir)
    config = workdirs.read_config(workdir)
    state = saved_state(workdir, config, make_task(config))
    found = {
        jax.tree_util.keystr(path, simple=True, separator="/"): first_and_sum(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    wanted = {
        name: (found[name][0].dtype.type(first), total)
        for name, (first, total) in ARRAYS.items()
    }
    assert found == wanted
    assert hashes(workdir) == before


def test_parameters_are_restored_alone(workdir: Path) -> None:
    with checkpoints.open_checkpoints(workdir) as manager:
        assert checkpoints.latest_step(manager) == 250
        assert checkpoints.best_step(manager, "windows_loss") == 250
        params = checkpoints.restore_params(manager, 250)
        meta = checkpoints.read_meta(manager, 250)
    found = {
        "params/" + jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    assert set(found) == {name for name in ARRAYS if name.startswith("params/")}
    for name, leaf in found.items():
        assert leaf.dtype == np.float32
        first, total = ARRAYS[name]
        assert first_and_sum(leaf) == (np.float32(first), total)
    assert meta["format"] == 1
    assert meta["metrics"] == {
        "windows_loss": 2.001972961425781,
        "windows_accuracy": 0.41,
    }


def test_run_continues_text(workdir: Path) -> None:
    run = prediction.load(workdir)
    sampling = continuation.Sampling(num_words=12)
    assert continuation.continue_text(run, "long ago, the mice had", sampling) == (
        "long ago , the mice had a up to the that is all old propose that is a"
    )


def test_run_goes_on(workdir: Path) -> None:
    config = workdirs.read_config(workdir)
    before = read_metrics(workdir)
    config.num_steps = 260
    result = training.fit(config, make_task(config, workdir), workdir)
    rows = read_metrics(workdir)
    assert rows[: len(before)] == before
    assert [(row["step"], row["split"]) for row in rows[len(before) :]] == [
        *((260, "train"), (260, "windows")),
    ]
    # Went on from where it was: anew, the loss would be near log(112) = 4.7.
    assert rows[-1]["loss"] == pytest.approx(2.0, abs=0.15)
    assert result["step"] in (250, 260)
    assert result["seconds"] > 20

"""Runs that start from the parameters of another run."""

from pathlib import Path

import jax
import pytest
from reference import assert_close, assert_same_bits
from toy_runs import saved_state, toy_config, toy_task

from lstm_jax import steps, training, workdirs
from lstm_jax.errors import UserError

pytestmark = pytest.mark.usefixtures("fast_runs")


def test_init_from_takes_what_matches_and_names_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A rate of zero: the parameters of a checkpoint are those that the run began with.
    config = toy_config(**{"num_steps": 1, "optimizer.learning_rate": 0.0})
    task, other = (toy_task(dense=(4,), num_classes=classes) for classes in (3, 5))
    training.fit(config, task, tmp_path / "first")
    theirs = workdirs.load_params(tmp_path / "first", 1)

    config.seed = 1
    own = jax.jit(other.init)(steps.make_keys(1).init)
    capsys.readouterr()
    training.fit(config, other, tmp_path / "second", tmp_path / "first")
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first == f"starting from step 1 of {tmp_path / 'first'}"
    assert last == "not there in this shape, begun anew: head/bias, head/kernel"
    taken = workdirs.load_params(tmp_path / "second", 1)
    assert_same_bits(taken["dense_0"], theirs["dense_0"])
    assert_same_bits(taken["head"], own["head"])
    assert (taken["dense_0"]["kernel"] != own["dense_0"]["kernel"]).all()

    # All match: nothing is named. A run that goes on keeps its own.
    training.fit(config, task, tmp_path / "third", tmp_path / "first")
    assert "begun anew" not in capsys.readouterr().out
    assert_same_bits(workdirs.load_params(tmp_path / "third", 1), theirs)
    config.num_steps = 2
    training.fit(config, task, tmp_path / "third", tmp_path / "second")
    assert "starting from" not in capsys.readouterr().out
    assert_same_bits(workdirs.load_params(tmp_path / "third", 2), theirs)


def test_init_from_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run in .*nowhere \(no config.json\)"):
        training.fit(toy_config(), toy_task(), tmp_path / "run", tmp_path / "nowhere")


def test_start_that_was_interrupted_before_its_first_checkpoint_still_takes_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = toy_config(**{"num_steps": 1, "optimizer.learning_rate": 0.0})
    source, workdir = tmp_path / "source", tmp_path / "run"
    training.fit(config, toy_task(), source)
    config.seed = 1
    with workdirs.claimed(workdir, config, {}):
        pass
    left = workdir / "checkpoints" / "10.orbax-checkpoint-tmp" / "state"
    left.mkdir(parents=True)
    capsys.readouterr()
    training.fit(config, toy_task(), workdir, source)
    assert f"starting from step 1 of {source}\n" in capsys.readouterr().out
    theirs = workdirs.load_params(source, 1)
    assert_same_bits(workdirs.load_params(workdir, 1), theirs)


@pytest.mark.slow
def test_average_starts_from_the_source_too(tmp_path: Path) -> None:
    fields = {"num_steps": 2, "optimizer.ema": 0.9, "optimizer.learning_rate": 0.0}
    config, task = toy_config(**fields), toy_task()
    training.fit(config, task, tmp_path / "source")
    config.seed = 1
    training.fit(config, task, tmp_path / "run", tmp_path / "source")
    theirs = workdirs.load_params(tmp_path / "source", 2)
    state = saved_state(tmp_path / "run", config, task)
    assert_close(state.params, theirs, 1e-6)
    assert_close(state.average, theirs, 1e-6)

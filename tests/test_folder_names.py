"""Checkpoints in folders of any name, each opened again before it counts as saved."""

import shutil
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from command_runs import READS_CONFIG, TINY, Finished
from reference import assert_same_bits
from toy_runs import climbing_config, climbing_task, hashes

from lstm_jax import checkpoints, training, workdirs
from lstm_jax.errors import UserError

# Of several arrays that Orbax cannot read, the others end after its event loop has.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)

PATTERNS = ("run[v2]", "[a-z]/run", "*", "run?")
OTHERS = (
    *("[", "[!a]", "{a}", "a b", " ", "#", "%", "%s", ":", ";", "'", '"', "$a_$", "-x"),
    *("a\nb", "~", "a" * 255, "1", "a.orbax-checkpoint-tmp"),
    *(unicodedata.normalize(form, "ü") for form in ("NFC", "NFD")),
)


class State(NamedTuple):
    step: Any
    params: Any
    average: Any = ()


def state_of(step: int, scale: float = 1.0) -> State:
    kernel = np.random.default_rng(step).normal(size=(40, 30)) * scale
    return State(jnp.int32(step), {"kernel": jnp.asarray(kernel, jnp.float32)})


def save(workdir: Path, *states: State) -> None:
    with checkpoints.open_checkpoints(workdir, keep=3) as opened:
        for state in states:
            checkpoints.save(opened, int(state.step), state, {})


def assert_saves(workdir: Path) -> None:
    save(workdir, state_of(1), state_of(2))
    with checkpoints.open_checkpoints(workdir) as opened:
        assert checkpoints.latest_step(opened) == 2
        for step in (1, 2):
            state = checkpoints.restore(opened, step, state_of(step))[0]
            assert_same_bits(state, state_of(step))
            params = checkpoints.restore_params(opened, step)
            assert_same_bits(params, state_of(step).params)


@pytest.mark.parametrize("name", PATTERNS)
def test_names_that_are_patterns(tmp_path: Path, name: str) -> None:
    assert_saves(tmp_path / name)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_other_names(tmp_path: Path, name: str) -> None:
    assert_saves(tmp_path / name)


@pytest.mark.parametrize("path", ["../run", "a/../b", "./a//b/.", "run"])
def test_paths_that_are_not_written_plainly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    (tmp_path / "here" / "a").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert_saves(Path(path))
    with checkpoints.open_checkpoints(Path(path).resolve()) as opened:
        assert checkpoints.latest_step(opened) == 2


def test_a_run_beside_it_that_the_name_matches(tmp_path: Path) -> None:
    """What another run is saving at the same step is not taken in."""
    save(tmp_path / "run1", state_of(1, scale=100.0))
    (tmp_path / "run1" / "checkpoints" / "1" / "state").rename(tmp_path / "state")
    unfinished = tmp_path / "run1" / "checkpoints" / "1.orbax-checkpoint-tmp"
    unfinished.mkdir()
    (tmp_path / "state").rename(unfinished / "state.orbax-checkpoint-tmp")
    assert_saves(tmp_path / "run*")


@pytest.mark.parametrize("name", ["a\\b", "logs:", "a.__lock", "\udcff"])
def test_a_name_that_cannot_have_checkpoints(tmp_path: Path, name: str) -> None:
    """Refused before anything is made, there or in the folder that it is taken for."""
    workdir = tmp_path / name
    with (
        pytest.raises(UserError, match=r"^no checkpoint can be saved in '.*name$"),
        workdirs.claimed(workdir, climbing_config(num_steps=2), {}),
    ):
        pass
    with pytest.raises(UserError, match="no checkpoint can be saved"):
        workdirs.answering_step(workdir, None)
    assert list(tmp_path.iterdir()) == []


def find_nothing(path: Any, pattern: str) -> Iterator[Any]:
    return iter(())


def test_what_cannot_be_opened_again_is_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrays that Orbax does not merge, of which it warns and makes no error."""
    save(tmp_path, state_of(1))
    before = hashes(tmp_path)
    monkeypatch.setattr(checkpoints._LiteralPath, "glob", find_nothing)
    with pytest.raises(UserError, match="cannot be read again") as error:
        save(tmp_path, state_of(2), state_of(3))
    assert "\n" not in str(error.value)
    with checkpoints.open_checkpoints(tmp_path) as opened:
        assert checkpoints.latest_step(opened) == 1
    assert before.items() <= hashes(tmp_path).items()
    monkeypatch.undo()
    save(tmp_path, state_of(2))
    with checkpoints.open_checkpoints(tmp_path) as opened:
        assert checkpoints.latest_step(opened) == 2


def test_a_run_that_was_lost_in_such_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its files are whole, by a manifest of before, and nothing in them is read."""
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints._LiteralPath, "glob", find_nothing)
        patch.setattr(checkpoints, "_differs", lambda folder, expected: None)
        save(tmp_path, state_of(2))
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole"):
        workdirs.answering_step(tmp_path, None)
    said = capsys.readouterr().err
    assert "checkpoints/2 is damaged (its arrays were never merged) and not" in said


def test_arrays_of_another_step_are_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same shapes: the values tell."""
    save(tmp_path / "run1", state_of(1))
    found = tmp_path / "run1" / "checkpoints" / "1" / "state" / "ocdbt.process_0"

    def find_another(path: Any, pattern: str) -> Iterator[Any]:
        if pattern.startswith(found.name[:5]):
            copy = Path(path, found.name)
            shutil.rmtree(copy)
            shutil.copytree(found, copy)
            yield type(path)(copy)

    monkeypatch.setattr(checkpoints._LiteralPath, "glob", find_another)
    with pytest.raises(UserError, match=r"cannot be read again \(it holds something"):
        save(tmp_path / "run2", state_of(2))


def test_a_run_that_cannot_save_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints._LiteralPath, "glob", find_nothing)
    config = climbing_config(num_steps=3)
    with pytest.raises(UserError, match="cannot be read again"):
        training.fit(config, climbing_task(lambda w: w), tmp_path)


@READS_CONFIG
def test_the_command_line_shows_what_orbax_warns_of(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    call: Callable[..., Finished],
) -> None:
    monkeypatch.setattr(checkpoints._LiteralPath, "glob", find_nothing)
    done = call("train.py", f"--workdir={tmp_path / 'run'}", *TINY)
    assert done.code == 2
    # Of its errors the last line tells; a slow disk has warnings of its own.
    warned = [text for text in caplog.messages if "Waiting for" not in text]
    assert ["Skipping merge of OCDBT checkpoints" in text for text in warned] == [True]
    assert done.err.splitlines()[-1].startswith("error: the checkpoint of step 2 in ")

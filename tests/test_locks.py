"""Disks without locks: training goes on, and a line says what is not protected."""

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from toy_runs import climbing_config, climbing_task

from lstm_jax import training, workdirs
from lstm_jax.errors import UserError
from lstm_jax.locks import locked

pytestmark = pytest.mark.usefixtures("fast_runs")

MISSING = [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL]

COMPILING = """
import errno, fcntl, os, time
number = int(os.environ["ANSWER"])

def refuse(*_):
    raise OSError(number, os.strerror(number))

fcntl.flock = refuse
from lstm_jax.compilation import keep_compiled
keep_compiled()
import jax
begun = time.monotonic()
jax.jit(lambda x: x + 1)(1.0)
print(jax.config.jax_compilation_cache_dir, time.monotonic() - begun < 8)
"""


def answering(number: int) -> Callable[..., None]:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return flock


@pytest.mark.parametrize("number", MISSING)
def test_claiming_a_folder(
    tmp_path: Path,
    number: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(fcntl, "flock", answering(number))
    config = climbing_config(num_steps=2)
    for _ in range(2):  # as after a kill, which leaves the file
        with workdirs.claimed(tmp_path, config, {}):
            said = capsys.readouterr().err
            assert (tmp_path / workdirs.CONFIG_FILE).exists()
            (tmp_path / workdirs.LOCK_FILE).touch()
        assert said == (
            f"{tmp_path} is on a disk without locks ({os.strerror(number)}): nothing "
            "keeps another process from training there; start no other in it\n"
        )


def test_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fcntl, "flock", answering(errno.ENOLCK))
    result = training.fit(
        climbing_config(num_steps=2), climbing_task(lambda w: w), tmp_path
    )
    assert (result["step"], result["test_loss"]) == (2, 2.0)
    assert capsys.readouterr().err.count("is on a disk without locks") == 1


def test_another_answer_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", answering(errno.EIO))
    with (
        pytest.raises(UserError, match=r"cannot write to .* \(Input/output error\)"),
        workdirs.claimed(tmp_path, climbing_config(num_steps=2), {}),
    ):
        pass


def test_an_error_under_the_lock_is_the_bodys_own(tmp_path: Path) -> None:
    def fail() -> None:
        with locked(tmp_path / "lock", timeout=0.0) as missing:
            assert missing is None
            raise OSError(errno.ENOLCK, "not the lock's")

    with pytest.raises(OSError, match="not the lock's"):
        fail()


@pytest.mark.parametrize(
    "number", [errno.ENOSYS, pytest.param(errno.ENOLCK, marks=pytest.mark.slow)]
)
def test_programs_are_compiled_anew(tmp_path: Path, number: int) -> None:
    """Jax would wait for its lock ten seconds a program."""
    environment = {k: v for k, v in os.environ.items() if "COMPILATION" not in k}
    done = subprocess.run(
        [sys.executable, "-c", COMPILING],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
        env={
            **environment,
            "XDG_CACHE_HOME": str(tmp_path),
            "ANSWER": str(number),
        },
    )
    assert done.stdout == "None True\n"
    assert done.stderr.count("\n") == 1
    assert f"without locks ({os.strerror(number)}) and not used" in done.stderr

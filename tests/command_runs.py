"""Ways to run train.py and predict.py, and a small run that they made."""

import contextlib
import io
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

# Their flags are the process's own: flagsaver must find them defined.
from absl import app as _app  # noqa: F401
from absl import logging as _logging  # noqa: F401
from absl.testing import flagsaver

ROOT = Path(__file__).parents[1]
# With this learning rate the model is at its best before the last step.
TINY = (
    "--config.num_steps=4",
    "--config.batch_size=8",
    "--config.model.hidden_size=6",
    "--config.model.num_layers=1",
    "--config.model.embedding_size=4",
    "--config.optimizer.name=adam",
    "--config.optimizer.learning_rate=1.0",
    "--config.report.every=2",
    "--config.report.evaluate_every=2",
    "--config.checkpoint.every=2",
    "--config.checkpoint.best=windows_loss",
)
BEST, LAST = 2, 4
READS_CONFIG = pytest.mark.filterwarnings(
    # ml_collections loads a config file with it.
    r"ignore:the load_module\(\) method is deprecated:DeprecationWarning"
)
WORDS = "--input=long ago , the mice"
BEGINNING = ["long", "ago", ",", "the", "mice"]


class Finished(NamedTuple):
    """What a program left behind."""

    code: int
    out: str
    err: str


def run_process(*command: str, **options: Any) -> Finished:
    """Runs a script, or "-m" a module, in a process of its own."""
    script, *arguments = command
    done = subprocess.run(
        [sys.executable, script if script == "-m" else str(ROOT / script), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **options,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


class Trained(NamedTuple):
    """A finished run and what its training printed."""

    workdir: Path
    printed: Finished


def train_tiny(folder: Path) -> Trained:
    """Trains a run of four steps."""
    workdir = folder / "tiny"
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", ["train.py", f"--workdir={workdir}", *TINY])
        code = run_here("train.py")
    return Trained(workdir, Finished(code, out.getvalue(), err.getvalue()))


def caller(monkeypatch: Any, capsys: Any) -> Callable[..., Finished]:
    """Runs a script in this process: an import costs seconds."""

    def run(script: str, *arguments: str, stdin: str = "") -> Finished:
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        return Finished(run_here(script), *capsys.readouterr())

    return run


def run_here(script: str) -> int:
    """Runs a script as Python would; its exit code."""
    numbers = signal.SIGINT, signal.SIGTERM
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        with flagsaver.flagsaver(), pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(ROOT / script), run_name="__main__")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return stopped.value.code or 0


def contents(folder: Path) -> dict[Path, bytes | None]:
    """Every file below a folder and what is in it."""
    return {
        path: path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def assert_user_error(done: Finished, *fragments: str) -> None:
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert done.err.endswith("\n")
    for fragment in fragments:
        assert fragment in done.err


def write(name: str, content: bytes) -> Callable[[Path], None]:
    def edit(workdir: Path) -> None:
        (workdir / name).write_bytes(content)

    return edit

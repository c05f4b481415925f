"""Tests of train.py: what a person at the command line meets."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from absl import app, flags
from absl.testing import flagsaver
from command_runs import (
    BEST,
    LAST,
    READS_CONFIG,
    ROOT,
    TINY,
    WORDS,
    Finished,
    Trained,
    assert_user_error,
    contents,
    run_process,
    write,
)

from lstm_jax import command_line

pytestmark = READS_CONFIG


def test_training_prints_progress_alone_to_stderr(trained: Trained) -> None:
    code, _, err = trained.printed
    assert code == 0
    number = r"(\d+\.\d+|\d\.\d+e[+-]\d+)"
    train = rf"step (\d)/4  epoch [\d.]+  [\d.]+ ms/step  loss {number}  accuracy "
    windows = rf"  windows  loss {number}  accuracy {number}"
    lines = err.splitlines()
    assert len(lines) == 4, err
    for i, step in enumerate("24"):
        match = re.fullmatch(train + number, lines[2 * i])
        assert match, lines[2 * i]
        assert match[1] == step
        assert re.fullmatch(windows, lines[2 * i + 1]), lines[2 * i + 1]


def test_training_prints_its_result_last(trained: Trained) -> None:
    *_, demonstration, last = trained.printed.out.splitlines()
    result = json.loads(last)
    assert list(result) == [
        "step",
        "epoch",
        "windows_loss",
        "windows_accuracy",
        "best_step",
        "seconds",
        "workdir",
    ]
    lines = (trained.workdir / "metrics.jsonl").read_text().splitlines()
    rows = {
        row["step"]: row for row in map(json.loads, lines) if row["split"] == "windows"
    }
    assert set(rows) == {BEST, LAST}
    assert rows[BEST]["loss"] < rows[LAST]["loss"]
    assert result["step"] == result["best_step"] == BEST
    assert result["windows_loss"] == rows[BEST]["loss"]
    assert result["windows_accuracy"] == rows[BEST]["accuracy"]
    assert result["epoch"] == rows[BEST]["epoch"] == BEST / 25  # 200 windows in eights
    assert 0 < result["seconds"] < 300
    assert result["workdir"] == str(trained.workdir)
    assert demonstration.startswith("long ago , ")
    assert len(demonstration.split()) == 3 + 32
    assert trained.printed.out.startswith((trained.workdir / "summary.txt").read_text())


@pytest.mark.parametrize("script", ["train.py", "predict.py", "flow.py", "lab.py"])
def test_help_is_no_error(
    script: str, call: Callable[..., Finished], monkeypatch: Any
) -> None:
    # absl defines them once a process, and `call` forgets what a run has defined.
    with flagsaver.flagsaver():
        if "help" not in flags.FLAGS:
            monkeypatch.setattr(app, "_define_help_flags_called", False)
            app.define_help_flags()
        done = call(script, "--help")
    assert (done.code, done.err) == (0, "")
    assert "--helpfull" in done.out


def test_workdir_holds_the_run(trained: Trained) -> None:
    files = {path.name for path in trained.workdir.iterdir()}
    events = {name for name in files if name.startswith("events.out.tfevents")}
    assert len(events) == 1
    assert files - events == {
        ".lock",
        "checkpoints",
        "config.json",
        "curves.png",
        "identity.json",
        "metrics.jsonl",
        "summary.txt",
        "vocabulary.json",
        "data.sha256",
    }
    steps = {path.name for path in (trained.workdir / "checkpoints").iterdir()}
    assert steps == {str(BEST), str(LAST)}
    config = json.loads((trained.workdir / "config.json").read_text())
    assert config["model"]["hidden_size"] == 6
    assert config["optimizer"]["learning_rate"] == 1.0
    assert config["data"]["path"] == "fable.txt"
    assert (trained.workdir / "curves.png").read_bytes().startswith(b"\x89PNG")
    summary = (trained.workdir / "summary.txt").read_text()
    assert summary.splitlines()[-1].split() == ["total", "1,496"]


def test_finished_run_trains_nothing(
    trained: Trained, tmp_path: Path, call: Callable[..., Finished]
) -> None:
    shutil.copytree(trained.workdir, tmp_path / "run")
    before = contents(tmp_path)
    done = call("train.py", f"--workdir={tmp_path / 'run'}", *TINY)
    assert done.code == 0
    assert done.err == "finished before, at step 4: not trained again\n"
    result = json.loads(trained.printed.out.splitlines()[-1])
    result["workdir"] = str(tmp_path / "run")
    assert json.loads(done.out.splitlines()[-1]) == result
    assert contents(tmp_path) == before


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files and folders that are no use."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "empty.txt").write_text("")
    (folder / "blank.txt").write_text(" \n\t\n")
    (folder / "short.txt").write_text("long ago ,")
    (folder / "latin.txt").write_bytes(b"caf\xe9 au lait")
    (folder / "no_function.py").write_text("batch_size = 3\n")
    (folder / "syntax.py").write_text("def get_config():\n  return (\n")
    (folder / "imports.py").write_text("import no_such_module\n")
    (folder / "nothing.py").write_text("def get_config():\n  pass\n")
    (folder / "dictionary.py").write_text("def get_config():\n  return {'seed': 0}\n")
    (folder / "older.py").write_text(
        "from lstm_jax.config import base_config\n"
        "def get_config():\n"
        "  config = base_config()\n"
        "  del config['patience']\n"
        "  return config\n"
    )
    (folder / "empty").mkdir()
    (folder / "foreign").mkdir()
    (folder / "foreign" / "summary.txt").write_text("years of work")
    return folder


TRAINING_ERRORS = [
    # the data
    ("--config.data.path=/no/text.txt", "cannot read '/no/text.txt'", "fable.txt"),
    ("--config.data.path={files}", "cannot read '{files}'"),
    ("--config.data.path={files}/empty.txt", "empty.txt holds no words"),
    ("--config.data.path={files}/blank.txt", "blank.txt holds no words"),
    ("--config.data.path={files}/short.txt", "3 words", "needs at least 4"),
    ("--config.data.path={files}/latin.txt", "latin.txt, line 1: not UTF-8", "iconv"),
    ("--config.data.window=203", "203 words", "needs at least 204"),
    ("--config.data.window=0", "data.window=0"),
    ("--config.data.window=-1", "data.window=-1"),
    ("--config.data.order=sorted", "'sorted'", "shuffled or walk"),
    # fields and flags
    ("--config.model.hiden_size=7", "hiden_size", '"hidden_size"'),
    ("--config.modle.hidden_size=7", "modle", '"model"'),
    ("--config.batchsize=7", "batchsize", '"batch_size"'),
    ("--config.nonsense=7", "nonsense"),
    ("--config.batch_size=many", "config.batch_size=many"),
    ("--config.model.hidden_size=1.5", "config.model.hidden_size=1.5"),
    ("--config.batch_size", "config.batch_size"),
    ("--workdri=x", "'workdri'", "Did you mean: workdir"),
    ("--nonsense", "'nonsense'", "--help"),
    ("configs/fable.py", "'configs/fable.py'", "flags begin with --"),
    # values
    ("--config.batch_size=0", "batch_size=0 must be at least 1"),
    ("--config.batch_size=-8", "batch_size=-8 must be at least 1"),
    ("--config.num_steps=0", "num_steps=0 and num_epochs=0: give one of them"),
    ("--config.num_epochs=2", "num_steps=4 and num_epochs=2: give one of them"),
    ("--config.num_steps=-1", "num_steps=-1 must be at least 0"),
    ("--config.patience=1 --config.checkpoint.best=", "name its metric"),
    ("--config.optimizer.ema=1", "optimizer.ema=1.0 must be in [0, 1)"),
    ("--config.model.hidden_size=0", "hidden_size=0 must be at least 1"),
    ("--config.model.hidden_size=-6", "hidden_size=-6 must be at least 1"),
    ("--config.model.num_layers=0", "num_layers=0 must be at least 1"),
    ("--config.model.dropout=1", "dropout=1.0 must be in [0, 1)"),
    ("--config.model.dropout=-0.1", "dropout=-0.1 must be in [0, 1)"),
    ("--config.report.every=0", "report.every=0 must be at least 1"),
    ("--config.report.evaluate_every=-1", "evaluate_every=-1 must be at least 0"),
    ("--config.checkpoint.every=-1", "checkpoint.every=-1 must be at least 0"),
    ("--config.checkpoint.keep=0", "checkpoint.keep=0 must be at least 1"),
    ("--config.checkpoint.best=test_loss", "'test_loss'", "windows_loss"),
    ("--config.checkpoint.best=windows_los", "'windows_los'", "windows_loss"),
    ("--config.optimizer.learning_rate=-1", "learning_rate=-1.0"),
    ("--config.optimizer.learning_rate=nan", "learning_rate=nan"),
    ("--config.optimizer.clip_norm=-1", "clip_norm=-1.0"),
    ("--config.optimizer.warmup_steps=4", "warmup_steps=4"),
    # names
    ("--config.task=translation", "'translation'", "next_word"),
    ("--config.task=custom", "'custom'", "next_word"),
    ("--config.model.head=tanh", "'tanh'", "softmax, sigmoid"),
    ("--config.model.pooling=sum", "'sum'", "last, mean, max"),
    ("--config.model.cell=lstmm", "'lstmm'", "simple_rnn, lstm, gru"),
    ("--config.model.cell=lstm(forget_bias=1,forget_bias=2)", "a keyword twice"),
    ("--config.model.cell=lstm(3)", "lstm(3)", "gru(reset_after=False)"),
    ("--config.model.cell=residual(lstm)", "residual adds", "as many"),
    ("--config.model.cell=block_diagonal(lstm,5)", "heads=5 must divide"),
    ("--config.model.head_init=zero", "'zero'", "glorot, normal"),
    ("--config.optimizer.name=adamm", "'adamm'", "adam, adamw"),
    ("--config.optimizer.schedule=linear", "'linear'", "constant or cosine"),
    ("--config.model.embedding_size=-1", "embedding_size=-1"),
    ("--config.data.order=walk --config.num_steps=-1", "num_steps=-1"),
    ("--config.data.order=walk --config.batch_size=-1", "batch_size=-1"),
    # the folders
    ("--init_from=/no/run", "no run in /no/run"),
    ("--init_from={files}/foreign", "no run in {files}/foreign"),
    ("--workdir={files}/empty.txt", "empty.txt is a file", "--workdir="),
    ("--workdir={files}/empty.txt/run", "cannot write to", "--workdir="),
    ("--workdir={files}/foreign", "foreign holds summary.txt of", "--workdir="),
]


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        pytest.param(arguments, fragments, id=arguments)
        for arguments, *fragments in TRAINING_ERRORS
    ],
)
def test_training_errors(
    arguments: str,
    fragments: list[str],
    files: Path,
    tmp_path: Path,
    call: Callable[..., Finished],
) -> None:
    before = contents(files)
    workdir = tmp_path / "run"
    given = arguments.format(files=files).split()
    done = call("train.py", f"--workdir={workdir}", *TINY, *given)
    assert_user_error(done, *(fragment.format(files=files) for fragment in fragments))
    assert contents(files) == before
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("config", "fragments"),
    [
        ("/no/config.py", ("no config file /no/config.py", "configs")),
        ("{files}/foreign", ("no config file", "configs")),
        ("{files}/no_function.py", ("get_config",)),
        ("{files}/syntax.py", ("syntax.py, line 2: ", "never closed")),
        ("{files}/imports.py", ("--config: ", "no_such_module")),
        ("{files}/nothing.py", ("get_config",)),
        ("{files}/dictionary.py", ("base_config",)),
        ("{files}/older.py", ("no field patience", "base_config")),
    ],
)
def test_config_file_errors(
    config: str,
    fragments: tuple[str, ...],
    files: Path,
    tmp_path: Path,
    call: Callable[..., Finished],
    monkeypatch: Any,
) -> None:
    for name in ("config_config", "config"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    config = f"--config={config.format(files=files)}"
    done = call("train.py", config, f"--workdir={tmp_path / 'run'}")
    assert_user_error(done, *fragments)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (("model.hidden_size=7",), ("model.hidden_size: 6 there, 7 here",)),
        (
            ("seed=1", "data.path=meditations.txt"),
            ("seed: 0 there, 1 here",),
        ),
        (("data.path=meditations.txt",), ("on other data", "differs")),
        (("num_steps=0", "num_epochs=9"), ("num_epochs: 0 there", "num_steps: 4")),
        (("num_steps=2",), ("num_steps: 4 there, 2 here",)),
        (
            ("num_steps=6", "optimizer.schedule=cosine"),
            ("num_steps: 4 there, 6 here", "optimizer.schedule"),
        ),
    ],
)
def test_workdir_of_another_run(
    arguments: tuple[str, ...],
    fragments: tuple[str, ...],
    trained: Trained,
    call: Callable[..., Finished],
) -> None:
    before = contents(trained.workdir)
    changes = [f"--config.{argument}" for argument in arguments]
    done = call("train.py", f"--workdir={trained.workdir}", *TINY, *changes)
    assert_user_error(done, *fragments, f"--workdir={trained.workdir}_2")
    assert contents(trained.workdir) == before


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 16.0 GiB"),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 16 bytes.\nat"),
    ],
)
def test_too_little_memory(
    error: Exception, tmp_path: Path, call: Callable[..., Finished], monkeypatch: Any
) -> None:
    def fit(*arguments: Any) -> None:
        raise error

    monkeypatch.setattr("lstm_jax.training.fit", fit)
    done = call("train.py", f"--workdir={tmp_path / 'run'}", *TINY)
    assert_user_error(done, "not enough memory: lower batch_size", str(error)[:20])


def test_other_errors_are_no_lack_of_memory(
    tmp_path: Path, call: Callable[..., Finished], monkeypatch: Any
) -> None:
    def fit(*arguments: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("lstm_jax.training.fit", fit)
    with pytest.raises(RuntimeError, match="a bug"):
        call("train.py", f"--workdir={tmp_path / 'run'}", *TINY)


def test_error_in_a_process_of_its_own(tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    done = run_process("train.py", f"--workdir={workdir}", "--config.batch_size=0")
    assert_user_error(done, "batch_size=0 must be at least 1")
    assert not workdir.exists()


def test_best_of_a_finished_run_may_be_chosen_anew(
    trained: Trained, tmp_path: Path, call: Callable[..., Finished]
) -> None:
    """What is printed is what a prediction loads."""
    workdir = tmp_path / "run"
    shutil.copytree(trained.workdir, workdir)
    chosen = ("predict.py", f"--workdir={workdir}", WORDS)
    of_best, of_last = (
        call(*chosen, f"--step={step}").out.splitlines() for step in (BEST, LAST)
    )
    assert of_best != of_last
    assert call(*chosen).out.splitlines() == of_best
    done = call("train.py", f"--workdir={workdir}", *TINY, "--config.checkpoint.best=")
    result = json.loads(done.out.splitlines()[-1])
    assert (result["step"], result["best_step"]) == (LAST, None)
    assert call(*chosen).out.splitlines() == of_last
    done = call("train.py", f"--workdir={workdir}", *TINY)
    assert json.loads(done.out.splitlines()[-1])["step"] == BEST
    assert call(*chosen).out.splitlines() == of_best


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)],
)
def test_interrupted_training_says_so_in_one_line(
    tmp_path: Path, number: signal.Signals
) -> None:
    workdir = tmp_path / "run"
    many = ("--config.num_steps=1000000", "--config.checkpoint.every=0")
    program = subprocess.Popen(
        [
            *(sys.executable, str(ROOT / "train.py"), f"--workdir={workdir}"),
            *(*TINY, *many, "--config.report.evaluate_every=0"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert program.stderr is not None
        assert program.stderr.readline().startswith("step 2/1000000  ")
        program.send_signal(number)
        _, err = program.communicate(timeout=60)
    finally:
        program.kill()
    *rows, last = err.splitlines()
    assert re.fullmatch(
        r"interrupted at step \d+, which is saved: the same command goes on", last
    )
    *rows, noted = [row for row in rows if not row.startswith("step ")]
    assert (rows, noted) == ([], "ends after the steps under way; once more: at once")
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == [
        last.split()[3].rstrip(",")
    ]
    assert program.returncode == 128 + number
    assert not list(workdir.glob("*.tmp"))


def test_training_on_a_damaged_config(
    trained: Trained, tmp_path: Path, call: Callable[..., Finished]
) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(trained.workdir, workdir)
    write("config.json", b"{")(workdir)
    before = contents(workdir)
    assert_user_error(
        call("train.py", f"--workdir={workdir}", *TINY), "config.json is damaged"
    )
    assert contents(workdir) == before


@pytest.mark.parametrize("changed", [(), ("--config.num_steps=3",)])
def test_a_config_of_the_checkout_from_another_folder(
    changed: tuple[str, ...],
    tmp_path: Path,
    call: Callable[..., Finished],
    monkeypatch: Any,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call("train.py", "--config=configs/imdb_lstm.py", *changed)
    assert_user_error(
        done,
        f"no config file configs/imdb_lstm.py in {tmp_path}: there is "
        f"{ROOT / 'configs' / 'imdb_lstm.py'}",
    )
    done = call("flow.py", "--config", "no.py", *changed)
    assert_user_error(done, f"no config file no.py in {tmp_path}: see {ROOT}/configs")
    (tmp_path / "reads.py").write_text("def get_config():\n  return open('/no/file')")
    done = call("train.py", "--config=reads.py", "--config.num_steps=3")
    assert_user_error(done, "--config=reads.py")


def test_output_that_nobody_reads_or_that_finds_no_room_is_dropped() -> None:
    def write(descriptor: int) -> str | None:
        with command_line._Output(descriptor, ends=False, encoding="utf-8") as output:
            for _ in range(3):
                print("a line", file=output, flush=True)
        os.close(descriptor)
        return output.problem

    reads, writes = os.pipe()
    os.close(reads)
    assert write(writes) is None
    reads, writes = os.pipe()
    assert write(writes) is None
    assert os.read(reads, 100) == b"a line\n" * 3
    os.close(reads)
    if Path("/dev/full").exists():
        full = os.open("/dev/full", os.O_WRONLY)
        assert write(full) == "No space left on device"


# Prints lines until it is done, and says so in a file.
PRINTS = """
import sys
from lstm_jax import command_line

def main():
    for _ in range(100_000):
        print("line", flush=True)
    open(sys.argv[0], "w").close()

sys.argv = [sys.argv[1]]
command_line.run(main, answers={answers})
"""


@pytest.mark.parametrize(
    ("answers", "code"), [(True, 141), pytest.param(False, 0, marks=pytest.mark.slow)]
)
def test_reader_that_goes_ends_what_answers_and_no_training(
    answers: bool, code: int, tmp_path: Path
) -> None:
    done = tmp_path / "done"
    process = subprocess.Popen(
        [sys.executable, "-c", PRINTS.format(answers=answers), str(done)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "line\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() == code
    assert done.exists() == (not answers)


@pytest.mark.slow
def test_a_run_without_any_of_its_streams(tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    command = [sys.executable, str(ROOT / "train.py"), f"--workdir={workdir}", *TINY]
    line = f"exec {shlex.join(command)} <&- >&- 2>&-"
    assert subprocess.run(["bash", "-c", line], check=False).returncode == 0
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 2, 4, 4]
    assert (workdir / "curves.png").read_bytes().startswith(b"\x89PNG")
    full = run_process("predict.py", f"--workdir={workdir}", WORDS)
    assert full.code == 0

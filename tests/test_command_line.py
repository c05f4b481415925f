"""Tests of train.py and predict.py: what a person at the command line meets."""

import io
import json
import os
import re
import runpy
import shutil
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

pytestmark = pytest.mark.filterwarnings(
    # ml_collections loads a config file with it.
    r"ignore:the load_module\(\) method is deprecated:DeprecationWarning"
)

ROOT = Path(__file__).parents[1]
# With this learning rate the model is at its best before the last step.
TINY = (
    "--config.num_steps=4",
    "--config.batch_size=8",
    "--config.model.hidden_size=6",
    "--config.model.num_layers=1",
    "--config.model.embedding_size=4",
    "--config.optimizer.name=rmsprop",
    "--config.optimizer.learning_rate=1.0",
    "--config.report.every=2",
    "--config.report.evaluate_every=2",
    "--config.checkpoint.every=2",
    "--config.checkpoint.best=windows_loss",
)
BEST, LAST = 2, 4
WORDS = "--input=long ago , the mice"
BEGINNING = ["long", "ago", ",", "the", "mice"]


class Finished(NamedTuple):
    """What a program left behind."""

    code: int
    out: str
    err: str


def run_process(*command: str, **options: Any) -> Finished:
    """Runs a script in a process of its own."""
    done = subprocess.run(
        [sys.executable, str(ROOT / command[0]), *command[1:]],
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


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run that tests read and do not change."""
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    return Trained(workdir, run_process("train.py", f"--workdir={workdir}", *TINY))


@pytest.fixture
def call(monkeypatch: Any, capsys: Any) -> Callable[..., Finished]:
    """Runs a script in this process, as Python would: an import costs seconds."""

    def run(script: str, *arguments: str, stdin: str = "") -> Finished:
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        with flagsaver.flagsaver(), pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        return Finished(stopped.value.code or 0, *capsys.readouterr())

    return run


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


# Training


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


def test_workdir_holds_the_run(trained: Trained) -> None:
    files = {path.name for path in trained.workdir.iterdir()}
    events = {name for name in files if name.startswith("events.out.tfevents")}
    assert len(events) == 1
    assert files - events == {
        "checkpoints",
        "config.json",
        "curves.png",
        "metrics.jsonl",
        "summary.txt",
        "vocabulary.json",
        "text.sha256",
    }
    steps = {path.name for path in (trained.workdir / "checkpoints").iterdir()}
    assert steps == {str(BEST), str(LAST)}
    config = json.loads((trained.workdir / "config.json").read_text())
    assert config["model"]["hidden_size"] == 6
    assert config["optimizer"]["learning_rate"] == 1.0
    assert config["data"]["path"] == "fable.txt"
    assert (trained.workdir / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "Total Parameters: 1,496" in (trained.workdir / "summary.txt").read_text()


def test_finished_run_trains_nothing(
    trained: Trained, tmp_path: Path, call: Callable[..., Finished]
) -> None:
    shutil.copytree(trained.workdir, tmp_path / "run")
    before = contents(tmp_path)
    done = call("train.py", f"--workdir={tmp_path / 'run'}", *TINY)
    assert done.code == 0
    assert done.err == ""
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
    (folder / "empty").mkdir()
    (folder / "foreign").mkdir()
    (folder / "foreign" / "thesis.txt").write_text("years of work")
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
    ("--config.num_steps=0", "num_steps=0 must be at least 1"),
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
    ("--config.model.cell=lstmm", "'lstmm'", "simple_rnn, lstm, gru"),
    ("--config.model.cell=lstm(3)", "lstm(3)", "gru(reset_after=False)"),
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
    ("--workdir={files}/foreign", "foreign is not empty", "--workdir="),
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
    monkeypatch.delitem(sys.modules, "config_config", raising=False)
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
            ("seed: 0 there, 1 here", "data.path: 'fable.txt' there"),
        ),
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


def test_error_in_a_process_of_its_own(tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    done = run_process("train.py", f"--workdir={workdir}", "--config.batch_size=0")
    assert_user_error(done, "batch_size=0 must be at least 1")
    assert not workdir.exists()


# Prediction


def predicted(done: Finished) -> list[str]:
    """The words that a program printed, if it did nothing else."""
    assert done.code == 0
    assert done.err == ""
    assert done.out.count("\n") == 1
    return done.out.split()


def test_prediction(trained: Trained, call: Callable[..., Finished]) -> None:
    workdir = f"--workdir={trained.workdir}"
    text = predicted(run_process("predict.py", workdir, WORDS))
    assert text[:5] == BEGINNING
    assert len(text) == 5 + 32
    # The best checkpoint answers, though a later one is there.
    options = ("predict.py", workdir, WORDS, "--num_words=9")
    assert predicted(call(*options)) == text[: 5 + 9]
    best = predicted(call(*options, f"--step={BEST}"))
    last = predicted(call(*options, f"--step={LAST}"))
    assert best == text[: 5 + 9]
    assert last[:5] == BEGINNING
    assert last != best
    # The last words given decide, not the first.
    tail = predicted(
        call("predict.py", workdir, "--input=,the   mice", "--num_words=9")
    )
    assert tail[3:] == best[5:]


def test_sampling(trained: Trained, call: Callable[..., Finished]) -> None:
    def sample(*options: str) -> list[str]:
        workdir = f"--workdir={trained.workdir}"
        return predicted(call("predict.py", workdir, WORDS, "--num_words=8", *options))

    greedy = sample()
    warm = "--temperature=5"
    assert sample(warm, "--top_k=1") == greedy
    first = sample(warm, "--seed=1")
    assert first == sample(warm, "--seed=1")
    assert len({tuple(words) for words in (greedy, first, sample(warm))}) == 3
    top = sample(warm, "--seed=1", "--top_k=3")
    assert top == sample(warm, "--seed=1", "--top_k=3")
    assert top not in (greedy, first)


def edit_config(**fields: Any) -> Callable[[Path], None]:
    """Sets fields of a run's config; None takes one away."""

    def edit(workdir: Path) -> None:
        config = json.loads((workdir / "config.json").read_text())
        for path, value in fields.items():
            *groups, name = path.split("__")
            group = config
            for key in groups:
                group = group[key]
            if value is None:
                del group[name]
            else:
                group[name] = value
        (workdir / "config.json").write_text(json.dumps(config))

    return edit


def write(name: str, content: bytes) -> Callable[[Path], None]:
    def edit(workdir: Path) -> None:
        (workdir / name).write_bytes(content)

    return edit


def remove(name: str) -> Callable[[Path], None]:
    def edit(workdir: Path) -> None:
        path = workdir / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return edit


@pytest.mark.parametrize(
    ("edit", "fragments"),
    [
        (remove("config.json"), ("no run in {workdir}", "train.py")),
        (write("config.json", b'{"task": '), ("config.json is damaged",)),
        (write("config.json", b"\xff\x00"), ("config.json is damaged",)),
        (write("config.json", b""), ("config.json is damaged",)),
        pytest.param(write("config.json", b"[1]"), ("config.json",)),
        pytest.param(edit_config(task=None), ("config.json",)),
        pytest.param(edit_config(model__cell=None), ("config.json",)),
        (edit_config(task="translation"), ("'translation'",)),
        (edit_config(model__hidden_size=7), ("of another model", "config.json")),
        (edit_config(model__num_layers=2), ("of another model", "config.json")),
        (edit_config(model__cell="gru"), ("of another model", "config.json")),
        (edit_config(model__embedding_size=0), ("of another model", "config.json")),
        (edit_config(model__cell="lstmm"), ("'lstmm'",)),
        (remove("vocabulary.json"), ("vocabulary.json is missing",)),
        (write("vocabulary.json", b"{}"), ("vocabulary.json is missing or damaged",)),
        (remove("checkpoints"), ("no checkpoint in {workdir}", "train.py")),
    ],
    ids=[
        "no_config",
        "torn_config",
        "binary_config",
        "empty_config",
        "list_config",
        "no_task",
        "no_cell",
        "other_task",
        "other_size",
        "other_depth",
        "other_cell",
        "other_inputs",
        "no_such_cell",
        "no_vocabulary",
        "damaged_vocabulary",
        "no_checkpoint",
    ],
)
def test_workdirs_that_cannot_answer(
    edit: Callable[[Path], None],
    fragments: tuple[str, ...],
    trained: Trained,
    tmp_path: Path,
    call: Callable[..., Finished],
) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(trained.workdir, workdir)
    edit(workdir)
    before = contents(workdir)
    done = call("predict.py", f"--workdir={workdir}", WORDS)
    assert_user_error(done, *(part.format(workdir=workdir) for part in fragments))
    assert contents(workdir) == before


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


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (("--workdir=/no/run", WORDS), ("no run in /no/run", "train.py")),
        ((), ("--input", "--interactive")),
        ((WORDS, "--interactive"), ("--input", "--interactive")),
        (("--input=",), ("0 words", "reads 3")),
        (("--input=long ago",), ("2 words", "reads 3")),
        (("--input=long zebra , the Cat zebra",), ("vocabulary: zebra, Cat\n",)),
        ((WORDS, "--step=3"), ("no checkpoint of step 3", "2, 4")),
        ((WORDS, "--step=-1"), ("no checkpoint of step -1", "2, 4")),
        ((WORDS, "--num_words=0"), ("--num_words=0",)),
        ((WORDS, "--temperature=-0.5"), ("--temperature=-0.5",)),
        ((WORDS, "--temperature=nan"), ("--temperature=nan",)),
        ((WORDS, "--temperature=inf"), ("--temperature=inf",)),
        ((WORDS, "--temperature=hot"), ("--temperature=hot",)),
        ((WORDS, "--top_k=-1"), ("--top_k=-1",)),
        ((WORDS, "--tempreature=1"), ("'tempreature'", "temperature")),
        (("long", "ago"), ("'long'", "flags begin with --")),
    ],
)
def test_prediction_errors(
    arguments: tuple[str, ...],
    fragments: tuple[str, ...],
    trained: Trained,
    call: Callable[..., Finished],
) -> None:
    before = contents(trained.workdir)
    done = call("predict.py", f"--workdir={trained.workdir}", *arguments)
    assert_user_error(done, *fragments)
    assert contents(trained.workdir) == before


def test_conversation(trained: Trained, call: Callable[..., Finished]) -> None:
    options = ("predict.py", f"--workdir={trained.workdir}", "--num_words=4")
    once = predicted(call(*options, "--input=the cat ."))
    done = call(
        *options,
        "--interactive",
        stdin="the zebra . said\nthe cat\n\nthe cat .\n",
    )
    assert done.code == 0
    assert done.err == ""
    asked, *answers = done.out.split("3 words: ")
    assert asked == ""
    assert len(answers) == 5  # the last one met the end of the input
    assert "not in the vocabulary: zebra\n" in answers[0]
    assert answers[1].startswith("2 words given")
    assert answers[2].startswith("0 words given")
    assert answers[3].split() == once
    assert answers[4] == "\n"


def test_interrupted_conversation(trained: Trained) -> None:
    program = subprocess.Popen(
        [
            sys.executable,
            str(ROOT / "predict.py"),
            f"--workdir={trained.workdir}",
            "--interactive",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert program.stdout is not None
        asked = os.read(program.stdout.fileno(), 100)
        program.send_signal(signal.SIGINT)
        out, err = program.communicate(timeout=60)
    finally:
        program.kill()
    assert asked == b"3 words: "
    assert out == b"\n"
    assert err == b""
    assert program.returncode == 0

"""Tests of predict.py on a next-word run: what a person at the command line meets."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_runs import (
    BEGINNING,
    BEST,
    LAST,
    READS_CONFIG,
    ROOT,
    WORDS,
    Finished,
    Trained,
    assert_user_error,
    contents,
    run_process,
    write,
)

pytestmark = READS_CONFIG


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


def edit_vocabulary(**fields: Any) -> Callable[[Path], None]:
    """Sets fields of the model in a run's vocabulary."""

    def edit(workdir: Path) -> None:
        path = workdir / "vocabulary.json"
        vocabulary = json.loads(path.read_text())
        vocabulary["model"] |= fields
        path.write_text(json.dumps(vocabulary))

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
        (write("config.json", b"[1]"), ("config.json holds no config",)),
        (edit_config(task=None), ("'custom'", "next_word")),
        (edit_config(model__hiden_size=3), ("config.json", "model.hiden_size")),
        (edit_config(model__cell=3), ("config.json", "model.cell=3")),
        (edit_config(task="translation"), ("'translation'",)),
        (edit_config(model__hidden_size=7), ("of another model", "train again")),
        (edit_config(model__num_layers=2), ("of another model", "train again")),
        (edit_config(model__cell="gru"), ("of another model", "train again")),
        (edit_config(model__embedding_size=0), ("of another model", "train again")),
        (edit_config(model__cell="lstmm"), ("'lstmm'",)),
        (remove("vocabulary.json"), ("vocabulary.json is missing",)),
        (write("vocabulary.json", b"{}"), ("vocabulary.json is missing or damaged",)),
        (
            edit_vocabulary(vocab={"long": 1, "ago": 7}, unk_token="ago"),
            ("vocabulary.json is missing or damaged", "not numbered from 0"),
        ),
        (
            edit_vocabulary(unk_token="zebra"),
            ("vocabulary.json is missing or damaged", "no word stands for"),
        ),
        (remove("checkpoints"), ("no checkpoint in {workdir}", "train.py")),
    ],
    ids=[
        "no_config",
        "torn_config",
        "binary_config",
        "empty_config",
        "list_config",
        "no_task",
        "unknown_field",
        "cell_of_another_type",
        "other_task",
        "other_size",
        "other_depth",
        "other_cell",
        "other_inputs",
        "no_such_cell",
        "no_vocabulary",
        "damaged_vocabulary",
        "gaps_in_the_vocabulary",
        "no_unknown_word",
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


def test_config_of_an_earlier_version_answers(
    trained: Trained, tmp_path: Path, call: Callable[..., Finished]
) -> None:
    """Fields that it lacks have their defaults."""
    workdir = tmp_path / "run"
    shutil.copytree(trained.workdir, workdir)
    edit_config(model__cell=None, model__dense=None, data=None, patience=None)(workdir)
    answers = [
        predicted(call("predict.py", f"--workdir={folder}", WORDS))
        for folder in (trained.workdir, workdir)
    ]
    assert answers[1] == answers[0]


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (("--workdir=/no/run", WORDS), ("no run in /no/run", "train.py")),
        ((), ("--input", "--interactive")),
        ((WORDS, "--interactive"), ("--input", "--interactive")),
        (("--input=",), ("reads 3 words, and 0 are given",)),
        (("--input=long ago",), ("reads 3 words, and 2 are given",)),
        (("--input=long \udcff , the mice",), ("not UTF-8",)),
        (("--input=long zebra , the Cat zebra",), ("vocabulary: zebra, Cat\n",)),
        ((WORDS, "--step=3"), ("no checkpoint of step 3", "2, 4")),
        ((WORDS, "--step=-1"), ("no checkpoint of step -1", "2, 4")),
        ((WORDS, "--num_words=0"), ("--num_words=0",)),
        ((WORDS, "--temperature=-0.5"), ("--temperature=-0.5",)),
        ((WORDS, "--temperature=nan"), ("--temperature=nan",)),
        ((WORDS, "--temperature=inf"), ("--temperature=inf",)),
        ((WORDS, "--temperature=hot"), ("--temperature=hot",)),
        ((WORDS, "--top_k=-1"), ("--top_k=-1",)),
        ((WORDS, "--top_k=3"), ("--top_k=3", "--temperature above 0")),
        ((WORDS, "--seed=-1"), ("--seed=-1",)),
        ((WORDS, "--seed=4294967296"), ("--seed=4294967296 must be below 2**32",)),
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


def test_lines_of_a_file_without_an_answer_are_marked(
    trained: Trained, tmp_path: Path, call: Callable[..., Finished]
) -> None:
    options = ("predict.py", f"--workdir={trained.workdir}", "--num_words=4")
    once = call(*options, "--input=the cat .").out
    (tmp_path / "a").write_text("the cat .\n\nthe zebra .\nthe cat\nthe cat .\n")
    done = call(*options, f"--input_file={tmp_path / 'a'}")
    assert done.code == 0
    assert done.out == f"{once}?\n?\n{once}"
    assert done.err == (
        "line 3: not in the vocabulary: zebra\n"
        "line 4: the model reads 3 words, and 2 are given (punctuation counts, each "
        "run of it as a word)\n"
    )
    (tmp_path / "a").write_text("\nthe zebra .\nthe cat\n")
    done = call(*options, f"--input_file={tmp_path / 'a'}")
    assert_user_error(done, "line 2: not in the vocabulary: zebra\n")


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
    assert answers[1].startswith("the model reads 3 words, and 2 are given")
    assert answers[2].startswith("the model reads 3 words, and 0 are given")
    assert answers[3].split() == once
    assert answers[4] == "\n"


def test_conversation_goes_on_after_a_line_that_is_not_utf_8(trained: Trained) -> None:
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "predict.py")),
            *(f"--workdir={trained.workdir}", "--interactive", "--num_words=4"),
        ],
        input=b"the caf\xe9 cat .\nthe cat .\n",  # which a pipe hands over at once
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        timeout=300,
        check=False,
    )
    asked, first, second, end = done.stdout.split(b"3 words: ")
    assert asked == b""
    assert b"not UTF-8" in first
    assert second.startswith(b"the cat . ")
    assert len(second.split()) == 3 + 4
    assert end == b"\n"
    assert (done.stderr, done.returncode) == (b"", 0)


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

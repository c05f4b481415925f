"""Hostile inputs for whatever reads a user's files and fields.

    python -m benchmarks.fuzz --minutes=10 --seed=0
    python -m benchmarks.fuzz --reader=table --seed=0 --case=123    # one of them again

Each case has to work, or to end in a `UserError` of one line, in time, and with nothing
written outside of its folder. A case follows from the seed, the reader's name and the
case's number alone. The exit code is 1 if one did otherwise.
"""

import argparse
import contextlib
import io
import json
import os
import random
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np

# Their flags are the process's own: flagsaver must find them defined.
from absl import app as _app  # noqa: F401
from absl import logging as _logging  # noqa: F401
from absl.testing import flagsaver

from benchmarks import hostile
from lstm_jax import classifying, prediction, reporting, training, workdirs
from lstm_jax.cell_grammar import parse_cell
from lstm_jax.config import base_config, check_config, flatten
from lstm_jax.data import (
    corpus,
    reviews,
    series,
    spelling,
    streams,
    tables,
    tagged,
    text,
    windows,
)
from lstm_jax.data.images import read_png
from lstm_jax.data.tables import label_names
from lstm_jax.errors import UserError
from lstm_jax.model_config import make_classifier
from lstm_jax.models import SequenceClassifier
from lstm_jax.optimizers import make_optimizer
from lstm_jax.tasks import classification, make_task

CHECKOUT = Path(__file__).parents[1]
SECONDS = 30  # that a case may take
_MEMORY = 12 * 2**30  # bytes of address space: a huge size ends here, not the machine
_LONGEST = 8000  # characters of a message; a command line may well be quoted whole
SECRET = "nobody's business"


class Case(NamedTuple):
    """What a reader is given: files by name, and options."""

    files: dict[str, bytes]
    options: dict[str, Any]


class Reader(NamedTuple):
    """What reads users' input.

    Attributes:
      make: a case.
      read: reads it from the folder that holds its files.
      refuses: how it may say no.
      share: of the time, beside the others.
    """

    make: Callable[[random.Random], Case]
    read: Callable[[Path, dict[str, Any]], None]
    refuses: type[Exception] = UserError
    share: float = 1.0


class Failure(NamedTuple):
    """A case that ended as none should."""

    reader: str
    seed: int
    case: int
    problem: str
    details: str


def run_case(
    name: str, seed: int, number: int, root: Path
) -> tuple[bool, Failure | None]:
    """Runs one case below `root`; whether it was read, and what went wrong."""
    reader = READERS[name]
    case = reader.make(random.Random(f"{seed} {name} {number}"))
    folder, outside = root / "inside", root / "outside"
    for path in (folder, outside):
        path.mkdir()
    (outside / "secret.txt").write_text(SECRET)
    for file, content in case.files.items():
        (folder / file).write_bytes(content)
    before, begun = os.getcwd(), time.monotonic()
    problem, details, read = "", "", False
    os.chdir(folder)
    try:
        with _limited():
            reader.read(folder, case.options)
        read = True
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the panics of tokenizers are no Exception
        refused = isinstance(error, reader.refuses)
        problem = _problem_of(str(error))
        if not refused:
            problem = f"{type(error).__name__}: {str(error)[:500]}"
        details = traceback.format_exc()
    finally:
        os.chdir(before)
    taken = time.monotonic() - begun
    if taken > SECONDS:
        problem = f"took {taken:.0f} s; {problem}"
    if {p.name for p in root.iterdir()} != {"inside", "outside"} or [
        (p.name, p.read_text()) for p in outside.iterdir()
    ] != [("secret.txt", SECRET)]:
        problem = f"wrote outside of its folder; {problem}"
    for path in (folder, outside):
        shutil.rmtree(path)
    if not problem:
        return read, None
    details = f"{_short(case)}\n{details}"
    return read, Failure(name, seed, number, problem, details)


def _problem_of(message: str) -> str:
    if "\n" in message or "\r" in message or not message.strip():
        return f"a message that is not one line: {message[:500]!r}"
    if len(message) > _LONGEST:
        return f"a message of {len(message)} characters: {message[:200]!r}"
    return ""


def _short(case: Case) -> str:
    files = {name: content[:200] for name, content in case.files.items()}
    return f"files {files!r}, options {repr(case.options)[:1000]}"


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    def stop(number: int, frame: Any) -> None:
        del number, frame
        raise TimeoutError(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# The readers.

FABLE = text.read_text("fable.txt").encode()
_NAMES = ["..", ".", "", "/", "~", "a\0b", "x" * 5000, "/dev/null", "nothing", "a\nb"]
_NAMES += ["../outside", "../outside/secret.txt", "tfds:x", "synthetic:x", "%s", "é"]


def _maybe(rng: random.Random, data: str | bytes) -> bytes:
    """The data, more often spoilt than not."""
    data = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    return hostile.spoil(rng, data) if rng.random() < 0.6 else data


def _name(rng: random.Random, name: str) -> str:
    return rng.choice(_NAMES) if rng.random() < 0.02 else name


def _data_fields(rng: random.Random, *names: str) -> dict[str, Any]:
    """Seldom a few fields of the group `data`, with values of their types."""
    if rng.random() < 0.7:
        return {}
    default = base_config().data
    return {
        name: rng.choice([v for v in hostile.VALUES if type(v) is type(default[name])])
        for name in rng.sample(names, 1)
    }


def _data(options: dict[str, Any]) -> Any:
    data = base_config().data
    data.update({k: v for k, v in options.items() if k in data})
    return data


def _text_case(rng: random.Random) -> Case:
    content = _maybe(rng, FABLE if rng.random() < 0.5 else hostile.text(rng, 200))
    fields = {"level": rng.choice(["word", "char"]), "path": _name(rng, "a.txt")}
    fields |= _data_fields(rng, "level", "limit", "vocab_size")
    return Case({"a.txt": content}, fields | {"window": rng.choice([1, 3, 50, -1])})


def _read_text(folder: Path, options: dict[str, Any]) -> None:
    words = text.split_words(text.read_text(options["path"]))
    if words:
        ids = text.encode(text.build_vocabulary(words), words)
        if options["window"] > 0:
            windows.windows(ids, options["window"])
    read = streams.read_streams(_data(options))
    streams.rows(read.train, 4, 5)
    streams.rows(read.held_out, 1, 5)


def _table_case(rng: random.Random) -> Case:
    ending = rng.choice([".csv"] * 8 + [".tsv", ".tsv", ".jsonl", ".jsonl", ".CSV", ""])
    files = {}
    for name in ("a", "b"):
        if ending == ".jsonl":
            content: str | bytes = hostile.json_lines(rng)
        else:
            content = hostile.table(rng, "\t" if ending == ".tsv" else ",")
        files[name + ending] = _maybe(rng, content)
    fields = {"path": _name(rng, f"a{ending}")}
    if rng.random() < 0.3:
        fields["test_path"] = _name(rng, f"b{ending}")
    return Case(files, fields | _data_fields(rng, "text_column", "label_column"))


def _read_table(folder: Path, options: dict[str, Any]) -> None:
    read = corpus.read_corpus(_data(options))
    assert len(read.names) > 1
    for labels in (read.train_labels, read.test_labels):
        assert 0 <= labels.min() <= labels.max() < len(read.names)
    reviews.pad(read.train, 7, 10)


def _series_case(rng: random.Random) -> Case:
    fields: dict[str, Any] = {"path": _name(rng, "a.csv"), "window": 3, "horizon": 1}
    fields["column"] = rng.choice(["", "", "load", "day", "a", "\0"])
    fields |= _data_fields(rng, "window", "horizon")
    fields["holdout"] = rng.choice([0.0, 0.0, 0.1, 0.999, 1e-300])
    return Case({"a.csv": _maybe(rng, hostile.numbers(rng))}, fields)


def _read_series(folder: Path, options: dict[str, Any]) -> None:
    data = _data(options)
    numbers = series.load_series(data.path, data.column)
    assert np.isfinite(numbers).all()
    parts = series.split_series(numbers, data.window, data.horizon, data.holdout)
    assert np.isfinite(parts.mean)
    for part in parts.parts.values():
        assert all(np.isfinite(array).all() for array in part)


def _tagged_case(rng: random.Random) -> Case:
    files = {name: _maybe(rng, hostile.tagged(rng)) for name in ("a.txt", "b.txt")}
    fields = {"path": _name(rng, "a.txt")}
    if rng.random() < 0.3:
        fields["test_path"] = _name(rng, "b.txt")
    return Case(files, fields | {"length": rng.choice([1, 3, 200])})


def _read_tagged(folder: Path, options: dict[str, Any]) -> None:
    data = _data(options)
    parts = tagged.load_tagged(data)
    names = label_names(tagged.flat(tagged.flat(part.labels for part in parts)))
    words = map(" ".join, parts[0].words)
    vocabulary = reviews.train_vocabulary(
        words, tagged.WORDS, normalizer=spelling.tokens()
    )
    for part in parts:
        ids, lengths, labels = tagged.tagged_rows(part, vocabulary, names, data.length)
        assert lengths.sum() == sum(map(len, part.words))
        assert ids.max() < vocabulary.get_vocab_size()
        assert labels.max() < len(names)


def _lines_case(rng: random.Random) -> Case:
    return Case({"a.txt": _maybe(rng, FABLE)}, {"path": _name(rng, "a.txt")})


def _read_lines(folder: Path, options: dict[str, Any]) -> None:
    assert all(
        "\n" not in line for line in classifying.read_lines(options["path"]).values()
    )


def _image_case(rng: random.Random) -> Case:
    from PIL import Image

    mode = rng.choice(["L", "RGB", "RGBA", "P", "1", "I;16", "LA", "CMYK", "F"])
    size = rng.choice([(28, 28), (1, 1), (1, 500), (300, 2), (40, 90)])
    noise = Image.frombytes("L", size, rng.randbytes(size[0] * size[1]))
    if mode == "I;16":  # which no other mode is converted to
        image = Image.frombytes(mode, size, rng.randbytes(2 * size[0] * size[1]))
    else:
        image = noise.convert(mode)
    if rng.random() < 0.3:
        image = Image.new(mode, size, rng.randrange(2))
    if mode in ("RGBA", "LA"):
        image.putalpha(noise)
    options: dict[str, Any] = {}
    if rng.random() < 0.3:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = rng.randrange(10)
    if mode in ("L", "P", "1", "I;16") and rng.random() < 0.5:
        options["transparency"] = rng.randrange(2)
    kind = {"CMYK": "JPEG", "F": "TIFF"}.get(mode) or rng.choice(["PNG", "PNG", "TIFF"])
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Case({"a.png": _maybe(rng, file.getvalue())}, {"path": _name(rng, "a.png")})


def _read_image(folder: Path, options: dict[str, Any]) -> None:
    image = read_png(options["path"])
    assert image.shape == (28, 28)
    assert image.max() > image.min()  # what shows nothing is refused


def _cell_case(rng: random.Random) -> Case:
    return Case({}, {"cell": hostile.cell(rng), "size": rng.choice([1, 7])})


def _read_cell(folder: Path, options: dict[str, Any]) -> None:
    cell = parse_cell(options["cell"], options["size"])
    params = jax.eval_shape(lambda key: cell.init(key, 3), jax.random.key(0))
    jax.eval_shape(lambda params: cell.initial_carry(params, 2), params)


def _config_case(rng: random.Random) -> Case:
    fields = base_config()
    fields.num_steps = 10
    written = hostile.spoil_json(rng, fields.to_dict())
    return Case({"config.json": written}, {})


def _read_config(folder: Path, options: dict[str, Any]) -> None:
    config = workdirs.read_config(folder)
    check_config(config)
    make_classifier(config.model, 2, 20)
    make_optimizer(config.optimizer, 10)
    workdirs.store(folder, config, {})
    assert flatten(workdirs.read_config(folder).to_dict()) == flatten(config.to_dict())


def _arrays_case(rng: random.Random) -> Case:
    symbols, ragged = rng.random() < 0.5, rng.random() < 0.7

    def array(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        low, high = 0, 2
        if rng.random() < 0.15:
            shape = tuple(max(0, n + rng.choice([-1, 0, 1])) for n in shape)
        if rng.random() < 0.05:
            shape = rng.choice([(), (0,), (6,), (6, 4), (6, 4, 2, 1), (0, 4, 2)])
        if rng.random() < 0.15:
            low, high = rng.choice([(-1, 2), (0, 9), (-(2**63), 2**63 - 1)])
        if rng.random() < 0.15:
            dtype = rng.choice([np.int64, np.uint8, np.float32, bool, object, str])
        draw = np.random.default_rng(rng.randrange(2**32))
        return draw.integers(low, high, shape).astype(dtype)

    def split() -> tuple[np.ndarray, ...]:
        inputs = array((6, 4), np.int32) if symbols else array((6, 4, 2), np.float32)
        rest = [array((6,), np.int32) for _ in range(1 + ragged)]
        return (inputs, *rest)

    train, test = split(), split()
    if rng.random() < 0.05:
        test = test[:-1]
    options = {"train": train, "test": test, "vocab_size": 3 if symbols else None}
    options["buckets"] = rng.choice([1, 1, 1 + ragged, 0, -1, 10**9])
    return Case({}, options)


def _read_arrays(folder: Path, options: dict[str, Any]) -> None:
    model = SequenceClassifier(
        cells=(), num_classes=2, vocab_size=options["vocab_size"], embedding_size=2
    )
    inputs, labels, *lengths = options["train"]
    classification(
        model,
        inputs,
        labels,
        {"test": options["test"]},
        lengths=lengths[0] if lengths else None,
        buckets=options["buckets"],
    )


_REVIEWS = "\n".join(["text,label", *["good fine film,1", "bad poor film,0"] * 10])
_SMALL = {
    "task": "classify_text",
    "num_steps": 1,
    "batch_size": 4,
    "data.length": 5,
    "model.cell": "simple_rnn",
    "model.hidden_size": 3,
    "model.embedding_size": 2,
}
_RUN: dict[str, bytes] = {}  # a trained run's files


def _trained() -> dict[str, bytes]:
    if not _RUN:
        with tempfile.TemporaryDirectory() as folder, _silent():
            table = Path(folder, "a.csv")
            table.write_text(_REVIEWS)
            config = base_config()
            config.update_from_flattened_dict(_SMALL | {"data.path": str(table)})
            workdir = Path(folder, "run")
            training.fit(config, make_task(config), workdir)
            for path in workdir.rglob("*"):
                if path.is_file() and not path.name.startswith(("events", ".lock")):
                    _RUN[str(path.relative_to(workdir))] = path.read_bytes()
    return _RUN


def _stored_case(rng: random.Random) -> Case:
    files = dict(_trained())
    for _ in range(rng.choice([1, 1, 2])):
        own = ["config.json", "identity.json", "vocabulary.json", "labels.json"]
        name = rng.choice(own if rng.random() < 0.8 else sorted(files))
        if name.endswith(".json") and rng.random() < 0.7:
            files[name] = hostile.spoil_json(rng, json.loads(_trained()[name]))
        else:
            files[name] = hostile.spoil(rng, files[name])
    # Folders are made when it is read.
    return Case({name.replace("/", "\\"): data for name, data in files.items()}, {})


def _read_stored(folder: Path, options: dict[str, Any]) -> None:
    workdir = folder / "run"
    for path in list(folder.iterdir()):
        place = workdir / path.name.replace("\\", "/")
        place.parent.mkdir(parents=True, exist_ok=True)
        path.rename(place)
    run = prediction.load(workdir)
    if run.config.task == "classify_text":
        for answer in classifying.classify_texts(run, ["good film", "zebra fine"]):
            assert answer.label in run.labels
            assert 0 <= answer.probability <= 1


def _overrides_case(rng: random.Random) -> Case:
    fields = list(flatten(base_config().to_dict()))
    given = [f"--config.{k}={v}" for k, v in _SMALL.items()]
    given.append("--config.data.path=a.csv")
    for field, value in hostile.some(rng, fields).items():
        shape = rng.choice(["--config.{}={}"] * 30 + ["--config.{}x={}", "--{}={}"])
        given.append(shape.format(field, value).replace("\0", ""))
    return Case({"a.csv": _REVIEWS.encode()}, {"arguments": given})


def _train_case(rng: random.Random) -> Case:
    task = rng.choice(
        ["classify_text", "tag", "regress", "next_word", "language_model"]
    )
    fields: dict[str, Any] = _SMALL | {"task": task, "data.path": "a.csv"}
    if task in ("next_word", "regress"):
        fields = {k: v for k, v in fields.items() if k != "data.length"}
    if task == "regress":
        del fields["model.embedding_size"]
    if task == "tag":
        fields["data.padding"] = "right"
    content = {
        "classify_text": hostile.table,
        "tag": hostile.tagged,
        "regress": hostile.numbers,
    }.get(task, hostile.text)(rng)
    given = [f"--config.{k}={v}" for k, v in fields.items()]
    return Case({"a.csv": _maybe(rng, content)}, {"arguments": given, "fit": True})


def _read_train(folder: Path, options: dict[str, Any]) -> None:
    """Through train.py, which trains only where it is asked to."""
    err = io.StringIO()
    arguments = ["train.py", "--workdir=run", *options["arguments"]]
    fit = training.fit if options.get("fit") else lambda *arguments: {}
    numbers = signal.SIGINT, signal.SIGTERM
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        with (
            mock.patch.object(sys, "argv", arguments),
            mock.patch.object(training, "fit", fit),
            mock.patch.object(reporting, "draw_curves", return_value=b""),
            contextlib.redirect_stderr(err),
            flagsaver.flagsaver(),
        ):
            runpy.run_path(str(CHECKOUT / "train.py"), run_name="__main__")
    except SystemExit as stopped:
        if stopped.code not in (None, 0):
            message = err.getvalue()
            # Progress may stand before it.
            *_, last = message.splitlines() or [""]
            if stopped.code != 2 or not last.startswith("error: "):
                raise RuntimeError(f"exit {stopped.code}: {message}") from None
            raise UserError(last) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_ANSWERS: list[Any] = []  # of the trained run, wherever it lies


def _folder_case(rng: random.Random) -> Case:
    before = rng.choice(["", "", "./", "sub/../", ".//sub/.././"])
    name = before + hostile.folder_name(rng)
    return Case({"a.csv": _REVIEWS.encode()}, {"name": name})


def _read_folder(folder: Path, options: dict[str, Any]) -> None:
    """A run in a folder of any name answers as it does in one with a plain name."""
    (folder / "sub").mkdir()
    if not _ANSWERS:
        place = folder / "plain"
        _ANSWERS.extend(_answers_of(place))
    if _answers_of(options["name"]) != _ANSWERS:
        raise RuntimeError(f"other answers from the folder {options['name']!r}")


def _answers_of(workdir: str | Path) -> list[Any]:
    config = base_config()
    config.update_from_flattened_dict(_SMALL | {"data.path": "a.csv"})
    with _silent():
        training.fit(config, make_task(config), workdir)
        run = prediction.load(workdir)
    return list(classifying.classify_texts(run, ["good film", "bad"]))


def _spelling_case(rng: random.Random) -> Case:
    text = hostile.written_text(rng)
    return Case({}, {"text": text, "retyped": hostile.retyped(rng, text)})


def _read_spelling(folder: Path, options: dict[str, Any]) -> None:
    """What a person takes for the same words has the same numbers."""
    written = [options["text"], options["retyped"]]
    for pattern in (reviews.WORDS, corpus.OWN_WORDS):
        # A word more, as a pattern may match nothing of the text.
        vocabulary = reviews.train_vocabulary([written[0] + " a"], pattern)
        rows = reviews.encode_texts(vocabulary, written)
        first, second = np.split(rows.ids, rows.offsets[1:-1])
        if first.tolist() != second.tolist():
            raise RuntimeError(f"{pattern}: {first} and {second}")


def _quotes_case(rng: random.Random) -> Case:
    rows, content = hostile.quoted_rows(rng)
    return Case({"a.tsv": content.encode()}, {"rows": rows})


def _read_quotes(folder: Path, options: dict[str, Any]) -> None:
    """Quotes between tabs change no row."""
    read = tables.read_labelled("a.tsv")
    if [*zip(*read, strict=True)] != options["rows"]:
        raise RuntimeError(f"read as {read}")


def _environment_case(rng: random.Random) -> Case:
    return Case({}, {"environment": hostile.environment(rng)})


def _read_environment(folder: Path, options: dict[str, Any]) -> None:
    """A run of a few steps, from the start of the process to its end."""
    environment = {**os.environ, **options["environment"]}
    command = [sys.executable, str(CHECKOUT / "train.py"), "--workdir=run"]
    command += ["--config.num_steps=2", "--config.model.hidden_size=4"]
    ended = subprocess.run(
        command,
        env={name: value for name, value in environment.items() if value is not None},
        capture_output=True,
    )
    out, err = (b.decode(errors="replace") for b in (ended.stdout, ended.stderr))
    if ended.returncode == 0:
        assert json.loads(out.splitlines()[-1])["step"] == 2
        return
    *_, last = err.splitlines() or [""]
    if ended.returncode != 2 or "Traceback" in err or not last.startswith("error: "):
        raise RuntimeError(f"exit {ended.returncode}: {err}")
    raise UserError(last)


READERS = {
    "text": Reader(_text_case, _read_text),
    "table": Reader(_table_case, _read_table),
    "series": Reader(_series_case, _read_series),
    "tagged": Reader(_tagged_case, _read_tagged),
    "lines": Reader(_lines_case, _read_lines, share=0.3),
    "image": Reader(_image_case, _read_image, share=0.5),
    "cell": Reader(_cell_case, _read_cell),
    "config": Reader(_config_case, _read_config),
    "arrays": Reader(_arrays_case, _read_arrays, ValueError),
    "stored": Reader(_stored_case, _read_stored, share=2.0),
    "overrides": Reader(_overrides_case, _read_train, share=3.0),
    "train": Reader(_train_case, _read_train, share=3.0),
    "folder": Reader(_folder_case, _read_folder, share=2.0),
    "spelling": Reader(_spelling_case, _read_spelling, share=0.5),
    "quotes": Reader(_quotes_case, _read_quotes, share=0.3),
    "environment": Reader(_environment_case, _read_environment, share=4.0),
}


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        yield


def fuzz(
    names: list[str],
    seed: int,
    seconds: float | None,
    cases: int | None,
    tell: Callable[[Failure], None],
) -> dict[str, tuple[int, int, float]]:
    """Runs each reader for its share of the seconds, or that many cases.

    Returns:
      By reader: cases, those that were read, and seconds.
    """
    whole = sum(READERS[name].share for name in names)
    counts = {}
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        for name in names:
            begun, number, read = time.monotonic(), 0, 0
            share = (seconds or 0) * READERS[name].share / whole
            while (
                number < cases
                if cases is not None
                else time.monotonic() - begun < share
            ):
                root = Path(folder, f"{name}-{number}")
                root.mkdir()
                done, failure = run_case(name, seed, number, root)
                shutil.rmtree(root)
                read, number = read + done, number + 1
                if failure is not None:
                    tell(failure)
            counts[name] = (number, read, time.monotonic() - begun)
    return counts


def main() -> int:
    """Prints what failed, and how many cases there were; the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", choices=READERS, help="this one alone")
    parser.add_argument("--case", type=int, help="of the reader, this one alone")
    given = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 1)
    # Most of a run's time is compilation, of programs that run for milliseconds.
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
    cache = tempfile.TemporaryDirectory(prefix="fuzz-cache-")
    jax.config.update("jax_compilation_cache_dir", cache.name)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    failures: list[Failure] = []

    def tell(failure: Failure) -> None:
        failures.append(failure)
        print(
            f"{failure.details}\n{failure.problem}\nagain: python -m benchmarks.fuzz "
            f"--reader={failure.reader} --seed={failure.seed} --case={failure.case}\n",
            flush=True,
        )

    if given.case is not None:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            _, failure = run_case(given.reader, given.seed, given.case, Path(folder))
        if failure is not None:
            tell(failure)
        return len(failures)
    names = [given.reader] if given.reader else list(READERS)
    counts = fuzz(names, given.seed, 60 * given.minutes, None, tell)
    print(f"{'reader':<10} {'cases':>7} {'read':>7} {'refused':>8} {'minutes':>8}")
    for name, (cases, read, seconds) in counts.items():
        row = f"{name:<10} {cases:>7,} {read:>7,} {cases - read:>8,}"
        print(f"{row} {seconds / 60:>8.1f}")
    print(f"{sum(c for c, _, _ in counts.values()):,} cases, {len(failures)} failed")
    return min(len(failures), 1)


if __name__ == "__main__":
    sys.exit(main())

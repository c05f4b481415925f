"""Runs of `train.py` that a benchmark starts, ends and compares to the bit."""

import csv
import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from lstm_jax import checkpoints, reporting

ROOT = Path(__file__).parents[1]
_SMALL = ("--config.model.hidden_size=64", "--config.report.every=100")
LONGEST = 900.0  # seconds of a start, after which it counts as hanging


class Run(NamedTuple):
    """One start of `train.py`, under way or at its end."""

    workdir: Path
    process: subprocess.Popen[bytes]
    out: Path  # what it prints to stdout
    err: Path


class End(NamedTuple):
    """What a run has left at its end, but for the seconds that it took.

    Attributes:
      arrays: all of the last checkpoint, by their paths.
      rows: of metrics.jsonl.
      meta: of the last checkpoint.
      result: the last line of stdout.
    """

    arrays: dict[str, np.ndarray]
    rows: list[dict[str, Any]]
    meta: dict[str, Any]
    result: dict[str, Any]


def cases(folder: Path) -> dict[str, Sequence[str]]:
    """Flags of the runs that are trained, by name; their data lies in a folder."""
    reviews = folder / "reviews.csv"
    write_reviews(reviews, 1000)
    fable = ("--config=configs/fable.py", *_SMALL)
    return {
        "next word, a save every 100 steps": (
            *fable,
            "--config.devices.count=1",
            "--config.num_steps=3000",
            "--config.report.evaluate_every=1000",
            "--config.checkpoint.every=100",
        ),
        "two devices, AdamW, an average": (
            *fable,
            "--config.devices.count=2",
            "--config.num_steps=2500",
            "--config.model.dropout=0.3",
            "--config.optimizer.name=adamw",
            "--config.optimizer.schedule=cosine",
            "--config.optimizer.clip_norm=1.0",
            "--config.optimizer.ema=0.99",
            "--config.report.evaluate_every=500",
            "--config.checkpoint.every=250",
        ),
        "length buckets, dropout": (
            "--config=configs/imdb_fast.py",
            f"--config.data.path={reviews}",
            "--config.data.length=60",
            "--config.data.buckets=3",
            "--config.devices.count=1",
            "--config.batch_size=32",
            "--config.num_epochs=6",
            "--config.model.hidden_size=32",
            "--config.model.dropout=0.3",
            "--config.model.recurrent_dropout=0.3",
            "--config.report.every=10",
            "--config.checkpoint.every=20",
        ),
        "characters, a carry": (
            "--config=configs/imdb_lm.py",
            "--config.data.path=meditations.txt",
            "--config.data.limit=0",
            "--config.data.level=char",
            "--config.data.length=10",
            "--config.batch_size=4",
            "--config.devices.count=1",
            "--config.num_epochs=0",
            "--config.num_steps=1600",
            "--config.model.embedding_size=32",
            "--config.model.hidden_size=64",
            "--config.report.every=50",
            "--config.report.evaluate_every=400",
            "--config.checkpoint.every=50",
        ),
    }


def write_reviews(path: Path, size: int) -> None:
    """Texts of 1 to 60 words, one label where "good" is in them and one elsewhere."""
    draw = random.Random(0)
    words = [f"word{number}" for number in range(30)]
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        for number in range(size):
            text = draw.choices(words, k=draw.randint(0, 59))
            text.insert(draw.randint(0, len(text)), ("good", "bad")[number % 2])
            rows.writerow([" ".join(text), number % 2])


def start(arguments: Sequence[str], workdir: Path, cache: Path) -> Run:
    """Starts `train.py` in a process of its own.

    Args:
      arguments: its flags, but for the folder.
      workdir: the run's folder; what it prints goes to files beside that.
      cache: in place of the user's cache, for one that begins empty.
    """
    workdir.parent.mkdir(parents=True, exist_ok=True)
    out, err = (workdir.with_name(f"{workdir.name}.{name}") for name in ("out", "err"))
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "train.py", f"--workdir={workdir}", *arguments],
            stdout=stdout,
            stderr=stderr,
            cwd=ROOT,
            env={**os.environ, "XDG_CACHE_HOME": str(cache)},
        )
    return Run(workdir, process, out, err)


def wait(run: Run) -> int:
    """The exit code, once there is one; a run that hangs is killed."""
    try:
        return run.process.wait(LONGEST)
    except subprocess.TimeoutExpired:
        run.process.kill()
        return run.process.wait()


def finish(arguments: Sequence[str], workdir: Path, cache: Path) -> Run:
    """Runs `train.py` to its end.

    Raises:
      RuntimeError: it failed; what it printed to stderr.
    """
    run = start(arguments, workdir, cache)
    if code := wait(run):
        raise RuntimeError(f"exit code {code}: {run.err.read_text()[-2000:]}")
    return run


def end(workdir: Path, out: Path) -> End:
    """Reads what a finished run has left, and what it printed to stdout."""
    with checkpoints.open_checkpoints(workdir) as opened:
        step = checkpoints.latest_step(opened)
        assert step is not None, f"no checkpoint in {workdir}"
        meta = checkpoints.read_meta(opened, step)
        arrays = _arrays(opened.directory / str(step) / "state")
    rows = reporting.read_metrics(workdir)
    result = json.loads(out.read_text().splitlines()[-1])
    for timed in (meta, result, *rows):
        del timed["seconds"]
    del result["workdir"]
    return End(arrays, rows, meta, result)


def _arrays(folder: Any) -> dict[str, np.ndarray]:
    """All arrays of a stored state, whatever its model: not by `restore`."""
    handler = ocp.PyTreeCheckpointHandler()
    metadata: Any = handler.metadata(folder)
    args = ocp.args.PyTreeRestore(
        item=metadata.tree,
        restore_args=jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata.tree
        ),
    )
    leaves = jax.tree_util.tree_leaves_with_path(handler.restore(folder, args=args))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in leaves
    }


def differences(found: End, expected: End) -> list[str]:
    """Where two runs did not end alike; [] for the same bits and rows."""
    differing = [
        f"array {path}"
        for path in sorted(found.arrays.keys() | expected.arrays.keys())
        if _bits(found.arrays.get(path)) != _bits(expected.arrays.get(path))
    ]
    places = [(row["step"], row["split"]) for row in found.rows]
    if len(set(places)) < len(places):
        differing.append("rows: one is there twice")
    if found.rows != expected.rows:
        differing.append("rows")
    if found.meta != expected.meta:
        differing.append("meta")
    if found.result != expected.result:
        differing.append("result")
    return differing


def _bits(array: np.ndarray | None) -> Any:
    return array if array is None else (array.dtype, array.shape, array.tobytes())


def heading(found: dict[str, Any]) -> str:
    """A line on where, when and how."""
    versions = ", ".join(f"{k} {v}" for k, v in found["versions"].items())
    return f"{found['date']}, {found['machine']}; {versions}; seed {found['seed']}."

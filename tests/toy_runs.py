"""Runs that train in a moment, and what is left of them on disk."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import checkpoints, reporting
from lstm_jax.config import Config, base_config
from lstm_jax.models import SequenceClassifier
from lstm_jax.steps import TrainState, init_state, make_keys, make_stepping
from lstm_jax.tasks import Task, classification

SIZE, BATCH, CLASSES = 10, 4, 3  # three batches an epoch, the last half padding


def toy_config(**fields: Any) -> Config:
    """A config of few small steps; `fields` by their flat names."""
    config = base_config()
    config.task = "next_word"
    config.data.path = "fable.txt"
    config.batch_size = BATCH
    config.num_steps = 20
    config.model.cell = "simple_rnn"
    config.model.hidden_size = 4
    config.model.embedding_size = 3
    config.optimizer.learning_rate = 0.03
    config.report.every = 5
    config.update_from_flattened_dict(fields)
    return config


def toy_arrays(size: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Sequences [size, 3, 2], and classes that their last vectors decide."""
    inputs = np.random.default_rng(0).normal(size=(size, 3, 2)).astype(np.float32)
    labels = np.digitize(inputs[:, -1, 0], [-0.5, 0.5]).astype(np.int32)
    return inputs, labels


def toy_model(**fields: Any) -> SequenceClassifier:
    """A linear classifier of the last vector, unless given cells: it compiles fast."""
    return SequenceClassifier(**{"cells": (), "num_classes": CLASSES, **fields})


def toy_task(**fields: Any) -> Task:
    """Classification of `toy_arrays`, evaluated on the same as the split "all"."""
    return classification(toy_model(**fields), *toy_arrays(), {"all": toy_arrays()})


def ragged_arrays(size: int = SIZE) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sequences [size, 6, 2] with noise in the padding, labels, and lengths 0 to 6."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(size, 6, 2)).astype(np.float32)
    lengths = rng.integers(1, 7, size).astype(np.int32)
    lengths[0] = 0
    last = inputs[np.arange(size), np.maximum(lengths - 1, 0), 0]
    return inputs, np.digitize(last, [-0.5, 0.5]).astype(np.int32), lengths


def ragged_task(buckets: int, size: int = SIZE, **fields: Any) -> Task:
    """Classification of `ragged_arrays`, evaluated on the same as the split "all"."""
    inputs, labels, lengths = ragged_arrays(size)
    return classification(
        toy_model(**fields),
        inputs,
        labels,
        {"all": (inputs, labels, lengths)},
        lengths=lengths,
        buckets=buckets,
    )


def climbing_task(evaluated: Callable[[Any], Any]) -> Task:
    """Each step adds 1 to the one parameter, at a rate of 1; two steps an epoch.

    Its training loss at w is -w; on the split "test" it is `evaluated(w)`.
    """

    def loss(params: Any, examples: Any, weight: Any, key: Any, carry: Any) -> Any:
        w, tested = params["w"], examples["tested"]
        losses = jnp.where(tested, evaluated(w), -w)
        return {"count": jnp.sum(weight), "loss": jnp.sum(weight * losses)}, carry

    train, test = ({"tested": np.full(6, tested)} for tested in (False, True))
    return toy_task()._replace(
        init=lambda key: {"w": jnp.zeros(())},
        loss=loss,
        examples=(train,),
        splits={"test": (test,)},
    )


def climbing_config(**fields: Any) -> Config:
    """For `climbing_task`; reports and checkpoints at the end, unless asked for."""
    return toy_config(
        **{
            "optimizer.name": "sgd",
            "optimizer.learning_rate": 1.0,
            "report.every": 1000,
            "checkpoint.every": 0,
            **fields,
        }
    )


class StoppedError(Exception):
    """What `stopped_at` stops a run with."""


@contextlib.contextmanager
def stopped_at(step: int, split: str) -> Iterator[None]:
    """Stops a run when it has written a row, before it saves anything more."""
    add_row = reporting.add_row

    def add_row_and_stop(report: reporting.Report, row: dict[str, Any]) -> None:
        add_row(report, row)
        if (row["step"], row["split"]) == (step, split):
            raise StoppedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reporting, "add_row", add_row_and_stop)
        with contextlib.suppress(StoppedError):
            yield
            pytest.fail(f"wrote no row {split} of step {step}")


def logits_of(
    params: Any, inputs: np.ndarray, model: SequenceClassifier | None = None
) -> Any:
    return jax.jit((model or toy_model()).apply)({"params": params}, inputs)


def losses_and_hits(logits: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """Cross-entropy and whether the likeliest class is right, in float64."""
    logits = np.asarray(logits, np.float64)
    log_sum = np.log(np.exp(logits).sum(-1))
    rows = np.arange(len(labels))
    return log_sum - logits[rows, labels], logits.argmax(-1) == labels


def saved_state(
    workdir: Path, config: Config, task: Task, step: int | None = None
) -> TrainState:
    """The newest state that a run saved, or that of a step."""
    keys = make_keys(config.seed)
    wanted = jax.eval_shape(lambda: init_state(make_stepping(config, task), keys))
    with checkpoints.open_checkpoints(workdir) as manager:
        step = checkpoints.latest_step(manager) if step is None else step
        assert step is not None
        return checkpoints.restore(manager, step, wanted)[0]


def rows_of(workdir: Path, *splits: str) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl, of these splits or of all, without the time they took."""
    rows = reporting.read_metrics(workdir)
    places = [(row["step"], row["split"]) for row in rows]
    assert len(set(places)) == len(places)
    assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)
    seconds = [row.pop("seconds") for row in rows]
    assert seconds == sorted(seconds)
    return [row for row in rows if not splits or row["split"] in splits]


def folders(workdir: Path) -> list[int]:
    """The steps of the checkpoints, if nothing else lies among them."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def hashes(folder: Path) -> dict[str, str]:
    """The contents of all files below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }

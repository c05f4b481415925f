"""Runs that train in a moment, and what is left of them on disk."""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict

from lstm_jax import checkpoints
from lstm_jax.config import base_config
from lstm_jax.models import SequenceClassifier
from lstm_jax.optimizers import make_optimizer
from lstm_jax.tasks import Task, classification
from lstm_jax.training import TrainState, init_state, make_keys

SIZE, BATCH, CLASSES = 10, 4, 3  # three batches an epoch, the last half padding


def toy_config(**fields: Any) -> ConfigDict:
    """A config of few small steps; `fields` by their flat names."""
    config = base_config()
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


def saved_state(workdir: Path, config: ConfigDict, task: Task) -> TrainState:
    """The newest state that a run saved."""
    optimizer = make_optimizer(config.optimizer, config.num_steps)
    keys = make_keys(config.seed)
    wanted = jax.eval_shape(lambda: init_state(task, optimizer, keys))
    with checkpoints.open_checkpoints(workdir) as manager:
        step = checkpoints.latest_step(manager)
        return checkpoints.restore(manager, step, wanted)[0]


def hashes(folder: Path) -> dict[str, str]:
    """The contents of all files below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@contextlib.contextmanager
def compilation_cached(folder: Path) -> Iterator[None]:
    """Programs compiled before are read from a folder: runs then take a moment."""
    options = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for values in (options, before):
        for name, value in values.items():
            jax.config.update(name, value)
        # Jax looks at the options once.
        compilation_cache.reset_cache()
        if values is options:
            yield

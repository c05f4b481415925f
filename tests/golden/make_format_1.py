"""Wrote format_1, a complete run whose checkpoints have format 1.

It stays as it is: `tests/test_format_1.py` asserts that later versions read it. The
numbers that the test asserts are printed here.

    python tests/golden/make_format_1.py
"""

import math
from pathlib import Path

import jax
import numpy as np

from lstm_jax import (
    checkpoints,
    continuation,
    prediction,
    steps,
    training,
    workdirs,
)
from lstm_jax.config import base_config
from lstm_jax.optimizers import make_optimizer
from lstm_jax.tasks import make_task

FOLDER = Path(__file__).parent / "format_1"


def main() -> None:
    """Trains, and prints the first value and the sum of every array."""
    config = base_config()
    config.task = "next_word"
    config.data.path = "fable.txt"
    config.num_steps = 250
    config.model.hidden_size = 4
    config.model.embedding_size = 3
    config.optimizer.learning_rate = 0.05
    config.optimizer.clip_norm = 1.0
    config.checkpoint.every = 50
    config.checkpoint.keep = 1
    config.checkpoint.best = "windows_loss"
    config.report.every = 40
    task = make_task(config)
    result = training.fit(config, task, FOLDER)
    for path in (FOLDER / "curves.png", *FOLDER.glob("events.out.*")):
        path.unlink()  # large, and never read
    print(result)
    optimizer = make_optimizer(config.optimizer, config.num_steps)
    stepping = steps.Stepping(task, optimizer, config.batch_size)
    keys = steps.make_keys(config.seed)
    wanted = jax.eval_shape(lambda: steps.init_state(stepping, keys))
    with checkpoints.open_checkpoints(FOLDER) as manager:
        state, _ = checkpoints.restore(manager, 250, wanted)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        values = np.asarray(leaf).ravel().tolist()
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        print(f'"{name}": ({np.float32(values[0])!s}, {math.fsum(values)}),')
    run = prediction.load(FOLDER)
    sampling = continuation.Sampling(num_words=12)
    print(continuation.continue_text(run, "long ago, the mice had", sampling))
    print(workdirs.answering_step(FOLDER, "windows_loss"))


if __name__ == "__main__":
    main()

"""An epoch on IMDB, from start to end: `python -m benchmarks.epoch`.

`train.py --config=configs/imdb_fast.py` for one epoch against a script of Keras on
TensorFlow that fits the same model to the same reviews, cut and padded to 500 words as
the tutorial has them; each a process of its own, in turn, its start, its compilations
and its evaluation on the test split included. Both read encoded reviews from a cache
that a run before has made.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

KERAS = """
import sys
import numpy as np
import keras
from keras import layers

keras.utils.set_random_seed(0)
data = np.load(sys.argv[1])
model = keras.Sequential([
    layers.Embedding(5000, 32), layers.LSTM(100), layers.Dense(1, activation="sigmoid")
])
model.compile(optimizer="adam", loss="binary_crossentropy", metrics=["accuracy"])
model.fit(
    data["train_x"], data["train_y"], batch_size=128, epochs=1, verbose=2,
    validation_data=(data["test_x"], data["test_y"]),
)
"""


def encoded(folder: Path) -> Path:
    """The reviews as `imdb_lstm` reads them, in a file."""
    from configs import imdb_lstm
    from lstm_jax.tasks import make_task

    task = make_task(imdb_lstm.get_config())
    arrays = {}
    for name, bucket in (("train", task.examples[0]), ("test", task.splits["test"][0])):
        arrays[f"{name}_x"] = np.asarray(bucket["inputs"])
        arrays[f"{name}_y"] = np.asarray(bucket["labels"])
    path = folder / "imdb.npz"
    np.savez(path, **arrays)
    return path


def main() -> None:
    """Prints seconds of each run, and the median of the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backend", default="tensorflow", help="of Keras")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = encoded(Path(folder))
        ratios = []
        for i in range(options.rounds + 1):
            seconds = []
            workdir = f"--workdir={folder}/run{i}"
            ours = [
                "train.py",
                "--config=configs/imdb_fast.py",
                "--config.num_epochs=1",
            ]
            for command in ([*ours, workdir], ["-c", KERAS, str(data)]):
                begun = time.perf_counter()
                subprocess.run(
                    [sys.executable, *command],
                    check=True,
                    capture_output=True,
                    env={**os.environ, "KERAS_BACKEND": options.backend},
                )
                seconds.append(time.perf_counter() - begun)
            ratios.append(seconds[0] / seconds[1])
            print(
                f"{'' if i else 'first run, filling caches: '}lstm_jax "
                f"{seconds[0]:.1f} s, Keras {seconds[1]:.1f} s, ratio {ratios[-1]:.2f}",
                flush=True,
            )
    print(f"median of {options.rounds} rounds: {np.median(ratios[1:]):.2f}")


if __name__ == "__main__":
    main()

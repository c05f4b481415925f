"""Many seeds of a tutorial's model in Keras, on the arrays that are trained on here.

    python -m benchmarks.keras_seeds --config=imdb_lstm --seeds=10

A JSON line a seed and epoch, with the accuracy on the test split. Keras runs on
TensorFlow, and everything but the data is its own: initialisation, the order of the
examples, dropout, Adam.
"""

import argparse
import json
import os
import time
from typing import Any

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
from keras import layers

from configs import imdb_lstm, mnist_lstm
from lstm_jax.tasks import make_task


def _imdb_lstm() -> Any:
    return keras.Sequential(
        [
            layers.Embedding(5000, 32),
            layers.LSTM(100),
            layers.Dense(1, activation="sigmoid"),
        ]
    )


def _mnist_lstm() -> Any:
    return keras.Sequential(
        [
            layers.LSTM(128, activation="relu", return_sequences=True),
            layers.Dropout(0.2),
            layers.LSTM(128, activation="relu"),
            layers.Dropout(0.2),
            layers.Dense(32, activation="relu"),
            layers.Dropout(0.2),
            layers.Dense(10, activation="softmax"),
        ]
    )


MODELS = {
    "imdb_lstm": (imdb_lstm, _imdb_lstm, "binary_crossentropy"),
    "mnist_lstm": (mnist_lstm, _mnist_lstm, "sparse_categorical_crossentropy"),
}


def main() -> None:
    """Train the seeds one by one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", choices=MODELS, required=True)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    given = parser.parse_args()
    module, make, loss = MODELS[given.config]
    config = module.get_config()
    task = make_task(config)
    (train,), (test,) = task.examples, task.splits["test"]
    for seed in range(given.first, given.first + given.seeds):
        keras.utils.set_random_seed(seed)
        model = make()
        model.compile(optimizer="adam", loss=loss, metrics=["accuracy"])
        begun = time.monotonic()
        history = model.fit(
            train["inputs"],
            train["labels"],
            batch_size=config.batch_size,
            epochs=config.num_epochs,
            validation_data=(test["inputs"], test["labels"]),
            verbose=0,
        ).history
        for epoch, accuracy in enumerate(history["val_accuracy"], start=1):
            row = {"seed": seed, "epoch": epoch, "test_accuracy": accuracy}
            row["loss"] = history["loss"][epoch - 1]
            print(json.dumps(row | {"seconds": time.monotonic() - begun}), flush=True)


if __name__ == "__main__":
    main()

"""Keras, on the backend that KERAS_BACKEND names."""

from collections.abc import Callable
from typing import Any

import keras
from keras import layers

from benchmarks.work import Work, arrays


def make(work: Work, devices: int | None) -> dict[str, Callable[[], Any]]:
    """See `benchmarks.candidates`; on the JAX backend over several devices."""
    keras.utils.set_random_seed(0)
    if (devices or 1) > 1:
        keras.distribution.set_distribution(keras.distribution.DataParallel())
    make_layer = {"lstm": layers.LSTM, "gru": layers.GRU, "rnn": layers.SimpleRNN}
    shape = (work.time, work.features) if work.features else (work.time,)
    kind = None if work.features else "int32"
    model = keras.Sequential([layers.Input(shape, dtype=kind)])
    if not work.features:
        model.add(layers.Embedding(work.vocabulary, work.embedding))
    for i in range(work.layers):
        layer = make_layer[work.cell](work.hidden, return_sequences=i < work.layers - 1)
        model.add(layers.Bidirectional(layer) if work.bidirectional else layer)
        model.add(layers.Dropout(work.dropout))
    if work.dense:
        model.add(layers.Dense(work.dense, activation="relu"))
        model.add(layers.Dropout(work.dropout))
    model.add(layers.Dense(work.classes))
    if work.classes == 1:
        loss: Any = keras.losses.BinaryCrossentropy(from_logits=True)
    else:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # A program of more steps takes minutes to compile.
    at_once = min(work.steps, 20)
    model.compile(optimizer="adam", loss=loss, steps_per_execution=at_once)
    inputs, labels = arrays(work)
    options = {"batch_size": work.batch, "verbose": 0}
    return {
        "forward": lambda: model.predict(inputs, **options),
        "training step": lambda: model.fit(inputs, labels, shuffle=False, **options),
    }

"""What is timed: models of the sizes that the tutorials have, and what they cost."""

from typing import Literal, NamedTuple

import numpy as np


class Work(NamedTuple):
    """A recurrent classifier, its batch, and how many steps are timed at once.

    Attributes:
      batch: rows.
      time: steps of a row.
      features: numbers a step; 0: a symbol of `vocabulary`, embedded in `embedding`.
      hidden: units of a layer.
      classes: of the softmax; 1: a sigmoid.
      cell: "lstm", "gru" or "rnn", with tanh, which is all that PyTorch has fast.
      layers: recurrent layers.
      bidirectional: in both directions.
      dense: units of a ReLU layer before the head; 0: there is none.
      dropout: after each recurrent and dense layer.
      steps: steps timed at once, in one dispatch where a candidate can: a short step is
        over before a clock is read, and a dispatch allocates its memory anew.
    """

    batch: int
    time: int
    features: int
    hidden: int
    classes: int
    cell: Literal["lstm", "gru", "rnn"] = "lstm"
    layers: int = 1
    bidirectional: bool = False
    vocabulary: int = 0
    embedding: int = 0
    dense: int = 0
    dropout: float = 0.0
    steps: int = 1


WORKS = {
    "S2 imdb_lstm": Work(128, 500, 0, 100, 1, vocabulary=5000, embedding=32, steps=5),
    "S2 with GRU": Work(
        128, 500, 0, 100, 1, "gru", vocabulary=5000, embedding=32, steps=5
    ),
    "S3 imdb_bilstm": Work(
        *(128, 200, 0, 64, 1),
        bidirectional=True,
        vocabulary=10_000,
        embedding=128,
        dropout=0.5,
        steps=5,
    ),
    "S4 mnist_rnn": Work(32, 28, 28, 32, 10, "rnn", steps=20),
    "S5 mnist_lstm": Work(
        32, 28, 28, 128, 10, layers=2, dense=32, dropout=0.2, steps=20
    ),
    "S6 fable_tf1": Work(1, 3, 1, 512, 112, layers=2, steps=1000),
    "large": Work(64, 64, 512, 512, 10, layers=2, steps=2),
}


def operations(work: Work, *, training: bool) -> float:
    """Multiplications and additions of a step's recurrent products."""
    gates = {"lstm": 4, "gru": 3, "rnn": 1}[work.cell]
    directions = 2 if work.bidirectional else 1
    size = work.features or work.embedding
    operations = 0.0
    for _ in range(work.layers):
        row = 2 * gates * work.hidden * (size + work.hidden) * directions
        operations += work.batch * work.time * row
        size = work.hidden * directions
    return operations * (3 if training else 1)


def arrays(work: Work) -> tuple[np.ndarray, np.ndarray]:
    """Inputs [steps * batch, time] or [..., features] and labels [steps * batch]."""
    rng = np.random.default_rng(0)
    rows = work.steps * work.batch
    if work.features:
        inputs = rng.normal(size=(rows, work.time, work.features)).astype(np.float32)
    else:
        inputs = rng.integers(0, work.vocabulary, (rows, work.time), dtype=np.int32)
    return inputs, rng.integers(0, max(work.classes, 2), rows, dtype=np.int32)

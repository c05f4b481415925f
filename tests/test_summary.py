"""Numbers of parameters, and the table of a model."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jaxtyping import Array

import lstm_jax as lj
from lstm_jax.models import LanguageModel, SequenceClassifier
from lstm_jax.summary import summarize

pytestmark = pytest.mark.usefixtures("strict")

IDS = jnp.zeros((1, 3), jnp.int32)


@pytest.mark.parametrize(
    ("module", "inputs", "count"),
    [
        # Keras: Embedding(5000, 32), LSTM(100), Dense(1)
        (SequenceClassifier((lj.lstm(100),), 1, 5000, 32), IDS, 213_301),
        # Keras's example of a bidirectional LSTM on IMDB
        (
            SequenceClassifier((lj.lstm(64),) * 2, 1, 20_000, 128, bidirectional=True),
            IDS,
            2_757_761,
        ),
        # TensorFlow's tutorial of text generation with a GRU
        (LanguageModel((lj.gru(1024),), 66, 256), IDS, 4_022_850),
        # 4 (1 + 512 + 1) 512 + 4 (512 + 512 + 1) 512 + 513 * 112
        (SequenceClassifier((lj.lstm(512),) * 2, 112, 112), IDS, 3_209_328),
        # 28 rows of pixels: (28 + 128 + 1) 128 + 129 * 10
        (
            SequenceClassifier((lj.simple_rnn(128),), 10),
            jnp.zeros((1, 28, 28)),
            21_386,
        ),
    ],
    ids=["keras_lstm", "keras_bidirectional", "tf_gru", "raw_ids", "pixels"],
)
def test_number_of_parameters(module: nn.Module, inputs: Array, count: int) -> None:
    shapes = jax.eval_shape(module.init, jax.random.key(0), inputs)["params"]
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == count


def test_summary() -> None:
    module = SequenceClassifier(
        (lj.lstm(100), lj.gru(20)),
        1,
        5000,
        32,
        dropout=0.5,
        bidirectional=True,
        dense=(7,),
    )
    text = summarize(module, jnp.zeros((1, 500), jnp.int32))
    assert text == (
        "layer              output shape   parameters\n"
        "--------------------------------------------\n"
        "embedding          [1, 500, 32]      160,000\n"
        "recurrent/layer_0  [1, 500, 200]     106,400\n"
        "recurrent/layer_1  [1, 500, 40]       26,640\n"
        "Dropout_0          [1, 40]                 0\n"
        "dense_0            [1, 7]                287\n"
        "head               [1, 1]                  8\n"
        "--------------------------------------------\n"
        "total                                293,335\n"
    )
    shapes = jax.eval_shape(module.init, jax.random.key(0), IDS)["params"]
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    assert count == 293_335


def test_summary_of_a_language_model() -> None:
    module = LanguageModel((lj.simple_rnn(6),), 9, 4)
    rows = [line.split() for line in summarize(module, IDS).splitlines()]
    assert [row[-1] for row in rows if len(row) > 1] == [
        *("parameters", "36", "66", "63", "165"),
    ]

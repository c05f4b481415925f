"""Tests of lstm_jax.model_config: what the group `model` of a config makes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_runs import toy_config

from lstm_jax.config import base_config
from lstm_jax.errors import UserError
from lstm_jax.model_config import make_classifier, make_language_model, make_tagger


def group(**fields: Any) -> Any:
    """The config's group `model`."""
    config = toy_config().model
    config.update({"hidden_size": 4, "embedding_size": 3, **fields})
    return config


def test_classifier_has_every_field() -> None:
    rates = {
        "embedding_dropout": 0.1,
        "input_dropout": 0.2,
        "dropout": 0.3,
        "dense_dropout": 0.4,
    }
    config = group(
        **rates, num_layers=2, bidirectional=True, pooling="mean", dense=(7, 5)
    )
    model = make_classifier(config, 6, 11)
    assert {name: getattr(model, name) for name in rates} == rates
    assert len(model.cells) == 2
    assert (model.num_classes, model.vocab_size, model.embedding_size) == (6, 11, 3)
    assert (model.bidirectional, model.pooling, model.dense) == (True, "mean", (7, 5))
    assert all(cell.noise is None for cell in model.cells)
    # Symbols as the numbers that they are; vectors; a sigmoid's logit.
    assert make_classifier(group(embedding_size=0), 6, 11).embedding_size is None
    size = base_config().model.embedding_size
    assert make_classifier(group(embedding_size=size), 6, None).vocab_size is None
    with pytest.raises(UserError, match="embedding_size=3 is nothing for inputs that"):
        make_classifier(group(), 6, None)
    assert make_classifier(group(head="sigmoid"), 2, 11).num_classes == 1
    assert make_classifier(group(), 2, 11).num_classes == 2


@pytest.mark.parametrize("cell", ["simple_rnn", "lstm", "gru"])
def test_recurrent_dropout_is_in_each_cell(cell: str) -> None:
    config = group(cell=cell, recurrent_dropout=0.25, num_layers=2)
    for model in (make_classifier(config, 6, 11), make_language_model(config, 11)):
        for made in model.cells:
            params = made.init(jax.random.key(0), 3)
            assert made.noise is not None
            mask, _ = made.noise(jax.random.key(1), params, 50, 1).sequence
            assert set(np.unique(mask)) == {0, np.float32(1) / np.float32(0.75)}


def test_initial_values() -> None:
    ids = jnp.zeros((1, 2), jnp.int32)

    def drawn(**fields: Any) -> Any:
        model = make_classifier(group(embedding_size=50, **fields), 40, 200)
        return jax.jit(model.init)(jax.random.key(0), ids)["params"]

    table = np.asarray(drawn(embedding_init="uniform")["embedding"]["embedding"])
    assert 0.0499 < np.abs(table).max() <= 0.05
    assert abs(table.mean()) < 0.001
    np.testing.assert_allclose(table.std(), 0.1 / np.sqrt(12), rtol=0.02)
    params = drawn(head_init="normal")
    # Flax's: a symbol's vector has a length of about 1.
    table = np.asarray(params["embedding"]["embedding"])
    np.testing.assert_allclose((table**2).sum(-1).mean(), 1, rtol=0.05)
    for leaf in params["head"].values():
        np.testing.assert_allclose(np.asarray(leaf).std(), 1, rtol=0.3)
    kernel = np.asarray(drawn()["head"]["kernel"])
    assert 0.9 * np.sqrt(6 / 44) < np.abs(kernel).max() <= np.sqrt(6 / 44)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"head": "tanh"}, "unknown model.head 'tanh': choose one of softmax, sigmoid"),
        ({"pooling": "sum"}, "unknown model.pooling 'sum': choose one of last, mean, "),
        ({"head_init": "zero"}, "unknown model.head_init 'zero': choose one of glorot"),
        (
            {"embedding_init": "zero"},
            "unknown model.embedding_init 'zero': choose one ",
        ),
        ({"embedding_size": -1}, "model.embedding_size=-1 must be at least 0"),
        ({"dense": (3, 0)}, r"model.dense=\(3, 0\) must hold sizes of at least 1"),
        ({"dense": ("a",)}, r"model.dense=\('a',\) must hold sizes of at least 1"),
        ({"hidden_size": 0}, "model.hidden_size=0 must be at least 1"),
        ({"num_layers": 0}, "model.num_layers=0 must be at least 1"),
        ({"num_layers": 1001}, "model.num_layers=1001 must be at most 1000"),
        (
            {"head": "sigmoid"},
            "tells two classes apart and the data has 6: use softmax",
        ),
        (
            {"cell": "gru(reset_after=False)", "recurrent_dropout": 0.5},
            "model.recurrent_dropout=0.5 cannot be had with model.cell='gru",
        ),
        *(
            ({f"{name}": rate}, rf"model.{name}={rate} must be in \[0, 1\)")
            for name in (
                *("embedding_dropout", "input_dropout", "recurrent_dropout"),
                *("dropout", "dense_dropout"),
            )
            for rate in (1.0, -0.1, float("nan"))
        ),
    ],
)
def test_classifiers_that_are_no_use(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        make_classifier(group(**fields), 6, 11)
    assert "\n" not in str(error.value)


def test_tagger_and_language_model() -> None:
    config = group(num_layers=2, dropout=0.5, bidirectional=True)
    tagger = make_tagger(config, 6, 11)
    assert len(tagger.cells) == 2
    assert (tagger.num_classes, tagger.vocab_size, tagger.embedding_size) == (6, 11, 3)
    assert (tagger.dropout, tagger.bidirectional) == (0.5, True)
    with pytest.raises(UserError, match="a language model sees the past alone"):
        make_language_model(config, 11)
    config.bidirectional = False
    model = make_language_model(config, 11)
    assert len(model.cells) == 2
    assert (model.vocab_size, model.embedding_size, model.dropout) == (11, 3, 0.5)
    with pytest.raises(UserError, match=r"model.embedding_size=0 must be at least 1"):
        make_language_model(group(embedding_size=0), 11)
    with pytest.raises(UserError, match=r"model.embedding_size=-1 must be at least 0"):
        make_tagger(group(embedding_size=-1), 6, 11)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("embedding_init", "uniform"),
        ("embedding_dropout", 0.1),
        ("input_dropout", 0.1),
        ("pooling", "max"),
        ("dense", (3,)),
        ("dense_dropout", 0.1),
        ("head", "sigmoid"),
        ("head_init", "normal"),
    ],
)
def test_fields_of_the_classifier_alone(field: str, value: Any) -> None:
    config = group(**{field: value})
    for make, sizes, reader in (
        (make_tagger, (6, 11), "a tagger"),
        (make_language_model, (11,), "a language model"),
    ):
        with pytest.raises(UserError) as error:
            make(config, *sizes)
        assert str(error.value).startswith(
            f"model.{field}={value!r} is nothing for {reader}: leave it at "
        )

"""The configs are the tutorials' systems: sizes by hand, settings as printed."""

import importlib
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from lstm_jax.config import base_config, check_config
from lstm_jax.model_config import make_classifier
from lstm_jax.tasks import TASKS

ROOT = Path(__file__).parents[1]
NAMES = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))


def config_of(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module(f"configs.{name}").get_config()


@pytest.mark.parametrize("name", NAMES)
def test_is_a_config(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(name, monkeypatch)
    check_config(config)
    assert config.task in TASKS
    assert config.to_dict() != base_config().to_dict()
    text = (ROOT / "configs" / f"{name}.py").read_text()
    command = "" if name == "fable" else f" --config=configs/{name}.py"
    assert f"    python train.py{command}\n" in text


IMDB = {
    "data.path": "tfds:imdb_reviews",
    "data.padding": "front",
    "model.head": "sigmoid",
}
MNIST = {"data.path": "tfds:mnist", "batch_size": 32, "num_epochs": 3}


@pytest.mark.parametrize(
    ("name", "classes", "symbols", "parameters", "settings"),
    [
        # 1024 * 256 + 4 (256 + 128 + 1) 128 + 129
        (
            "web_traffic",
            *(2, 1024, 459_393),
            {"batch_size": 16, "num_epochs": 10, "optimizer.name": "rmsprop"}
            | {"model.dropout": 0.5, "model.head": "sigmoid"},
        ),
        # 5000 * 32 + 4 (32 + 100 + 1) 100 + 101
        (
            "imdb_lstm",
            *(2, 5000, 213_301),
            IMDB | {"batch_size": 128, "num_epochs": 2, "data.length": 500},
        ),
        # 10000 * 128 + 2 * 4 (128 + 64 + 1) 64 + 129
        (
            "imdb_bilstm",
            *(2, 10_000, 1_378_945),
            IMDB
            | {"batch_size": 128, "num_epochs": 12, "data.length": 200}
            | {"model.dropout": 0.5, "model.bidirectional": True},
        ),
        # 1000 * 50 + 4 (50 + 100 + 1) 100 + 101 * 250 + 251
        (
            "imdb_dropout",
            *(2, 1000, 135_901),
            IMDB
            | {"batch_size": 64, "num_epochs": 10, "data.length": 200}
            | {"model.embedding_dropout": 0.2, "model.input_dropout": 0.2}
            | {"model.recurrent_dropout": 0.2, "model.dense_dropout": 0.2},
        ),
        # (28 + 32 + 1) 32 + 33 * 10
        ("mnist_rnn", *(10, None, 2282), MNIST | {"model.head": "softmax"}),
        # 4 (28 + 128 + 1) 128 + 4 (128 + 128 + 1) 128 + 129 * 32 + 33 * 10
        (
            "mnist_lstm",
            *(10, None, 216_426),
            MNIST | {"model.dropout": 0.2, "model.dense_dropout": 0.2},
        ),
    ],
)
def test_is_the_tutorials_system(
    name: str,
    classes: int,
    symbols: int | None,
    parameters: int,
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = config_of(name, monkeypatch)
    settings = {"optimizer.name": "adam", "optimizer.learning_rate": 1e-3} | settings
    for field, value in settings.items():
        group = config
        for part in field.split("."):
            group = group[part]
        assert group == value, field
    if symbols is not None:
        assert config.data.vocab_size == symbols
        assert config.model.embedding_init == "uniform"
    inputs = jnp.zeros((1, 5, 28)) if symbols is None else jnp.zeros((1, 5), jnp.int32)
    model = make_classifier(config.model, classes, symbols)
    shapes = jax.eval_shape(model.init, jax.random.key(0), inputs)["params"]
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)]
    assert sum(sizes) == parameters

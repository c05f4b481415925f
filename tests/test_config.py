"""Tests of lstm_jax.config: what a config may be."""

import functools
from typing import Any

import pytest
from ml_collections import ConfigDict
from toy_runs import toy_config

from lstm_jax.config import base_config, check_config
from lstm_jax.errors import UserError


def message_of(config: Any) -> str:
    with pytest.raises(UserError) as error:
        check_config(config)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_base_config_lacks_only_the_length_of_the_run() -> None:
    assert message_of(base_config()).startswith("num_steps=0 and num_epochs=0: give")
    config = base_config()
    config.num_steps = 1
    check_config(config)
    assert (config.task, config.data.path) == ("custom", "")
    config.num_steps, config.num_epochs = 0, 1
    check_config(config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seed": -1}, "seed=-1 must be at least 0 and below 2**32"),
        ({"seed": 2**32}, "seed=4294967296 must be at least 0 and below 2**32"),
        ({"num_steps": -1}, "num_steps=-1 must be at least 0"),
        ({"num_steps": 2**31}, "num_steps=2147483648 must be below 2**31"),
        (
            {"model.dense": (3, 2**31)},
            "model.dense=(3, 2147483648) must be below 2**31",
        ),
        ({"model.hidden_size": 10**30}, "model.hidden_size=1000000000000000000000000"),
        ({"num_epochs": -1}, "num_epochs=-1 must be at least 0"),
        ({"num_epochs": 2}, "num_steps=20 and num_epochs=2: give one of them"),
        ({"patience": -1}, "patience=-1 must be at least 0"),
        ({"patience": 2}, "patience=2 counts evaluations without a new best: name"),
        ({"optimizer.ema": 1.0}, "optimizer.ema=1.0 must be in [0, 1)"),
        ({"optimizer.ema": -0.1}, "optimizer.ema=-0.1 must be in [0, 1)"),
        ({"optimizer.ema": float("nan")}, "optimizer.ema=nan must be in [0, 1)"),
        ({"data.holdout": 1.0}, "data.holdout=1.0 must be in [0, 1)"),
        ({"data.holdout": -0.1}, "data.holdout=-0.1 must be in [0, 1)"),
    ],
)
def test_values_out_of_range(fields: dict[str, Any], message: str) -> None:
    assert message in message_of(toy_config(**fields))


def test_values_at_the_ends_of_the_ranges() -> None:
    check_config(toy_config(seed=0, **{"optimizer.ema": 0.0, "data.holdout": 0.0}))
    check_config(toy_config(**{"seed": 2**32 - 1, "optimizer.ema": 0.999}))
    check_config(toy_config(**{"patience": 1, "checkpoint.best": "test_loss"}))


@pytest.mark.parametrize("name", ["seed", "model.dense", "checkpoint.best"])
def test_missing_field_is_named(name: str) -> None:
    fields = toy_config().to_dict()
    *groups, field = name.split(".")
    del functools.reduce(dict.__getitem__, groups, fields)[field]
    message = message_of(ConfigDict(fields))
    assert message.startswith(f"the config has no field {name}: ")


def test_missing_group_is_named_by_a_field() -> None:
    fields = toy_config().to_dict()
    del fields["report"]
    assert "has no field report.evaluate_every: " in message_of(ConfigDict(fields))


@pytest.mark.parametrize("name", ["sead", "model.hiden_size", "swept.seeds"])
def test_unknown_field_is_named(name: str) -> None:
    fields = toy_config().to_dict()
    *groups, field = name.split(".")
    group = fields
    for key in groups:
        group = group.setdefault(key, {})
    group[field] = 3
    message = message_of(ConfigDict(fields))
    assert message.startswith(f"the config has a field {name}, which nothing reads: ")


@pytest.mark.parametrize("config", [None, {"seed": 0}, "fable", base_config])
def test_other_things_are_no_config(config: Any) -> None:
    message = message_of(config)
    assert message.startswith(f"the config is a {type(config).__name__}: get_config")

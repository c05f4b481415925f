"""A run of a cell that combinators made is a run as any other, from its files too."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_runs import LAST, READS_CONFIG, TINY, WORDS, Finished
from reference import assert_same_bits
from toy_runs import climbing_config, climbing_task, toy_config, toy_task

import lstm_jax as lj
from lstm_jax import prediction, workdirs
from lstm_jax.cell_grammar import parse_cell
from lstm_jax.errors import UserError
from lstm_jax.nested import named_leaves
from lstm_jax.weights import load_weights, save_weights

pytestmark = [
    READS_CONFIG,
    pytest.mark.usefixtures("fast_runs", "unchecked_types"),
]

# Every combinator; TINY has cells of 6 units.
ALL = (
    "stack(residual(layer_norm(zoneout(learned_initial_carry(clip(lstm, 0.5)), 0.1))), "
    "project(drop_connect(gru, 0.1), 3), recurrent_dropout(block_diagonal(lstm, 2), "
    "0.1))"
)


def test_parameters_come_back_from_a_file(tmp_path: Path) -> None:
    params = jax.device_get(parse_cell(ALL, 6).init(jax.random.key(0), 6))
    save_weights(params, tmp_path / "weights.safetensors")
    assert_same_bits(load_weights(tmp_path / "weights.safetensors"), params)


@pytest.mark.slow
def test_is_trained_read_exported_and_started_from(
    tmp_path: Path, call: Callable[..., Finished]
) -> None:
    flags = (*TINY, "--config.model.embedding_size=6", f"--config.model.cell={ALL}")
    first, second = tmp_path / "first", tmp_path / "second"
    done = call("train.py", f"--workdir={first}", *flags)
    assert done.code == 0, done.err
    reached = json.loads(done.out.splitlines()[-1])

    run = prediction.load(first, reached["step"])
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 9, (2, 5)), jnp.int32)
    names = named_leaves(run.model.init(jax.random.key(0), tokens)["params"])
    assert set(names) == set(named_leaves(run.params))
    assert any(name.endswith("initial_carry/c") for name in names)

    answer = call("predict.py", f"--workdir={first}", WORDS)
    assert answer.code == 0, answer.err
    exported = tmp_path / "exported"
    done = call("lstm_jax/export.py", f"--workdir={first}", f"--out={exported}")
    assert done.code == 0, done.err
    assert_same_bits(
        load_weights(exported / "weights.safetensors"), jax.device_get(run.params)
    )

    still = ("--config.seed=1", "--config.optimizer.learning_rate=0.0")
    done = call(
        "train.py", f"--workdir={second}", f"--init_from={first}", *flags, *still
    )
    assert done.code == 0, done.err
    assert "begun anew" not in done.out
    assert_same_bits(workdirs.load_params(second, LAST), run.params)


def test_parameters_that_files_would_change_are_refused(tmp_path: Path) -> None:
    def gates(extras: Any, carry: Any, zx: Any, zh: Any) -> Any:
        h = jnp.tanh(zx + zh + extras["two"][0])
        return lj.HiddenCarry(h), h

    cell = lj.gated(4, 1, gates, init_extra=lambda key, size: {"two": (jnp.zeros(4),)})
    with pytest.raises(UserError, match="cannot be saved: params must be a nested"):
        lj.fit(toy_config(), toy_task(cells=(cell,)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_dot_in_a_name(tmp_path: Path) -> None:
    """Orbax 0.12.8 gives {"a.b": x, "a": {"b": y}} back as y, y."""
    task = climbing_task(lambda w: w)
    names: Any = {"w": jnp.zeros(()), "a.b": jnp.ones(3), "a": {"c": jnp.full(3, 7.0)}}
    lj.fit(climbing_config(), task._replace(init=lambda key: names), tmp_path / "run")
    found = workdirs.load_params(tmp_path / "run", 20)
    assert_same_bits(found, names | {"w": np.float32(20.0)})
    names["a"] = {"b": names["a"]["c"]}
    with pytest.raises(UserError, match=r"one place for two arrays, params\.a\.b: "):
        lj.fit(climbing_config(), task._replace(init=lambda key: names), tmp_path / "x")
    assert not (tmp_path / "x").exists()

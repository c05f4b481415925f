"""Tests of the next-word task, and of the TF1 tutorial's model."""

import importlib
import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from tokenizers import Tokenizer
from toy_runs import toy_config

import lstm_jax as lj
from lstm_jax.errors import UserError
from lstm_jax.steps import epoch_order, make_keys
from lstm_jax.tasks import Task, make_task
from lstm_jax.tasks.next_word import next_word_model

TEXT = "the cat saw the dog , and the dog saw the bird ."
# By frequency, then by first appearance.
WORDS = ["the", "saw", "dog", "cat", ",", "and", "bird", "."]
IDS = [0, 3, 1, 0, 2, 4, 5, 0, 2, 1, 0, 6, 7]


@pytest.fixture
def config(tmp_path: Path) -> ConfigDict:
    (tmp_path / "text.txt").write_text(TEXT)
    return toy_config(**{"data.path": str(tmp_path / "text.txt"), "data.window": 4})


def biased_to(params: Any, symbol: int) -> Any:
    """Parameters that predict one symbol whatever they read."""
    bias = jnp.zeros(8).at[symbol].set(100.0)
    return {**params, "head": {**params["head"], "bias": bias}}


def order_of(task: Task, seed: int, epoch: int) -> list[int]:
    """The windows that an epoch visits."""
    keys, bucket = make_keys(seed), jnp.int32(0)
    return epoch_order(task, keys, jnp.int32(epoch), bucket, 9).tolist()


def test_examples_are_the_windows_of_the_text(config: ConfigDict) -> None:
    task = make_task(config)
    (examples,) = task.examples
    assert examples["inputs"].tolist() == [IDS[i : i + 4] for i in range(9)]
    assert examples["labels"].tolist() == IDS[4:]
    assert list(task.splits) == ["windows"]
    (windows,) = task.splits["windows"]
    assert windows["inputs"].tolist() == examples["inputs"].tolist()
    assert windows["labels"].tolist() == IDS[4:]
    vocabulary = Tokenizer.from_str(task.files["vocabulary.json"])
    assert [vocabulary.id_to_token(i) for i in range(8)] == WORDS
    assert vocabulary.get_vocab_size() == 8
    assert task.order is None
    assert sorted(order_of(task, seed=0, epoch=0)) == list(range(9))


def test_shown_are_the_words_read_the_next_and_the_predicted(
    config: ConfigDict,
) -> None:
    task = make_task(config)
    params = biased_to(task.init(jax.random.key(0)), 6)
    assert task.sample is not None
    example = {"inputs": np.array([3, 1, 0, 2], np.int32), "labels": np.int32(4)}
    line = task.sample(params, example)
    assert line == "['cat', 'saw', 'the', 'dog'] - [,] vs [bird]"
    assert task.demonstrate is not None
    assert task.demonstrate(params) == " ".join(["the cat saw the", *["bird"] * 32])

    # With other parameters, the words that the sample line predicts one by one.
    kernel = 100 * params["head"]["kernel"]
    params = {**params, "head": {"kernel": kernel, "bias": jnp.zeros(8)}}
    words = task.demonstrate(params).split()
    predictions = []
    for i in range(32):
        window = np.array([WORDS.index(word) for word in words[i : i + 4]], np.int32)
        line = task.sample(params, {"inputs": window, "labels": np.int32(0)})
        predictions.append(line.rpartition("[")[2][:-1])
    assert words == ["the", "cat", "saw", "the", *predictions]


def test_a_walk_is_the_order_of_all_steps(config: ConfigDict) -> None:
    config.data.order = "walk"
    config.batch_size = 2
    config.num_steps = 50
    task = make_task(config)
    # The keys and the epoch change nothing; the seed of the config does.
    order = order_of(task, seed=1, epoch=3)
    assert order == order_of(make_task(config), seed=0, epoch=0)
    assert len(order) == 100
    assert set(order) == set(range(9))
    assert all(b == a + 5 for a, b in itertools.pairwise(order) if a + 5 < 9)
    config.num_steps = 80
    longer = order_of(make_task(config), seed=0, epoch=0)
    assert longer[:100] == order
    config.seed = 1
    assert order_of(make_task(config), seed=0, epoch=0) != longer
    config.num_steps, config.num_epochs = 0, 2
    with pytest.raises(UserError, match=r"data.order='walk' has no epochs: give num_s"):
        make_task(config)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("task", "next_wrod", "unknown task 'next_wrod': choose .*next_word"),
        ("data.path", "no.txt", "cannot read 'no.txt'"),
        ("data.order", "random", "'random': choose shuffled or walk"),
        ("data.window", 13, "the text has 13 words: data.window=13 needs at least 14"),
        ("data.window", 0, "data.window=0: a window holds at least 1 word"),
        ("model.cell", "lstn", "unknown cell 'lstn'"),
        ("model.hidden_size", 0, "model.hidden_size=0 must be at least 1"),
        ("model.num_layers", 0, "model.num_layers=0 must be at least 1"),
        ("model.dropout", 1.0, r"model.dropout=1.0 must be in \[0, 1\)"),
        ("model.dropout", -0.1, r"model.dropout=-0.1 must be in \[0, 1\)"),
        ("model.head_init", "zero", "unknown model.head_init 'zero': choose one of"),
        ("num_steps", 0, "num_steps=0 and num_epochs=0: give one of them"),
    ],
)
def test_values_that_are_no_use(
    config: ConfigDict, field: str, value: Any, message: str
) -> None:
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=message):
        make_task(config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("na na na na na", "holds one word alone: give a text of two"),
        ("", r"text.txt holds no words: give a text with some$"),
        (" \n\t ", r"text.txt holds no words: give a text with some$"),
        ("na", "holds one word alone"),
        ("na no na no", "the text has 4 words: data.window=4 needs at least 5"),
    ],
)
def test_texts_that_are_no_use(config: ConfigDict, text: str, message: str) -> None:
    Path(config.data.path).write_text(text)
    with pytest.raises(UserError, match=message):
        make_task(config)


@pytest.fixture(scope="module")
def tutorial() -> tuple[Any, Any, Any]:
    """Model and task of configs/fable_tf1.py, and parameters before training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1]))
        config = importlib.import_module("configs.fable_tf1").get_config()
    config.num_steps = 10
    task = make_task(config)
    vocabulary = Tokenizer.from_str(task.files["vocabulary.json"])
    model = next_word_model(config, vocabulary)
    return model, task, jax.jit(task.init)(jax.random.key(0))


def test_tutorials_model_has_its_parameters(tutorial: tuple[Any, Any, Any]) -> None:
    _, task, params = tutorial
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 3_209_328
    assert "3,209,328" in task.summary
    assert task.examples[0]["inputs"].shape == (200, 3)


def test_tutorials_initial_values(tutorial: tuple[Any, Any, Any]) -> None:
    """Kernels: one Glorot draw over [D + H, 4H]; forget bias 1; head N(0, 1)."""
    params = tutorial[2]
    for layer, inputs in (("layer_0", 1), ("layer_1", 512)):
        cell = params["recurrent"][layer]["cell"]
        assert cell["kernel"].shape == (inputs, 2048)
        bound = np.sqrt(6 / (inputs + 512 + 2048))
        for kernel in (cell["kernel"], cell["recurrent_kernel"]):
            assert 0.99 * bound < abs(kernel).max() <= bound
            deviation = 0.03 if kernel.size < 10_000 else 0.003
            np.testing.assert_allclose(
                jnp.std(kernel), bound / np.sqrt(3), rtol=deviation
            )
            assert abs(jnp.mean(kernel)) < deviation * bound
        blocks = cell["bias"].reshape(4, 512)  # i, f, g, o
        assert jnp.unique(blocks[1]).tolist() == [1]
        assert jnp.unique(blocks[jnp.array([0, 2, 3])]).tolist() == [0]
    kernel, bias = params["head"]["kernel"], params["head"]["bias"]
    assert abs(jnp.mean(kernel)) < 0.02
    np.testing.assert_allclose(jnp.std(kernel), 1, rtol=0.02)
    assert abs(jnp.mean(bias)) < 0.4
    np.testing.assert_allclose(jnp.std(bias), 1, rtol=0.3)
    # Neither layer is a copy of the other.
    first, second = (params["recurrent"][f"layer_{i}"]["cell"] for i in (0, 1))
    assert (first["recurrent_kernel"] != second["recurrent_kernel"]).any()


def test_tutorials_model_reads_raw_numbers(tutorial: tuple[Any, Any, Any]) -> None:
    model, task, params = tutorial
    ids = task.examples[0]["inputs"][7:8]
    assert ids.max() > 1
    cell = lj.lstm(512)

    @jax.jit
    def by_hand(params: Any, ids: Any) -> Any:
        carries = [cell.initial_carry(params["recurrent"]["layer_0"]["cell"], 1)] * 2
        for t in range(3):
            y = ids[:, t : t + 1].astype(jnp.float32)
            for i in (0, 1):
                layer = params["recurrent"][f"layer_{i}"]["cell"]
                carries[i], y = cell.step(layer, carries[i], y)
        return y @ params["head"]["kernel"] + params["head"]["bias"]

    logits = jax.jit(model.apply)({"params": params}, ids)
    assert logits.shape == (1, 112)
    np.testing.assert_allclose(logits, by_hand(params, ids), rtol=1e-3, atol=1e-4)

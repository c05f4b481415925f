"""Tests of lstm_jax.tasks.classification."""

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_runs import (
    BATCH,
    logits_of,
    losses_and_hits,
    ragged_arrays,
    ragged_task,
    toy_arrays,
    toy_config,
    toy_model,
    toy_task,
)

from lstm_jax import training, workdirs
from lstm_jax.pictures import draw_confusion
from lstm_jax.tasks import classification
from lstm_jax.tasks.classification import (
    class_losses,
    class_probabilities,
    confusion_picture,
    predict_classes,
)

pytestmark = pytest.mark.usefixtures("fast_runs")


def softplus(z: float) -> float:
    return max(z, 0) + math.log1p(math.exp(-abs(z)))


@pytest.mark.usefixtures("strict")
def test_loss_of_a_single_logit_is_a_sigmoids() -> None:
    rng = np.random.default_rng(0)
    logits = np.concatenate([rng.normal(scale=3, size=20), [-120, 120, -120, 120, 0]])
    labels = np.concatenate([rng.integers(0, 2, 20), [0, 1, 1, 0, 1]])
    losses, hits = class_losses(
        jnp.asarray(logits, jnp.float32)[:, None], jnp.asarray(labels, jnp.int32)
    )
    # Minus the logarithm of the probability of the true class.
    want = [softplus(-z if y else z) for z, y in zip(logits, labels, strict=True)]
    np.testing.assert_allclose(losses, want, rtol=1e-5, atol=1e-6)
    assert losses[-3] == losses[-2] == 120  # finite, where the probability is zero
    assert hits.tolist() == [
        int((z > 0) == y) for z, y in zip(logits, labels, strict=True)
    ]
    shares = class_probabilities(jnp.asarray(logits, jnp.float32)[:, None])
    p = 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(shares, np.stack([1 - p, p], -1), rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("strict")
def test_loss_of_several_logits_is_a_softmaxs() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=3, size=(4, 6, 5)).astype(np.float32)
    labels = rng.integers(0, 5, (4, 6)).astype(np.int32)
    losses, hits = class_losses(jnp.asarray(logits), jnp.asarray(labels))
    want, right = losses_and_hits(logits.reshape(24, 5), labels.ravel())
    np.testing.assert_allclose(losses, want.reshape(4, 6), rtol=1e-5)
    assert hits.tolist() == right.reshape(4, 6).tolist()
    shares = class_probabilities(jnp.asarray(logits))
    at_labels = np.take_along_axis(np.asarray(shares), labels[..., None], -1)[..., 0]
    np.testing.assert_allclose(at_labels, np.exp(-want).reshape(4, 6), rtol=1e-5)


def test_two_classes_of_one_logit_are_trained(tmp_path: Path) -> None:
    inputs, _ = toy_arrays(20)
    labels = (inputs[:, -1, 0] > 0).astype(np.int32)
    task = classification(
        toy_model(num_classes=1), inputs, labels, {"all": (inputs, labels)}
    )
    config = toy_config(num_steps=60, **{"optimizer.learning_rate": 0.3})
    result = training.fit(config, task, tmp_path)
    logits = np.asarray(
        logits_of(workdirs.load_params(tmp_path, 60), inputs, toy_model(num_classes=1))
    )
    want = [softplus(-z if y else z) for z, y in zip(logits[:, 0], labels, strict=True)]
    assert result["all_loss"] == pytest.approx(np.mean(want), rel=1e-4)
    assert result["all_loss"] < 0.3
    assert result["all_accuracy"] == np.mean((logits[:, 0] > 0) == labels) > 0.9


def test_weights_are_in_every_sum() -> None:
    task = toy_task()
    params = task.init(jax.random.key(0))
    inputs, labels = toy_arrays()
    weight = np.random.default_rng(1).integers(0, 2, len(labels)).astype(np.float32)
    assert 0 < weight.sum() < len(labels)
    (examples,) = jax.device_put(task.examples)
    sums, carry = task.loss(params, examples, jnp.asarray(weight), None, ())
    losses, hits = losses_and_hits(logits_of(params, inputs), labels)
    assert carry == ()
    assert sums["count"] == weight.sum()
    assert sums["accuracy"] == (weight * hits).sum()
    np.testing.assert_allclose(sums["loss"], (weight * losses).sum(), rtol=1e-5)


INPUTS, LABELS, LENGTHS = ragged_arrays()


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("train", "splits", "message"),
    [
        (
            (INPUTS, LABELS[:-1]),
            {},
            r"train: arrays of \[10, 9\] examples; they must be",
        ),
        ((LABELS, LABELS), {}, r"train: inputs are \[10\], not \[N, T, ...\]"),
        ((INPUTS.astype(str), LABELS), {}, "train: inputs are <U32, not numbers"),
        ((INPUTS.astype(object), LABELS), {}, "train: inputs are object, not numbers"),
        ((INPUTS, LABELS[0]), {}, r"train: labels are int32\[\], not integers"),
        (
            (INPUTS, LABELS, LENGTHS.astype(float)),
            {},
            r"train: lengths are float64\[10\], not integers",
        ),
        ((INPUTS[:0], LABELS[:0]), {}, r"train: arrays of \[0, 0\] examples"),
        ((INPUTS, LABELS, LENGTHS[1:]), {}, r"train: arrays of \[10, 10, 9\] examples"),
        (
            (INPUTS, LABELS),
            {"all": (INPUTS, LABELS, LENGTHS)},
            "all has 3 arrays where training has 2: inputs, labels and",
        ),
        (
            (INPUTS, LABELS, LENGTHS),
            {"all": (INPUTS, LABELS)},
            "all has 2 arrays where training has 3",
        ),
        ((INPUTS, LABELS), {"all": (INPUTS, LABELS[1:])}, r"all: arrays of \[10, 9\]"),
        (
            (INPUTS, LABELS.astype(float)),
            {},
            r"train: labels are float64\[10\], not int",
        ),
        (
            (INPUTS, LABELS[:, None]),
            {},
            r"train: labels are int32\[10, 1\], not integers",
        ),
        (
            (INPUTS, LABELS + 1),
            {},
            "train: labels from 1 to 3, where the model tells 3",
        ),
        (
            (INPUTS, LABELS - 1),
            {},
            "train: labels from -1 to 1, where the model tells 3",
        ),
        (
            (INPUTS, LABELS),
            {"all": (INPUTS, LABELS + 1)},
            "all: labels from 1 to 3, where the model tells 3 classes apart, 0 to 2",
        ),
        (
            (INPUTS, LABELS, LENGTHS + 1),
            {},
            "train: lengths from 1 to 7, where the sequences have 6 steps",
        ),
        ((INPUTS, LABELS, LENGTHS - 1), {}, "train: lengths from -1 to 5, where"),
    ],
)
def test_arrays_that_do_not_fit(train: Any, splits: Any, message: str) -> None:
    inputs, labels, *lengths = train
    options = {"lengths": lengths[0]} if lengths else {}
    with pytest.raises(ValueError, match=message):
        classification(toy_model(), inputs, labels, splits, **options)


@pytest.mark.parametrize("buckets", [0, -1])
def test_fewer_than_one_bucket(buckets: int) -> None:
    with pytest.raises(ValueError, match=f"^buckets={buckets}: give at least 1$"):
        classification(toy_model(), INPUTS, LABELS, lengths=LENGTHS, buckets=buckets)


@pytest.mark.usefixtures("unchecked_types")
def test_arrays_of_any_kind() -> None:
    (want,) = classification(toy_model(), INPUTS, LABELS).examples
    given = (INPUTS.tolist(), LABELS.tolist()), (jnp.asarray(INPUTS), LABELS)
    for inputs, labels in given:
        (examples,) = classification(toy_model(), inputs, labels).examples
        np.testing.assert_array_equal(examples["inputs"], want["inputs"])
        np.testing.assert_array_equal(examples["labels"], want["labels"])


def test_labels_of_a_single_logit_are_0_and_1() -> None:
    inputs, labels, _ = ragged_arrays()
    model = toy_model(num_classes=1)
    classification(model, inputs, np.minimum(labels, 1))
    with pytest.raises(ValueError, match="labels from 0 to 2, where the model tells 2"):
        classification(model, inputs, labels)


def test_hash_is_of_all_data() -> None:
    def hashed(inputs: Any, labels: Any, splits: Any = None, **options: Any) -> str:
        task = classification(toy_model(), inputs, labels, splits, **options)
        assert list(task.files) == ["data.sha256"]
        return task.files["data.sha256"]

    other_inputs, other_labels = INPUTS.copy(), LABELS.copy()
    other_inputs[9, 5, 1] += 1
    other_labels[9] = (other_labels[9] + 1) % 3
    both = (INPUTS, LABELS)
    found = [
        hashed(*both),
        hashed(other_inputs, LABELS),
        hashed(INPUTS, other_labels),
        hashed(*both, {"all": both}),
        hashed(*both, {"all": (INPUTS, other_labels)}),
        hashed(*both, lengths=LENGTHS),
        hashed(*both, lengths=np.maximum(LENGTHS, 1)),
        hashed(INPUTS.astype(np.float64), LABELS),
        hashed(INPUTS.reshape(10, 4, 3), LABELS),
    ]
    assert len(set(found)) == len(found)
    assert hashed(INPUTS.copy(), np.asfortranarray(LABELS)) == found[0]
    assert hashed(np.asfortranarray(INPUTS), LABELS) == found[0]
    # How it is batched is no matter of the data.
    assert hashed(*both, lengths=LENGTHS, buckets=3) == found[5]


@pytest.mark.parametrize("buckets", [1, 3])
def test_predicted_classes(buckets: int) -> None:
    """Also of buckets that the batches do not divide, or that are smaller than one."""
    task = ragged_task(buckets)
    params = task.init(jax.random.key(1))
    apply = jax.jit(toy_model().apply)
    parts = task.splits["all"]
    logits = [
        apply({"params": params}, p["inputs"], lengths=p["lengths"]) for p in parts
    ]
    labels = np.concatenate([part["labels"] for part in parts])
    want = np.concatenate([np.asarray(part).argmax(-1) for part in logits])
    assert len(set(want)) > 1
    for batch_size in (1, 3, 4, 10, 64):
        true, likeliest = predict_classes(toy_model(), params, parts, batch_size)
        assert true.tolist() == labels.tolist()
        assert likeliest.tolist() == want.tolist()


def test_predicted_classes_of_one_logit() -> None:
    model = toy_model(num_classes=1)
    inputs, labels = toy_arrays(7)
    task = classification(model, inputs, np.minimum(labels, 1))
    params = task.init(jax.random.key(0))
    true, likeliest = predict_classes(model, params, task.examples, BATCH)
    want = np.asarray(logits_of(params, inputs, model))[:, 0] > 0
    assert likeliest.tolist() == want.astype(int).tolist()
    assert true.tolist() == np.minimum(labels, 1).tolist()
    assert 0 < want.sum() < 7


def test_run_draws_its_confusion_matrix(tmp_path: Path) -> None:
    task = toy_task()
    names = ("low", "middle", "high")
    task = task._replace(
        pictures=confusion_picture(toy_model(), task.splits["all"], names, BATCH)
    )
    config = toy_config(num_steps=40)
    training.fit(config, task, tmp_path)
    inputs, labels = toy_arrays()
    params = workdirs.load_params(tmp_path, 40)
    likeliest = np.asarray(logits_of(params, inputs)).argmax(-1)
    matrix = np.zeros((3, 3), np.int64)
    for true, said in zip(labels, likeliest, strict=True):
        matrix[true, said] += 1
    assert 0 < np.trace(matrix) < 10
    picture = tmp_path / "confusion.png"
    assert picture.read_bytes() == draw_confusion(matrix, names)
    # Drawn anew from the checkpoint that answers, also when nothing is trained.
    picture.unlink()
    training.fit(config, task, tmp_path)
    assert picture.read_bytes() == draw_confusion(matrix, names)

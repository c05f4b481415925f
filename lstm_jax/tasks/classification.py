"""Sequences with one label each."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Integer, PRNGKeyArray, PyTree, Shaped

from lstm_jax.cells import Params
from lstm_jax.data.buckets import split_buckets
from lstm_jax.data.fingerprint import fingerprint
from lstm_jax.models import SequenceClassifier, SequenceTagger
from lstm_jax.pictures import draw_confusion
from lstm_jax.sharding import split_rows
from lstm_jax.summary import summarize
from lstm_jax.tasks.task import Buckets, Examples, Sums, Task, size_of

# (inputs [N, T, ...], labels [N]) or (inputs, labels, lengths [N]).
Split = tuple[Any, ...]


def classification(
    model: SequenceClassifier,
    inputs: Shaped[np.ndarray, "N T *D"],
    labels: Integer[np.ndarray, " N"],
    splits: dict[str, Split] | None = None,
    *,
    lengths: Integer[np.ndarray, " N"] | None = None,
    buckets: int = 1,
) -> Task:
    """Sequences with one label each, visited in a new order every epoch.

    Args:
      model: gives logits [B, C] of inputs [B, T, ...], as `SequenceClassifier`; a
        single logit is a sigmoid's, for the classes 0 and 1.
      inputs: the sequences to train on.
      labels: their classes, 0 to C-1.
      splits: what to evaluate, by name: (inputs, labels), or (inputs, labels, lengths)
        where `lengths` is given.
      lengths: number of valid steps of each sequence; None: all.
      buckets: sequences are batched by length into at most this many padded lengths;
        more than 1 needs `lengths`. The result is that of masking; the time is that
        of the valid steps.

    Returns:
      The task, for `lstm_jax.fit`.

    Raises:
      ValueError: buckets without lengths, or fewer than one; arrays of different
        sizes, or of no numbers; a label or a length out of range.
    """
    if buckets < 1:
        raise ValueError(f"buckets={buckets}: give at least 1")
    if buckets > 1 and lengths is None:
        raise ValueError(f"{buckets} buckets need the lengths of the sequences")
    given = () if lengths is None else (lengths,)
    train = tuple(map(np.asarray, (inputs, labels, *given)))
    others = {
        name: tuple(map(np.asarray, split)) for name, split in (splits or {}).items()
    }
    for name, split in {"train": train, **others}.items():
        _check_split(name, split, len(train), max(model.num_classes, 2))
        _check_symbols(name, split[0], model.vocab_size)

    def loss(
        params: Params,
        examples: Examples,
        weight: Float[Array, " B"],
        key: PRNGKeyArray | None,
        carry: PyTree,
    ) -> tuple[Sums, PyTree]:
        logits = class_logits(model, params, examples, key)
        losses, hits = class_losses(logits, examples["labels"])
        return class_sums(weight, losses, hits), carry

    first = jnp.asarray(train[0][:1])
    arrays = [array for split in (train, *others.values()) for array in split]
    return Task(
        init=lambda key: dict(model.init(key, first)["params"]),
        loss=loss,
        examples=_buckets(train, buckets),
        order=None,
        splits={name: _buckets(split, buckets) for name, split in others.items()},
        summary=summarize(model, first),
        files={"data.sha256": fingerprint(*arrays) + "\n"},
    )


def class_logits(
    model: SequenceClassifier | SequenceTagger,
    params: Params,
    examples: Examples,
    key: PRNGKeyArray | None = None,
) -> Float[Array, "B *T C"]:
    """The model's logits of a batch; key None: no dropout."""
    examples = jax.tree.map(jnp.asarray, examples)
    logits = model.apply(
        {"params": params},
        examples["inputs"],
        lengths=examples.get("lengths"),
        deterministic=key is None,
        rngs={} if key is None else {"dropout": key},
    )
    assert isinstance(logits, jax.Array)
    return logits


def class_losses(
    logits: Float[Array, "*B C"], labels: Int[Array, "*B"]
) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
    """Cross-entropy in nats and whether the likeliest class is right, 0 or 1.

    A single logit is a sigmoid's.
    """
    if logits.shape[-1] == 1:
        logit = logits[..., 0]
        losses = optax.sigmoid_binary_cross_entropy(logit, labels.astype(logit.dtype))
        hits = (logit > 0) == (labels == 1)
    else:
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        hits = jnp.argmax(logits, -1) == labels
    return losses, hits.astype(losses.dtype)


def class_sums(
    weight: Float[Array, "*B"], losses: Float[Array, "*B"], hits: Float[Array, "*B"]
) -> Sums:
    """The sums of a `Task`, each label counted as often as its weight says."""
    return {
        "count": jnp.sum(weight),
        "loss": jnp.sum(weight * losses),
        "accuracy": jnp.sum(weight * hits),
    }


def class_probabilities(logits: Float[Array, "*B C"]) -> Float[Array, "*B classes"]:
    """Probabilities of the classes; two of a single logit."""
    if logits.shape[-1] == 1:
        p = jax.nn.sigmoid(logits)
        return jnp.concatenate([1 - p, p], axis=-1)
    return jax.nn.softmax(logits)


@functools.partial(jax.jit, static_argnames="model")
def predict_probabilities(
    model: SequenceClassifier, params: Params, examples: Examples
) -> Float[Array, "B classes"]:
    """Probabilities of the classes of a batch, compiled once a model and shape."""
    return class_probabilities(class_logits(model, params, split_rows(examples)))


def predict_classes(
    model: SequenceClassifier, params: Params, buckets: Buckets, batch_size: int
) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    """True and likeliest classes of a split, bucket by bucket."""
    true, likeliest = [], []
    for examples in buckets:
        for first in range(0, size_of(examples), batch_size):
            # Batches of one size compile once; the last one overlaps the one before.
            size = size_of(examples)
            start = max(min(first, size - batch_size), 0)
            batch = jax.tree.map(lambda a, s=start: a[s : s + batch_size], examples)
            classes = jnp.argmax(predict_probabilities(model, params, batch), -1)
            true.append(np.asarray(batch["labels"])[first - start :])
            likeliest.append(np.asarray(classes)[first - start :])
    return np.concatenate(true), np.concatenate(likeliest)


def confusion_picture(
    model: SequenceClassifier,
    buckets: Buckets,
    names: Sequence[str],
    batch_size: int,
) -> Callable[[Params], dict[str, bytes]]:
    """For `Task.pictures`: the confusion matrix of a split."""

    def pictures(params: Params) -> dict[str, bytes]:
        true, likeliest = predict_classes(model, params, buckets, batch_size)
        matrix = np.zeros((len(names), len(names)), np.int64)
        np.add.at(matrix, (true, likeliest), 1)
        return {"confusion.png": draw_confusion(matrix, names)}

    return pictures


def _check_split(name: str, split: Split, arrays: int, classes: int) -> None:
    if len(split) != arrays:
        raise ValueError(
            f"{name} has {len(split)} arrays where training has {arrays}: inputs, "
            "labels and, if the one has them, lengths"
        )
    inputs, labels, *lengths = split
    if inputs.ndim < 2:
        raise ValueError(f"{name}: inputs are {list(inputs.shape)}, not [N, T, ...]")
    if not jnp.issubdtype(inputs.dtype, jnp.number) and inputs.dtype != bool:
        raise ValueError(f"{name}: inputs are {inputs.dtype}, not numbers")
    for what, array in [("labels", labels), *(("lengths", a) for a in lengths)]:
        if not np.issubdtype(array.dtype, np.integer) or array.ndim != 1:
            raise ValueError(
                f"{name}: {what} are {array.dtype}{list(array.shape)}, not integers [N]"
            )
    sizes = [len(array) for array in split]
    if len(set(sizes)) > 1 or not sizes[0]:
        raise ValueError(f"{name}: arrays of {sizes} examples; they must be as many")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"{name}: labels from {labels.min()} to {labels.max()}, where the model "
            f"tells {classes} classes apart, 0 to {classes - 1}"
        )
    if lengths and not 0 <= lengths[0].min() <= lengths[0].max() <= inputs.shape[1]:
        raise ValueError(
            f"{name}: lengths from {lengths[0].min()} to {lengths[0].max()}, where "
            f"the sequences have {inputs.shape[1]} steps"
        )


def _check_symbols(name: str, inputs: np.ndarray, vocab_size: int | None) -> None:
    if vocab_size is None:
        return
    if not np.issubdtype(inputs.dtype, np.integer):
        raise ValueError(f"{name}: symbols are {inputs.dtype}, not integers")
    if inputs.size and not 0 <= inputs.min() <= inputs.max() < vocab_size:
        raise ValueError(
            f"{name}: symbols from {inputs.min()} to {inputs.max()}, where the model "
            f"knows {vocab_size}, 0 to {vocab_size - 1}"
        )


def take_rows(split: Split, rows: Int[np.ndarray, " rows"]) -> Split:
    """A part of a split."""
    return tuple(array[rows] for array in split)


def _buckets(split: Split, count: int) -> Buckets:
    inputs, labels, *lengths = split
    if count > 1:
        return split_buckets(inputs, lengths[0], count, labels=labels)
    examples = {"inputs": inputs, "labels": labels}
    return (examples | ({"lengths": lengths[0]} if lengths else {}),)

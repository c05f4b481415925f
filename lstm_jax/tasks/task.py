"""What a task is."""

import math
import types
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from lstm_jax.cells import Params

# Files that a run keeps beside its checkpoints, to read and to answer with.
VOCABULARY_FILE = "vocabulary.json"
LABELS_FILE = "labels.json"

# Examples, every leaf [N, ...]; in a batch also a weight: 0 for what pads the last one.
Examples = PyTree
# Examples of different padded lengths; most tasks have one.
Buckets = tuple[Examples, ...]
# Sums over the examples of a batch: "count", and of each metric.
Sums = dict[str, Float[Array, ""]]


class Named(NamedTuple):
    """What the entries of a parameter stand for.

    Attributes:
      file: the file that numbers them: `VOCABULARY_FILE`, or a JSON list of names.
      axis: the axis with an entry for each name. A single entry where the file has two
        names is the logit of a sigmoid: its sign tells which of the two is meant. None:
        the numbers themselves are read, where a word is fed as its number.
    """

    file: str
    axis: int | None


# By the name of a parameter, or of a module for all parameters in it.
Names = Mapping[str, Named]


def no_carry(batch_size: int) -> tuple[()]:
    """The carry of a task whose batches know nothing of each other."""
    del batch_size
    return ()


class Task(NamedTuple):
    """A model, its data, and what to minimise.

    Attributes:
      init: `init(key) -> params`.
      loss: `loss(params, examples, weight, key, carry) -> (sums, carry)`, with "count"
        what the others are divided by and "loss" the sum of the losses; the mean of the
        loss is minimised and the mean of every other sum reported. key None: no
        dropout.
      examples: what is trained on.
      order: indices of the examples that an epoch visits, where there is one bucket;
        None: every bucket in a new order each epoch.
      splits: what is evaluated, by name.
      carry: `carry(batch_size)`, the carry before an epoch's first batch: what a batch
        hands to the next one.
      summary: a table of the model.
      files: what the run keeps beside its checkpoints, by file name.
      finish: `finish(mean_metrics) -> metrics`, what is reported of the means.
      sample: a line about an example, given (params, example), or None.
      demonstrate: what a person is shown at the end, given params, or None.
      pictures: PNG files by name, drawn at the end, given params, or None.
      names: which parameters have an entry a word or label that one of `files` names:
        a run that starts from another one's parameters matches these by name.
    """

    init: Callable[[PRNGKeyArray], Params]
    loss: Callable[..., tuple[Sums, PyTree]]
    examples: Buckets
    order: Int[np.ndarray, " epoch_size"] | None
    splits: dict[str, Buckets]
    carry: Callable[[int], PyTree] = no_carry
    summary: str = ""
    files: Mapping[str, str] = types.MappingProxyType({})
    finish: Callable[[dict[str, float]], dict[str, float]] | None = None
    sample: Callable[[Params, Examples], str] | None = None
    demonstrate: Callable[[Params], str] | None = None
    pictures: Callable[[Params], Mapping[str, bytes]] | None = None
    names: Names = types.MappingProxyType({})


def longest(buckets: Buckets) -> Examples:
    """The bucket whose examples are the largest."""

    def numbers(examples: Examples) -> int:
        return sum(math.prod(a.shape[1:]) for a in jax.tree.leaves(examples))

    return max(buckets, key=numbers)


def size_of(examples: Examples) -> int:
    """N, the number of examples of a bucket."""
    return jax.tree.leaves(examples)[0].shape[0]

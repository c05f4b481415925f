"""What a batch means: its loss, its metrics, and what a person is shown of it."""

import hashlib
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.nn import initializers
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree, Shaped
from tokenizers import Tokenizer

from lstm_jax.cell_grammar import parse_cell
from lstm_jax.cells import Params
from lstm_jax.config import Config, check_config
from lstm_jax.data.text import build_vocabulary, decode, encode, read_text, split_words
from lstm_jax.data.windows import walk, windows
from lstm_jax.errors import UserError
from lstm_jax.generation import continue_window
from lstm_jax.models import SequenceClassifier, summarize

VOCABULARY_FILE = "vocabulary.json"

# Examples, every leaf [N, ...]; in a batch also a weight: 0 for what pads the last one.
Examples = PyTree
# Sums over the examples of a batch: "count", and of each metric.
Sums = dict[str, Float[Array, ""]]


class Task(NamedTuple):
    """A model, its data, and what to minimise.

    Attributes:
      init: `init(key) -> params`.
      loss: `loss(params, examples, weight, key) -> Sums`, with "count" the sum of the
        weights and "loss" the weighted sum of the losses; the mean of the loss is
        minimised and the mean of every other sum reported. key None: no dropout.
      examples: what is trained on.
      order: `order(key, epoch) -> indices` of the examples in an epoch.
      epoch_size: how many indices `order` gives.
      splits: what is evaluated, by name.
      summary: a table of the model.
      files: what the run keeps beside its checkpoints, by file name.
      sample: a line about an example, given (params, example), or None.
      demonstrate: what a person is shown at the end, given params, or None.
    """

    init: Callable[[PRNGKeyArray], Params]
    loss: Callable[..., Sums]
    examples: Examples
    order: Callable[[PRNGKeyArray, Int[Array, ""]], Int[Array, " epoch_size"]]
    epoch_size: int
    splits: dict[str, Examples]
    summary: str = ""
    files: Mapping[str, str] = types.MappingProxyType({})
    sample: Callable[[Params, Examples], str] | None = None
    demonstrate: Callable[[Params], str] | None = None


def classification(
    model: SequenceClassifier,
    inputs: Shaped[np.ndarray, "N T *D"],
    labels: Int[np.ndarray, " N"],
    splits: dict[str, tuple[Any, Any]] | None = None,
) -> Task:
    """Sequences with one label each, visited in a new order every epoch.

    Args:
      model: gives logits [B, C] of inputs [B, T, ...], as `SequenceClassifier`.
      inputs: the sequences to train on.
      labels: their classes, 0 to C-1.
      splits: (inputs, labels) to evaluate, by name.

    Returns:
      The task, for `lstm_jax.fit`.
    """
    size = len(labels)
    first = jnp.asarray(inputs[:1])

    def loss(
        params: Params,
        examples: Examples,
        weight: Float[Array, " B"],
        key: PRNGKeyArray | None,
    ) -> Sums:
        rngs = {} if key is None else {"dropout": key}
        logits = model.apply(
            {"params": params}, examples["inputs"], deterministic=key is None, rngs=rngs
        )
        assert isinstance(logits, jax.Array)
        targets = examples["labels"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        hits = (jnp.argmax(logits, -1) == targets).astype(losses.dtype)
        return {
            "count": jnp.sum(weight),
            "loss": jnp.sum(weight * losses),
            "accuracy": jnp.sum(weight * hits),
        }

    return Task(
        init=lambda key: dict(model.init(key, first)["params"]),
        loss=loss,
        examples={"inputs": inputs, "labels": labels},
        order=lambda key, epoch: jax.random.permutation(
            jax.random.fold_in(key, epoch), size
        ),
        epoch_size=size,
        splits={
            name: {"inputs": split[0], "labels": split[1]}
            for name, split in (splits or {}).items()
        },
        summary=summarize(model, first),
    )


def next_word(config: Config) -> Task:
    """A window of words and the word that follows, from one text.

    Raises:
      UserError: the text or a field of the config is no use.
    """
    text = read_text(config.data.path)
    words = split_words(text)
    if not words:
        raise UserError(f"{config.data.path} holds no words: give a text with some")
    vocabulary = build_vocabulary(words)
    inputs, targets = windows(encode(vocabulary, words), config.data.window)
    model = next_word_model(config, vocabulary)
    task = classification(model, inputs, targets, {"windows": (inputs, targets)})
    apply = jax.jit(model.apply)  # once: a loop over time compiles anew at every call

    def sample(params: Params, example: Examples) -> str:
        logits = apply({"params": params}, jnp.expand_dims(example["inputs"], 0))
        assert isinstance(logits, jax.Array)
        shown = [str(vocabulary.id_to_token(int(i))) for i in example["inputs"]]
        target, prediction = int(example["labels"]), int(jnp.argmax(logits))
        return (
            f"{shown} - [{vocabulary.id_to_token(target)}] vs "
            f"[{vocabulary.id_to_token(prediction)}]"
        )

    def demonstrate(params: Params) -> str:
        window = jnp.asarray(inputs[0])
        ids = continue_window(model, params, window, num_words=32)
        return f"{decode(vocabulary, inputs[0])} {decode(vocabulary, np.asarray(ids))}"

    task = task._replace(
        files={
            VOCABULARY_FILE: vocabulary.to_str(pretty=True),
            "text.sha256": hashlib.sha256(text.encode()).hexdigest() + "\n",
        },
        sample=sample,
        demonstrate=demonstrate,
    )
    if config.data.order == "shuffled":
        return task
    if config.data.order != "walk":
        raise UserError(
            f"unknown data.order {config.data.order!r}: choose shuffled or walk"
        )
    # The whole walk is one epoch.
    size = config.num_steps * config.batch_size
    offsets = walk(config.seed, len(targets), config.data.window, size)
    return task._replace(order=lambda *_: jnp.asarray(offsets), epoch_size=size)


def next_word_model(config: Config, vocabulary: Tokenizer) -> SequenceClassifier:
    """The model of a next-word config, as `predict.py` makes it again.

    Raises:
      UserError: a field of the config is no use.
    """
    model = config.model
    if config.data.window < 1:
        raise UserError(f"data.window={config.data.window} must be at least 1")
    for field in ("hidden_size", "num_layers"):
        if model[field] < 1:
            raise UserError(f"model.{field}={model[field]} must be at least 1")
    if model.embedding_size < 0:
        raise UserError(
            f"model.embedding_size={model.embedding_size} must be at least 0 (0: a "
            "word is fed as the one number that it is)"
        )
    if not 0 <= model.dropout < 1:
        raise UserError(f"model.dropout={model.dropout} must be in [0, 1)")
    inits = {
        "glorot": (initializers.glorot_uniform(), initializers.zeros),
        "normal": (initializers.normal(1.0), initializers.normal(1.0)),
    }
    if model.head_init not in inits:
        raise UserError(
            f"unknown model.head_init {model.head_init!r}: choose one of "
            f"{', '.join(inits)}"
        )
    size = vocabulary.get_vocab_size()
    kernel_init, bias_init = inits[model.head_init]
    return SequenceClassifier(
        cells=(parse_cell(model.cell, model.hidden_size),) * model.num_layers,
        num_classes=size,
        vocab_size=size,
        embedding_size=model.embedding_size or None,
        dropout=model.dropout,
        head_kernel_init=kernel_init,
        head_bias_init=bias_init,
    )


TASKS: dict[str, Callable[[Config], Task]] = {"next_word": next_word}


def make_task(config: Config) -> Task:
    """The task that a config names.

    Raises:
      UserError: there is none of that name, or its data is no use.
    """
    check_config(config)
    if config.task not in TASKS:
        raise UserError(f"unknown task {config.task!r}: choose {', '.join(TASKS)}")
    return TASKS[config.task](config)

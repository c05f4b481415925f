"""A window of words and the word that follows."""

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from lstm_jax.cells import Params
from lstm_jax.config import Config
from lstm_jax.data import spelling
from lstm_jax.data.text import (
    SPELLING,
    build_vocabulary,
    decode,
    encode,
    read_text,
    split_words,
)
from lstm_jax.data.windows import walk, windows
from lstm_jax.errors import UserError
from lstm_jax.generation import continue_window
from lstm_jax.model_config import make_classifier
from lstm_jax.models import SequenceClassifier
from lstm_jax.tasks.classification import classification
from lstm_jax.tasks.task import VOCABULARY_FILE, Examples, Task


def next_word(config: Config, stored: Tokenizer | None = None) -> Task:
    """A window of words and the word that follows, from one text.

    Args:
      config: of the run.
      stored: the vocabulary of a run that goes on, whose spelling is kept.

    Raises:
      UserError: the text or a field of the config is no use.
    """
    text = read_text(config.data.path)
    normalizer = spelling.stored_or(stored, SPELLING)
    words = split_words(text, normalizer)
    if not words:
        raise UserError(f"{config.data.path} holds no words: give a text with some")
    vocabulary = build_vocabulary(words, normalizer)
    if vocabulary.get_vocab_size() == 1:
        raise UserError(f"{config.data.path} holds one word alone: give a text of two")
    inputs, targets = windows(encode(vocabulary, words), config.data.window)
    model = next_word_model(config, vocabulary)
    task = classification(model, inputs, targets, {"windows": (inputs, targets)})
    apply = jax.jit(model.apply)  # once: a loop over time compiles anew at every call

    def sample(params: Params, example: Examples) -> str:
        logits = apply({"params": params}, jnp.expand_dims(example["inputs"], 0))
        # One read from the device.
        ids, target, logits = jax.device_get(
            (example["inputs"], example["labels"], logits)
        )
        likeliest = vocabulary.id_to_token(int(np.argmax(logits)))
        shown = [str(vocabulary.id_to_token(int(i))) for i in ids]
        return f"{shown} - [{vocabulary.id_to_token(int(target))}] vs [{likeliest}]"

    def demonstrate(params: Params) -> str:
        window = jnp.asarray(inputs[0])
        ids = continue_window(model, params, window, num_words=32)
        return f"{decode(vocabulary, inputs[0])} {decode(vocabulary, np.asarray(ids))}"

    task = task._replace(
        files={
            **task.files,
            VOCABULARY_FILE: vocabulary.to_str(pretty=True),
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
    if not config.num_steps:
        raise UserError("data.order='walk' has no epochs: give num_steps")
    # The whole walk is one epoch.
    size = config.num_steps * config.batch_size
    offsets = walk(config.seed, len(targets), config.data.window, size)
    return task._replace(order=offsets)


def next_word_model(config: Config, vocabulary: Tokenizer) -> SequenceClassifier:
    """The model of a next-word config, as `predict.py` makes it again.

    Raises:
      UserError: a field of the config is no use.
    """
    if config.data.window < 1:
        raise UserError(f"data.window={config.data.window} must be at least 1")
    size = vocabulary.get_vocab_size()
    return make_classifier(config.model, size, size)

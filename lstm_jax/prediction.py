"""A trained run, loaded to answer."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array
from tokenizers import Tokenizer

from lstm_jax import workdirs
from lstm_jax.cells import Params
from lstm_jax.config import Config
from lstm_jax.data.files import local_path
from lstm_jax.errors import UserError
from lstm_jax.model_config import make_classifier, make_language_model
from lstm_jax.tasks.next_word import next_word_model
from lstm_jax.tasks.task import LABELS_FILE, VOCABULARY_FILE


class Run(NamedTuple):
    """A trained model, and what it needs to read and to answer.

    Attributes:
      config: of the run.
      model: the Flax module.
      params: its parameters.
      vocabulary: of the texts; None where the inputs are images.
      labels: names of the classes; () where the answer is text.
      step: of the checkpoint.
    """

    config: Config
    model: Any
    params: Params
    vocabulary: Tokenizer | None
    labels: tuple[str, ...]
    step: int


def load(workdir: str | Path, step: int | None = None) -> Run:
    """Loads the model of a run.

    Args:
      workdir: folder of the run.
      step: which checkpoint; None: the best if the run tracks one, else the last.

    Raises:
      UserError: the folder holds no run that answers, or no such checkpoint.
    """
    workdir = local_path(workdir)
    config = workdirs.read_config(workdir)
    if config.task not in _MODELS:
        raise UserError(
            f"{workdir} is a run of task {config.task!r}: those that answer and are "
            f"exported are of {', '.join(_MODELS)}"
        )
    reads_text, has_labels, make = _MODELS[config.task]
    vocabulary = _vocabulary(workdir) if reads_text else None
    labels = _labels(workdir) if has_labels else ()
    model, inputs = make(config, vocabulary, labels)
    if step is None:
        step = workdirs.answering_step(workdir, config.checkpoint.best or None)
    params = workdirs.load_params(workdir, step)
    wanted = jax.eval_shape(lambda: model.init(jax.random.key(0), inputs)["params"])
    if jax.tree.map(jnp.shape, params) != jax.tree.map(jnp.shape, wanted):
        raise UserError(
            f"the checkpoint of step {step} in {workdir} is of another model than its "
            "files describe: restore them, or train again"
        )
    return Run(config, model, params, vocabulary, labels, step)


def prompt(run: Run) -> str:
    """What a person is asked for."""
    if run.labels:
        return "text: "
    window = run.config.data.window
    return f"{window} words: " if run.config.task == "next_word" else "words: "


def _next_word(config: Config, vocabulary: Any, _: Any) -> tuple[Any, Array]:
    window = jnp.zeros((1, config.data.window), jnp.int32)
    return next_word_model(config, vocabulary), window


def _language_model(config: Config, vocabulary: Any, _: Any) -> tuple[Any, Array]:
    model = make_language_model(config.model, vocabulary.get_vocab_size())
    return model, jnp.zeros((1, 1), jnp.int32)


def _text_classifier(config: Config, vocabulary: Any, labels: Any) -> tuple[Any, Array]:
    size = vocabulary.get_vocab_size()
    model = make_classifier(config.model, len(labels), size)
    return model, jnp.zeros((1, config.data.length), jnp.int32)


def _image_classifier(config: Config, _: Any, labels: Any) -> tuple[Any, Array]:
    return make_classifier(config.model, len(labels), None), jnp.zeros((1, 28, 28))


# Of each task that answers: whether it reads text, whether it has labels, its model.
_MODELS: dict[str, tuple[bool, bool, Callable[..., tuple[Any, Array]]]] = {
    "next_word": (True, False, _next_word),
    "language_model": (True, False, _language_model),
    "classify_text": (True, True, _text_classifier),
    "classify_images": (False, True, _image_classifier),
}


def _vocabulary(workdir: Path) -> Tokenizer:
    path = workdir / VOCABULARY_FILE
    try:
        vocabulary = Tokenizer.from_str(path.read_text(encoding="utf-8"))
        numbers = vocabulary.get_vocab()
        # Another number would be read as the last one.
        if not numbers or sorted(numbers.values()) != [*range(len(numbers))]:
            raise ValueError("its words are not numbered from 0")
        if getattr(vocabulary.model, "unk_token", None) not in numbers:
            raise ValueError("no word stands for those that it lacks")
        return vocabulary
    except Exception as error:  # the library raises bare Exception
        raise UserError(
            f"{path} is missing or damaged ({error}): train again"
        ) from None


def _labels(workdir: Path) -> tuple[str, ...]:
    path = workdir / LABELS_FILE
    try:
        labels = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(labels, list) or not all(isinstance(x, str) for x in labels):
            raise ValueError("no list of names")
        if len(labels) < 2:
            raise ValueError("fewer than two names")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is missing or damaged ({error}): train again"
        ) from None
    return tuple(labels)

"""A trained run, loaded to answer."""

import contextlib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array
from tokenizers import Tokenizer

from lstm_jax import identity, workdirs
from lstm_jax.cells import Params
from lstm_jax.config import Config
from lstm_jax.data.files import local_path
from lstm_jax.errors import UserError
from lstm_jax.identity import Identity, Predictor
from lstm_jax.model_config import make_classifier, make_language_model, make_tagger
from lstm_jax.models import LanguageModel
from lstm_jax.tasks.classification import class_logits
from lstm_jax.tasks.language_model import stream_logits
from lstm_jax.tasks.next_word import next_word_model
from lstm_jax.tasks.task import LABELS_FILE, VOCABULARY_FILE, Task


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
      UserError: the folder holds no run that answers, or no such checkpoint, or its
        config describes another model than the one that was trained. A line on stderr
        says where that is not known, as of runs of other versions.
    """
    workdir = local_path(workdir)
    config = workdirs.read_config(workdir)
    if config.task not in _ANSWERING:
        raise UserError(
            f"{workdir} is a run of task {config.task!r}: those that answer and are "
            f"exported are of {', '.join(_ANSWERING)}"
        )
    reads_text, has_labels, make = _MODELS[config.task]
    vocabulary = _vocabulary(workdir) if reads_text else None
    labels = _labels(workdir) if has_labels else ()
    model, inputs = make(config, vocabulary, labels)
    if step is None:
        step = workdirs.answering_step(workdir, config.checkpoint.best or None)
    params = workdirs.load_params(workdir, step)
    predictor = _predictor(model, inputs)
    trained = _trained(workdir)
    if jax.tree.map(jnp.shape, params) != jax.tree.map(jnp.shape, predictor.params):
        raise UserError(
            f"the checkpoint of step {step} in {workdir} is of another model than its "
            "files describe: restore them, or train again"
        )
    _compare(workdir, trained, predictor)
    return Run(config, model, params, vocabulary, labels, step)


def identify(config: Config, task: Task) -> Identity:
    """Return what a run computes, and whether its config describes the model of that.

    Args:
      config: of the run.
      task: what it trains.
    """
    return identity.identify(config, task, _described(config, task.files))


def check_described(workdir: str | Path, config: Config) -> None:
    """Refuse a run whose config describes another model than the one that was trained.

    A line on stderr says where that is not known, as of runs of other versions.

    Args:
      workdir: folder of the run.
      config: what is stored there.

    Raises:
      UserError: it describes another one, or what the run stored is damaged.
    """
    files = {}
    for name in (VOCABULARY_FILE, LABELS_FILE):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            files[name] = (local_path(workdir) / name).read_text(encoding="utf-8")
    _compare(workdir, _trained(workdir), _described(config, files))


def _trained(workdir: str | Path) -> Identity | None:
    """What a run stored of itself, refused where no config describes its model."""
    trained = identity.read(workdir)
    if trained is not None and trained.prediction is None:
        raise UserError(
            f"{workdir} was trained with another model than its config describes: "
            "load its parameters in Python by lstm_jax.workdirs.load_params, for the "
            "model that they are of"
        )
    return trained


def _compare(
    workdir: str | Path, trained: Identity | None, predictor: Predictor | None
) -> None:
    """As `check_described`, of what predict.py would make of the run."""
    why = None
    if trained is None or not trained.prediction or predictor is None:
        why = "it does not say so"
    elif trained.versions != identity.versions():  # which may trace it otherwise
        why = "it was stored by another version of jax, flax, optax or lstm_jax"
    elif not identity.is_predicted_by(trained, predictor):
        raise UserError(
            f"{workdir} was trained with another model than its {workdirs.CONFIG_FILE} "
            "describes now: restore that file, or train again"
        )
    if why is not None:
        print(
            f"whether the config of {workdir} describes the model that was trained is "
            f"not known: {why}",
            file=sys.stderr,
        )


def _described(config: Config, files: Mapping[str, str]) -> Predictor | None:
    """What predict.py would make of a run of this config with these files."""
    if config.task not in _MODELS:
        return None
    reads_text, has_labels, make = _MODELS[config.task]
    vocabulary, labels = None, ()
    try:
        if reads_text:
            vocabulary = Tokenizer.from_str(files[VOCABULARY_FILE])
        if has_labels:
            labels = tuple(json.loads(files[LABELS_FILE]))
        return _predictor(*make(config, vocabulary, labels))
    # Files and a config that no task has read: that of one's own arrays.
    except Exception:
        return None


def _predictor(model: Any, inputs: Array) -> Predictor:
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), inputs)["params"])
    if not isinstance(model, LanguageModel):
        return Predictor(
            lambda params, batch, carry: class_logits(model, params, batch),
            params,
            lambda size: (),
        )

    def carry(size: int) -> Any:
        first = jnp.zeros((size, 1), jnp.int32)
        return jax.eval_shape(
            lambda params: stream_logits(model, params, first, None)[0], params
        )

    return Predictor(
        lambda params, batch, carry: stream_logits(
            model, params, batch["inputs"], carry
        ),
        params,
        carry,
    )


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


def _tagger(config: Config, vocabulary: Any, labels: Any) -> tuple[Any, Array]:
    model = make_tagger(config.model, len(labels), vocabulary.get_vocab_size())
    return model, jnp.zeros((1, config.data.length), jnp.int32)


def _forecaster(config: Config, _: Any, __: Any) -> tuple[Any, Array]:
    model = make_classifier(config.model, config.data.horizon, vocab_size=None)
    return model, jnp.zeros((1, config.data.window, 1))


# Of each task: whether it reads text, whether it has labels, its model.
_MODELS: dict[str, tuple[bool, bool, Callable[..., tuple[Any, Array]]]] = {
    "next_word": (True, False, _next_word),
    "language_model": (True, False, _language_model),
    "classify_text": (True, True, _text_classifier),
    "classify_images": (False, True, _image_classifier),
    "tag": (True, True, _tagger),
    "regress": (False, False, _forecaster),
}
_ANSWERING = ("next_word", "language_model", "classify_text", "classify_images")


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

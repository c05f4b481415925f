"""A trained run answers: continuing text."""

import math
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from lstm_jax import workdirs
from lstm_jax.cells import Params
from lstm_jax.data.text import decode, encode, split_words
from lstm_jax.errors import UserError
from lstm_jax.generation import continue_window
from lstm_jax.models import SequenceClassifier
from lstm_jax.tasks import VOCABULARY_FILE, next_word_model


class NextWord(NamedTuple):
    """A trained next-word model, and what it needs to read and write words."""

    model: SequenceClassifier
    params: Params
    vocabulary: Tokenizer
    window: int


class Sampling(NamedTuple):
    """How the next word is chosen; see `lstm_jax.generation.continue_window`."""

    num_words: int = 32
    temperature: float = 0.0
    top_k: int = 0
    seed: int = 0


def load(workdir: str | Path, step: int | None = None) -> NextWord:
    """Loads the model of a run.

    Args:
      workdir: folder of the run.
      step: which checkpoint; None: the best if the run tracks one, else the last.

    Raises:
      UserError: the folder holds no run that continues text, or no such checkpoint.
    """
    config = workdirs.read_config(workdir)
    if config.task != "next_word":
        raise UserError(f"{workdir} is a run of task {config.task!r}: it has no words")
    path = Path(workdir) / VOCABULARY_FILE
    try:
        vocabulary = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises bare Exception
        raise UserError(
            f"{path} is missing or damaged ({error}): train again"
        ) from None
    if step is None:
        step = workdirs.answering_step(workdir, config.checkpoint.best or None)
    model = next_word_model(config, vocabulary)
    params = workdirs.load_params(workdir, step)
    window = jnp.zeros((1, config.data.window), jnp.int32)
    wanted = jax.eval_shape(lambda: model.init(jax.random.key(0), window)["params"])
    if jax.tree.map(jnp.shape, params) != jax.tree.map(jnp.shape, wanted):
        raise UserError(
            f"the checkpoint of step {step} in {workdir} is of another model than its "
            "config.json describes: restore that file, or train again"
        )
    return NextWord(model, params, vocabulary, config.data.window)


def check_sampling(sampling: Sampling) -> None:
    """Raises a `UserError` where a value is out of range."""
    for name, value, least in (
        ("num_words", sampling.num_words, 1),
        ("temperature", sampling.temperature, 0),
        ("top_k", sampling.top_k, 0),
        ("seed", sampling.seed, 0),
    ):
        if not least <= value < math.inf:
            raise UserError(f"--{name}={value} must be finite and at least {least}")
    if sampling.seed >= 2**32:
        raise UserError(f"--seed={sampling.seed} must be below 2**32")


def continue_text(run: NextWord, text: str, sampling: Sampling) -> str:
    """The text's words, and the words that follow.

    Raises:
      UserError: the text has too few words, or one not in the vocabulary.
    """
    words = split_words(text)
    if len(words) < run.window:
        raise UserError(
            f"{len(words)} words given: the model reads {run.window} (punctuation "
            "counts, each run of it as a word)"
        )
    ids = encode(run.vocabulary, words)
    added = continue_window(
        run.model,
        run.params,
        jnp.asarray(ids[-run.window :]),
        num_words=sampling.num_words,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        key=jax.random.key(sampling.seed),
    )
    return decode(run.vocabulary, np.concatenate([ids, added]))


def converse(run: NextWord, sampling: Sampling) -> None:
    """Asks for words and continues them, until the end of input or Ctrl-C."""
    while True:
        try:
            text = input(f"{run.window} words: ")
            print(continue_text(run, text, sampling))
        except UserError as error:
            print(error)
        except (EOFError, KeyboardInterrupt):
            print()
            return

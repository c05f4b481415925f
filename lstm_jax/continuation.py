"""A trained run continues text."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from lstm_jax.data import reviews
from lstm_jax.data.reviews import START
from lstm_jax.data.streams import decode_stream, until_start
from lstm_jax.data.text import decode, encode, split_words
from lstm_jax.errors import UserError
from lstm_jax.generation import continue_stream, continue_window
from lstm_jax.prediction import Run


class Sampling(NamedTuple):
    """How the next word is chosen; see `lstm_jax.generation.continue_window`."""

    num_words: int = 32
    temperature: float = 0.0
    top_k: int = 0
    seed: int = 0


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
    if sampling.top_k and not sampling.temperature:
        raise UserError(
            f"--top_k={sampling.top_k} is of words drawn at random: give a "
            "--temperature above 0"
        )
    if sampling.seed >= 2**32:
        raise UserError(f"--seed={sampling.seed} must be below 2**32")


def check_prompt(run: Run, text: str) -> None:
    """Raise a `UserError` for a text that `continue_text` refuses."""
    check_text(text)
    if run.config.task != "language_model":
        _window_ids(run, text)


def continue_text(run: Run, text: str, sampling: Sampling) -> str:
    """The text's words, and the words that follow.

    Raises:
      UserError: the text has too few words, or one not in the vocabulary.
    """
    check_text(text)
    if run.config.task == "language_model":
        return _continue_stream(run, text, sampling)
    assert run.vocabulary is not None
    window, ids = run.config.data.window, _window_ids(run, text)
    added = continue_window(
        run.model,
        run.params,
        jnp.asarray(ids[-window:]),
        num_words=sampling.num_words,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        key=jax.random.key(sampling.seed),
    )
    return decode(run.vocabulary, np.concatenate([ids, added]))


def _window_ids(run: Run, text: str) -> Int[np.ndarray, " words"]:
    assert run.vocabulary is not None
    window, words = run.config.data.window, split_words(text, run.vocabulary.normalizer)
    if len(words) < window:
        raise UserError(
            f"the model reads {window} words, and {len(words)} are given (punctuation "
            "counts, each run of it as a word)"
        )
    return encode(run.vocabulary, words)


def _continue_stream(run: Run, text: str, sampling: Sampling) -> str:
    """From the start of a text; a word not in the vocabulary is read as unknown."""
    assert run.vocabulary is not None
    ids = reviews.encode_texts(run.vocabulary, [text]).ids
    prompt = np.concatenate([[START], ids]).astype(np.int32)
    added = continue_stream(
        run.model,
        run.params,
        jnp.asarray(prompt),
        num_words=sampling.num_words,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        key=jax.random.key(sampling.seed),
    )
    whole = np.concatenate([ids, until_start(np.asarray(added))])
    return decode_stream(run.vocabulary, whole.tolist(), run.config.data.level)


def check_text(text: str) -> None:
    """Raises a `UserError` for what Python makes of bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError("this text is not UTF-8: convert it, or type it") from None

"""Continuing text: one jitted loop."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lstm_jax.cells import Params
from lstm_jax.data.reviews import PAD, START, UNKNOWN
from lstm_jax.models import LanguageModel, SequenceClassifier


@functools.partial(jax.jit, static_argnames=("model", "num_words", "top_k"))
def continue_window(
    model: SequenceClassifier,
    params: Params,
    window: Int[Array, " size"],
    *,
    num_words: int,
    temperature: Float[Array, ""] | float = 0.0,
    top_k: int = 0,
    key: PRNGKeyArray | None = None,
) -> Int[Array, " num_words"]:
    """Words that follow a window, each predicted from the window before it.

    Args:
      model: gives logits [B, V] of windows [B, size].
      params: its parameters.
      window: the symbols to begin with.
      num_words: how many to add.
      temperature: 0 takes the likeliest word; above, words are drawn from the
        softmax of logits / temperature.
      top_k: draw from the k likeliest words only; 0: from all.
      key: randomness of the draws; None: that of seed 0.

    Returns:
      The added symbols.
    """
    key = jax.random.key(0) if key is None else key

    def step(
        window: Int[Array, " size"], key: PRNGKeyArray
    ) -> tuple[Int[Array, " size"], Int[Array, ""]]:
        logits = model.apply({"params": params}, jnp.expand_dims(window, 0))
        assert isinstance(logits, jax.Array)
        word = _choose(logits[0], temperature, top_k, key).astype(window.dtype)
        return jnp.append(window[1:], word), word

    return jax.lax.scan(step, window, jax.random.split(key, num_words))[1]


@functools.partial(jax.jit, static_argnames=("model", "num_words", "top_k"))
def continue_stream(
    model: LanguageModel,
    params: Params,
    prompt: Int[Array, " size"],
    *,
    num_words: int,
    temperature: Float[Array, ""] | float = 0.0,
    top_k: int = 0,
    key: PRNGKeyArray | None = None,
) -> Int[Array, " num_words"]:
    """Symbols that follow a prompt, the carry handed from each to the next.

    Args:
      model: gives logits of the next symbol.
      params: its parameters.
      prompt: the symbols to begin with; a `START` forgets all before it, here and
        among what is added.
      num_words: how many to add.
      temperature: as in `continue_window`.
      top_k: as in `continue_window`.
      key: randomness of the draws; None: that of seed 0.

    Returns:
      The added symbols, neither `PAD` nor `UNKNOWN`; `START` ends a text.
    """
    key = jax.random.key(0) if key is None else key

    def read(
        symbols: Int[Array, " size"], carry: Any = None
    ) -> tuple[Any, Float[Array, " V"]]:
        (carry, logits), _ = model.apply(
            {"params": params},
            symbols[None],
            carry,
            resets=(symbols == START)[None],
            mutable=[],
        )
        return carry, logits[0, -1]

    def step(
        state: tuple[Any, Float[Array, " V"]], key: PRNGKeyArray
    ) -> tuple[Any, Int[Array, ""]]:
        carry, logits = state
        # What a person would not write.
        logits = logits.at[jnp.array([PAD, UNKNOWN])].set(-jnp.inf)
        word = _choose(logits, temperature, top_k, key).astype(prompt.dtype)
        return read(word[None], carry), word

    return jax.lax.scan(step, read(prompt), jax.random.split(key, num_words))[1]


def _choose(
    logits: Float[Array, " V"],
    temperature: Float[Array, ""] | float,
    top_k: int,
    key: PRNGKeyArray,
) -> Int[Array, ""]:
    # Sorted, ties by number: the first is the likeliest.
    likeliest, words = jax.lax.top_k(
        logits, min(top_k or logits.shape[0], logits.shape[0])
    )
    # The maximum keeps the division finite where the draw is not used.
    drawn = jax.random.categorical(key, likeliest / jnp.maximum(temperature, 1e-6))
    return words[jnp.where(temperature > 0, drawn, 0)]

"""Continuing text: one jitted loop."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lstm_jax.cells import Params
from lstm_jax.models import SequenceClassifier


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
      key: randomness of the draws; needed where the temperature is above 0.

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


def _choose(
    logits: Float[Array, " V"],
    temperature: Float[Array, ""] | float,
    top_k: int,
    key: PRNGKeyArray,
) -> Int[Array, ""]:
    greedy = jnp.argmax(logits)
    if 0 < top_k < logits.shape[0]:
        floor = jax.lax.top_k(logits, top_k)[0][-1]
        logits = jnp.where(logits >= floor, logits, -jnp.inf)
    # The maximum keeps the division finite where the draw is not used.
    drawn = jax.random.categorical(key, logits / jnp.maximum(temperature, 1e-6))
    return jnp.where(temperature > 0, drawn, greedy)

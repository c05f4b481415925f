"""The next symbol at every step, the carry handed from batch to batch."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree
from tokenizers import Tokenizer

from lstm_jax.cells import Params
from lstm_jax.config import Config
from lstm_jax.data.fingerprint import fingerprint
from lstm_jax.data.reviews import START
from lstm_jax.data.streams import (
    NO_TARGET,
    decode_stream,
    read_streams,
    rows,
    until_start,
)
from lstm_jax.errors import UserError
from lstm_jax.generation import continue_stream
from lstm_jax.model_config import make_language_model
from lstm_jax.models import LanguageModel
from lstm_jax.summary import summarize
from lstm_jax.tasks.classification import class_losses, class_sums
from lstm_jax.tasks.task import VOCABULARY_FILE, Examples, Sums, Task


def language_model(config: Config, stored: Tokenizer | None = None) -> Task:
    """A stream of words or characters; truncated backpropagation through time.

    Args:
      config: of the run.
      stored: the vocabulary of a run that goes on, whose spelling is kept.

    Raises:
      UserError: the text or a field of the config is no use.
    """
    data, batch_size = config.data, config.batch_size
    if data.length < 1:
        raise UserError(f"data.length={data.length} must be at least 1")
    streams = read_streams(data, stored)
    model = make_language_model(config.model, streams.vocabulary.get_vocab_size())
    train, held_out = (
        rows(stream, batch_size, data.length)
        for stream in (streams.train, streams.held_out)
    )
    first = jnp.asarray(train["inputs"][:1])
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), first)["params"])

    def loss(
        params: Params,
        examples: Examples,
        weight: Float[Array, " B"],
        key: PRNGKeyArray | None,
        carry: PyTree,
    ) -> tuple[Sums, PyTree]:
        del weight  # every row is real; what pads its end has no target
        carry, logits = stream_logits(model, params, examples["inputs"], carry, key)
        targets = examples["targets"]
        known = (targets != NO_TARGET).astype(logits.dtype)
        losses, hits = class_losses(logits, jnp.maximum(targets, 0))
        return class_sums(known, losses, hits), carry

    def carry(batch_size: int) -> PyTree:
        inputs = jnp.zeros((batch_size, 1), jnp.int32)
        carries = jax.eval_shape(
            lambda params: stream_logits(model, params, inputs, None)[0], shapes
        )
        return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), carries)

    def demonstrate(params: Params) -> str:
        ids = continue_stream(
            model, params, jnp.array([START]), num_words=40, temperature=0.7
        )
        said = until_start(np.asarray(ids)).tolist()
        return decode_stream(streams.vocabulary, said, data.level)

    return Task(
        init=lambda key: dict(model.init(key, first)["params"]),
        loss=loss,
        examples=(train,),
        order=np.arange(len(train["inputs"])),
        splits={"held_out": (held_out,)},
        carry=carry,
        summary=summarize(model, first),
        files={
            VOCABULARY_FILE: streams.vocabulary.to_str(pretty=True),
            "data.sha256": fingerprint(streams.train, streams.held_out) + "\n",
        },
        finish=with_perplexity,
        demonstrate=demonstrate,
    )


def stream_logits(
    model: LanguageModel,
    params: Params,
    inputs: Any,
    carry: PyTree,
    key: PRNGKeyArray | None = None,
) -> tuple[PyTree, Float[Array, "B T V"]]:
    """The carry after the inputs [B, T], and logits; a START forgets all before it."""
    (carry, logits), _ = model.apply(
        {"params": params},
        inputs,
        carry,
        resets=inputs == START,
        deterministic=key is None,
        rngs={} if key is None else {"dropout": key},
        mutable=[],
    )
    return carry, logits


def with_perplexity(means: dict[str, float]) -> dict[str, float]:
    """Adds the perplexity: e to the loss, which is in nats a symbol."""
    try:
        perplexity = math.exp(means["loss"])
    except OverflowError:
        perplexity = math.inf
    return {**means, "perplexity": perplexity}

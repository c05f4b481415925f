"""Recurrent networks in JAX: pure-function cells and a fast loop over time."""

from lstm_jax.cells import (
    Cell,
    HiddenCarry,
    LSTMCarry,
    Noise,
    gated,
    gru,
    lstm,
    simple_rnn,
)
from lstm_jax.unroll import unroll

__all__ = [
    "Cell",
    "HiddenCarry",
    "LSTMCarry",
    "Noise",
    "gated",
    "gru",
    "lstm",
    "simple_rnn",
    "unroll",
]

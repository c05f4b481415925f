"""Recurrent networks in JAX: pure-function cells and a fast loop over time."""

from typing import TYPE_CHECKING, Any

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
from lstm_jax.parallel import min_gru, min_lstm
from lstm_jax.unroll import unroll
from lstm_jax.zoo import SLSTMCarry, indrnn, mgu, slstm

if TYPE_CHECKING:
    from lstm_jax.training import fit

__all__ = [
    "Cell",
    "HiddenCarry",
    "LSTMCarry",
    "Noise",
    "SLSTMCarry",
    "fit",
    "gated",
    "gru",
    "indrnn",
    "lstm",
    "mgu",
    "min_gru",
    "min_lstm",
    "simple_rnn",
    "slstm",
    "unroll",
]


def __getattr__(name: str) -> Any:
    # Cells need neither Flax nor Orbax, whose import takes seconds.
    if name == "fit":
        from lstm_jax.training import fit

        return fit
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__

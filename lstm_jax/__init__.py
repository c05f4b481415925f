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
from lstm_jax.unroll import unroll

if TYPE_CHECKING:
    from lstm_jax.training import fit

__all__ = [
    "Cell",
    "HiddenCarry",
    "LSTMCarry",
    "Noise",
    "fit",
    "gated",
    "gru",
    "lstm",
    "simple_rnn",
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

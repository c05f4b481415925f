"""Keras: `LSTM`, `GRU` (both variants) and `SimpleRNN`.

One bias, as here. The GRU's gates are z, r, h (here n), and where the reset comes after
the product its bias has two rows, the input's and the recurrent one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lstm_jax.cells import Params
from lstm_jax.convert.weights import (
    Weights,
    check,
    check_cell,
    copied,
    join,
    own_params,
    params_shapes,
    reordered,
    size,
)
from lstm_jax.errors import UserError

CELLS = ("lstm", "gru", "gru(reset_after=False)", "simple_rnn")
GATE_ORDERS = {
    "lstm": "i f c o",
    "gru": "z r h",
    "gru(reset_after=False)": "z r h",
    "simple_rnn": "-",
}
NAMES = ("kernel", "recurrent_kernel", "bias")
KEY = "recurrent_kernel"  # a name that nothing else in a model has


def from_keras(weights: Mapping[str, Any] | Sequence[Any], cell: str) -> Params:
    """Parameters of a cell from a Keras layer's weights.

    Args:
      weights: kernel, recurrent kernel and bias, by these names or in this order, as
        `layer.get_weights()` gives them; of a `Bidirectional` its first three or last
        three. A layer without bias (`use_bias=False`) gets one of zeros.
      cell: `lstm`, `gru`, `gru(reset_after=False)` or `simple_rnn`.

    Raises:
      UserError: arrays that are not those of such a layer.
    """
    check_cell(cell, CELLS, "Keras")
    if isinstance(weights, Sequence):
        if len(weights) > len(NAMES):
            raise UserError(
                f"{len(weights)} arrays where one direction of one layer has "
                f"{len(NAMES)}: {', '.join(NAMES)}"
            )
        weights = dict(zip(NAMES, weights, strict=False))
    arrays = copied(weights)
    features, hidden = (size(arrays, name, 0) for name in NAMES[:2])
    shapes = params_shapes(cell, features, hidden)
    both = shapes.pop("recurrent_bias", None) is not None
    shapes["bias"] = (2, *shapes["bias"]) if both else shapes["bias"]
    if "bias" not in arrays:
        xp = arrays["kernel"].__array_namespace__()
        arrays["bias"] = xp.zeros(shapes["bias"], arrays["kernel"].dtype)
    check(arrays, shapes, f"of Keras's {cell}")
    arrays = _swapped(arrays, cell)
    if both:
        arrays["bias"], arrays["recurrent_bias"] = arrays["bias"]
    return arrays


def to_keras(params: Mapping[str, Any], cell: str) -> Weights:
    """A Keras layer's weights from parameters of a cell.

    Their values are in the order that `layer.set_weights` takes.

    Raises:
      UserError: parameters that are not this cell's.
    """
    check_cell(cell, CELLS, "Keras")
    arrays = own_params(params, cell)
    if "recurrent_bias" in arrays:
        rows = [arrays["bias"][None], arrays.pop("recurrent_bias")[None]]
        arrays["bias"] = join(rows, axis=0)
    arrays = _swapped(arrays, cell)
    return {name: arrays[name] for name in NAMES}


def _swapped(arrays: Weights, cell: str) -> Weights:
    """r, z, n to z, r, n, and back."""
    if not cell.startswith("gru"):
        return arrays
    return {name: reordered(array, (1, 0, 2)) for name, array in arrays.items()}

"""TensorFlow 1: `BasicLSTMCell`, `GRUCell` and `BasicRNNCell` of `tf.nn.rnn_cell`.

One kernel takes inputs and state, [x; h]. The LSTM's gates are i, j (here g), f, o, and
its forward pass adds `forget_bias` to f: here that is part of the bias. The GRU's reset
comes before the product; its candidate has a kernel of its own.
"""

from collections.abc import Mapping
from typing import Any

from lstm_jax.cells import Params
from lstm_jax.convert.weights import (
    GATES,
    Weights,
    blocks,
    check,
    check_cell,
    copied,
    join,
    own_params,
    reordered,
    size,
)
from lstm_jax.errors import UserError

CELLS = ("lstm", "gru(reset_after=False)", "simple_rnn")
GATE_ORDERS = {
    "lstm": "i j f o",
    "gru(reset_after=False)": "r u, candidate",
    "simple_rnn": "-",
}
KEYS = {
    "lstm": "kernel",
    "gru(reset_after=False)": "gates/kernel",
    "simple_rnn": "kernel",
}
_TO_OURS = (0, 2, 1, 3)  # i j f o to i f g o, and back


def from_tf1(weights: Mapping[str, Any], cell: str, forget_bias: float = 1.0) -> Params:
    """Parameters of a cell here from the variables of a TF1 cell.

    Args:
      weights: `kernel` and `bias`; of a GRU `gates/kernel`, `gates/bias`,
        `candidate/kernel` and `candidate/bias`.
      cell: `lstm`, `gru(reset_after=False)` or `simple_rnn`.
      forget_bias: what the LSTM's forward pass adds to its forget gate; it is added to
        the bias, which rounds.

    Raises:
      UserError: arrays that are not those of such a cell.
    """
    check_cell(cell, CELLS, "TensorFlow 1")
    arrays = copied(weights)
    parts = (
        {"gates": 2, "candidate": 1} if cell.startswith("gru") else {"": GATES[cell]}
    )
    names = [f"{part}/" if part else "" for part in parts]
    rows = size(arrays, f"{names[0]}kernel", 0)
    columns = size(arrays, f"{names[0]}kernel", 1)
    hidden, rest = divmod(columns, next(iter(parts.values())))
    if rest or rows <= hidden:
        raise UserError(
            f"{names[0]}kernel is {[rows, columns]}, which is not [inputs + "
            f"units, {next(iter(parts.values()))} units] of TensorFlow 1's {cell}"
        )
    shapes: dict[str, tuple[int, ...]] = {}
    for name, count in zip(names, parts.values(), strict=True):
        shapes[f"{name}kernel"] = (rows, count * hidden)
        shapes[f"{name}bias"] = (count * hidden,)
    check(arrays, shapes, f"of TensorFlow 1's {cell}")
    kernel = join([arrays[f"{name}kernel"] for name in names])
    bias = join([arrays[f"{name}bias"] for name in names])
    if cell == "lstm":
        kernel, bias = reordered(kernel, _TO_OURS), reordered(bias, _TO_OURS)
        bias = _with_forget_bias(bias, forget_bias)
    inputs = rows - hidden
    return {
        "kernel": kernel[:inputs],
        "recurrent_kernel": kernel[inputs:],
        "bias": bias,
    }


def to_tf1(params: Mapping[str, Any], cell: str, forget_bias: float = 1.0) -> Weights:
    """The variables of a TF1 cell from parameters of a cell here.

    Args:
      params: of the cell.
      cell: `lstm`, `gru(reset_after=False)` or `simple_rnn`.
      forget_bias: that the LSTM there is made with; it is taken off the bias, which
        rounds. With 0 both ways are exact.

    Raises:
      UserError: parameters that are not this cell's, or of a cell that TF1 has not.
    """
    check_cell(cell, CELLS, "TensorFlow 1")
    own = own_params(params, cell)
    kernel = join([own["kernel"], own["recurrent_kernel"]], axis=0)
    bias = own["bias"]
    if cell == "lstm":
        bias = _with_forget_bias(bias, -forget_bias)
        kernel, bias = reordered(kernel, _TO_OURS), reordered(bias, _TO_OURS)
    if not cell.startswith("gru"):
        return {"kernel": kernel, "bias": bias}
    *gates, candidate = blocks(kernel, 3)
    *gate_biases, candidate_bias = blocks(bias, 3)
    return {
        "gates/kernel": join(gates),
        "gates/bias": join(gate_biases),
        "candidate/kernel": candidate,
        "candidate/bias": candidate_bias,
    }


def _with_forget_bias(bias: Any, forget_bias: float) -> Any:
    i, f, g, o = blocks(bias, 4)
    return join([i, f + bias.dtype.type(forget_bias), g, o])

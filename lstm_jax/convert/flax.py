"""Flax Linen: `LSTMCell`, `OptimizedLSTMCell`, `GRUCell` and `SimpleCell`.

Each gate has kernels of its own, `i<gate>` and `h<gate>`, and one bias: on h of the
LSTM, on x of the GRU and the simple cell; the GRU's n has both. Here a `gru` has two
biases at r and z as well: on the way to Flax they are added.
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
    flat,
    join,
    own_params,
    size,
)

CELLS = ("lstm", "gru", "simple_rnn")
GATE_ORDERS = {
    "lstm": "a Dense a gate: i f g o",
    "gru": "a Dense a gate: r z n",
    "simple_rnn": "-",
}
# The gates in the order here, a name that each cell has, and where there is a bias.
_GATES = {"lstm": "ifgo", "gru": "rzn", "simple_rnn": ("",)}
KEYS = {"lstm": "hi/kernel", "gru": "hr/kernel", "simple_rnn": "h/kernel"}
_BIASED = {
    "lstm": ("hi", "hf", "hg", "ho"),
    "gru": ("ir", "iz", "in", "hn"),
    "simple_rnn": ("i",),
}


def from_flax(params: Mapping[str, Any], cell: str) -> Params:
    """Parameters of a cell here from those of a Linen cell.

    Args:
      params: of the cell, {"ii": {"kernel": ...}, ...}; of `nn.RNN` its "cell".
      cell: `lstm`, `gru` or `simple_rnn`.

    Raises:
      UserError: parameters that are not those of such a cell.
    """
    check_cell(cell, CELLS, "Flax")
    arrays = copied(flat(params))
    gates, biased = _GATES[cell], _BIASED[cell]
    features, hidden = (size(arrays, f"{at}{gates[0]}/kernel", 0) for at in "ih")
    shapes: dict[str, tuple[int, ...]] = {}
    for side, width in (("i", features), ("h", hidden)):
        shapes |= {f"{side}{gate}/kernel": (width, hidden) for gate in gates}
    shapes |= {f"{dense}/bias": (hidden,) for dense in biased}
    check(arrays, shapes, f"of Flax's {cell}")

    def kernel(side: str) -> Any:
        return join([arrays[f"{side}{gate}/kernel"] for gate in gates])

    on = biased[0][0]  # the side of the bias that every gate has
    bias = join([arrays[f"{on}{gate}/bias"] for gate in gates])
    taken = {"kernel": kernel("i"), "recurrent_kernel": kernel("h"), "bias": bias}
    if cell == "gru":
        last = arrays["hn/bias"]
        taken["recurrent_bias"] = join([0 * last, 0 * last, last])
    return taken


def to_flax(params: Mapping[str, Any], cell: str) -> Params:
    """Parameters of a Linen cell from those of a cell here.

    Raises:
      UserError: parameters that are not this cell's, or of a cell that Flax has not.
    """
    check_cell(cell, CELLS, "Flax")
    own = own_params(params, cell)
    count, bias = GATES[cell], own["bias"]
    recurrent = own.get("recurrent_bias")
    if recurrent is not None:
        r, z, last = blocks(recurrent, count)
        bias = bias + join([r, z, 0 * last])
    tree: dict[str, Weights] = {}
    for side, name in (("i", "kernel"), ("h", "recurrent_kernel")):
        for gate, array in zip(_GATES[cell], blocks(own[name], count), strict=True):
            tree[f"{side}{gate}"] = {"kernel": array}
    for dense, array in zip(_BIASED[cell], blocks(bias, count), strict=False):
        tree[dense]["bias"] = array
    if recurrent is not None:
        tree["hn"]["bias"] = last
    return tree

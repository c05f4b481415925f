"""PyTorch: `nn.LSTM`, `nn.GRU` and `nn.RNN`, with any number of layers.

Gates are in the order of this package; kernels are transposed. A gate has two biases:
the one here is their sum, and goes back as `bias_ih` beside a `bias_hh` of zeros. (A
`gru` has both here as well.) PyTorch trains the two, so that their sum moves twice as
far a step of SGD as the one here.
"""

import itertools
import re
from collections.abc import Mapping
from typing import Any

from lstm_jax.cells import Params
from lstm_jax.convert.stacks import stacked, unstacked
from lstm_jax.convert.weights import (
    GATES,
    Weights,
    check,
    check_cell,
    check_names,
    copied,
    own_params,
    size,
)
from lstm_jax.errors import UserError

CELLS = ("lstm", "gru", "simple_rnn")
GATE_ORDERS = {"lstm": "i f g o", "gru": "r z n", "simple_rnn": "-"}
_NAME = re.compile(r"(weight_ih|weight_hh|bias_ih|bias_hh|\w+?)_l(\d+)(_reverse)?")


def from_torch(state_dict: Mapping[str, Any], cell: str, prefix: str = "") -> Params:
    """Parameters of `lstm_jax.layers.Stack` from a module's `state_dict`.

    Those of the first layer's `Recurrent` or `Bidirectional` are its "layer_0", those
    of its cell, for `lstm_jax.unroll`, its ["layer_0"]["cell"].

    Args:
      state_dict: arrays, or tensors in the memory of the CPU, by name. Modules
        without biases (`bias=False`) get biases of zeros.
      cell: `lstm`, `gru` or `simple_rnn`.
      prefix: the module's name in a larger one and a dot ("encoder."); names that
        begin otherwise are left out.

    Raises:
      UserError: arrays that are not those of such a module: with projections, of
        another cell, or a GRU whose reset comes before the product.
    """
    check_cell(cell, CELLS, "PyTorch")
    check_names(state_dict)
    directions: dict[tuple[int, bool], Weights] = {}
    for name, array in state_dict.items():
        if not name.startswith(prefix):
            continue
        match = _NAME.fullmatch(name.removeprefix(prefix))
        if match is None:
            raise UserError(f"{name} is no weight of {cell} {_hint(state_dict)}")
        at = int(match[2]), match[3] is not None
        directions.setdefault(at, {})[match[1]] = array
    if not directions:
        raise UserError(f"no name begins with {prefix!r} {_hint(state_dict)}")
    layers = 1 + max(layer for layer, _ in directions)
    bidirectional = any(reverse for _, reverse in directions)

    cells = []
    for at in itertools.product(range(layers), (False, True)[: 1 + bidirectional]):
        try:
            cells.append(_from_cell(directions.get(at, {}), cell))
        except UserError as error:
            raise UserError(f"{prefix}*{_suffix(*at)}: {error}") from None
    return stacked(cells, bidirectional)


def to_torch(params: Mapping[str, Any], cell: str, prefix: str = "") -> Weights:
    """A module's `state_dict`, as arrays, from parameters of `lstm_jax.layers.Stack`.

    Args:
      params: of a `Stack`; {"layer_0": params} of a `Recurrent` or `Bidirectional`.
      cell: `lstm`, `gru` or `simple_rnn`.
      prefix: what the names begin with.

    Raises:
      UserError: parameters that are not those of such layers, or of a cell that
        PyTorch has not.
    """
    check_cell(cell, CELLS, "PyTorch")
    cells, bidirectional = unstacked(params)
    state_dict = {}
    for i, own in enumerate(cells):
        layer, reverse = divmod(i, 2) if bidirectional else (i, 0)
        for name, array in _to_cell(own, cell).items():
            state_dict[f"{prefix}{name}{_suffix(layer, bool(reverse))}"] = array
    return state_dict


def _suffix(layer: int, reverse: bool) -> str:
    return f"_l{layer}{'_reverse' * reverse}"


def _from_cell(weights: Weights, cell: str) -> Params:
    weights = copied(weights)
    features, hidden = (size(weights, name, 1) for name in ("weight_ih", "weight_hh"))
    shapes = _shapes(cell, features, hidden)
    if not {"bias_ih", "bias_hh"} & weights.keys():
        xp = weights["weight_hh"].__array_namespace__()
        zeros = xp.zeros_like(weights["weight_hh"][:, 0])
        weights |= {"bias_ih": zeros, "bias_hh": zeros}
    check(weights, shapes, f"of PyTorch's {cell}")
    bias, recurrent_bias = weights["bias_ih"], weights["bias_hh"]
    both = cell == "gru"
    params = {
        "kernel": weights["weight_ih"].T,
        "recurrent_kernel": weights["weight_hh"].T,
        "bias": bias if both else bias + recurrent_bias,
    }
    return params | ({"recurrent_bias": recurrent_bias} if both else {})


def _to_cell(params: Params, cell: str) -> Weights:
    params = own_params(params, cell)
    bias = params["bias"]
    return {
        "weight_ih": params["kernel"].T,
        "weight_hh": params["recurrent_kernel"].T,
        "bias_ih": bias,
        "bias_hh": params.get("recurrent_bias", 0 * bias),
    }


def _shapes(cell: str, features: int, hidden: int) -> dict[str, tuple[int, ...]]:
    width = GATES[cell] * hidden
    return {
        "weight_ih": (width, features),
        "weight_hh": (width, hidden),
        "bias_ih": (width,),
        "bias_hh": (width,),
    }


def _hint(names: Mapping[str, Any]) -> str:
    """Which prefixes there are."""
    first = "weight_ih_l0"
    found = [repr(name.removesuffix(first)) for name in names if name.endswith(first)]
    if not found:
        return f"(no name ends with {first}: there is no recurrent module here)"
    if found == ["''"]:
        return "(its only module has no prefix: leave --prefix out)"
    return f"(choose the module by its prefix, of {', '.join(found)})"

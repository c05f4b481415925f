"""A stack of layers as a list of cells: parameters of `lstm_jax.layers.Stack`."""

from collections.abc import Mapping, Sequence
from typing import Any

from lstm_jax.cells import Params
from lstm_jax.convert.weights import check_names, listed
from lstm_jax.errors import UserError


def stacked(cells: Sequence[Params], bidirectional: bool) -> Params:
    """Parameters of a stack from those of its cells.

    Args:
      cells: of each layer; of a bidirectional one forward and backward.
      bidirectional: whether they are.

    Raises:
      UserError: sizes that do not fit each other.
    """
    directions = 1 + bidirectional
    given = None
    for i in range(0, len(cells), directions):
        layer, names = i // directions, ("kernel", "recurrent_kernel")
        sizes = [tuple(c[n].shape[0] for n in names) for c in cells[i : i + directions]]
        (inputs, hidden), *_ = sizes
        if len(set(sizes)) > 1:
            both = " and ".join(
                f"{width} inputs, {units} units" for width, units in sizes
            )
            raise UserError(f"layer {layer} has directions of different sizes: {both}")
        if given not in (None, inputs):
            raise UserError(
                f"layer {layer} takes {inputs} inputs where layer {layer - 1} gives "
                f"{given}: are these the layers of one stack, from the first to the "
                "last, and both directions of each?"
            )
        given = directions * hidden
    return placed(cells, bidirectional)


def placed(cells: Sequence[Params], bidirectional: bool) -> Params:
    """`stacked` of cells in any library's layout, unchecked."""
    layers: list[Params] = [{"cell": params} for params in cells]
    if bidirectional:
        pairs = zip(layers[::2], layers[1::2], strict=True)
        layers = [{"forward": there, "backward": back} for there, back in pairs]
    return {f"layer_{i}": layer for i, layer in enumerate(layers)}


def unstacked(params: Mapping[str, Any]) -> tuple[list[Params], bool]:
    """The cells of a stack, and whether it is bidirectional; undoes `stacked`.

    Raises:
      UserError: these are not the parameters of a stack.
    """
    check_names(params)
    if not params:
        raise UserError("no layers: give the parameters of a Stack")
    names = [f"layer_{i}" for i in range(len(params))]
    kinds = (["cell"], ["backward", "forward"])
    for name in names:
        if name not in params:
            raise UserError(
                f"there is no {name} among {listed(params)}: give the parameters of "
                "a Stack"
            )
        layer = params[name]
        if not isinstance(layer, Mapping) or sorted(layer) not in kinds:
            raise UserError(
                f"{name} holds neither a cell nor forward and backward: give the "
                "parameters of a Stack"
            )
    bidirectional = any("forward" in params[name] for name in names)
    layers = [params[name] for name in names]
    if bidirectional:
        if any("cell" in layer for layer in layers):
            raise UserError("some layers are bidirectional and some are not")
        layers = [layer[at] for layer in layers for at in ("forward", "backward")]
    if any(not isinstance(layer, Mapping) or "cell" not in layer for layer in layers):
        raise UserError("forward and backward hold no cell: give those of a Stack")
    return [layer["cell"] for layer in layers], bidirectional

"""A stack of layers as a list of cells: parameters of `lstm_jax.layers.Stack`."""

from collections.abc import Mapping, Sequence
from typing import Any

from lstm_jax.cells import Params
from lstm_jax.errors import UserError


def stacked(cells: Sequence[Params], bidirectional: bool) -> Params:
    """Parameters of a stack from those of its cells.

    Args:
      cells: of each layer; of a bidirectional one forward and backward.
      bidirectional: whether they are.
    """
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
    names = [f"layer_{i}" for i in range(len(params))]
    kinds = (["cell"], ["backward", "forward"])
    for name in names:
        if name not in params:
            raise UserError(
                f"there is no {name} among {', '.join(params)}: give the parameters of "
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
    if any("cell" not in layer for layer in layers):
        raise UserError("forward and backward hold no cell: give those of a Stack")
    return [layer["cell"] for layer in layers], bidirectional

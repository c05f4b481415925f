"""A run's cell, as its config writes it, beside the cell that weights convert as."""

import ast

from lstm_jax.convert.weights import GATES
from lstm_jax.errors import UserError

# Combinators that change nothing once a model is trained.
_DROPOUTS = ("drop_connect", "recurrent_dropout")
# Keywords that change where training begins, or how products are rounded.
_FREE = ("dtype", "forget_bias", "recurrent_init")
_DEFAULTS = {
    "activation": "tanh",
    "gate_activation": "sigmoid",
    "reset_after": "True",
    "peephole": "False",
    "coupled": "False",
}
# Which activations a library's cells can be told; of those that are not here, both.
_TOLD = {"torch": (), "tf1": ("activation",)}


def to_be_told(written: str, cell: str, library: str) -> list[str]:
    """What the library's cell must be told to compute as the run's does.

    >>> from lstm_jax.convert.written import to_be_told
    >>> to_be_told("lstm(activation=relu, forget_bias=2)", "lstm", "keras")
    ['activation=relu']

    Args:
      written: the run's `model.cell`.
      cell: that its weights are to convert as.
      library: one of `lstm_jax.convert.files.LIBRARIES`.

    Returns:
      Activations, which weights do not say.

    Raises:
      UserError: the cell there computes something else.
    """
    node = ast.parse(written.strip(), mode="eval").body
    while isinstance(node, ast.Call) and ast.unparse(node.func) in _DROPOUTS:
        node = node.args[0]
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    options = {str(word.arg): ast.unparse(word.value) for word in call.keywords}
    told = [
        f"{name}={value}"
        for name, value in options.items()
        if name not in _FREE and value != _DEFAULTS.get(name)
    ]
    name = ast.unparse(call.func)
    if "reset_after=False" in told:
        told.remove("reset_after=False")
        name = f"{name}(reset_after=False)"
    can = [f"{word}=" for word in _TOLD.get(library, ("activation", "gate_activation"))]
    if (library, cell) == ("torch", "simple_rnn"):
        can = ["activation=relu"]
    if call.args or name != cell or not all(t.startswith(tuple(can)) for t in told):
        raise UserError(
            f"the run's cell is {written}, which {library}'s {cell} does not compute: "
            f"--cell has to be its own, and that one of {', '.join(GATES)}"
        )
    return told

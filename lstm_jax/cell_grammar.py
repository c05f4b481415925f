"""Cells by name: `lstm`, `gru(reset_after=False)`, `lstm(activation=relu)`.

A small grammar, read with Python's parser and never evaluated: a cell's name, or a
call of it with keywords, whose values are numbers, True, False, None, or the name of
an activation or a type.
"""

import ast
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lstm_jax.cells import Cell, gru, lstm, simple_rnn
from lstm_jax.errors import UserError

CELLS: dict[str, Callable[..., Cell]] = {
    "simple_rnn": simple_rnn,
    "lstm": lstm,
    "gru": gru,
}
NAMES: dict[str, Any] = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "bfloat16": jnp.bfloat16,
    "float32": jnp.float32,
}


def parse_cell(text: str, hidden_size: int) -> Cell:
    """Makes the cell that a config names.

    >>> from lstm_jax.cell_grammar import parse_cell
    >>> cell = parse_cell("gru(reset_after=False)", hidden_size=8)

    Args:
      text: the cell.
      hidden_size: its number of hidden units.

    Raises:
      UserError: the text does not parse, or names what does not exist.
    """
    form = 'write a cell as "lstm" or "gru(reset_after=False)"'
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        raise UserError(f"model.cell={text!r} does not parse: {form}") from None
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    if not isinstance(call.func, ast.Name) or call.args:
        raise UserError(f"model.cell={text!r} is no cell with keywords: {form}")
    name = call.func.id
    if name not in CELLS:
        raise UserError(f"unknown cell {name!r}: choose one of {', '.join(CELLS)}")
    if any(word.arg is None for word in call.keywords):
        raise UserError(f"model.cell={text!r} is no cell with keywords: {form}")
    options = {str(word.arg): _value(word.value, text) for word in call.keywords}
    try:
        return CELLS[name](hidden_size, **options)
    except TypeError:
        raise UserError(
            f"model.cell={text!r}: {name} takes {', '.join(_keywords(CELLS[name]))}"
        ) from None
    except ValueError as error:
        raise UserError(f"model.cell={text!r}: {error}") from None


def _keywords(cell: Callable[..., Cell]) -> list[str]:
    """The keywords of a cell that this grammar can write."""
    own = list(inspect.signature(cell).parameters)[1:-1]
    return [word for word in [*own, "recurrent_init", "dtype"] if word != "bias_init"]


def _value(node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.Name) and node.id in NAMES:
        return NAMES[node.id]
    try:
        value = ast.literal_eval(node)
    except ValueError:
        value = node
    if value is None or isinstance(value, bool | int | float):
        return value
    raise UserError(
        f"model.cell={text!r}: {ast.unparse(node)} is neither a number, True, False "
        f"or None, nor one of {', '.join(NAMES)}"
    )

"""Cells by name: `lstm`, `gru(reset_after=False)`, `lstm(activation=relu)`.

A small grammar, read with Python's parser and never evaluated: a cell's name, or a
call of it with keywords, whose values are numbers, True, False, None, or the name of
an activation or a type: each keyword has its own.
"""

import ast
import inspect
import math
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
ACTIVATIONS: dict[str, Any] = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
    "hard_sigmoid": jax.nn.hard_sigmoid,
}
# What a keyword may be, as it is written; one that is not here takes a number.
VALUES: dict[str, dict[str, Any]] = {
    "activation": ACTIVATIONS,
    "gate_activation": ACTIVATIONS,
    "reset_after": {"True": True, "False": False},
    "recurrent_init": {"None": None},
    "dtype": {"bfloat16": jnp.bfloat16, "float32": jnp.float32, "None": None},
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
    text = text.strip()
    try:
        node = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):  # of long texts
        raise UserError(f"model.cell={text!r} does not parse: {form}") from None
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    if not isinstance(call.func, ast.Name) or call.args:
        raise UserError(f"model.cell={text!r} is no cell with keywords: {form}")
    name = call.func.id
    if name not in CELLS:
        raise UserError(f"unknown cell {name!r}: choose one of {', '.join(CELLS)}")
    keywords = _keywords(CELLS[name])
    if any(word.arg not in keywords for word in call.keywords):
        raise UserError(f"model.cell={text!r}: {name} takes {', '.join(keywords)}")
    names = [word.arg for word in call.keywords]
    if len(set(names)) < len(names):
        raise UserError(f"model.cell={text!r} gives a keyword twice")
    options = {str(word.arg): _value(word, text) for word in call.keywords}
    try:
        return CELLS[name](hidden_size, **options)
    except ValueError as error:
        raise UserError(f"model.cell={text!r}: {error}") from None


def _keywords(cell: Callable[..., Cell]) -> list[str]:
    """The keywords of a cell that this grammar can write."""
    own = list(inspect.signature(cell).parameters)[1:-1]
    return [word for word in [*own, "recurrent_init", "dtype"] if word != "bias_init"]


def _value(word: ast.keyword, text: str) -> Any:
    written = ast.get_source_segment(text, word.value) or ""
    values = VALUES.get(str(word.arg))
    if values is not None:
        if written in values:
            return values[written]
        raise UserError(
            f"model.cell={text!r}: {word.arg} is one of {', '.join(values)}"
        )
    try:
        number = float(written)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"model.cell={text!r}: {word.arg} is a number")
    return number

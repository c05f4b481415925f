"""Cells by name: `lstm`, `gru(reset_after=False)`, `layer_norm(zoneout(lstm, 0.1))`.

A small grammar, read with Python's parser and never evaluated: a cell's name, or a
call of it with keywords, whose values are numbers, True, False, None, or the name of
an activation or a type: each keyword has its own. A combinator is a call with a cell,
of `stack` several, and then its numbers, by place or by keyword.
"""

import ast
import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lstm_jax import combinators
from lstm_jax.cells import Cell, gru, lstm, simple_rnn
from lstm_jax.errors import UserError
from lstm_jax.parallel import min_gru, min_lstm
from lstm_jax.zoo import indrnn, mgu, slstm

CELLS: dict[str, Callable[..., Cell]] = {
    cell.__name__: cell
    for cell in (simple_rnn, lstm, gru, mgu, indrnn, slstm, min_gru, min_lstm)
}
# Those without a recurrent kernel [H, G * H], so without a way to begin one.
_NO_RECURRENT_KERNEL = ("indrnn", "min_gru", "min_lstm")
COMBINATORS: dict[str, Callable[..., Cell]] = {
    name: getattr(combinators, name) for name in combinators.__all__
}
_WHOLE_NUMBERS = ("size", "heads")
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
    "peephole": {"True": True, "False": False},
    "coupled": {"True": True, "False": False},
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
    text = text.strip()
    if ".py" in text:
        raise UserError(
            f"model.cell={text!r}: a config names cells of this package and runs no "
            "file; train a cell of your own by lstm_jax.fit (docs/new_cell.md), see "
            "what it does by lab.py"
        )
    try:
        node = ast.parse(text, mode="eval").body
        return _cell(node, text, hidden_size)
    except (SyntaxError, MemoryError, RecursionError):  # of long texts
        raise UserError(f"model.cell={text!r} does not parse: {_FORM}") from None
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"model.cell={text!r}: {error}") from None


_FORM = 'write a cell as "lstm", "gru(reset_after=False)" or "zoneout(lstm, 0.1)"'


def _cell(node: ast.expr, text: str, hidden_size: int) -> Cell:
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    if not isinstance(call.func, ast.Name):
        raise UserError(f"model.cell={text!r} is no cell with keywords: {_FORM}")
    name = call.func.id
    names = [word.arg for word in call.keywords]
    if len(set(names)) < len(names):
        raise UserError(f"model.cell={text!r} gives a keyword twice")
    if name in COMBINATORS:
        return _combined(call, name, text, hidden_size)
    if name not in CELLS:
        known = ", ".join([*CELLS, *COMBINATORS])
        raise UserError(f"unknown cell {name!r}: choose one of {known}")
    if call.args:
        raise UserError(f"model.cell={text!r} is no cell with keywords: {_FORM}")
    keywords = _keywords(name)
    if any(word not in keywords for word in names):
        raise UserError(f"model.cell={text!r}: {name} takes {', '.join(keywords)}")
    options = {str(word.arg): _value(word, text) for word in call.keywords}
    return CELLS[name](hidden_size, **options)


def _combined(call: ast.Call, name: str, text: str, hidden_size: int) -> Cell:
    """A combinator's cells, and its numbers."""
    first, *numbers = inspect.signature(COMBINATORS[name]).parameters.values()
    several = first.kind is inspect.Parameter.VAR_POSITIONAL
    cells = call.args if several else call.args[:1]
    given = [
        ast.keyword(parameter.name, value)
        for parameter, value in zip(numbers, call.args[len(cells) :], strict=False)
    ] + call.keywords
    wanted = [parameter.name for parameter in numbers]
    if (
        not cells
        or len(call.args) > len(cells) + len(wanted)
        or sorted(str(word.arg) for word in given) != sorted(wanted)
    ):
        takes = ", ".join(["cell, ..." if several else "cell", *wanted])
        raise UserError(f"model.cell={text!r}: write {name}({takes})")
    inner = [_cell(cell, text, hidden_size) for cell in cells]
    options = {str(word.arg): _value(word, text) for word in given}
    return COMBINATORS[name](*inner, **options)


def _keywords(name: str) -> list[str]:
    """The keywords of a cell that this grammar can write."""
    parameters = inspect.signature(CELLS[name]).parameters.values()
    own = [p.name for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD]
    own.remove("hidden_size")
    shared = [] if name in _NO_RECURRENT_KERNEL else ["recurrent_init"]
    return [word for word in [*own, *shared, "dtype"] if word != "bias_init"]


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
    if word.arg in _WHOLE_NUMBERS:
        if not number.is_integer():
            raise UserError(f"model.cell={text!r}: {word.arg} is a whole number")
        return int(number)
    return number

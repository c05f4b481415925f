"""A cell from a file."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lstm_jax.cells import Cell
from lstm_jax.errors import UserError


class OwnCell(NamedTuple):
    """What a file defines.

    Attributes:
      name: of the file, without its ending.
      source: its text.
      make: `make(hidden_size)`, a cell.
    """

    name: str
    source: str
    make: Callable[[int], Cell]


def load(path: str | Path) -> OwnCell:
    """Runs a file that has a function `cell(hidden_size)`.

    The file is Python, and is run with all rights of whoever calls this; what lies
    beside it can be imported, as by a script.

    Raises:
      UserError: there is no such file or function, or the file does not run.
    """
    path = Path(path)
    if path.suffix != ".py" or not path.is_file():
        raise UserError(
            f"{path} is no Python file: give one with a function cell(hidden_size)"
        )
    # Not the file's own name: copy.py would take the place of Python's.
    spec = importlib.util.spec_from_file_location(f"own_cell_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their types up
    sys.path.insert(0, str(path.resolve().parent))
    try:
        source = path.read_text(encoding="utf-8")
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(f"{path} does not run: {said(error)}") from error
    if not callable(getattr(module, "cell", None)):
        raise UserError(
            f"{path} has no function cell: write cell(hidden_size), which returns a "
            "lstm_jax.Cell"
        )

    def make(hidden_size: int) -> Cell:
        try:
            made = module.cell(hidden_size)
        except (Exception, SystemExit) as error:
            raise UserError(f"{path}: cell({hidden_size}): {said(error)}") from error
        if not isinstance(made, Cell):
            raise UserError(
                f"{path}: cell({hidden_size}) returns a {type(made).__name__}: it has "
                "to return a lstm_jax.Cell, as lstm_jax.gated makes it"
            )
        return made

    return OwnCell(path.stem, source, make)


def features_of(own: OwnCell, hidden_size: int, features: int) -> int:
    """The features that the cell takes: as many as given, or as it has units.

    A cell that adds its inputs to its outputs (`residual`) takes no others.

    Raises:
      UserError: it takes neither, its state does not keep its shapes, or its outputs
        are not [B, Y].
    """
    cell, wrong = own.make(hidden_size), None

    def first(key: Any, features: int) -> Any:
        params = cell.init(key, features)
        carry = cell.initial_carry(params, 2)
        return carry, *cell.step(params, carry, jnp.zeros((2, features)))

    for tried in (features, hidden_size):
        try:
            before, new, y = jax.eval_shape(
                lambda key, n=tried: first(key, n), jax.random.key(0)
            )
        except (Exception, SystemExit) as error:
            wrong = wrong or error
            continue
        if new != before:
            raise UserError(
                f"{own.name}: of two rows a step carries on {_shown(new)} where it "
                f"began with {_shown(before)}: the gates' state has to keep its shapes "
                "and types"
            )
        if getattr(y, "ndim", None) != 2:
            raise UserError(
                f"{own.name}: its step outputs {y}: the lab takes one array [B, Y]"
            )
        return tried
    assert wrong is not None
    raise UserError(f"{own.name}: a step fails: {said(wrong)}") from wrong


def _shown(state: Any) -> str:
    """Such as "h float32[2, 8]"."""
    return ", ".join(
        f"{jax.tree_util.keystr(path, simple=True)} {leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    )


def said(error: BaseException) -> str:
    """What a user's code has raised, in a line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]

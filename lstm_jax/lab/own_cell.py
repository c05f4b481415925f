"""A cell from a file."""

import importlib.util
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lstm_jax.cells import Cell
from lstm_jax.data.files import local_path
from lstm_jax.errors import UserError

_MODULE = "own_cell_"  # what the name of a file's module begins with
_BATCH, _STEPS = 2, 20  # of a first run


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
    path = local_path(path)
    if not path.is_file():
        raise UserError(
            f"there is no file {path}: give one with a function cell(hidden_size)"
        )
    if path.suffix != ".py":
        raise UserError(
            f"{path} is no Python file: give one with a function cell(hidden_size)"
        )
    # In a picture "_" hides a name, and "$" begins a formula.
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", path.stem):
        raise UserError(
            f"{path} names the cell in pictures: rename the file to letters, digits, "
            '"_" and "-", beginning with a letter or a digit'
        )
    # Not the file's own name: copy.py would take the place of Python's.
    spec = importlib.util.spec_from_file_location(f"{_MODULE}{path.stem}", path)
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
    if isinstance(getattr(module, "cell", None), Cell):
        raise UserError(
            f"{path}: cell is a Cell already, of one size: write a function "
            "cell(hidden_size) that returns it"
        )
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
      UserError: it takes neither, its state has no batch or does not keep its shapes,
        its outputs are not [B, Y], or it has complex numbers.
    """
    cell, wrong = own.make(hidden_size), None
    for tried in (features, hidden_size):
        try:
            begun = _shapes(lambda key, n=tried: _begin(cell, key, n))
            before = begun[1]
            bare = _without_batch(before)
            given = None if bare else _shapes(lambda key, n=tried: _step(cell, key, n))
        except (Exception, SystemExit) as error:
            wrong = wrong or error
            continue
        if bare:
            raise UserError(
                f"{own.name}: initial_carry(params, batch_size) must give arrays "
                f"[batch, ...], got {bare}"
            )
        _check_step(own, before, given)
        _check_real(own, begun)
        return tried
    assert wrong is not None
    raise UserError(f"{own.name}: a step fails: {said(wrong)}") from wrong


def _begin(cell: Cell, key: Any, features: int) -> tuple[Any, Any]:
    params = cell.init(key, features)
    return params, cell.initial_carry(params, _BATCH)


def _step(cell: Cell, key: Any, features: int) -> Any:
    params, carry = _begin(cell, key, features)
    return cell.step(params, carry, jnp.zeros((_BATCH, features)))


def _shapes(of_key: Callable[[Any], Any]) -> Any:
    """What a function of a key gives, without its values."""
    return jax.eval_shape(of_key, jax.random.key(0))


def _without_batch(state: Any) -> str:
    """The arrays of a state that have no batch, as "h [8]"."""
    return ", ".join(
        f"{jax.tree_util.keystr(path, simple=True)} {list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if leaf.shape[:1] != (_BATCH,)
    )


def _check_step(own: OwnCell, before: Any, given: Any) -> None:
    """Refuses what a step gives that is no carry as before and no array [B, Y]."""
    kind = _kind(before)
    # A NamedTuple of two fields would pass for (carry, output).
    pair = isinstance(given, tuple | list) and len(given) == 2
    if not pair or (hasattr(before, "_fields") and isinstance(given, type(before))):
        raise UserError(
            f"{own.name}: the gates return {_kind(given)}: they have to return "
            f"(carry, output), as {kind}, h"
        )
    new, y = given
    if jax.tree.structure(new) != jax.tree.structure(before):
        raise UserError(
            f"{own.name}: the gates return {_kind(new)} for a carry: they have to "
            f"return (carry, output), the carry {kind} as it began"
        )
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


def _check_real(own: OwnCell, begun: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(begun):
        if jnp.iscomplexobj(leaf):
            name = jax.tree_util.keystr(path[1:], simple=True, separator="/")
            raise UserError(
                f"{own.name}: {name} is {leaf.dtype}: the lab checks real numbers, so "
                "keep its real and its imaginary part as two arrays"
            )


def check_sizes(own: OwnCell, one: int, other: int, features: int) -> None:
    """Refuses a cell that is the same whatever size it is asked for.

    Raises:
      UserError: it is.
    """
    cells = own.make(one), own.make(other)
    try:
        first, second = (
            _shapes(lambda key, cell=cell: _begin(cell, key, features))
            for cell in cells
        )
    except (Exception, SystemExit):  # of another size it takes other features
        return
    if first == second:
        raise UserError(
            f"{own.name}: cell({one}) and cell({other}) have the same parameters: "
            "cell(hidden_size) has to make as many units as it is asked for"
        )


def check_finite(own: OwnCell, hidden_size: int, features: int) -> None:
    """Refuses a cell that leaves the finite numbers at once.

    Raises:
      UserError: it does, within a few steps of a random sequence.
    """
    cell = own.make(hidden_size)
    try:
        lost = _lost(cell, features)
    except (Exception, SystemExit) as error:
        raise UserError(f"{own.name}: a step fails: {said(error)}") from error
    if lost:
        raise UserError(
            f"{own.name}: {lost} of a random sequence, with the parameters that it "
            "begins with: mend its equations"
        )


def _lost(cell: Cell, features: int) -> str:
    """Such as "h is not finite after step 3"; "": all is finite."""
    keys = jax.random.split(jax.random.key(0))
    params, carry = _begin(cell, keys[0], features)
    xs = jax.random.normal(keys[1], (_STEPS, _BATCH, features))
    step = jax.jit(cell.step)
    for number, x in enumerate(xs, start=1):
        carry, y = step(params, carry, x)
        if name := _not_finite(carry) or _not_finite({"the output": y}):
            return f"{name} is not finite after step {number}"
    return ""


def _not_finite(tree: Any) -> str:
    """The first array with such an entry; "": none."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        if floating and not jnp.all(jnp.isfinite(leaf)):
            return jax.tree_util.keystr(path, simple=True)
    return ""


def _kind(state: Any) -> str:
    """Such as "Carry(h, c)"."""
    fields = getattr(state, "_fields", None)
    name = "an array" if hasattr(state, "shape") else f"a {type(state).__name__}"
    return f"{type(state).__name__}({', '.join(fields)})" if fields else name


def _shown(state: Any) -> str:
    """Such as "h float32[2, 8]"."""
    return ", ".join(
        f"{jax.tree_util.keystr(path, simple=True)} {leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    )


def said(error: BaseException) -> str:
    """What a user's code has raised, in a line, and where: "my_cell.py:7"."""
    line = " ".join(f"{type(error).__name__}: {error}".split())[:500]
    own = [
        f"{Path(frame.f_code.co_filename).name}:{number}"
        for frame, number in traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__", "").startswith(_MODULE)
    ]
    return f"{line} ({own[-1]})" if own else line

"""The laws of `lstm_jax.unroll`, tried on one cell in float64."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from lstm_jax.cells import Cell
from lstm_jax.lab import checks
from lstm_jax.lab.checks import Given, make_given
from lstm_jax.lab.own_cell import said

HIDDEN = 8
FEATURES = 5  # not the size of anything else; a cell that adds x to h takes HIDDEN

ROUNDING = 1e-9  # of sums in another order
DIFFERENCES = 1e-6  # of finite differences
SINGLE = 1e-3  # of float32 beside float64


class Law(NamedTuple):
    """A law and how far a cell is from it.

    Attributes:
      name: of the law.
      statement: what it says.
      error: largest, of an entry beside the largest of its array or 1.
      tolerance: the largest that is allowed; 0: the same bits.
      failure: what was raised where it should have held; "": nothing.
    """

    name: str
    statement: str
    error: float
    tolerance: float
    failure: str = ""

    @property
    def holds(self) -> bool:
        """Whether the cell obeys."""
        return not self.failure and self.error <= self.tolerance


def check(cell: Cell, features: int, say: Callable[[str], None]) -> list[Law]:
    """Tries all laws.

    Args:
      cell: of `HIDDEN` units; its outputs are [B, Y].
      features: D, of the inputs.
      say: is given the name of each law as it is tried.

    Raises:
      Exception: whatever the cell raises where it runs at all, before any law.
    """
    found = []
    with jax.enable_x64(True):
        given = make_given(cell, features)
        for name, (statement, tolerance, error_of) in LAWS.items():
            if name == NOISE and cell.noise is None:
                continue
            say(name)
            try:
                law = Law(name, statement, float(error_of(given)), tolerance)
            except (Exception, SystemExit) as error:  # whatever the cell's code raises
                law = Law(name, statement, np.inf, tolerance, said(error))
            found.append(law)
    return found


def unreached(cell: Cell, features: int) -> list[str]:
    """The parameters by which no output changes: all laws hold of such a cell.

    Args:
      cell: as for `check`.
      features: as for `check`.
    """
    with jax.enable_x64(True):
        return checks.unreached(make_given(cell, features))


NOISE = "noise"
# Each with what it says, the largest error, and how that is found.
LAWS: dict[str, tuple[str, float, Callable[[Given], float]]] = {
    "steps": (
        "The sequence function is a loop of step, and gives every carry.",
        ROUNDING,
        checks.loop,
    ),
    "masks and resets": (
        "With a mask with holes and resets, some of them on masked steps, it is that "
        "loop in both directions.",
        ROUNDING,
        checks.masks_and_resets,
    ),
    "gradients": (
        "Values and gradients by parameters, inputs and initial carry are those of "
        "autodiff, with mask and resets (and noise, where the cell has some).",
        ROUNDING,
        checks.autodiff,
    ),
    "finite differences": (
        "The gradients of the outputs are what finite differences say.",
        DIFFERENCES,
        checks.differences,
    ),
    "second derivatives": (
        "The gradient of a gradient is that of autodiff.",
        ROUNDING,
        checks.second,
    ),
    "masked steps": (
        "At a masked step the carry passes unchanged and the output is zero.",
        0.0,
        checks.masked_steps,
    ),
    "content of padding": (
        "What stands at masked steps, NaN and infinity too, changes no bit of an "
        "output or a gradient, and has a gradient of zero.",
        0.0,
        checks.padding,
    ),
    "amount of padding": (
        "More steps past the end change outputs and gradients by rounding only.",
        ROUNDING,
        checks.amount,
    ),
    "holes": ("Deleting masked steps changes nothing.", ROUNDING, checks.holes),
    "reversal": (
        "In reverse it is the sequence turned round, outputs aligned with inputs.",
        ROUNDING,
        checks.reversal,
    ),
    "parts": (
        "Two parts one after the other, the carry handed on, are the whole, in both "
        "directions.",
        ROUNDING,
        checks.parts,
    ),
    "resets": (
        "After a reset all is as from the initial carry, whatever came before.",
        ROUNDING,
        checks.reset,
    ),
    "no steps": ("No steps return the carry as it was.", 0.0, checks.nothing),
    "rows": ("A row knows nothing of the others.", ROUNDING, checks.rows),
    "members": (
        "Under vmap over parameters each is as by itself, gradients too.",
        ROUNDING,
        checks.members,
    ),
    "float32": (
        "In float32 outputs and gradients are float32, and near those of float64.",
        SINGLE,
        checks.single,
    ),
    NOISE: (
        "With a key it is the loop with what the cell draws of it; another key draws "
        "otherwise.",
        ROUNDING,
        checks.noise,
    ),
}

"""What both sides run: cells, masks, directions, shapes, and random numbers for them.

Shapes: B batch, T time, D input features, H hidden units, N cells of all layers and
directions in PyTorch's order, Y outputs.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lstm_jax.convert.files import give_stack
from lstm_jax.convert.stacks import stacked
from lstm_jax.convert.weights import flat, params_shapes

Arrays = dict[str, np.ndarray]


class Shape(NamedTuple):
    """Sizes of a case."""

    batch: int
    time: int
    features: int
    hidden: int


class Case(NamedTuple):
    """One comparison.

    Attributes:
      cell: as a config writes it.
      dtype: of all numbers.
      shape: its sizes.
      masked: rows end at lengths of their own.
      reverse: from the last step to the first.
      bidirectional: in both directions.
      layers: one on the other.
    """

    cell: str
    dtype: str
    shape: Shape
    masked: bool = False
    reverse: bool = False
    bidirectional: bool = False
    layers: int = 1

    @property
    def weights(self) -> str:
        """The cell as `lstm_jax.convert` names it: weights know no activation."""
        return self.cell.removesuffix("(activation=relu)")

    @property
    def activation(self) -> str:
        """Of the simple cell."""
        return "relu" if "relu" in self.cell else "tanh"

    @property
    def carry(self) -> tuple[str, ...]:
        """The leaves of the cell's carry."""
        return ("h", "c") if self.cell == "lstm" else ("h",)

    @property
    def cells(self) -> int:
        """N."""
        return self.layers * (2 if self.bidirectional else 1)

    @property
    def mode(self) -> str:
        """What is special about it."""
        words = {
            f"{self.layers} layers": self.layers > 1,
            "bidirectional": self.bidirectional,
            "reversed": self.reverse,
            "masked": self.masked,
        }
        return ", ".join(word for word, holds in words.items() if holds) or "plain"


class Problem(NamedTuple):
    """The numbers of a case.

    Attributes:
      weights: by the library's names, as `lstm_jax.convert.files` has them.
      inputs: `xs` [B, T, D], `initial_h` and of an LSTM `initial_c` [N, B, H].
      lengths: of the rows, or None; at least 1, as the libraries demand.
      factors: the loss is the sum of the values times these: `ys` [B, T, Y], `final_h`
        and of an LSTM `final_c` [N, B, H]. They are drawn as shares of a mean over the
        rows: with the sum, steps of SGD let a relu's weights grow without bound.
    """

    weights: Arrays
    inputs: Arrays
    lengths: np.ndarray | None
    factors: Arrays


# The last: one row, one step, one unit.
SHAPES = (Shape(4, 7, 3, 6), Shape(16, 40, 24, 32), Shape(1, 1, 1, 1))
SEED = 20261123


def cases(cells: Sequence[str], layers: int) -> Iterator[Case]:
    """The cases of a library: each mode on the first shape, two on the others.

    Args:
      cells: that it has.
      layers: of which its own layout knows several.
    """
    for dtype, shape, cell in itertools.product(("float64", "float32"), SHAPES, cells):
        plain = Case(cell, dtype, shape)
        both = plain._replace(bidirectional=True)
        modes = [plain, plain._replace(reverse=True), both]
        if layers > 1:
            modes.append(both._replace(layers=layers))
        modes += [mode._replace(masked=True) for mode in modes]
        yield from modes if shape == SHAPES[0] else (modes[0], modes[-1])


def draw(case: Case, library: str) -> Problem:
    """The random numbers of a case, the same in every run."""
    index = [ord(letter) for letter in f"{library} {case}"]
    rng = np.random.default_rng([SEED, *index])
    batch, time, features, hidden = case.shape
    directions = case.cells // case.layers

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(case.dtype)

    empty = []
    for cell in range(case.cells):
        width = features if cell < directions else directions * hidden
        shapes = params_shapes(case.weights, width, hidden)
        empty.append({n: np.zeros(s, case.dtype) for n, s in shapes.items()})
    template = give_stack(stacked(empty, case.bidirectional), library, case.weights)
    # Recurrent kernels then neither blow states up nor let them vanish.
    bound = 1.5 / hidden**0.5
    weights = {
        name: rng.uniform(-bound, bound, array.shape).astype(case.dtype)
        for name, array in flat(template).items()
    }
    lengths = None
    if case.masked:
        lengths = rng.integers(1, time + 1, batch).astype(np.int32)
        lengths[0] = time
    state = (case.cells, batch, hidden)
    return Problem(
        weights,
        {"xs": normal(batch, time, features)}
        | {f"initial_{leaf}": normal(*state) for leaf in case.carry},
        lengths,
        {"ys": normal(batch, time, directions * hidden) / batch}
        | {f"final_{leaf}": normal(*state) / batch for leaf in case.carry},
    )

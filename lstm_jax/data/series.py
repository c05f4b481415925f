"""A series of numbers: a column of a CSV file, cut into windows and what follows."""

import math
import reprlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from lstm_jax.data import spelling
from lstm_jax.data.files import holds_rows, read_records, read_utf8
from lstm_jax.data.waves import waves
from lstm_jax.errors import UserError

# Of the steps, the last ones.
TEST_SHARE = 0.2


class Forecasts(NamedTuple):
    """Windows of a series, each with the steps that follow it; both standardised."""

    inputs: Float[np.ndarray, "N window 1"]
    targets: Float[np.ndarray, "N horizon"]


class Series(NamedTuple):
    """A series cut in time: each part's targets come after those of the one before.

    Attributes:
      mean: of the training part, in the units of the data.
      deviation: of the training part; a standardised 1 is that much.
      parts: "train", "validation" where asked for, "test".
    """

    mean: float
    deviation: float
    parts: dict[str, Forecasts]


def load_series(path: str, column: str = "") -> Float[np.ndarray, " steps"]:
    """The series of a file, or "synthetic:waves".

    Raises:
      UserError: there is none, or it is no use.
    """
    if path == "synthetic:waves":
        return waves()
    if path.startswith(("synthetic:", "tfds:")):
        raise UserError(
            f"data.path={path!r} is unknown: choose synthetic:waves or a CSV file"
        )
    return read_series(path, column)


def split_series(
    series: Float[np.ndarray, " steps"],
    window: int,
    horizon: int,
    holdout: float = 0.0,
) -> Series:
    """Cuts a series in time and standardises it as its training part is.

    The last fifth is the test part; of the steps before it, the last `holdout` is the
    validation part. All targets of a window lie in one part, and each part has every
    such window; the inputs of a later part's first windows reach back into the part
    before.

    Args:
      series: the numbers, in the order of time.
      window: steps a forecast is made from.
      horizon: steps that are forecast.
      holdout: share of the validation part; 0: there is none.

    Raises:
      UserError: a part is too short, or the training part constant.
    """
    for name, value in (("window", window), ("horizon", horizon)):
        if value < 1:
            raise UserError(f"data.{name}={value} must be at least 1")
    steps = len(series)
    test = steps - round(TEST_SHARE * steps)
    validation = test - round(holdout * test)
    bounds = {
        "train": (0, validation),
        "validation": (validation, test),
        "test": (test, steps),
    }
    if not holdout:
        del bounds["validation"]
    for name, (begin, end) in bounds.items():
        # Only the training part has none before it to take its first window from.
        needed = horizon + (window if name == "train" else 0)
        if end - begin < needed:
            raise UserError(
                f"the {name} part has {end - begin} of the series' {steps} steps and "
                f"needs {needed} (data.window={window}, data.horizon={horizon}, "
                f"data.holdout={holdout}): give more rows or lower these"
            )
    training = series[:validation]
    with np.errstate(over="ignore", invalid="ignore"):
        mean, deviation = float(training.mean()), float(training.std())
    if training.min() == training.max() or deviation == 0:
        raise UserError(
            f"the training part, the first {validation} steps, is {training[0]:g} "
            "throughout: there is nothing to learn from it"
        )
    if not math.isfinite(deviation):
        raise UserError("the numbers are too large to be squared: give other units")
    standard = ((series - mean) / deviation).astype(np.float32)
    parts = {}
    for name, (begin, end) in bounds.items():
        first = max(begin, window)  # the first target of the first window
        seen = np.lib.stride_tricks.sliding_window_view(
            standard[first - window : end], window + horizon
        )
        inputs = np.ascontiguousarray(seen[:, :window, None])
        parts[name] = Forecasts(inputs, np.ascontiguousarray(seen[:, window:]))
    return Series(mean, deviation, parts)


def read_series(path: str, column: str = "") -> Float[np.ndarray, " steps"]:
    """A column of a CSV file with a header row, in the order of the rows.

    The other columns may hold anything.

    Args:
      path: the file.
      column: name of the column; "": the last one.

    Raises:
      UserError: the file cannot be read, has no such column, or a row of it has no
        finite number there; the message names the line.
    """
    # Blank lines at the end are nothing; any other would be a step that is missing.
    text = read_utf8(path, "data.path takes a CSV file of numbers").rstrip()
    numbers: list[float] = []
    header, at = None, -1
    for record in read_records(path, text):
        line, row, lines = record
        if not row:
            raise UserError(
                f"{path}, line {line}: the line is blank; every row is a step, so "
                "fill it in, or remove it if none is missing"
            )
        if header is None:
            header = [name.strip() for name in row]
            at = _place(path, header, column)
        elif len(row) != len(header):
            raise UserError(
                f"{path}, line {line}: {len(row)} fields where the header has "
                f"{len(header)}: every row is a step and needs them all"
            )
        elif sum(len(r) == len(row) and _is_number(r[at]) for r in lines) > 1:
            raise holds_rows(path, record)
        else:
            numbers.append(_number(path, line, header[at], row[at]))
    if header is None:
        raise UserError(f"{path} is empty: it needs a header row that names columns")
    if not numbers:
        raise UserError(f"{path} has no rows: it needs a number a row")
    return np.array(numbers)


def _place(path: str, header: list[str], column: str) -> int:
    names = ", ".join(map(reprlib.repr, header))
    if not column:
        if all(map(_is_number, header)):
            raise UserError(
                f"{path}, line 1: {names} are numbers, where a header row should name "
                "the columns: put one above them"
            )
        return len(header) - 1
    found = spelling.places(column, header)
    if len(found) != 1:
        wrong = "two columns" if found else "no column"
        raise UserError(
            f"{path}, line 1: {wrong} {column!r}; there are {names}: set data.column"
        )
    return found[0]


def _number(path: str, line: int, column: str, cell: str) -> float:
    where = f"{path}, line {line}, column {column!r}"
    if not cell.strip():
        raise UserError(f"{where}: the cell is empty; fill it in")
    if not _is_number(cell):
        raise UserError(f"{where}: {reprlib.repr(cell)} is not a number; mend it")
    if not math.isfinite(float(cell)):
        raise UserError(f"{where}: {reprlib.repr(cell)} is not finite; mend it")
    return float(cell)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True

"""Tests of lstm_jax.data.series and lstm_jax.data.waves."""

from pathlib import Path

import numpy as np
import pytest

from lstm_jax.data.series import load_series, read_series, split_series
from lstm_jax.data.waves import NOISE, waves
from lstm_jax.errors import UserError

# The first and last numbers when the scores of configs/waves.py were measured.
WAVES = [19.93, 21.08, 22.16, 23.44, 20.13, 20.65, 20.23]


@pytest.mark.parametrize(
    ("steps", "window", "horizon", "holdout"),
    [(57, 5, 3, 0.25), (57, 1, 1, 0.0), (100, 20, 1, 0.1), (83, 2, 7, 0.3)],
)
def test_parts_hold_every_window_whose_targets_they_hold(
    steps: int, window: int, horizon: int, holdout: float
) -> None:
    numbers = np.random.default_rng(steps).normal(7, 3, steps)
    series = split_series(numbers, window, horizon, holdout)

    test = steps - round(0.2 * steps)
    validation = test - round(holdout * test)
    bounds = {"train": (0, validation)}
    if holdout:
        bounds["validation"] = (validation, test)
    bounds["test"] = (test, steps)
    assert list(series.parts) == list(bounds)

    seen = set()
    training = numbers[:validation]
    mean = sum(training) / validation
    deviation = (sum((training - mean) ** 2) / validation) ** 0.5
    np.testing.assert_allclose([series.mean, series.deviation], [mean, deviation])
    standard = (numbers - mean) / deviation
    for name, (begin, end) in bounds.items():
        # Every step may be a window's first target that leaves room on both sides.
        firsts = [t for t in range(begin, end) if t >= window and t + horizon - 1 < end]
        assert firsts
        part = series.parts[name]
        assert part.inputs.shape == (len(firsts), window, 1)
        assert part.inputs.dtype == part.targets.dtype == np.float32
        expected = [standard[t - window : t] for t in firsts]
        np.testing.assert_allclose(part.inputs[:, :, 0], expected, atol=1e-6)
        expected = [standard[t : t + horizon] for t in firsts]
        np.testing.assert_allclose(part.targets, expected, atol=1e-6)
        # No value is a target of two parts.
        values = set(part.targets.ravel().tolist())
        assert not values & seen
        seen |= values
    assert len(seen) == steps - window
    # The first test window is made of steps before the test part.
    np.testing.assert_allclose(
        series.parts["test"].inputs[0, :, 0], standard[test - window : test], atol=1e-6
    )


def test_only_the_training_part_scales() -> None:
    numbers = np.random.default_rng(0).normal(size=100)
    changed = numbers.copy()
    changed[60:] = 1e6
    one, other = (split_series(series, 4, 2, 0.25) for series in (numbers, changed))
    assert (one.mean, one.deviation) == (other.mean, other.deviation)
    assert (one.parts["train"].inputs == other.parts["train"].inputs).all()
    assert (one.parts["train"].targets == other.parts["train"].targets).all()
    assert (other.parts["test"].targets > 1e5).all()


def test_numbers_far_from_zero_keep_their_digits() -> None:
    numbers = 1.7e9 + np.random.default_rng(0).normal(size=100)
    series = split_series(numbers, 4, 2)
    targets = series.parts["train"].targets[:, 0].astype(np.float64)
    back = series.deviation * targets + (series.mean - 1.7e9)
    np.testing.assert_allclose(back, numbers[4:79] - 1.7e9, atol=1e-5)


def test_the_fewest_rows_there_may_be() -> None:
    # 4 steps of 20 for the test part, 4 of the 16 before it for the validation part.
    numbers = np.arange(20.0)
    parts = split_series(numbers, 8, 4, 0.25).parts
    assert {name: len(part.inputs) for name, part in parts.items()} == {
        "train": 1,
        "validation": 1,
        "test": 1,
    }


@pytest.mark.parametrize(
    ("numbers", "window", "horizon", "holdout", "message"),
    [
        (np.arange(20.0), 9, 4, 0.25, "train part has 12 of the series' 20 steps and "),
        (np.arange(20.0), 2, 5, 0.0, "test part has 4 .* 20 steps and needs 5 "),
        (np.arange(20.0), 2, 2, 0.05, "validation part has 1 .* needs 2 "),
        (np.arange(20.0), 2, 2, 0.01, "validation part has 0 .* needs 2 "),
        (np.arange(20.0), 2, 2, 0.9, "train part has 2 .* needs 4 "),
        (np.arange(1.0), 2, 2, 0.0, "train part has 1 .*steps and needs 4 "),
        (np.arange(20.0), 0, 2, 0.0, "^data.window=0 must be at least 1$"),
        (np.arange(20.0), 2, 0, 0.0, "^data.horizon=0 must be at least 1$"),
        (
            np.repeat([0.1, 5.0], [80, 20]),
            2,
            2,
            0.0,
            "^the training part, the first 80 steps, is 0.1 throughout: there is",
        ),
        (np.tile([-1e308, 1e308], 50), 2, 2, 0.0, "^the numbers are too large"),
    ],
)
def test_series_that_are_no_use(
    numbers: np.ndarray, window: int, horizon: int, holdout: float, message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        split_series(numbers, window, horizon, holdout)
    assert "\n" not in str(error.value)


def write(folder: Path, content: str | bytes) -> str:
    path = folder / "series.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def test_a_column_of_a_file(tmp_path: Path) -> None:
    text = 'day,"high, ""low""",note, load\r\n1,2.5,"a,\nb",-1e3\r\n2,-0,,  7 \r\n\r\n'
    path = write(tmp_path, "\ufeff" + text)
    assert read_series(path).tolist() == [-1000, 7]
    assert read_series(path, "load").tolist() == [-1000, 7]
    assert read_series(path, "day").tolist() == [1, 2]
    assert load_series(path, 'high, "low"').tolist() == [2.5, 0]
    assert read_series(path).dtype == np.float64
    # Numbers may name columns, where one of them is asked for or some name is none.
    path = write(tmp_path, "2023,2024\n1,2\n3,4")
    assert read_series(path, "2023").tolist() == [1, 3]
    assert read_series(write(tmp_path, "day,2024\n1,2\n")).tolist() == [2]


def test_many_numbers_are_read_exactly(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).normal(size=(500, 3)) * [1, 1e-9, 1e12]
    rows = [",".join(map(repr, row)) for row in numbers.tolist()]
    path = write(tmp_path, "\n".join(["a,b,c", *rows]))
    for column, name in enumerate("abc"):
        assert read_series(path, name).tolist() == numbers[:, column].tolist()


@pytest.mark.parametrize(
    ("content", "column", "message"),
    [
        ("a,b\n1,2\n3,x\n", "", "line 3, column 'b': 'x' is not a number; mend it"),
        ("a,b\n1,2\nx,4\n", "a", "line 3, column 'a': 'x' is not a number; mend it"),
        ('a,b\n"\n",2\n1,"2\n3"\n', "", r"line 4, column 'b': '2\\n3' is not a number"),
        ("a\n1\n1.5.2\n", "", "line 3, column 'a': '1.5.2' is not a number"),
        ("a,b\n1,nan\n", "", "line 2, column 'b': 'nan' is not finite; mend it"),
        ("a,b\n1,2\n1,-Inf\n", "", "line 3, column 'b': '-Inf' is not finite"),
        ("a,b\n1,2\n1,1e999\n", "", "line 3, column 'b': '1e999' is not finite"),
        ("a,b\n1,2\n1, \n1,2\n", "", "line 3, column 'b': the cell is empty; fill it"),
        ("a,b\n1,2\n1,", "", "line 3, column 'b': the cell is empty; fill it"),
        ("a,b\n1,2\n1,2,3\n", "", "line 3: 3 fields where the header has 2: every row"),
        ("a,b\n1,2\n1\n", "", "line 3: 1 fields where the header has 2: every row"),
        ("a\n1\n\n2\n", "", "line 3: the line is blank; every row is a step"),
        ("\na\n1\n", "", "line 1: the line is blank; every row is a step"),
        (
            'a,b\n"1,2\n3",4\n',
            "",
            "line 2: a quoted field goes on to line 3, over lines",
        ),
        ('a,b\n1,2\n1,"2\n', "", "line 3: unexpected end of data; a quoted field"),
        ("a,b\n1,2\n", "c", "line 1: no column 'c'; there are 'a', 'b': set data.col"),
        ("a,b,a\n1,2,3\n", "a", "line 1: two columns 'a'; there are 'a', 'b', 'a'"),
        ("1,2\n3,4\n", "", "line 1: '1', '2' are numbers, where a header row should"),
        (b"a,b\n1,2\n\xe9,3\n", "", r"line 3: not UTF-8 \(byte 8\); convert it"),
    ],
)
def test_lines_that_are_no_use(
    tmp_path: Path, content: str | bytes, column: str, message: str
) -> None:
    path = write(tmp_path, content)
    with pytest.raises(UserError, match=rf"series\.csv, {message}") as error:
        read_series(path, column)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty: it needs a header row that names columns"),
        ("\n \n", "is empty: it needs a header row that names columns"),
        ("a,b\n", "has no rows: it needs a number a row"),
    ],
)
def test_files_without_numbers(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"series\.csv {message}$"):
        read_series(write(tmp_path, content))


def test_missing_file(tmp_path: Path) -> None:
    for path in (str(tmp_path / "no.csv"), str(tmp_path), "", "a\0b"):
        with pytest.raises(UserError, match=r"^cannot read '.*data.path takes a CSV"):
            load_series(path)
    for path in ("synthetic:wave", "tfds:mnist"):
        with pytest.raises(UserError, match=f"'{path}' is unknown: choose synth"):
            load_series(path)


def test_waves_follow_their_formula() -> None:
    series = load_series("synthetic:waves")
    assert series.shape == (2000,)
    assert (series == waves()).all()
    assert series[:4].tolist() == WAVES[:4]
    assert series[-3:].tolist() == WAVES[4:]
    assert (series == np.round(series, 2)).all()
    assert (waves(300) == series[:300]).all()
    assert (waves(seed=1) != series).mean() > 0.9

    draws = np.random.default_rng(0).normal(size=(2000, 2))
    t = np.arange(2000)
    # The process written out: every draw, as much of it as is left.
    left = np.tril(0.99 ** np.abs(t[:, None] - t))
    amplitude = np.exp(0.03 * left @ draws[:, 0])
    golden = (1 + 5**0.5) / 2
    sines = np.sin(2 * np.pi * t / 25) + np.sin(2 * np.pi * t / (25 * golden))
    clean = 20 + 2.5 * amplitude * sines
    np.testing.assert_allclose(series - clean, NOISE * draws[:, 1], atol=0.00501)
    assert ((amplitude > 0.66) & (amplitude < 1.5)).mean() > 0.9


def test_a_long_field_of_another_column(tmp_path: Path) -> None:
    path = write(tmp_path, f"note,load\n{'x' * 10**6},1\n,2\n")
    assert read_series(path).tolist() == [1, 2]

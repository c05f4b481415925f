"""Tests of lstm_jax.pictures: curves, a confusion matrix, a forecast."""

import io
import math
import os
import subprocess
import sys

import matplotlib.colors
import matplotlib.figure
import matplotlib.image
import numpy as np
import pytest

from lstm_jax import pictures

BLUE, ORANGE, GREEN = pictures.COLORS[:3]


def make_row(step, split="train", **metrics):
    metrics = {"loss": 2.0 / (1 + step), "accuracy": 0.5} | metrics
    row = {"step": step, "epoch": step / 10, "split": split, **metrics}
    return row | {"seconds": 0.25 * step}


def count_pixels(png, color):
    image = matplotlib.image.imread(io.BytesIO(png))[..., :3]
    return int((np.abs(image - matplotlib.colors.to_rgb(color)) < 0.01).all(-1).sum())


@pytest.fixture
def figures(monkeypatch):
    """The figures drawn in a test."""
    drawn, savefig = [], matplotlib.figure.Figure.savefig

    def keep(figure, *args, **kwargs):
        drawn.append(figure)
        savefig(figure, *args, **kwargs)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", keep)
    return drawn


def test_curves_show_every_split_in_its_color():
    rng = np.random.default_rng(1)
    rows = []
    for step in range(10, 210, 10):
        rows.append(make_row(step, loss=float(rng.uniform(1, 2))))
        if step % 40 == 0:
            rows.append(make_row(step, "test", loss=float(rng.uniform(1, 2))))
    png = pictures.draw_curves(rows, "run")
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert matplotlib.image.imread(io.BytesIO(png)).shape[:2] == (576, 1536)
    assert count_pixels(png, BLUE) > 500
    assert count_pixels(png, ORANGE) > 500
    assert count_pixels(png, GREEN) == 0


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("step", [0, 7])
def test_a_single_row_draws_a_visible_point(split, step):
    png = pictures.draw_curves([make_row(step, split)], "one")
    assert count_pixels(png, BLUE if split == "train" else ORANGE) > 100


def test_a_train_point_between_gaps_is_visible(figures):
    losses = [3.0, None, 2.0, None, 1.5, 1.4]
    rows = [make_row(step, loss=loss) for step, loss in enumerate(losses)]
    pictures.draw_curves([*rows, make_row(5, "test")], "gap")
    # No star among the lines: another split was evaluated.
    line, points = [a for a in figures[0].axes[0].lines if a.get_color() == BLUE]
    np.testing.assert_array_equal(line.get_ydata(), np.array(losses, float))
    assert (points.get_marker(), points.get_linestyle()) == ("o", "None")
    np.testing.assert_array_equal(points.get_xdata(), [0, 2])
    np.testing.assert_array_equal(points.get_ydata(), [3.0, 2.0])


def test_legend_names_the_final_and_the_best_value(figures):
    rows = [{"step": 500, "split": "test", "bits": 2.0}]
    for step, loss, accuracy in [(1000, 0.9, 0.7), (2000, 0.5, 0.9), (3000, 0.6, 0.8)]:
        rows.append(make_row(step, loss=loss / 2, accuracy=accuracy / 2))
        rows.append(make_row(step, "test", loss=loss, accuracy=accuracy, bits=loss))
    rows.append(make_row(4000, "test", loss=None, accuracy=None))
    pictures.draw_curves(rows, "run")
    labels = {
        axes.get_ylabel(): [text.get_text() for text in axes.get_legend().get_texts()]
        for axes in figures[0].axes
    }
    assert list(labels) == ["loss", "accuracy (fraction)", "bits"]
    assert labels == {
        "loss": ["train 0.3000", "test 0.6000, ★ 0.5000 at step 2,000"],
        "accuracy (fraction)": ["train 0.4000", "test 0.8000, ★ 0.9000 at step 2,000"],
        "bits": ["test 0.6000, ★ 0.5000 at step 2,000"],
    }
    assert [axes.get_xlabel() for axes in figures[0].axes] == ["step (updates)"] * 3
    star = next(a for a in figures[0].axes[1].lines if a.get_marker() == "*")
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (2000, 0.9)
    # 4000 steps are 400 epochs.
    (top,) = figures[0].axes[0].child_axes
    assert top.get_xlabel() == "epoch"
    np.testing.assert_allclose(top.get_xlim(), (0, 408))


def test_a_long_train_curve_gets_its_running_mean(figures):
    rng = np.random.default_rng(2)
    losses = rng.uniform(0.01, 1, size=350)
    losses[[0, 100, 101]] = math.nan
    rows = [make_row(i, loss=None if np.isnan(v) else v) for i, v in enumerate(losses)]
    rows.append(make_row(350, "test"))
    pictures.draw_curves(rows, "long")
    axes = figures[0].axes[0]
    assert axes.get_yscale() == "log"
    raw, mean = [line for line in axes.lines if line.get_color() == BLUE]
    np.testing.assert_array_equal(raw.get_ydata(), losses)
    assert raw.get_alpha() == 0.25
    expected = [  # 350 // 50 = 7 rows, three on each side; a gap stays a gap
        math.nan if np.isnan(v) else np.nanmean(losses[max(i - 3, 0) : i + 4])
        for i, v in enumerate(losses)
    ]
    np.testing.assert_allclose(mean.get_ydata(), expected, rtol=1e-12)
    assert mean.get_label().endswith(", line: mean of 7 rows")


def test_no_value_draws_nothing():
    assert pictures.draw_curves([], "run") == b""
    rows = [make_row(1, loss=None, accuracy=None)]
    assert pictures.draw_curves(rows, "run") == b""


def test_confusion_matrix_in_numbers(figures):
    matrix = np.array([[6, 2, 0], [0, 0, 0], [1, 0, 3]])
    names = ["cat", "$dog$", "bird"]
    png = pictures.draw_confusion(matrix, names)
    assert matplotlib.image.imread(io.BytesIO(png)).ndim == 3
    (axes,) = figures[0].axes
    (image,) = axes.images
    # Shares of each true class, one a row; a class without examples is empty.
    shares = [[0.75, 0.25, 0], [0, 0, 0], [0.25, 0, 0.75]]
    np.testing.assert_array_equal(image.get_array(), shares)
    assert image.norm.vmin == 0
    assert image.norm.vmax == 1
    shown = {text.get_position(): text.get_text() for text in axes.texts}
    assert shown == {  # (predicted, true)
        **{(0, 0): "6", (1, 0): "2", (2, 0): "·"},
        **{(0, 1): "·", (1, 1): "·", (2, 1): "·"},
        **{(0, 2): "1", (1, 2): "·", (2, 2): "3"},
    }
    for axis in (axes.xaxis, axes.yaxis):
        assert [label.get_text() for label in axis.get_ticklabels()] == names
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    assert axes.get_title() == "75.00% of 12 right"


def test_confusion_matrix_of_many_classes(figures):
    png = pictures.draw_confusion(np.eye(150, dtype=np.int64), [*map(str, range(150))])
    assert max(matplotlib.image.imread(io.BytesIO(png)).shape) < 2500
    (axes,) = figures[0].axes
    assert not axes.texts
    assert axes.images[0].get_array().shape == (150, 150)


def test_confusion_matrix_of_no_examples():
    png = pictures.draw_confusion(np.zeros((2, 2), np.int64), ["a", "b"])
    assert png.startswith(b"\x89PNG")


def test_forecast_in_numbers(figures):
    rng = np.random.default_rng(0)
    truth, forecast, baseline = rng.normal(size=(3, 20)).astype(np.float32)
    png = pictures.draw_forecast(truth, forecast, baseline, 3, "1 $step ahead")
    (axes,) = figures[0].axes
    lines = {line.get_label(): line for line in axes.lines}
    assert set(lines) == {"truth", "forecast", "last value"}
    for name, values in (
        ("truth", truth),
        ("forecast", forecast),
        ("last value", baseline),
    ):
        np.testing.assert_array_equal(lines[name].get_ydata(), values)
        np.testing.assert_array_equal(lines[name].get_xdata(), np.arange(3, 23))
    assert axes.get_title() == "1 $step ahead"
    for color in ("black", BLUE, pictures.COLORS[4]):
        assert count_pixels(png, color) > 100


@pytest.mark.parametrize(
    "named",
    [
        "no_such_backend",
        # A notebook's, which is not installed everywhere.
        pytest.param(
            "module://matplotlib_inline.backend_inline", marks=pytest.mark.slow
        ),
        pytest.param("svg", marks=pytest.mark.slow),
    ],
)
def test_a_picture_needs_no_backend(named: str) -> None:
    code = (
        "import os; from lstm_jax import pictures;"
        "print(pictures.to_png(pictures.make_figure(1.0, 1.0))[:4]);"
        "import matplotlib; print(os.environ['MPLBACKEND']);"
        "print(matplotlib.rcParams['backend'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"MPLBACKEND": named, "DISPLAY": ""},
    )
    png, kept, backend = done.stdout.splitlines()
    assert (png, kept) == (r"b'\x89PNG'", named)
    # Whoever draws with pyplot besides has the backend that was named, or another.
    assert backend == named if named == "svg" else backend != "no_such_backend"

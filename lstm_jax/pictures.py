"""Pictures of a run, as PNG: curves, a confusion matrix, a forecast."""

import contextlib
import io
import itertools
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

# One line of metrics.jsonl. Keys: `step` (updates done), `epoch`, `split`, `seconds`
# (training time summed over restarts), of a sweep's member `seed` and `learning_rate`;
# every other key is a metric: a Python number, None where it was not finite.
Row = dict[str, Any]

_NOT_METRICS = ("step", "epoch", "split", "seconds", "seed", "learning_rate")
_SMOOTH_ABOVE = 300  # rows; a shorter train curve is readable as it is
_NUMBERED = 20  # classes, above which a confusion matrix has no room for numbers

# Okabe and Ito's palette, which the colour-blind can tell apart; the first is train's.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def metrics_of(row: Row) -> list[str]:
    """The keys of a row that are metrics."""
    return [key for key in row if key not in _NOT_METRICS]


def show_number(value: float) -> str:
    """Four decimals, or an exponent where these would not tell."""
    is_plain = value == 0 or 1e-3 <= abs(value) < 1e5
    return f"{value:.4f}" if is_plain else f"{value:.3e}"


def draw_curves(rows: list[Row], title: str) -> bytes:
    """Draws the curves of a run: a panel each metric, a line each split.

    A star marks the best value of each evaluated split (of the train split if there
    is no other): the highest accuracy, the lowest of any other metric. Nulls are
    gaps. A long train curve is drawn light, with its running mean on top. A metric
    that spans more than a factor of 50 gets a logarithmic axis.

    Args:
      rows: as `lstm_jax.reporting.read_metrics` returns them.
      title: title of the figure.

    Returns:
      The PNG; empty where no row has any value.
    """
    splits = dict.fromkeys(("train", *(row["split"] for row in rows)))
    colors = dict(zip(splits, itertools.cycle(COLORS), strict=False))

    def draw_lines(axes: "matplotlib.axes.Axes", name: str) -> list[float]:
        known = [row for row in rows if row.get(name) is not None]
        starred = {row["split"] for row in known} - {"train"} or {"train"}
        for split in splits:
            if any(row["split"] == split for row in known):
                split_rows = [row for row in rows if row["split"] == split]
                _draw_line(axes, name, split_rows, colors[split], split in starred)
        return [row[name] for row in known]

    return _draw_panels(rows, title, draw_lines)


def draw_spreads(rows: list[Row], title: str) -> bytes:
    """Draws the curves of a sweep: a panel each metric, a color each learning rate.

    The line is the mean over the seeds, the band around it their standard deviation;
    training is dashed where another split is evaluated.

    Args:
      rows: as `lstm_jax.sweep_report.spreads` makes them.
      title: title of the figure.

    Returns:
      The PNG; empty where no row has any value.
    """
    rates = dict.fromkeys(row["learning_rate"] for row in rows)
    colors = dict(zip(rates, itertools.cycle(COLORS), strict=False))
    splits = dict.fromkeys(("train", *(row["split"] for row in rows)))

    def draw_lines(axes: "matplotlib.axes.Axes", name: str) -> list[float]:
        drawn: list[float] = []
        for (rate, color), split in itertools.product(colors.items(), splits):
            known = [
                (row["step"], *row[name])
                for row in rows
                if (row["learning_rate"], row["split"]) == (rate, split)
                and name in row
                and row[name].mean is not None
            ]
            if not known:
                continue
            # As floats, a spread of None is NaN, which is drawn as a gap.
            steps, mean, sd = np.array(known, dtype=float).T
            dashed = split == "train" and len(splits) > 1
            label = f"{rate:g}, {split} {show_number(mean[-1])}"
            if np.isfinite(sd[-1]):
                label += f" ± {show_number(sd[-1])}"
            style = "--" if dashed else "-"
            marker = "o" if len(known) == 1 else ""
            axes.plot(steps, mean, style, color=color, label=label, marker=marker)
            if not dashed:
                axes.fill_between(steps, mean - sd, mean + sd, color=color, alpha=0.2)
            drawn += mean.tolist()
        return drawn

    means = [
        row | {name: row[name].mean for name in metrics_of(row)}  # None: no value
        for row in rows
    ]
    return _draw_panels(means, title, draw_lines)


def _draw_panels(
    rows: list[Row],
    title: str,
    draw_lines: Callable[["matplotlib.axes.Axes", str], list[float]],
) -> bytes:
    """Draws a panel each metric; `draw_lines(axes, name)` returns the values."""
    import_matplotlib()
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    keys = dict.fromkeys(key for row in rows for key in metrics_of(row))
    names = [
        name
        for name in dict.fromkeys(("loss", "accuracy", *keys))
        if any(row.get(name) is not None for row in rows)
    ]
    if not names:
        return b""
    last = max(rows, key=lambda row: row["step"])
    epochs_per_step = last.get("epoch", 0) / max(last["step"], 1)
    columns = min(len(names), 2)
    lines = math.ceil(len(names) / columns)
    figure = make_figure(6.4 * columns, 4.8 * lines)
    figure.suptitle(title, parse_math=False)
    for position, name in enumerate(names, start=1):
        axes = figure.add_subplot(lines, columns, position)
        values = draw_lines(axes, name)
        is_log = min(values) > 0 and max(values) > 50 * min(values)
        axes.set_yscale("log" if is_log else "linear")
        axes.set_xlim(0, max(1.02 * last["step"], 1))
        axes.set_xlabel("step (updates)")
        unit = " (fraction)" if "accuracy" in name else ""
        axes.set_ylabel(name + unit + (", log scale" if is_log else ""))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.grid(linewidth=0.5, alpha=0.4)
        axes.spines[["top", "right"]].set_visible(False)
        # Below the panel: there it hides no curve.
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False)
        if epochs_per_step:
            to_epoch = (lambda x: x * epochs_per_step, lambda x: x / epochs_per_step)
            axes.secondary_xaxis("top", functions=to_epoch).set_xlabel("epoch")
    return to_png(figure)


def _draw_line(
    axes: "matplotlib.axes.Axes", name: str, rows: list[Row], color: str, star: bool
) -> None:
    """Draws one metric of one split, of which `rows` has some value."""
    split = rows[0]["split"]
    steps = np.array([row["step"] for row in rows])
    # As floats, None is NaN, which is drawn as a gap.
    values = np.array([row.get(name) for row in rows], dtype=float)
    finite = np.isfinite(values)
    label = f"{split} {show_number(values[finite][-1])}"
    if star:
        best = (np.nanargmax if "accuracy" in name else np.nanargmin)(values)
        label += f", ★ {show_number(values[best])} at step {steps[best]:,}"
        style = {"marker": "*", "markersize": 15, "markeredgecolor": "white"}
        axes.plot(steps[best], values[best], color=color, zorder=4, **style)
    if split != "train":
        size = 5 if len(rows) <= 60 else 2.5
        axes.plot(steps, values, "o-", color=color, label=label, markersize=size)
    elif len(rows) <= _SMOOTH_ABOVE:
        axes.plot(steps, values, color=color, label=label, linewidth=1.8)
        # A line needs two neighbours; a point between gaps needs a marker.
        padded = np.pad(finite, 1)
        alone = finite & ~padded[:-2] & ~padded[2:]
        axes.plot(steps[alone], values[alone], "o", color=color, markersize=4)
    else:
        axes.plot(steps, values, color=color, alpha=0.25, linewidth=1)
        window = np.ones(len(rows) // 50)
        total = np.convolve(np.where(finite, values, 0), window, mode="same")
        count = np.convolve(finite, window, mode="same")
        mean = np.divide(total, count, out=np.full_like(values, np.nan), where=finite)
        label += f", line: mean of {len(window)} rows"
        axes.plot(steps, mean, color=color, label=label, linewidth=1.8)


def draw_confusion(
    matrix: Int[np.ndarray, "classes classes"], names: Sequence[str]
) -> bytes:
    """Draws how often each class (row) was taken for each (column).

    With more than twenty classes it shows shares alone, and numbers for the names.

    Args:
      matrix: counts, [true, predicted].
      names: of the classes.

    Returns:
      The PNG.
    """
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = 1.5 + 0.7 * min(len(names), _NUMBERED)
    figure = make_figure(side, side)
    axes = figure.add_subplot()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= _NUMBERED:
        for (row, column), count in np.ndenumerate(matrix):
            color = "white" if share[row, column] > 0.5 else "black"
            text = str(count) if count else "·"
            style = {"ha": "center", "va": "center", "fontsize": 8}
            axes.text(column, row, text, color=color, **style)
        places = range(len(names))
        axes.set_xticks(places, names, parse_math=False)
        axes.set_yticks(places, names, parse_math=False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    accuracy = np.trace(matrix) / max(matrix.sum(), 1)
    axes.set_title(f"{accuracy:.2%} of {matrix.sum():,} right")
    return to_png(figure)


def draw_forecast(
    truth: Float[np.ndarray, " steps"],
    forecast: Float[np.ndarray, " steps"],
    baseline: Float[np.ndarray, " steps"],
    first: int,
    title: str,
) -> bytes:
    """Draws a forecast over the truth, and a baseline's.

    Args:
      truth: the series.
      forecast: what the model said of each step.
      baseline: what the baseline said of each step.
      first: number of the first step.
      title: title of the figure.

    Returns:
      The PNG.
    """
    figure = make_figure(9.0, 4.5)
    axes = figure.add_subplot()
    steps = range(first, first + len(truth))
    axes.plot(steps, truth, color="black", linewidth=1.2, label="truth")
    axes.plot(steps, baseline, color=COLORS[4], linewidth=1, label="last value")
    axes.plot(steps, forecast, color=COLORS[0], linewidth=1.5, label="forecast")
    axes.set_xlabel("step of the test part")
    axes.set_title(title, parse_math=False)
    axes.grid(linewidth=0.5, alpha=0.4)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return to_png(figure)


def make_figure(width: float, height: float) -> "matplotlib.figure.Figure":
    """An empty figure, of a size in inches."""
    # Here, because matplotlib takes a second to import, which a start of training
    # should not wait for. No pyplot: it keeps global state and may want a display.
    import_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def import_matplotlib() -> None:
    """Import matplotlib, whatever backend the environment names.

    A notebook names its own in `MPLBACKEND`, also for the commands that it starts, and
    where that is not installed matplotlib does not let itself be imported. A figure of
    `make_figure` is drawn without any.
    """
    if "matplotlib" in sys.modules:
        return
    named = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if named is not None:
            os.environ["MPLBACKEND"] = named
    if named:
        with contextlib.suppress(ValueError):  # for the pyplot of whoever calls this
            matplotlib.rcParams["backend"] = named


def to_png(figure: "matplotlib.figure.Figure") -> bytes:
    """A figure as a file's content."""
    image = io.BytesIO()
    figure.savefig(image, format="png", backend="agg", dpi=120)
    return image.getvalue()

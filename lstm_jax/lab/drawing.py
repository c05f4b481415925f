"""The lab's pictures, as PNG."""

from typing import Any

import numpy as np

from lstm_jax.flow_pictures import draw_lag_gains
from lstm_jax.pictures import COLORS, make_figure, to_png


def draw_learning(problem: str, about: dict[str, Any], curves: dict[str, Any]) -> bytes:
    """Learning curves: the mean over seeds, and from the least to the largest.

    Args:
      problem: its name.
      about: as `examine.describe` gives it.
      curves: as `examine.learnt` gives them, by cell, the new one first.
    """
    figure = make_figure(5.2, 3.8)
    axes = figure.add_subplot()
    axes.axhline(
        about["baseline"], color="black", linestyle=":", linewidth=1.2, label="baseline"
    )
    # The new cell above the others.
    for number, (name, curve) in reversed(list(enumerate(curves.items()))):
        losses = np.asarray(curve["losses"], float)  # None becomes NaN
        known = np.isfinite(losses).any(axis=0)
        steps, losses = np.asarray(curve["steps"])[known], losses[:, known]
        color, width = COLORS[number], 2.4 if number == 0 else 1.4
        axes.fill_between(
            steps,
            np.nanmin(losses, axis=0),
            np.nanmax(losses, axis=0),
            color=color,
            alpha=0.18,
            linewidth=0,
        )
        axes.plot(
            steps, np.nanmean(losses, axis=0), color=color, linewidth=width, label=name
        )
    axes.set_yscale("log")
    axes.set_title(problem, parse_math=False)
    axes.set_xlabel("step (updates)")
    axes.set_ylabel(about["unit"])
    _finish(axes)
    return to_png(figure)


def draw_costs(costs: dict[str, Any]) -> bytes:
    """Bars of the time of a forward pass and of training, beside lstm's.

    Args:
      costs: `cost.Cost` as a dict, by cell, the new one first.
    """
    figure = make_figure(6.4, 0.8 + 0.7 * len(costs))
    axes = figure.add_subplot()
    places = np.arange(len(costs))[::-1]
    for shift, field, color in (
        (0.18, "forward_ratio", COLORS[5]),
        (-0.18, "training_ratio", COLORS[0]),
    ):
        values = [cost[field] for cost in costs.values()]
        label = field.removesuffix("_ratio")
        bars = axes.barh(places + shift, values, 0.34, color=color, label=label)
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.set_yticks(places, list(costs), parse_math=False)
    axes.set_xlabel("time, of lstm's")
    # Beside the bars, which it would hide.
    _finish(axes, loc="center left", bbox_to_anchor=(1.02, 0.5))
    return to_png(figure)


def draw_gains(flows: dict[str, Any]) -> bytes:
    """How much of a change of the state is left after so many steps.

    Args:
      flows: as `examine.follow` gives them, by cell, the new one first.
    """
    gains = {
        name: {
            field: np.asarray(values, float)  # None becomes NaN
            for field, values in found["lag_gains"].items()
        }
        for name, found in flows.items()
    }
    return draw_lag_gains({"": gains})


def _finish(axes: Any, **legend: Any) -> None:
    axes.grid(linewidth=0.5, alpha=0.4)
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], frameon=False, fontsize=8, **legend)

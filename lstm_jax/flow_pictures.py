"""Pictures of gradient flow, as PNG."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Array, Float, Shaped

from lstm_jax.flow import Flow
from lstm_jax.pictures import COLORS, make_figure, to_png

if TYPE_CHECKING:
    import matplotlib.axes

# What is smaller is drawn at the lower edge: float32 has nothing below 1e-38, and
# nobody trains on a thousandth of a millionth.
_LEAST = 1e-10
_LINES = ("-", "--", ":", "-.")  # of a cell's memories, and of more cells than colours

# By part of the state, "h" or a memory: at lag 0, 1, and so on.
Gains = Mapping[str, Shaped[Array | np.ndarray, " lags"]]


def draw_flow(flows: Mapping[str, Flow], title: str = "") -> bytes:
    """Draws what `lstm_jax.flow.measure` found of some cells, side by side.

    Four panels: the gain over the lag, of h and (dashed) of each memory, the loss's
    gradient over the steps, the time constants of the units, and how many values of
    each gate are near an end of its range. The second is left out where no flow has it.

    Args:
      flows: by the cells' names.
      title: of the figure.

    Returns:
      The PNG.
    """
    found = {name: flow.lag_gains for name, flow in flows.items()}
    gradients = {
        name: np.asarray(flow.loss_gradients)
        for name, flow in flows.items()
        if flow.loss_gradients is not None
    }
    panels = 4 if gradients else 3
    rows, columns = (2, 2) if gradients else (1, 3)
    figure = make_figure(6.2 * columns, 4.4 * rows)
    if title:
        figure.suptitle(title, parse_math=False)
    panel = [figure.add_subplot(rows, columns, i + 1) for i in range(panels)]
    _draw_gains(panel[0], found)
    panel[0].set_title("what is left of a change of the state, lag by lag")
    panel[0].legend(frameon=False, loc="lower left")
    if gradients:
        _draw_gradients(panel[1], gradients)
    _draw_time_constants(panel[-2], flows)
    _draw_saturation(panel[-1], flows)
    return to_png(figure)


def by_label(name: str, fields: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The gains or time constants of a cell, by what they are called: h comes first."""
    ordered = sorted(fields, key=lambda field: field != "h")
    return {
        name if field == "h" else f"{name}, {field}": np.asarray(fields[field], float)
        for field in ordered
    }


def draw_lag_gains(panels: Mapping[str, Mapping[str, Gains]], title: str = "") -> bytes:
    """Draws the gain over the lag, a panel each group of cells, one axis for all.

    A memory's are dashed, in the colour of its cell.

    Args:
      panels: by title, and there by cell: `Flow.lag_gains`.
      title: of the figure.

    Returns:
      The PNG.
    """
    figure = make_figure(6.2 * len(panels), 5.4)
    if title:
        figure.suptitle(title, parse_math=False)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for own, (name, gains) in zip(axes, panels.items(), strict=True):
        _draw_gains(own, gains)
        own.set_title(name, parse_math=False)
    # One axis and one legend for all.
    lows, highs = zip(*(_gain_limits(gains) for gains in panels.values()), strict=True)
    axes[0].set_ylim(min(lows), max(highs))
    handles = {str(line.get_label()): line for own in axes for line in own.lines[1:]}
    figure.legend(
        handles.values(), handles, loc="outside lower center", ncols=3, frameon=False
    )
    return to_png(figure)


def _draw_gains(axes: "matplotlib.axes.Axes", gains: Mapping[str, Gains]) -> None:
    axes.axhline(1, color="black", linewidth=0.8)
    for i, (name, fields) in enumerate(gains.items()):
        for j, (label, values) in enumerate(by_label(name, fields).items()):
            axes.plot(_visible(values), label=label, **_style(i, j))
    axes.set_yscale("log")
    axes.set_ylim(*_gain_limits(gains))
    _tidy(axes)
    axes.set_xlabel("lag k (steps)")
    axes.set_ylabel("gain |∂h(T) / ∂h(T-k)|, of c: |∂c(T) / ∂c(T-k)|")


def _gain_limits(gains: Mapping[str, Gains]) -> tuple[float, float]:
    """Of the axis: 1 is in sight, and no more than is worth it."""
    every = np.concatenate(
        [np.asarray(a, float) for fields in gains.values() for a in fields.values()]
    )
    known = every[np.isfinite(every)]
    low, high = known.min(initial=1.0), known.max(initial=1.0)
    return max(float(low) / 2, _LEAST), min(float(high) * 3, 1e8)


def _draw_gradients(
    axes: "matplotlib.axes.Axes", gradients: Mapping[str, Float[np.ndarray, " steps"]]
) -> None:
    known = np.concatenate(
        [values[np.isfinite(values)] for values in gradients.values()]
    )
    for i, (name, values) in enumerate(gradients.items()):
        axes.plot(_visible(values), label=name, **_style(i))
    low, high = known[known > 0].min(initial=1.0), known.max(initial=_LEAST)
    axes.set_yscale("log")
    axes.set_ylim(max(min(low, high) / 2, 1e-3 * _LEAST), high * 3)
    _tidy(axes)
    axes.set_xlabel("step t")
    axes.set_ylabel("norm, log scale")
    axes.set_title("|∂loss / ∂h(t)|")
    axes.legend(frameon=False)


def _draw_time_constants(
    axes: "matplotlib.axes.Axes", flows: Mapping[str, Flow]
) -> None:
    taus, styles = {}, []
    for i, (name, flow) in enumerate(flows.items()):
        named = by_label(name, flow.time_constants)
        if len(named) == 1:
            named = dict(zip([name], named.values(), strict=True))
        taus |= named
        styles += [_style(i, j) for j in range(len(named))]
    known = [values[np.isfinite(values) & (values > 0)] for values in taus.values()]
    ends = np.concatenate([*known, [1.0]])
    low, high = ends.min() / 2, ends.max() * 2
    for style, (name, values) in zip(styles, taus.items(), strict=True):
        share = (np.arange(len(values)) + 0.5) / len(values)
        shown = np.clip(np.sort(values), low, high)
        axes.plot(
            share, shown, label=f"{name}, median {np.median(values):.3g}", **style
        )
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.set_xlabel("share of the units")
    axes.set_ylabel("steps, log scale (edges: 0, ∞)")
    axes.set_title("time constant of a unit's memory")
    _tidy(axes)
    axes.legend(frameon=False)


def _draw_saturation(axes: "matplotlib.axes.Axes", flows: Mapping[str, Flow]) -> None:
    names, lows, highs, colors = [], [], [], []
    for i, (cell, flow) in enumerate(flows.items()):
        for gate, shares in flow.saturation.items():
            names.append(f"{cell} {gate}")
            lows.append(float(shares.low))
            highs.append(float(shares.high))
            colors.append(_style(i)["color"])
    places = np.arange(len(names))
    axes.barh(places, -np.array(lows), color=colors, alpha=0.5)
    axes.barh(places, highs, color=colors)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(places, names, parse_math=False, fontsize=8)
    axes.invert_yaxis()
    limit = max([0.05, *lows, *highs]) * 1.05
    axes.set_xlim(-limit, limit)
    axes.xaxis.set_major_formatter(lambda x, _: f"{abs(x):.0%}")
    axes.set_xlabel("share of the values: ← low end, high end →")
    axes.set_title("saturated gates (sigmoid < 0.05, > 0.95; tanh ±0.95)")
    _tidy(axes)


def _visible(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """What a logarithmic axis can show: zero is near its lower edge, NaN a gap."""
    return np.where(np.isnan(values), values, np.maximum(values, 1e-3 * _LEAST))


def _style(i: int, j: int = 0) -> dict[str, Any]:
    line = _LINES[(i // len(COLORS) + j) % len(_LINES)]
    return {"color": COLORS[i % len(COLORS)], "linestyle": line}


def _tidy(axes: "matplotlib.axes.Axes") -> None:
    axes.grid(linewidth=0.5, alpha=0.4)
    axes.spines[["top", "right"]].set_visible(False)

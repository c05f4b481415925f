"""What the lab has found, as one HTML page that needs no other file and no network."""

import base64
import functools
import html
import math
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lstm_jax.flow_pictures import by_label
from lstm_jax.lab import cost, drawing, examine
from lstm_jax.reporting import drawn

_LAGS = (1, 10, 25, 50, examine.STEPS - 1)
_FASTER = 0.9  # of the cell's own time: below it autodiff is the better way
_NUMBERS = re.compile(r"∞|\d[\d.,e+\- ]*( ms| MB)?")
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
  max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { text-align: left; padding: .25rem .9rem .25rem 0; vertical-align: top;
  border-bottom: 1px solid #ddd; }
td.number { text-align: right; font-variant-numeric: tabular-nums;
  white-space: nowrap; }
pre { background: #f5f5f5; padding: 1rem; overflow-x: auto; font-size: 14px; }
img { max-width: 100%; height: auto; }
.bad { color: #b00020; font-weight: 600; } .good { color: #00694a; }
.note { color: #555; font-size: 14px; }
"""


def render(found: dict[str, Any], peers: dict[str, Any], about: dict[str, Any]) -> str:
    """The page.

    Args:
      found: as `examine.examine` gives it.
      peers: as `peer_curves.read` gives it.
      about: as `examine.about` gives it.
    """
    name = found["name"]
    sections = [
        ("In short", _list(summary(found, peers))),
        ("The cell", f"<pre>{_text(found['source'])}</pre>"),
        (examine.LAWS, found["laws"] and _laws(found["laws"])),
        (examine.COST, found["cost"] and _costs(found["cost"])),
        ("Learning", found["curves"] and _learning(found, peers)),
        (examine.FLOW, found["flow"] and _flow(found["flow"])),
    ]
    for number, (title, content) in enumerate(sections):
        own = found["problems"] if title == "Learning" else (title,)
        lines = _failures(found, own)
        sections[number] = title, (_list(lines) if lines else "") + (content or "")
    body = "\n".join(f"<h2>{title}</h2>\n{content}" for title, content in sections)
    versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
    made = (
        f"{about['date']}, {about['machine']}; {versions}; in "
        f"{found['seconds']:.0f} s, by {about['command']}"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(name)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{_text(name)}</h1>\n{_note(made)}\n{body}\n</body>\n</html>\n"
    )


def summary(found: dict[str, Any], peers: dict[str, Any]) -> list[tuple[bool, str]]:
    """The findings in a line each, and whether each is a good one."""
    laws, lines = found["laws"], _failures(found, found["failed"])
    if laws:
        broken = [law["name"] for law in laws if not law["holds"]]
        lines.append(
            (
                not broken,
                f"Laws: {len(laws) - len(broken)} of {len(laws)} hold"
                + (f"; broken: {', '.join(broken)}." if broken else "."),
            )
        )
        slope = next(law for law in laws if law["name"] == "finite differences")
        missing = ", ".join(found["unreached"])
        lines.append(
            (
                slope["holds"] and not missing,
                "Gradients: within "
                f"{_number(slope['error'])} of finite differences in float64"
                + (f"; zero for all of {missing}." if missing else "."),
            )
        )
    if found["cost"]:
        own = found["cost"][found["name"]]
        lines.append((own["fast"], f"Path: {own['path']}."))
        lines.append((True, _time(own)))
    for problem, curve in found["curves"].items():
        about = found["problems"][problem]
        losses = final(curve)
        others = "; ".join(
            f"{name} {_number(statistics.mean(final(other)))}"
            for name, other in peers["curves"][problem].items()
        )
        lines.append(
            (
                is_learnt(curve, about),
                f"{problem}: {_number(statistics.mean(losses))} "
                f"({others}; baseline {_number(about['baseline'])}, learnt below "
                f"{_number(about['learnt_below'])}).",
            )
        )
    return lines


def broken(found: dict[str, Any]) -> bool:
    """Whether a law or a gradient is, or the cell's own code has failed."""
    disobeyed = any(not law["holds"] for law in found["laws"])
    return bool(disobeyed or found["unreached"] or found["failed"])


def _time(own: dict[str, Any]) -> str:
    """How long the cell trains, and how long by autodiff."""
    line = f"A step of training takes {own['training_ratio']:.2f} of lstm's time"
    plain = own["autodiff_ratio"]
    if plain is None:
        return f"{line}."
    if plain < _FASTER:
        return (
            f'{line}; implementation="autodiff" is faster for it, in {plain:.2f} of '
            "that time."
        )
    return f"{line}; by autodiff it would take {plain:.2f} of its own."


def _failures(found: dict[str, Any], names: Iterable[str]) -> list[tuple[bool, str]]:
    """A line of each of some sections or problems at which the cell's code failed."""
    known = found["failed"]
    return [
        (False, f"{name}: failed: {known[name]}") for name in names if name in known
    ]


def final(curve: dict[str, Any]) -> list[float]:
    """The last losses of all seeds; infinite of one that has diverged."""
    return [math.inf if x[-1] is None else x[-1] for x in curve["losses"]]


def is_learnt(curve: dict[str, Any], about: dict[str, Any]) -> bool:
    """Whether the seeds end, in the mean, below the problem's limit."""
    return statistics.mean(final(curve)) < about["learnt_below"]


def _laws(laws: Sequence[dict[str, Any]]) -> str:
    rows = []
    for law in laws:
        verdict = _verdict(law["holds"], "holds", "broken")
        error = law["failure"] or _number(law["error"])
        allowed = "same bits" if law["tolerance"] == 0 else _number(law["tolerance"])
        rows.append((law["name"], law["statement"], verdict, error, allowed))
    heads = ("law", "what it says", "", "largest error", "allowed")
    return _note(
        "Tried in float64 on random parameters, inputs and a carry that the cell "
        "reached; an error is beside the largest entry of its array, or 1. A parameter "
        "of which every gradient is zero breaks none of them: it is named at the top."
    ) + _table(heads, rows, raw=(2,))


def _costs(costs: dict[str, Any]) -> str:
    heads = ("", "parameters", "forward", "of lstm's", "training", "of lstm's")
    heads += ("by autodiff, of its own", "kept for the backward pass", "peak")
    rows = [
        (
            name,
            f"{of['parameters']:,}",
            f"{of['forward']:.1f} ms",
            f"{of['forward_ratio']:.2f}",
            f"{of['training']:.1f} ms",
            f"{of['training_ratio']:.2f}",
            "" if of["autodiff_ratio"] is None else f"{of['autodiff_ratio']:.2f}",
            f"{of['saved']:.1f} MB",
            f"{of['peak']:.1f} MB",
        )
        for name, of in costs.items()
    ]
    paths = "\n".join(
        f"{name}: {of['path']}"
        + (f"\n  layout: {of['layout']}" if of["layout"] else "")
        for name, of in costs.items()
    )
    return (
        _note(
            f"A layer of {cost.HIDDEN} units on {cost.BATCH} rows of {cost.TIME} steps "
            f"with {cost.FEATURES} features (or, where the cell takes no others, "
            f"{cost.HIDDEN}), measured in turn; memory is that of all devices."
        )
        + _table(heads, rows)
        + _picture(lambda: drawing.draw_costs(costs), "Time of each cell beside lstm's")
        + f"<p>The way that each cell is run:</p><pre>{_text(paths)}</pre>"
    )


def _learning(found: dict[str, Any], peers: dict[str, Any]) -> str:
    seeds = len(next(iter(found["curves"].values()))["losses"])
    parts = [
        _note(
            f"{seeds} seeds, {examine.HIDDEN} units; the band is from the least "
            "to the largest. A problem is learnt where the mean of the seeds ends "
            f"below {examine.LEARNT:.0%} of the baseline, what a model reaches that "
            "knows nothing of the inputs. "
            "Measured on sequences that are not trained on (of MNIST "
            "on test images), but for the fable, which is to be learnt by heart. The "
            "curves of lstm and gru "
            f"were made on {peers['date']} on {peers['machine']} by "
            f"{peers['command']}; those of what --full adds, along with this page."
        )
    ]
    rows = []
    for problem, curve in found["curves"].items():
        about = found["problems"][problem]
        curves = {found["name"]: curve, **peers["curves"][problem]}
        parts.append(
            _picture(
                functools.partial(drawing.draw_learning, problem, about, curves),
                f"Learning curves: {problem}",
            )
        )
        ends = [", ".join(map(_number, final(other))) for other in curves.values()]
        rows.append((problem, about["what"], *ends, _number(about["baseline"])))
    heads = ("problem", "", found["name"], *peers["curves"][rows[0][0]])
    return "\n".join([*parts, _table((*heads, "baseline"), rows)])


def _flow(flows: dict[str, Any]) -> str:
    rows = []
    for name, found in flows.items():
        memories = found["time_constants"]
        middles = [
            _middle(taus) if len(memories) == 1 else f"{field} {_middle(taus)}"
            for field, taus in memories.items()
        ]
        shut = [
            f"{gate} {100 * (share['low'] + share['high']):.0f} %"
            for gate, share in found["saturation"].items()
        ]
        rest = [", ".join(middles), ", ".join(shut)]
        for label, gains in by_label(name, found["lag_gains"]).items():
            rows.append((label, *(_number(gains[lag]) for lag in _LAGS), *rest))
            rest = ["", ""]
    heads = ("", *(f"lag {lag}" for lag in _LAGS))
    heads += ("steps that a unit remembers, median", "gates at an end of their range")
    return (
        _note(
            f"Of untrained cells of {examine.HIDDEN} units that read a text by "
            "characters: how much of a random change of h, or of a memory of that "
            "name, is left after so many steps (1: all)."
        )
        + _picture(
            lambda: drawing.draw_gains(flows), "What is left of a change, over the lag"
        )
        + _table(heads, rows)
    )


def _middle(taus: Sequence[float | None]) -> str:
    """The median, in steps; JSON has None for what never fades."""
    value = statistics.median(math.inf if tau is None else tau for tau in taus)
    return "∞" if math.isinf(value) else f"{value:.1f}"


def _list(lines: Iterable[tuple[bool, str]]) -> str:
    items = [
        f'<li class="{"good" if good else "bad"}">{_text(line)}</li>'
        for good, line in lines
    ]
    return f"<ul>{''.join(items)}</ul>"


def _verdict(good: bool, yes: str, no: str) -> str:
    kind, word = ("good", yes) if good else ("bad", no)
    return f'<span class="{kind}">{word}</span>'


def _table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], raw: Sequence[int] = ()
) -> str:
    """A table; the columns `raw` hold HTML already."""

    def cell(column: int, value: str) -> str:
        number = ' class="number"' if _NUMBERS.fullmatch(value) else ""
        return f"<td{number}>{value if column in raw else _text(value)}</td>"

    head = "".join(f"<th>{_text(title)}</th>" for title in heads)
    body = "\n".join(
        f"<tr>{''.join(cell(i, value) for i, value in enumerate(row))}</tr>"
        for row in rows
    )
    return f"<table>\n<tr>{head}</tr>\n{body}\n</table>"


def _picture(draw: Callable[[], bytes], says: str) -> str:
    if (png := drawn(says, draw)) is None:
        return _note(f"not drawn: {says}")
    data = base64.b64encode(png).decode()
    return f'<img alt="{_text(says)}" src="data:image/png;base64,{data}">'


def _note(text: str) -> str:
    return f'<p class="note">{_text(text)}</p>'


def _number(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "not finite"
    return f"{value:.3g}"


def _text(text: str) -> str:
    return html.escape(text)

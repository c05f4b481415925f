"""What a person sees of a sweep: means over its seeds, and how far they spread."""

import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from lstm_jax import reporting
from lstm_jax.checkpoints import score
from lstm_jax.evaluation import Metrics
from lstm_jax.members import Member
from lstm_jax.pictures import Row, draw_spreads, metrics_of, show_number
from lstm_jax.reporting import Report


class Spread(NamedTuple):
    """A metric over the seeds of a learning rate.

    Attributes:
      mean: of the seeds whose value is finite; None: there is none.
      sd: their sample standard deviation; None of fewer than two.
    """

    mean: float | None
    sd: float | None


def spread_of(values: Sequence[float | None]) -> Spread:
    """Mean and standard deviation of what is finite."""
    finite = [v for v in values if v is not None and math.isfinite(v)]
    return Spread(
        statistics.fmean(finite) if finite else None,
        statistics.stdev(finite) if len(finite) > 1 else None,
    )


def spreads(rows: list[Row]) -> list[Row]:
    """One row for each step, split and learning rate; its metrics are `Spread`s.

    A seed that has ended counts with the last row it has: the mean over the others
    alone would jump where one ends.
    """
    last: dict[tuple[str, float], dict[int, Row]] = {}  # by seed
    groups: dict[tuple[int, str, float], tuple[Row, list[Row]]] = {}
    for row in rows:
        seeds = last.setdefault((row["split"], row["learning_rate"]), {})
        seeds[row["seed"]] = row
        place = row["step"], row["split"], row["learning_rate"]
        groups[place] = row, list(seeds.values())
    return [
        {
            **{k: v for k, v in row.items() if k != "seed"},
            **{
                name: spread_of([of.get(name) for of in seeds])
                for name in metrics_of(row)
            },
        }
        for row, seeds in groups.values()
    ]


def draw(rows: list[Row], title: str) -> bytes:
    """The curves of a sweep, from rows of its `metrics.jsonl`."""
    return draw_spreads(spreads(rows), title)


def show_spread(spread: Spread) -> str:
    """Such as "0.9812 ± 0.0031"."""
    if spread.mean is None:
        return "not finite"
    sd = "" if spread.sd is None else f" ± {show_number(spread.sd)}"
    return show_number(spread.mean) + sd


def add_rows(report: Report, rows: list[Row]) -> None:
    """Adds the rows of all members that have one, of one step and split.

    Args:
      report: from `lstm_jax.reporting.open_report`.
      rows: as of a single run, with `seed` and `learning_rate`.
    """
    split, step = rows[0]["split"], rows[0]["step"]
    before = reporting.row_before(report, split)
    reporting.write_rows(report, rows)
    steps = max(step - before["step"], 1)
    ms = 1000 * (rows[0]["seconds"] - before["seconds"]) / steps
    pace = f"step {step}/{report.total_steps}  epoch {rows[0]['epoch']:.2f}"
    if split == "train":
        pace += f"  {ms:.1f} ms/step  {len(rows)} members"
        if report.bar is not None:
            report.bar.update(step - report.bar.n)
    reporting.say(report, f"{pace}  {split}")
    for row in spreads(_of_all_seeds(report, split, step)):
        shown = [f"{name} {show_spread(row[name])}" for name in metrics_of(row)]
        rate = f"learning rate {row['learning_rate']:g}"
        reporting.say(report, "  ".join(["", rate, *shown]))
        for name in metrics_of(row):
            tag = f"{split}/{name}/{row['learning_rate']:g}"
            for end, value in (("", row[name].mean), ("_sd", row[name].sd)):
                if value is not None:
                    report.writer.add_scalar(tag + end, value, step)
    reporting.redraw_now_and_then(report, before, rows[0])


def _of_all_seeds(report: Report, split: str, step: int) -> list[Row]:
    """The last row of each seed at the learning rates that have one of this step."""
    found = {
        (row["learning_rate"], row["seed"]): row
        for row in report.rows
        if row["split"] == split
    }
    rates = {rate for (rate, _), row in found.items() if row["step"] == step}
    return [{**row, "step": step} for (rate, _), row in found.items() if rate in rates]


def outcome(
    members: Sequence[Member],
    metrics: Sequence[Metrics | None],
    diverged: Sequence[bool],
    best: str,
) -> tuple[int | None, list[dict[str, Any]]]:
    """What a sweep has reached.

    Args:
      members: all of them.
      metrics: of each the metrics of what answers; None where nothing does.
      diverged: of each whether it did.
      best: the metric that tells which member is the best.

    Returns:
      The number of the best member, None where none has the metric; and for each
      learning rate its seeds, how many of them diverged, and mean and standard
      deviation of each metric.
    """
    known = [(m, number) for number, m in enumerate(metrics) if m is not None]
    names = list(dict.fromkeys(name for m, _ in known for name in m))
    rates = []
    for rate in dict.fromkeys(member.learning_rate for member in members):
        own = [i for i, member in enumerate(members) if member.learning_rate == rate]
        reached = [m for m in (metrics[i] for i in own) if m is not None]
        values = {
            name: spread_of([m.get(name) for m in reached])._asdict() for name in names
        }
        count = sum(diverged[i] for i in own)
        rates.append(
            {"learning_rate": rate, "seeds": len(own), "diverged": count, **values}
        )
    scores = [(score(m, best), -number) for m, number in known]
    greatest, number = max(scores, default=(-math.inf, 0))
    return None if greatest == -math.inf else -number, rates


def table(rates: list[dict[str, Any]], best: str) -> str:
    """The outcome for people: a line each learning rate."""
    lines = [("learning rate", best, "seeds", "diverged")]
    for rate in rates:
        reached = Spread(**rate.get(best, {"mean": None, "sd": None}))
        numbers = str(rate["seeds"]), str(rate["diverged"])
        lines.append((f"{rate['learning_rate']:g}", show_spread(reached), *numbers))
    widths = [max(len(line[i]) for line in lines) for i in range(4)]
    return "\n".join(
        "  ".join(
            f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)
        ).rstrip()
        for line in lines
    )

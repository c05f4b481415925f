"""What many seeds of one config have reached, from the rows that their runs stored.

    python train.py --config=configs/imdb_lstm.py --config.sweep.seeds=10 \
        --workdir=checkpoints/imdb_lstm_seeds
    python -m benchmarks.spread checkpoints/imdb_lstm_seeds
    python -m benchmarks.spread checkpoints/brackets_*      # runs one by one

A mean hides a run that collapses: the table has the median, the worst, and the share of
the runs that end 5 points or more under the median.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

FAR = 5.0  # points under the median, from which on a run counts as collapsed


class Spread(NamedTuple):
    """What runs that differ in their seed alone have reached, in percent.

    Attributes:
      count: of the runs.
      median: of all.
      worst: of all.
      best: of all.
      collapsed: the share of runs that end `FAR` or more under the median.
    """

    count: int
    median: float
    worst: float
    best: float
    collapsed: float


def spread_of(values: Sequence[float]) -> Spread:
    """Return the spread of accuracies in percent.

    >>> spread_of([87.0, 73.4, 86.0])
    Spread(count=3, median=86.0, worst=73.4, best=87.0, collapsed=0.3333333333333333)
    """
    median = statistics.median(values)
    # Rounded: 87.1 - 82.1 is a little less than 5.
    far = [value for value in values if round(median - value, 6) >= FAR]
    return Spread(len(values), median, min(values), max(values), len(far) / len(values))


def last_values(workdir: Path, split: str, metric: str) -> dict[int, float]:
    """Return the last value of a metric by seed, of a run or of a sweep's members.

    Raises:
      ValueError: the run has no row of this split and metric.
    """
    seed = json.loads((workdir / "config.json").read_text())["seed"]
    values: dict[int, float] = {}
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["split"] == split and row.get(metric) is not None:
            values[row.get("seed", seed)] = row[metric]
    if not values:
        raise ValueError(f"{workdir} has no {metric} of the split {split!r}")
    return values


def main() -> None:
    """Print the value of every seed, and the spread of all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdirs", nargs="+", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--metric", default="accuracy")
    given = parser.parse_args()
    values: dict[int, float] = {}
    for workdir in given.workdirs:
        found = last_values(workdir, given.split, given.metric)
        if twice := found.keys() & values.keys():
            parser.error(f"seed {min(twice)} is in {workdir} and in a run before it")
        values |= found
    percent = {seed: 100 * value for seed, value in sorted(values.items())}
    print(", ".join(f"{seed}: {value:.2f}" for seed, value in percent.items()))
    s = spread_of(list(percent.values()))
    print(
        f"{s.count} seeds, median {s.median:.2f}, worst {s.worst:.2f}, best "
        f"{s.best:.2f}, {s.collapsed:.0%} of them {FAR:g} points or more under the "
        "median"
    )


if __name__ == "__main__":
    main()

"""One of several processes is killed: `python -m benchmarks.lost`.

Processes on this machine train one run; at a random moment a random one is killed by
SIGKILL. The others have to end within a minute, each with a line that says why, and all
of them, started again, have to end as a group that nobody touched, bit for bit.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import groups, report, runs
from benchmarks.groups import Ended
from benchmarks.report import Row
from lstm_jax import reporting

_MINUTE = 60.0


class Moment(NamedTuple):
    """So many seconds after all have met and so many rows are written."""

    rows: int
    seconds: float


ARGUMENTS = (
    "--config=configs/fable.py",
    "--config.model.hidden_size=64",
    "--config.model.dropout=0.3",
    "--config.num_steps=400",
    "--config.report.every=50",
    "--config.report.evaluate_every=100",
    "--config.checkpoint.every=50",
    "--config.devices.fsdp=True",
)


def whole(count: int, folder: Path) -> runs.End:
    """A run that nobody touches."""
    ended = train(count, folder, None)
    if any(process.code for process in ended):
        raise RuntimeError("; ".join(process.err for process in ended))
    return end(folder)


def train(count: int, folder: Path, kill: tuple[int, Moment] | None) -> list[Ended]:
    """Trains in `folder / "run"`."""
    arguments = [f"--workdir={folder / 'run'}", *ARGUMENTS]
    if kill is None:
        return groups.run(count, arguments, folder / "said")
    number, moment = kill
    ready = come(moment, folder)
    return groups.run(count, arguments, folder / "said", kill=(number, ready))


def come(moment: Moment, folder: Path) -> Callable[[], bool]:
    """Makes a function that tells whether the moment has come."""
    since: list[float] = []

    def ready() -> bool:
        # The summary is printed when all have met.
        met = (folder / "said" / "0.out").stat().st_size > 0
        if not since and met:
            rows = reporting.read_metrics(folder / "run")
            if len(rows) >= moment.rows:
                since.append(time.monotonic())
        return bool(since) and time.monotonic() - since[0] >= moment.seconds

    return ready


def end(folder: Path) -> runs.End:
    """What the run in a folder has left."""
    return runs.end(folder / "run", folder / "said" / "0.out")


def trial(
    count: int, folder: Path, expected: runs.End, number: int, moment: Moment
) -> Row:
    """Kills a process, looks at the others, and starts all again."""
    ended = train(count, folder, (number, moment))
    victim = ended[number]
    row: Row = {"processes": count, "killed": number, "wrong": "", **moment._asdict()}
    if victim.code == 0:
        return row | {"hit": False}  # all were at their end
    others = [process for process in ended if process is not victim]
    row |= {
        "hit": True,
        "delay": max(process.seconds - victim.seconds for process in others),
    }
    unclear = [
        process.err[-2000:]
        for process in others
        if process.code == 0 or not is_clear(first_line(process))
    ]
    if row["delay"] > _MINUTE or unclear:
        row["wrong"] = f"after {row['delay']:.0f} s: {unclear}"
    again = train(count, folder, None)
    if any(process.code for process in again):
        row["wrong"] += "; ".join(process.err[-2000:] for process in again)
    else:
        row["wrong"] += ", ".join(runs.differences(end(folder), expected))
    return row


def first_line(process: Ended) -> str:
    """The first line that is not progress."""
    progress = ("step ", "  windows", "going on", "[Gloo]")
    lines = [line for line in process.err.splitlines() if line.strip()]
    return next((line for line in lines if not line.startswith(progress)), "")


def is_clear(line: str) -> bool:
    """Whether a line says what has happened."""
    return line.startswith("error: ") and "lost" in line


def main() -> None:
    """Prints a table; exit code 1 where a run was lost or differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10, help="of each number")
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmark_results"))
    options = parser.parse_args()
    draw = random.Random(options.seed)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for count in options.processes:
            expected = whole(count, Path(name) / f"whole{count}")
            for number in range(options.trials):
                written = draw.randrange(len(expected.rows))
                # Before the first row it starts and compiles, which takes longer.
                moment = Moment(written, draw.uniform(0, 1 if written else 10))
                folder = Path(name) / f"{count} {number}"
                victim = draw.randrange(count)
                rows.append(trial(count, folder, expected, victim, moment))
                print(rows[-1], file=sys.stderr, flush=True)
    found: dict[str, Any] = {**report.about(), "seed": options.seed, "rows": rows}
    lines = [runs.heading(found), ""]
    lines += ["| processes | killed | of them process 0 | the others end, s | lost |"]
    lines += ["|---|---|---|---|---|"]
    for count in options.processes:
        hits = [row for row in rows if row["processes"] == count and row["hit"]]
        leaders = sum(row["killed"] == 0 for row in hits)
        ends = sorted(row["delay"] for row in hits)
        wrong = sum(bool(row["wrong"]) for row in hits)
        between = f"{ends[0]:.0f} to {ends[-1]:.0f}" if ends else ""
        lines.append(f"| {count} | {len(hits)} | {leaders} | {between} | {wrong} |")
    text = "\n".join(lines) + "\n"
    print(text)
    report.write(options.out, "lost", found, text)
    sys.exit(any(row["wrong"] for row in rows))


if __name__ == "__main__":
    main()

"""Runs that are killed again and again: `python -m benchmarks.soak`.

`train.py` is killed, by SIGKILL and now and then by SIGTERM, at random moments of each
of its phases, and started again by the same command until the run ends. Its end has to
be that of a run that nobody touched, bit for bit: every array of the last checkpoint,
every row of metrics.jsonl. Beside them a run goes on for ten minutes whose memory must
not grow (`benchmarks/memory.py`). Linux only.
"""

import argparse
import itertools
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import memory, report, runs
from benchmarks.report import Row
from lstm_jax import reporting

# Where a kill is aimed at, and the most seconds that it then waits. A phase is known
# by what a start has printed and by what lies in the run's folder:
PHASES = {
    "start": 3.0,  # nothing is printed: imports, data
    "compilation": 3.0,  # the summary is: restoring, tracing, compiling, first steps
    "steps": 3.0,  # a row is
    "save": 0.1,  # a checkpoint lies there half written
    "evaluation": 0.1,  # the newest row is one of training, of a step to evaluate at
    "end": 0.3,  # the last row is written
}
TERMINATED = 0.25  # share of kills that are SIGTERM
_GLANCE = 0.005  # seconds between two looks at a run


def trial(
    arguments: Sequence[str],
    workdir: Path,
    cache: Path,
    expected: runs.End,
    aims: Sequence[str],
    draw: random.Random,
) -> Row:
    """Trains a run to its end, with kills.

    Args:
      arguments: of the run.
      workdir: a new folder.
      cache: as for `runs.start`.
      expected: what the run must leave.
      aims: a phase to aim at for each kill; those that are not met any more are left
        out.
      draw: of signals and moments.

    Returns:
      The kills, each with its signal and the phase that it hit; how many starts it
      took; whether the run was lost, by a start that failed; how its end differs.
    """
    begun = time.perf_counter()
    kills, starts, left = [], 0, list(aims)
    while True:
        run = runs.start(arguments, workdir, cache)
        starts += 1
        hit = None
        if left:
            aim = left.pop(0)
            hit = meet(run, aim, expected, PHASES[aim] * draw.random())
        number = signal.SIGTERM if draw.random() < TERMINATED else signal.SIGKILL
        if hit is not None:
            run.process.send_signal(number)
            kills.append({"signal": number.name, "phase": hit, "aim": aim})
        code = runs.wait(run)
        # SIGTERM may come before Python has a handler of it, or too late for one.
        allowed = {0} if hit is None else {0, -number, 128 + number}
        if code == 0 or code not in allowed:
            break
    differing = (
        [] if code else runs.differences(runs.end(run.workdir, run.out), expected)
    )
    said = run.err.read_text()[-2000:] if code else ""
    return {
        "kills": kills,
        "starts": starts,
        "seconds": time.perf_counter() - begun,
        "lost": f"exit code {code}: {said}" if code else "",
        "differences": differing,
    }


def meet(run: runs.Run, aim: str, expected: runs.End, delay: float) -> str | None:
    """Waits for a phase, and some seconds more; the phase then, None past the end."""
    evaluated = {row["step"] for row in expected.rows if row["split"] != "train"}
    until = time.monotonic() + runs.LONGEST
    while run.process.poll() is None and phase(run, evaluated) != aim:
        time.sleep(_GLANCE)
        if time.monotonic() > until:
            return None  # it hangs
    time.sleep(delay)
    return None if run.process.poll() is not None else phase(run, evaluated)


def phase(run: runs.Run, evaluated: set[int]) -> str:
    """What a run is at, as far as can be seen; see `PHASES`."""
    said = run.err.read_text()
    if "finished before" in said:
        return "end"
    if "ms/step" not in said:
        return "compilation" if run.out.stat().st_size else "start"
    newest = reporting.read_metrics(run.workdir)[-1]
    if any((run.workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*")):
        return "save"
    if newest["split"] == "train":
        return "evaluation" if newest["step"] in evaluated else "steps"
    return "end" if newest["step"] == max(evaluated) else "steps"


def soak(
    commands: dict[str, Sequence[str]],
    wholes: dict[str, runs.Run],
    folder: Path,
    minutes: float,
    kills: int,
    seed: int,
) -> dict[str, list[Row]]:
    """Trials of the cases in turn, for some minutes and until there are enough kills.

    Args:
      commands: the arguments of each case, by its name.
      wholes: of each case, a run that nobody killed.
      folder: for the runs.
      minutes: of trials, at least.
      kills: of all cases together, at least.
      seed: of signals and moments.
    """
    found: dict[str, list[Row]] = {name: [] for name in commands}
    draw = random.Random(seed)
    early = [aim for aim in PHASES if aim != "end"]
    until = time.monotonic() + 60 * minutes
    for number, (name, arguments) in enumerate(itertools.cycle(commands.items())):
        enough = time.monotonic() > until and count(found) >= kills
        if enough and number >= len(commands):
            break
        aims = [aim for _ in range(2) for aim in draw.sample(early, len(early))]
        row = trial(
            arguments,
            folder / f"killed{number}",
            folder / "cache of killed",  # nothing that a kill spoils is shared
            runs.end(wholes[name].workdir, wholes[name].out),
            [*aims, "end"],
            draw,
        )
        found[name].append(row)
        wrong = row["lost"] or ", ".join(row["differences"]) or "the same end"
        _say(f"{name}: {len(row['kills'])} kills, {row['seconds']:.0f} s; {wrong}")
    return found


def _say(line: str) -> None:
    """Shows progress."""
    print(line, file=sys.stderr, flush=True)


def count(found: dict[str, list[Row]], **fields: str) -> int:
    """The number of kills, or of those of which some fields are as given."""
    return sum(
        fields.items() <= kill.items()
        for trials in found.values()
        for row in trials
        for kill in row["kills"]
    )


def is_well(found: dict[str, Any]) -> bool:
    """Whether nothing was lost, nothing differs and memory does not grow."""
    rows = [row for trials in found["kills"].values() for row in trials]
    bad = any(row["lost"] or row["differences"] for row in rows)
    return not bad and not found["memory"]["grows"]


def text(found: dict[str, Any]) -> str:
    """All that was found, in tables of markdown."""
    lines = [runs.heading(found), "", "Runs killed and started again:", ""]
    names = ["trials", "starts", "SIGKILL", "SIGTERM", *(f"in {p}" for p in PHASES)]
    names += ["lost", "other bits or rows", "minutes"]
    lines += [f"| case | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    total = {"all": [row for rows in found["kills"].values() for row in rows]}
    for name, rows in (found["kills"] | total).items():
        of_case = {name: rows}
        numbers = [
            len(rows),
            sum(row["starts"] for row in rows),
            *(count(of_case, signal=name) for name in ("SIGKILL", "SIGTERM")),
            *(count(of_case, phase=name) for name in PHASES),
            sum(bool(row["lost"]) for row in rows),
            sum(bool(row["differences"]) for row in rows),
            round(sum(row["seconds"] for row in rows) / 60, 1),
        ]
        lines.append(f"| {name} | {' | '.join(map(str, numbers))} |")
    lines += ["", memory.text(found["memory"])]
    return "\n".join(lines)


def main() -> None:
    """Prints tables; exit code 1 where a run was lost, differs or grows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="of kills")
    parser.add_argument("--kills", type=int, default=30, help="at least")
    parser.add_argument("--memory_minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmark_results"))
    options = parser.parse_args()
    found: dict[str, Any] = {**report.about(), "seed": options.seed}
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(1) as beside:
        folder = Path(name)
        commands = runs.cases(folder)
        wholes = {
            case: runs.finish(arguments, folder / f"whole{number}", folder / "cache")
            for number, (case, arguments) in enumerate(commands.items())
        }
        watched = beside.submit(
            memory.watch, folder / "watched", folder / "cache", options.memory_minutes
        )
        found["kills"] = soak(
            commands, wholes, folder, options.minutes, options.kills, options.seed
        )
        found["memory"] = watched.result()
    found["is well"] = is_well(found)
    print(text(found))
    report.write(options.out, "soak", found, text(found))
    sys.exit(not found["is well"])


if __name__ == "__main__":
    main()

"""Runs that are killed again and again: `python -m benchmarks.soak`.

`train.py` is killed, by SIGKILL and now and then by SIGTERM, at random moments of each
of its phases, and started again by the same command until the run ends. Its end has to
be that of a run that nobody touched, bit for bit: every array of the last checkpoint,
every row of metrics.jsonl. Before that each file of a checkpoint is damaged
(`benchmarks/damage.py`), and beside it a run goes on for ten minutes whose memory must
not grow (`benchmarks/memory.py`). Linux only.
"""

import argparse
import csv
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

from benchmarks import damage, memory, report, runs
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

_SMALL = ("--config.model.hidden_size=64", "--config.report.every=100")


def cases(folder: Path) -> dict[str, Sequence[str]]:
    """Flags of the runs that are trained, by name; their data lies in a folder."""
    reviews = folder / "reviews.csv"
    write_reviews(reviews, 1000)
    fable = ("--config=configs/fable.py", *_SMALL)
    return {
        "next word, a save every 100 steps": (
            *fable,
            "--config.devices.count=1",
            "--config.num_steps=3000",
            "--config.report.evaluate_every=1000",
            "--config.checkpoint.every=100",
        ),
        "two devices, AdamW, an average": (
            *fable,
            "--config.devices.count=2",
            "--config.num_steps=2500",
            "--config.model.dropout=0.3",
            "--config.optimizer.name=adamw",
            "--config.optimizer.schedule=cosine",
            "--config.optimizer.clip_norm=1.0",
            "--config.optimizer.ema=0.99",
            "--config.report.evaluate_every=500",
            "--config.checkpoint.every=250",
        ),
        "length buckets, dropout": (
            "--config=configs/imdb_fast.py",
            f"--config.data.path={reviews}",
            "--config.data.length=60",
            "--config.data.buckets=3",
            "--config.devices.count=1",
            "--config.batch_size=32",
            "--config.num_epochs=6",
            "--config.model.hidden_size=32",
            "--config.model.dropout=0.3",
            "--config.model.recurrent_dropout=0.3",
            "--config.report.every=10",
            "--config.checkpoint.every=20",
        ),
        "characters, a carry": (
            "--config=configs/imdb_lm.py",
            "--config.data.path=meditations.txt",
            "--config.data.limit=0",
            "--config.data.level=char",
            "--config.data.length=10",
            "--config.batch_size=4",
            "--config.devices.count=1",
            "--config.num_epochs=0",
            "--config.num_steps=1600",
            "--config.model.embedding_size=32",
            "--config.model.hidden_size=64",
            "--config.report.every=50",
            "--config.report.evaluate_every=400",
            "--config.checkpoint.every=50",
        ),
    }


def write_reviews(path: Path, size: int) -> None:
    """Texts of 1 to 60 words, one label where "good" is in them and one elsewhere."""
    draw = random.Random(0)
    words = [f"word{number}" for number in range(30)]
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        for number in range(size):
            text = draw.choices(words, k=draw.randint(0, 59))
            text.insert(draw.randint(0, len(text)), ("good", "bad")[number % 2])
            rows.writerow([" ".join(text), number % 2])


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
    differing = [] if code else runs.differences(runs.end(run), expected)
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
    while run.process.poll() is None and phase(run, evaluated) != aim:
        time.sleep(_GLANCE)
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
            runs.end(wholes[name]),
            [*aims, "end"],
            draw,
        )
        found[name].append(row)
        wrong = row["lost"] or ", ".join(row["differences"]) or "the same end"
        say(f"{name}: {len(row['kills'])} kills, {row['seconds']:.0f} s; {wrong}")
    return found


def say(line: str) -> None:
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
    killed = [row for trials in found["kills"].values() for row in trials]
    return not (
        any(row["lost"] for row in killed)
        or any(row["differences"] for row in [*killed, *found["damage"]])
        or found["memory"]["grows"]
    )


def text(found: dict[str, Any]) -> str:
    """All that was found, in tables of markdown."""
    versions = ", ".join(f"{k} {v}" for k, v in found["versions"].items())
    lines = [f"{found['date']}, {found['machine']}; {versions}; seed {found['seed']}."]
    lines += ["", "Runs killed and started again:", ""]
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
    lines += ["", "Files of a last checkpoint damaged, and the command again:", ""]
    lines += ["| way | trials | went on from the one before | other bits or rows |"]
    lines += ["|---|---|---|---|"]
    for way in damage.WAYS:
        rows = [row for row in found["damage"] if row["way"] == way]
        noticed = sum(row["noticed"] for row in rows)
        differing = sum(bool(row["differences"]) for row in rows)
        lines.append(f"| {way} | {len(rows)} | {noticed} | {differing} |")
    unnoticed = {row["file"] for row in found["damage"] if not row["noticed"]}
    lines += [
        f"Not noticed, since nothing reads it: {', '.join(sorted(unnoticed)) or '-'}.",
        "",
        memory.text(found["memory"]),
    ]
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
        commands = cases(folder)
        wholes = {
            case: runs.finish(arguments, folder / f"whole{number}", folder / "cache")
            for number, (case, arguments) in enumerate(commands.items())
        }
        watched = beside.submit(
            memory.watch, folder / "watched", folder / "cache", options.memory_minutes
        )
        case, arguments = next(iter(commands.items()))
        found["damage"] = damage.trials(
            arguments, wholes[case], folder / "cache", options.seed
        )
        say(f"{len(found['damage'])} trials of damage to {case}")
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

"""Trials of damage to a checkpoint: `python -m benchmarks.damage`.

Each file of a run's last checkpoint is cut, changed by a byte or deleted, one at a
time, and the run's command is given again: it has to go on from the checkpoint before
and to end with the same bits.
"""

import argparse
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import report, runs
from benchmarks.report import Row

# Nobody reads Orbax's note that it has committed, nor its time in the other file.
UNREAD = ("commit_success.txt", "_CHECKPOINT_METADATA")


def truncate(path: Path, draw: random.Random) -> None:
    """Cuts the file at a random place."""
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(len(content))])


def flip(path: Path, draw: random.Random) -> None:
    """Changes one byte at a random place."""
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= draw.randrange(1, 256)
    path.write_bytes(content)


def delete(path: Path, draw: random.Random) -> None:
    """Deletes the file."""
    path.unlink()


WAYS: dict[str, Callable[[Path, random.Random], None]] = {
    "truncated": truncate,
    "flipped": flip,
    "deleted": delete,
}


def trials(
    arguments: Sequence[str], finished: runs.Run, cache: Path, seed: int
) -> list[Row]:
    """Damages the last checkpoint of copies of a run, a file and a way at a time.

    Args:
      arguments: of the run.
      finished: the run; it has a checkpoint before its last one.
      cache: as for `runs.start`.
      seed: of the places of damage.

    Returns:
      Of each, what `trial` found.
    """
    expected, draw = runs.end(finished.workdir, finished.out), random.Random(seed)
    rows = []
    for name in files(finished.workdir):
        for way in WAYS:
            if not (finished.workdir / name).stat().st_size and way != "deleted":
                continue  # an empty file has nothing else to lose
            row = trial(arguments, finished, expected, cache, name, way, draw)
            rows.append(row)
            print(row, file=sys.stderr, flush=True)
    return rows


def files(workdir: Path) -> list[Path]:
    """The files of the last checkpoint, as named within the run's folder."""
    last = workdir / "checkpoints" / str(steps(workdir)[-1])
    paths = (path for path in last.rglob("*") if path.is_file())
    return sorted(path.relative_to(workdir) for path in paths)


def steps(workdir: Path) -> list[int]:
    """The steps of a run's checkpoints."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def trial(
    arguments: Sequence[str],
    finished: runs.Run,
    expected: runs.End,
    cache: Path,
    name: Path,
    way: str,
    draw: random.Random,
) -> Row:
    """Damages one file of a copy of a run and gives the run's command again.

    Returns:
      Whether the checkpoint before was used ("noticed"), and how the end differs from
      what is expected; what goes unnoticed and is not `UNREAD` counts as a difference.
    """
    before, last = steps(finished.workdir)[-2:]
    workdir = finished.workdir.with_name("damaged")
    shutil.copytree(finished.workdir, workdir)
    try:
        WAYS[way](workdir / name, draw)
        run = runs.start(arguments, workdir, cache)
        code = runs.wait(run)
        noticed = f"going on from step {before}\n" in run.err.read_text()
        if code:
            differing = [f"exit code {code}: {run.err.read_text()[-2000:]}"]
        else:
            differing = runs.differences(runs.end(run.workdir, run.out), expected)
    finally:
        shutil.rmtree(workdir)
    unread = [Path("checkpoints", str(last), unread) for unread in UNREAD]
    if not noticed and name not in unread:
        differing.append("not noticed")
    return {"file": str(name), "way": way, "noticed": noticed, "differences": differing}


def text(found: dict[str, Any]) -> str:
    """All that was found, as a table of markdown."""
    lines = [
        runs.heading(found),
        "",
        f"Files of the last checkpoint of `{found['case']}` damaged, one at a time:",
        "",
        "| way | trials | went on from the checkpoint before | other bits or rows |",
        "|---|---|---|---|",
    ]
    for way in WAYS:
        rows = [row for row in found["trials"] if row["way"] == way]
        noticed = sum(row["noticed"] for row in rows)
        differing = sum(bool(row["differences"]) for row in rows)
        lines.append(f"| {way} | {len(rows)} | {noticed} | {differing} |")
    unnoticed = {row["file"] for row in found["trials"] if not row["noticed"]}
    unread = ", ".join(f"`{name}`" for name in sorted(unnoticed)) or "nothing"
    return "\n".join([*lines, "", f"Not noticed, since nothing reads it: {unread}.\n"])


def main() -> None:
    """Prints a table; exit code 1 where a run ends unlike the undamaged one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmark_results"))
    options = parser.parse_args()
    found: dict[str, Any] = {**report.about(), "seed": options.seed}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found["case"], arguments = next(iter(runs.cases(folder).items()))
        whole = runs.finish(arguments, folder / "whole", folder / "cache")
        rows = trials(arguments, whole, folder / "cache", options.seed)
        found["trials"] = rows
    print(text(found))
    report.write(options.out, "damage", found, text(found))
    sys.exit(any(row["differences"] for row in rows))


if __name__ == "__main__":
    main()

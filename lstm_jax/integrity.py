"""Which checkpoints are what they were when they were written."""

import functools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from lstm_jax import manifest, processes
from lstm_jax.errors import UserError

# Of a folder that was checkpoint 40 and is damaged: damaged-40.
_DAMAGED = "damaged-"


def mend(directory: Path, keep: int | None) -> None:
    """Sets damaged checkpoints aside, and ends a deletion that was cut off.

    Args:
      directory: of the checkpoints.
      keep: how many of the newest stay, if no others do.
    """
    good, damaged = examine(directory)
    if keep is not None and len(good) >= keep:
        # Older than all that stay: nothing is damaged, its deletion was cut off.
        for step in [step for step in damaged if step < good[-keep]]:
            del damaged[step]
            shutil.rmtree(directory / str(step))
    check(directory, good, damaged)
    for step in damaged:
        _set_aside(directory / str(step))


def check(
    directory: Path, good: list[int], damaged: dict[int, str], quiet: bool = False
) -> None:
    """Reports damaged checkpoints; an error where no others are left."""
    for step, problem in () if quiet and good else damaged.items():
        report_damaged(directory / str(step), problem)
    if damaged and not good:
        raise UserError(
            f"no checkpoint in {directory} is whole, and none was deleted: put back a "
            "copy of one, or train in another folder"
        )


def examine(directory: Path, newest: bool = False) -> tuple[list[int], dict[int, str]]:
    """Steps of the checkpoints that are whole, and what is wrong with the others.

    From the newest on: all of their files are read. With `newest` no further than to
    the first that is whole.
    """
    good, damaged = [], {}
    if directory.is_dir():
        steps = [int(p.name) for p in directory.iterdir() if _is_step(p)]
        for step in sorted(steps, reverse=True):
            problem = problem_of(directory / str(step))
            if problem is not None:
                damaged[step] = problem
                continue
            good.insert(0, step)
            if newest:
                break
    return good, damaged


def _is_step(path: Path) -> bool:
    # What was interrupted has a longer name: 40.orbax-checkpoint-tmp.
    return path.name.isdecimal() and str(int(path.name)) == path.name


def problem_of(folder: Path) -> str | None:
    """What is wrong with a checkpoint; None: nothing that can be known."""
    try:
        written = meta_of(folder)["format"]
    except (OSError, KeyError, TypeError, ValueError):
        written = None
    has_none = written == 1 and not (folder / manifest.FILE).exists()
    problem = None if has_none else manifest.problem(folder)
    # As Orbax left them in a folder `run[v2]`, before each was opened again.
    state = folder / "state"
    if any(state.glob("ocdbt.process_*")) and not (state / "manifest.ocdbt").exists():
        return problem or "its arrays were never merged"
    return problem


def meta_of(folder: Path) -> Any:
    """The `meta` of a checkpoint, from its folder."""
    return json.loads((folder / "metrics" / "metrics").read_bytes())


@functools.cache  # once, however often it is met
def report_damaged(folder: Path, problem: str) -> None:
    """Says on stderr that a checkpoint is not used."""
    if processes.leads():
        line = f"checkpoint {folder} is damaged ({problem}) and not used"
        print(line, file=sys.stderr)


def _set_aside(folder: Path) -> None:
    """Gives a damaged checkpoint another name: its step is trained again."""
    name, number = f"{_DAMAGED}{folder.name}", 1
    while folder.with_name(name).exists():
        number += 1
        name = f"{_DAMAGED}{folder.name}-{number}"
    folder.rename(folder.with_name(name))

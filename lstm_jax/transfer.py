"""Start a run from the parameters of another run.

What the files of both runs name, as the words of a vocabulary, is matched by its name,
all else by the parameter's name and shape.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Shaped

from lstm_jax import processes, workdirs
from lstm_jax.cells import Params
from lstm_jax.data.spelling import canonical
from lstm_jax.errors import UserError
from lstm_jax.nested import named_leaves, put_leaves
from lstm_jax.steps import TrainState
from lstm_jax.tasks.naming import entries, named, names_of
from lstm_jax.tasks.task import Names, Task

_SHOWN = 5  # names of what begins anew


class Taken(NamedTuple):
    """What a parameter takes over from another run.

    Attributes:
      values: in the parameter's shape.
      known: which of the values are the other run's.
    """

    values: Shaped[Array | np.ndarray, "*shape"]
    known: Bool[Array | np.ndarray, "*#shape"]


# By the name of the parameter.
Source = Mapping[str, Taken]


class _Meaning(NamedTuple):
    """What names the entries of a parameter: as `Named`, and the names by number."""

    file: str
    axis: int | None
    names: tuple[str, ...]


class _Notes(NamedTuple):
    """What a person is told.

    Attributes:
      missing: parameters that the other run does not have in the same shape.
      unnamed: by file, parameters whose entries it names here and not there.
      partly: by file, parameters of which some entries are taken over, the names of
        the others, and how many names there are.
      by_number: parameters whose entries are named there and not here.
    """

    missing: list[str]
    unnamed: dict[str, list[str]]
    partly: dict[str, tuple[list[str], list[str], int]]
    by_number: list[str]


def load(
    init_from: str | Path, workdir: Path, task: Task, params: Params
) -> Source | None:
    """Load what a new run takes over from another one, and print what it does not.

    Args:
      init_from: folder of the other run.
      workdir: folder of the new run.
      task: what is trained.
      params: its parameters, or their shapes and types.

    Returns:
      What is taken over; None where a run in `workdir` goes on.

    Raises:
      UserError: `init_from` holds no run, a file of it that names parameters is
        damaged, or words are fed as their numbers and have other numbers there.
    """
    loaded = workdirs.load_source(init_from, workdir)
    if loaded is None:
        return None
    there = Path(init_from)
    of_their_task = names_of(workdirs.read_config(there))
    their_names = task.names if of_their_task is None else of_their_task
    theirs = {name: np.asarray(leaf) for name, leaf in named_leaves(loaded).items()}
    ours_by_file = {n.file: _own(task, n.file) for n in task.names.values()}
    theirs_by_file = {n.file: _read(there, n.file) for n in their_names.values()}
    # One name may be spelt in two ways, `é` as one character or as two.
    our_files = {file: canonical(names) for file, names in ours_by_file.items()}
    their_files = {file: canonical(names) for file, names in theirs_by_file.items()}
    source: dict[str, Taken] = {}
    notes = _Notes([], {}, {}, [])
    for name, mine in named_leaves(params).items():
        leaf = theirs.get(name)
        if leaf is None or leaf.dtype != mine.dtype:
            notes.missing.append(name)
            continue
        ours = _meaning(task.names, our_files, name, mine.shape)
        other = _meaning(their_names, their_files, name, leaf.shape)
        if ours is not None and (other is None or ours[:2] != other[:2]):
            notes.unnamed.setdefault(ours.file, []).append(name)
            continue
        if ours is not None and other is not None and ours.axis is None:
            _check_numbers(ours, other, there)
        taken = _take(mine.shape, leaf, ours, other)
        if taken is None:
            new = sorted({*ours.names} - {*other.names}) if ours and other else []
            if ours and new and mine.shape == leaf.shape:  # one logit for two classes
                entry = notes.partly.setdefault(ours.file, ([], new, len(ours.names)))
                entry[0].append(name)
            else:
                notes.missing.append(name)
            continue
        source[name] = taken
        if ours is None and other is not None:
            notes.by_number.append(name)
        if ours is not None and not taken.known.all():
            known = np.ravel(taken.known)
            new = [
                n for n, is_known in zip(ours.names, known, strict=True) if not is_known
            ]
            entry = notes.partly.setdefault(ours.file, ([], new, len(ours.names)))
            entry[0].append(name)
    if processes.leads():
        _show(notes, init_from)
    return source


def begun_from(source: Source | None, state: TrainState) -> TrainState:
    """Return a fresh state with what it takes over; None: as it is."""
    if source is None:
        return state
    fresh = named_leaves(state.params)
    taken = {
        name: jnp.where(source[name].known, source[name].values, mine)
        if name in source
        else mine
        for name, mine in fresh.items()
    }
    params = put_leaves(state.params, taken)
    average = jax.tree.map(jnp.copy, params) if state.average != () else ()
    return state._replace(params=params, average=average)


def _meaning(
    names: Names,
    files: Mapping[str, tuple[str, ...]],
    parameter: str,
    shape: Sequence[int],
) -> _Meaning | None:
    """What names a parameter; None: nothing, or no file that fits its shape."""
    found = named(names, parameter)
    if found is None or not files[found.file]:
        return None
    meaning = _Meaning(found.file, found.axis, files[found.file])
    if found.axis is None:
        return meaning
    fits = found.axis < len(shape) and (
        shape[found.axis] == len(meaning.names) or _is_logit(meaning, shape)
    )
    return meaning if fits else None


def _is_logit(meaning: _Meaning, shape: Sequence[int]) -> bool:
    """Whether one entry tells two names apart: by its sign, positive for the second."""
    return (
        meaning.axis is not None
        and shape[meaning.axis] == 1
        and len(meaning.names) == 2
    )


def _take(
    shape: Sequence[int],
    theirs: np.ndarray,
    ours: _Meaning | None,
    other: _Meaning | None,
) -> Taken | None:
    """What a parameter takes over from one of the same meaning; None: nothing."""
    whole = np.ones((), bool)
    if ours is None or other is None or ours.axis is None:
        return Taken(theirs, whole) if theirs.shape == shape else None
    axis = ours.axis
    other_axes = tuple(i for i in range(len(shape)) if i != axis)
    if theirs.ndim != len(shape) or any(
        theirs.shape[i] != shape[i] for i in other_axes
    ):
        return None
    is_logit = _is_logit(ours, shape)
    if is_logit != _is_logit(other, theirs.shape):
        return None
    if is_logit:
        if {*ours.names} != {*other.names}:
            return None
        return Taken(theirs if ours.names == other.names else -theirs, whole)
    numbers = {name: number for number, name in enumerate(other.names)}
    at = np.array([numbers.get(name, -1) for name in ours.names])
    return Taken(np.take(theirs, at, axis), np.expand_dims(at >= 0, other_axes))


def _check_numbers(ours: _Meaning, other: _Meaning, there: Path) -> None:
    """Refuses numbers that are words' own where they stand for other words."""
    # One vocabulary may be the other's beginning.
    for number, (mine, theirs) in enumerate(zip(ours.names, other.names, strict=False)):
        if mine != theirs:
            raise UserError(
                f"the model is fed words as their numbers (model.embedding_size=0), "
                f"and number {number} is {mine!r} here and {theirs!r} in "
                f"{there / other.file}: train without --init_from"
            )


def _read(folder: Path, file: str) -> tuple[str, ...]:
    """The names in a file of the other run; () without one."""
    path = folder / file
    try:
        return entries(file, path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged ({error}), and names what is taken over: restore it"
        ) from None


def _own(task: Task, file: str) -> tuple[str, ...]:
    """The names in a file of the new run; () where it keeps none."""
    if file not in task.files:
        return ()
    try:
        return entries(file, task.files[file])
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"the task's file {file} holds no names ({error}): leave it out of "
            "Task.names, or mend it"
        ) from None


def _show(notes: _Notes, folder: str | Path) -> None:
    """Prints what begins anew, and what has no names to be matched by."""
    if notes.missing:
        print(f"not there in this shape, begun anew: {', '.join(notes.missing)}")
    for file, parameters in notes.unnamed.items():
        print(f"named by {file} here alone, begun anew: {', '.join(parameters)}")
    for file, (parameters, new, count) in notes.partly.items():
        more = f" and {len(new) - _SHOWN} more" if len(new) > _SHOWN else ""
        print(
            f"{len(new)} of {count} names in {file} are not in that of {folder}, "
            f"begun anew in {', '.join(parameters)}: "
            f"{', '.join(map(repr, new[:_SHOWN]))}{more}"
        )
    if notes.by_number:
        print(
            "taken over by number, as this task names no entries: "
            f"{', '.join(notes.by_number)}"
        )

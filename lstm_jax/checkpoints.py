"""Saving and restoring the state of a training run with Orbax.

On disk::

    <workdir>/checkpoints/<step>/
        state/            the arrays of the training state, one OCDBT store
        metrics/metrics   `meta` as JSON: what the caller gave, "format", "version"
        manifest.json     size and SHA-256 of every file, since format 2

A folder carries its final name only once everything in it is written, the manifest
last, so a save that was interrupted is never taken for a checkpoint. The manifest is
written once the arrays were opened as a reader opens them: files can be whole and
hold nothing that can be read. A checkpoint that is not what its manifest says is not
read: the one before it is used. `meta` lies where Orbax looks for metrics:
`meta["metrics"]` decides which checkpoint is the best one, also after the manager was
closed and opened again.
"""

import contextlib
import importlib.metadata
import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath
from jaxtyping import PyTree
from orbax.checkpoint import checkpoint_managers

from lstm_jax import integrity, manifest, processes
from lstm_jax.errors import UserError

FORMAT = 2
# Bytes of a checkpoint's files beside its arrays, generously.
_BESIDE = 2**18


class Expected(NamedTuple):
    """What a checkpoint has to hold when it is opened again.

    Attributes:
      entries: type and shape of every array, by path.
      path: of the array in `value`.
      value: the smallest array.
    """

    entries: dict[str, str]
    path: str
    value: np.ndarray


class Checkpoints(NamedTuple):
    """The checkpoints of a run; made by `open_checkpoints`.

    Attributes:
      directory: their folder.
      manager: what saves them; None: they are read only.
      saving: by step, what is being saved and was not opened again yet.
    """

    directory: Path
    manager: ocp.CheckpointManager | None
    saving: dict[int, Expected]


@contextlib.contextmanager
def open_checkpoints(
    workdir: str | os.PathLike[str], keep: int | None = None, best: str | None = None
) -> Iterator[Checkpoints]:
    """Opens the checkpoints of a run; at the end waits until the last save is on disk.

    Args:
      workdir: The run's folder.
      keep: How many of the newest checkpoints stay when another one is saved. What
        an interrupted save or deletion left behind is deleted, and a damaged
        checkpoint gets another name, so that its step can be saved again. None is for
        reading: nothing is created, deleted or renamed.
      best: The metric in `meta["metrics"]` whose best checkpoint stays as well. A
        name that ends in "loss", "perplexity", "mae" or "rmse" is minimised, any other
        maximised.

    Yields:
      What the other functions of this module take.

    Raises:
      UserError: If `keep` is less than 1, if no checkpoint can be in a folder of this
        name, if there are checkpoints and all of them are damaged, or if one cannot
        be written.
    """
    if keep is not None and keep < 1:
        raise UserError(f"cannot keep {keep} checkpoints: keep at least 1")
    check_folder(workdir)
    directory = Path(workdir).absolute() / "checkpoints"
    if keep is None:
        integrity.check(
            directory, *integrity.examine(directory, newest=True), quiet=True
        )
        yield Checkpoints(directory, None, {})
        return
    with processes.leader_first():
        integrity.mend(directory, None if best else keep)
    policies: list[Any] = [checkpoint_managers.LatestN(keep)]
    if best is not None:
        policies.append(
            checkpoint_managers.BestN(
                get_metric_fn=lambda meta: _score(meta, best),
                n=1,
                keep_checkpoints_without_metrics=False,
            )
        )
    saving: dict[int, Expected] = {}
    options = ocp.CheckpointManagerOptions(
        preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
        # The policies alone decide what stays; this makes the manager write `meta`.
        best_fn=lambda meta: _score(meta, best),
        create=True,
        cleanup_tmp_directories=True,
        async_options=ocp.AsyncOptions(
            # It runs when all is written, before the folder gets its final name.
            post_finalization_callback=lambda: _certify(directory, manager, saving)
        ),
    )
    manager = ocp.CheckpointManager(
        directory, options=options, item_handlers={"state": _state_handler()}
    )
    try:
        yield Checkpoints(directory, manager, saving)
    finally:
        with _one_line(directory):
            manager.close()


def check_folder(workdir: str | os.PathLike[str]) -> None:
    """Refuse a folder that cannot have checkpoints.

    Raises:
      UserError: What writes the arrays takes its path for another one, as TensorStore
        does with a backslash, or for none.
    """
    path = os.path.join(os.path.abspath(workdir), "")
    try:
        taken = ts.KvStore.Spec({"driver": "file", "path": path}).to_json()["path"]
    except (RuntimeError, ValueError):
        taken = None
    if taken != path or "gs:/" in path:  # which Orbax takes for a bucket
        raise UserError(
            f"no checkpoint can be saved in {os.fspath(workdir)!r}: TensorStore does "
            "not take a path with a backslash, with bytes that are not UTF-8, or with "
            "a name that ends in gs: or .__lock; give a folder of another name"
        )


class _LiteralPath(type(epath.Path("/"))):
    """A path whose own `[`, `*` and `?` mean themselves when its files are listed."""

    def glob(self, pattern: str) -> Iterator[Any]:
        return map(epath.Path, Path(self).glob(pattern))


def _state_handler() -> ocp.PyTreeCheckpointHandler:
    """Return Orbax's handler, for folders of any name.

    Orbax finds what each process wrote by a glob of the whole path: in a folder
    `run[v2]` it finds nothing and leaves the arrays unmerged, in `run*` it finds those
    of `run1` too.
    """
    handler = ocp.PyTreeCheckpointHandler()
    # Not a subclass: Orbax would write its name into the checkpoint.
    finalize = handler.finalize
    handler.finalize = lambda directory: finalize(_LiteralPath(directory))
    return handler


def _certify(directory: Path, manager: Any, saving: dict[int, Expected]) -> None:
    """Writes the manifest of what was saved, if it can be read."""
    if processes.leads():
        # Its thread writes `_CHECKPOINT_METADATA`; nothing public waits for that.
        manager._checkpointer._metadata_store.wait_until_finished()
        (step,) = saving
        (folder,) = directory.glob(f"{step}.orbax-checkpoint-tmp*")
        if reason := _differs(folder / "state", saving.pop(step)):
            raise UserError(
                f"the checkpoint of step {step} in {directory} was written and cannot "
                f"be read again ({reason}): those before it are as they were; train in "
                "another folder, on another disk"
            )
        manifest.write(folder)


def _differs(folder: Any, expected: Expected) -> str | None:
    """Return why a saved state is not what it has to be; None: it is.

    All arrays are opened and one is read.
    """
    try:
        saved = _saved_tree(folder)
        if _entries(saved) == expected.entries:
            value = _read_one(folder, saved, expected.path)
            if value.tobytes() == expected.value.tobytes():
                return None
    except Exception as error:  # whatever the readers make of what is not there
        return " ".join(str(error).split())[:200]
    return "it holds something else"


def _read_one(folder: Any, saved: dict[str, Any], path: str) -> np.ndarray:
    wanted = _flat(saved)[path]
    item = jax.tree.map(lambda leaf: leaf if leaf is wanted else ocp.PLACEHOLDER, saved)
    numpy_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
    args = ocp.args.PyTreeRestore(item=item, restore_args=numpy_args)
    return _flat(ocp.PyTreeCheckpointHandler().restore(folder, args=args))[path]


def _flat(tree: dict[str, Any]) -> dict[str, Any]:
    return ocp.tree.to_flat_dict(tree, sep="/")


def _expected(fields: dict[str, Any]) -> Expected:
    here = {
        path: leaf
        for path, leaf in _flat(fields).items()
        # Of several processes none may have all of a large array.
        if getattr(leaf, "is_fully_addressable", True) or leaf.is_fully_replicated
    }
    path = min(here, key=lambda path: here[path].nbytes)
    return Expected(_entries(fields), path, np.array(here[path]))


@contextlib.contextmanager
def _one_line(directory: Path) -> Iterator[None]:
    """Of what the file system refuses, Orbax's threads raise what their layers do."""
    try:
        yield
    except UserError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        if isinstance(error, OSError):
            reason = error.strerror or reason
        elif "RESOURCE_EXHAUSTED" in reason:
            reason = "no space left"
        elif "local file" not in reason:
            raise
        raise UserError(
            f"cannot write a checkpoint to {directory} ({reason[:200]}): those "
            "before it are as they were; mend that, and the same command goes on"
        ) from None


def version() -> str:
    """The version of lstm_jax."""
    try:
        return importlib.metadata.version("lstm_jax")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def save(opened: Checkpoints, step: int, state: PyTree, meta: dict[str, Any]) -> None:
    """Starts to save a checkpoint; the writing goes on in the background.

    Args:
      opened: From `open_checkpoints`, with `keep`.
      step: The number of updates behind `state`, greater than any saved before.
      state: A NamedTuple with the fields `params` and `average`; its leaves are
        arrays. It may be donated as soon as this function returns.
      meta: What JSON can hold; `meta["metrics"]`, if there is one, maps names of
        metrics to numbers or None.

    Raises:
      ValueError: If a checkpoint of this step or a later one exists.
    """
    # The round trip copies: the caller may change `meta` before it is written.
    meta = json.loads(json.dumps({**meta, "format": FORMAT, "version": version()}))
    args = ocp.args.Composite(state=ocp.args.PyTreeSave(_fields(state)))
    manager = opened.manager
    assert manager is not None
    # Orbax's threads print a traceback for each array that does not fit.
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + _BESIDE
    free = shutil.disk_usage(opened.directory).free
    if free < needed:
        raise UserError(
            f"{opened.directory} has {free / 1e6:.1f} MB free and a checkpoint takes "
            f"{needed / 1e6:.1f}: make room, and the same command goes on"
        )
    _finish_saving(opened)
    opened.saving.clear()  # of a save that failed
    if processes.leads():
        opened.saving[step] = _expected(_fields(state))
    with _one_line(opened.directory):
        saved = manager.save(step, args=args, metrics=meta)
    if not saved:
        raise ValueError(f"step {step} is not after step {manager.latest_step()}")


def latest_step(opened: Checkpoints) -> int | None:
    """Returns the step of the newest whole checkpoint, None where there is none."""
    return max(_whole_steps(opened, newest=True), default=None)


def _whole_steps(opened: Checkpoints, newest: bool = False) -> list[int]:
    _finish_saving(opened)
    good, damaged = integrity.examine(opened.directory, newest)
    for step, problem in damaged.items():
        integrity.report_damaged(opened.directory / str(step), problem)
    return good


def _finish_saving(opened: Checkpoints) -> None:
    if opened.manager is not None:
        with _one_line(opened.directory):
            opened.manager.wait_until_finished()


def best_step(opened: Checkpoints, metric: str) -> int | None:
    """Returns the step of the best checkpoint by `metric`, the newest of equals.

    Args:
      opened: From `open_checkpoints`.
      metric: A name in `meta["metrics"]`; for the direction see `open_checkpoints`.

    Returns:
      The step, None where no checkpoint has a finite value of this metric.
    """
    steps = _whole_steps(opened)
    folder = opened.directory
    scores = [
        (_score(integrity.meta_of(folder / str(step)), metric), step) for step in steps
    ]
    score, step = max(scores, default=(-math.inf, None))
    return None if score == -math.inf else step


def read_meta(opened: Checkpoints, step: int) -> dict[str, Any]:
    """Reads the `meta` of a checkpoint.

    Args:
      opened: From `open_checkpoints`.
      step: The step of the checkpoint.

    Returns:
      What was given to `save`, with "format" and "version" (of lstm_jax) added.

    Raises:
      UserError: If there is no such checkpoint, or if its format is newer than
        this module.
    """
    _finish_saving(opened)
    if integrity.problem_of(opened.directory / str(step)) is not None:
        steps = _whole_steps(opened)
        raise UserError(
            f"no checkpoint of step {step} in {opened.directory}; choose one of "
            f"the available steps: {', '.join(map(str, steps)) or 'none'}"
        )
    meta = integrity.meta_of(opened.directory / str(step))
    if meta["format"] > FORMAT:
        raise UserError(
            f"{opened.directory / str(step)} has format {meta['format']} and this "
            f"lstm_jax reads up to {FORMAT}: install a newer lstm_jax"
        )
    return meta


def restore(
    opened: Checkpoints, step: int, abstract_state: PyTree
) -> tuple[PyTree, dict[str, Any]]:
    """Restores a training state, bit for bit.

    Args:
      opened: From `open_checkpoints`.
      step: The step of the checkpoint.
      abstract_state: The structure, shapes and types wanted: a state, or a result
        of `jax.eval_shape`. A leaf with a sharding is restored with it, any other
        to the first local device.

    Returns:
      The state, jax arrays in the tree of `abstract_state`, and its `meta`.

    Raises:
      UserError: If `read_meta` raises it, or if the paths, shapes or types of the
        arrays are not those of `abstract_state`.
    """
    meta = read_meta(opened, step)
    fields = _fields(abstract_state)
    saved, wanted = _entries(_saved_tree(_state_folder(opened, step))), _entries(fields)
    differing = [
        f"{path} is {saved.get(path, 'absent')}, not {wanted.get(path, 'absent')}"
        for path in {**wanted, **saved}
        if saved.get(path) != wanted.get(path)
    ]
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise UserError(
            f"{opened.directory / str(step)} is of another model or optimizer: "
            f"{'; '.join(differing[:3])}{more}. Use that run's configuration, or "
            "another workdir"
        )
    # Without a sharding Orbax would ask for the devices that the state was saved on.
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or device
        ),
        fields,
    )
    args = ocp.args.PyTreeRestore(
        item=target, restore_args=ocp.checkpoint_utils.construct_restore_args(target)
    )
    handler = ocp.PyTreeCheckpointHandler()
    restored: Any = handler.restore(_state_folder(opened, step), args=args)
    return abstract_state._replace(**restored), meta


def restore_params(opened: Checkpoints, step: int) -> dict[str, Any]:
    """Restores the parameters that predict; the rest of the state is not read.

    Args:
      opened: From `open_checkpoints`.
      step: The step of the checkpoint.

    Returns:
      The field `average` of the saved state or, without one, `params`: nested dicts
      of numpy arrays.

    Raises:
      UserError: If `read_meta` raises it.
    """
    read_meta(opened, step)
    saved = _saved_tree(_state_folder(opened, step))
    field = "average" if "average" in saved else "params"
    item = {field: saved[field]}
    numpy_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
    args = ocp.args.PyTreeRestore(
        item=item, restore_args=numpy_args, partial_restore=True
    )
    handler = ocp.PyTreeCheckpointHandler()
    restored: Any = handler.restore(_state_folder(opened, step), args=args)
    return restored[field]


def _state_folder(opened: Checkpoints, step: int) -> Any:  # Orbax has paths of its own
    return opened.directory / str(step) / "state"


def _fields(state: Any) -> dict[str, Any]:
    """The fields of a state that hold arrays.

    An older checkpoint lacks the fields that came later; it is read as long as they
    would have been empty.
    """
    return {
        name: value for name, value in state._asdict().items() if jax.tree.leaves(value)
    }


def _saved_tree(folder: Any) -> dict[str, Any]:
    """The state in a folder as nested dicts and lists, its leaves shapes and types."""
    return ocp.PyTreeCheckpointHandler().metadata(folder).tree


def _entries(tree: dict[str, Any]) -> dict[str, str]:
    """Maps the path of every array, and of every empty node, to type and shape."""
    entries = {}
    for (
        name,
        value,
    ) in tree.items():  # in the order of the fields, which flattening sorts
        flat = ocp.tree.to_flat_dict({name: value}, sep="/", keep_empty_nodes=True)
        for path, leaf in flat.items():
            is_array = hasattr(leaf, "shape")
            entries[path] = f"{leaf.dtype}{list(leaf.shape)}" if is_array else "empty"
    return entries


def score(metrics: dict[str, float | None], metric: str | None) -> float:
    """How good metrics are by one of them.

    Returns:
      The greater the better; -inf where the metric is missing or not finite.
    """
    value = None if metric is None else metrics.get(metric)
    if metric is None or value is None or not math.isfinite(value):
        return -math.inf
    return -value if metric.endswith(("loss", "perplexity", "mae", "rmse")) else value


def _score(meta: dict[str, Any] | None, metric: str | None) -> float:
    return score((meta or {}).get("metrics") or {}, metric)

"""Saving and restoring the state of a training run with Orbax.

On disk::

    <workdir>/checkpoints/<step>/
        state/            the arrays of the training state, one OCDBT store
        metrics/metrics   `meta` as JSON: what the caller gave, "format", "version"

A folder carries its final name only once everything in it is written, so a save
that was interrupted is never taken for a checkpoint. `meta` lies where Orbax looks
for metrics: `meta["metrics"]` decides which checkpoint is the best one, also after
the manager was closed and opened again.
"""

import importlib.metadata
import json
import math
import os
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree
from orbax.checkpoint import checkpoint_managers

from lstm_jax.errors import UserError

FORMAT = 1


def open_checkpoints(
    workdir: str | os.PathLike[str], keep: int | None = None, best: str | None = None
) -> ocp.CheckpointManager:
    """Opens the checkpoints of a run.

    The result is a context manager: its end, or its `close`, waits until the last
    save is on disk.

    Args:
      workdir: The run's folder.
      keep: How many of the newest checkpoints stay when another one is saved. What
        an interrupted save left behind is deleted. None is for reading: nothing is
        created or deleted.
      best: The metric in `meta["metrics"]` whose best checkpoint stays as well. A
        name that ends in "loss", "perplexity", "mae" or "rmse" is minimised, any other
        maximised.

    Returns:
      The manager that the other functions of this module take.

    Raises:
      UserError: If `keep` is less than 1.
    """
    if keep is not None and keep < 1:
        raise UserError(f"cannot keep {keep} checkpoints: keep at least 1")
    policies: list[Any] = [checkpoint_managers.LatestN(keep)]
    if best is not None:
        policies.append(
            checkpoint_managers.BestN(
                get_metric_fn=lambda meta: _score(meta, best),
                n=1,
                keep_checkpoints_without_metrics=False,
            )
        )
    options = ocp.CheckpointManagerOptions(
        preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
        # The policies alone decide what stays; this makes the manager write `meta`.
        best_fn=lambda meta: _score(meta, best),
        create=keep is not None,
        cleanup_tmp_directories=keep is not None,
    )
    handler = ocp.PyTreeCheckpointHandler()
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    registry.add("state", ocp.args.PyTreeSave, handler)
    registry.add("state", ocp.args.PyTreeRestore, handler)
    directory = pathlib.Path(workdir).absolute() / "checkpoints"
    return ocp.CheckpointManager(directory, options=options, handler_registry=registry)


def save(
    manager: ocp.CheckpointManager, step: int, state: PyTree, meta: dict[str, Any]
) -> None:
    """Starts to save a checkpoint; the writing goes on in the background.

    Args:
      manager: From `open_checkpoints`, with `keep`.
      step: The number of updates behind `state`, greater than any saved before.
      state: A NamedTuple with the fields `params` and `average`; its leaves are
        arrays. It may be donated as soon as this function returns.
      meta: What JSON can hold; `meta["metrics"]`, if there is one, maps names of
        metrics to numbers or None.

    Raises:
      ValueError: If a checkpoint of this step or a later one exists.
    """
    try:
        version = importlib.metadata.version("lstm_jax")
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    # The round trip copies: the caller may change `meta` before it is written.
    meta = json.loads(json.dumps({**meta, "format": FORMAT, "version": version}))
    args = ocp.args.Composite(state=ocp.args.PyTreeSave(_fields(state)))
    if not manager.save(step, args=args, metrics=meta):
        raise ValueError(f"step {step} is not after step {manager.latest_step()}")


def latest_step(manager: ocp.CheckpointManager) -> int | None:
    """Returns the step of the newest checkpoint, None where there is none."""
    return manager.latest_step()


def best_step(manager: ocp.CheckpointManager, metric: str) -> int | None:
    """Returns the step of the best checkpoint by `metric`, the newest of equals.

    Args:
      manager: From `open_checkpoints`.
      metric: A name in `meta["metrics"]`; for the direction see `open_checkpoints`.

    Returns:
      The step, None where no checkpoint has a finite value of this metric.
    """
    manager.wait_until_finished()
    steps = manager.all_steps()
    scores = [(_score(manager.metrics(step), metric), step) for step in steps]
    score, step = max(scores, default=(-math.inf, None))
    return None if score == -math.inf else step


def read_meta(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    """Reads the `meta` of a checkpoint.

    Args:
      manager: From `open_checkpoints`.
      step: The step of the checkpoint.

    Returns:
      What was given to `save`, with "format" and "version" (of lstm_jax) added.

    Raises:
      UserError: If there is no such checkpoint, or if its format is newer than
        this module.
    """
    manager.wait_until_finished()
    steps = manager.all_steps()
    meta = manager.metrics(step) if step in steps else None
    if meta is None:
        raise UserError(
            f"no checkpoint of step {step} in {manager.directory}; choose one of the "
            f"available steps: {', '.join(map(str, steps)) or 'none'}"
        )
    if meta["format"] > FORMAT:
        raise UserError(
            f"{manager.directory / str(step)} has format {meta['format']} and this "
            f"lstm_jax reads up to {FORMAT}: install a newer lstm_jax"
        )
    return meta


def restore(
    manager: ocp.CheckpointManager, step: int, abstract_state: PyTree
) -> tuple[PyTree, dict[str, Any]]:
    """Restores a training state, bit for bit.

    Args:
      manager: From `open_checkpoints`.
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
    meta = read_meta(manager, step)
    fields = _fields(abstract_state)
    saved, wanted = _entries(_saved_tree(manager, step)), _entries(fields)
    differing = [
        f"{path} is {saved.get(path, 'absent')}, not {wanted.get(path, 'absent')}"
        for path in {**wanted, **saved}
        if saved.get(path) != wanted.get(path)
    ]
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise UserError(
            f"{manager.directory / str(step)} is of another model or optimizer: "
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
    restored: Any = manager.restore(step, args=ocp.args.Composite(state=args))
    return abstract_state._replace(**restored.state), meta


def restore_params(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    """Restores the parameters that predict; the rest of the state is not read.

    Args:
      manager: From `open_checkpoints`.
      step: The step of the checkpoint.

    Returns:
      The field `average` of the saved state or, without one, `params`: nested dicts
      of numpy arrays.

    Raises:
      UserError: If `read_meta` raises it.
    """
    read_meta(manager, step)
    saved = _saved_tree(manager, step)
    field = "average" if "average" in saved else "params"
    item = {field: saved[field]}
    numpy_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
    args = ocp.args.PyTreeRestore(
        item=item, restore_args=numpy_args, partial_restore=True
    )
    restored: Any = manager.restore(step, args=ocp.args.Composite(state=args))
    return restored.state[field]


def _fields(state: Any) -> dict[str, Any]:
    """The fields of a state that hold arrays.

    An older checkpoint lacks the fields that came later; it is read as long as they
    would have been empty.
    """
    return {
        name: value for name, value in state._asdict().items() if jax.tree.leaves(value)
    }


def _saved_tree(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    """The saved state as nested dicts and lists, its leaves shapes and types."""
    metadata: Any = manager.metadata(step).item_metadata
    return metadata.state.tree


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

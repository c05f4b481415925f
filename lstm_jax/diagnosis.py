"""Where a run's numbers ceased to be finite: its steps once more, one at a time."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from lstm_jax import devices, sharding, steps
from lstm_jax.cells import Params
from lstm_jax.steps import Keys, Stepping, TrainState
from lstm_jax.tasks.task import Buckets, Task, size_of


class Finding(NamedTuple):
    """The first number that is not finite.

    Attributes:
      step: of the update, counted from 1, that went wrong.
      where: what holds the number, such as "the output of recurrent/layer_0".
      row: of the batch; None where it belongs to none.
      time: step of the sequence; None where it belongs to none.
      bucket: of the batch.
      indices: of the batch's examples in their bucket; -1 for what pads it.
      advice: what to set or to mend.
    """

    step: int
    where: str
    row: int | None
    time: int | None
    bucket: int
    indices: list[int]
    advice: str


# What is advised where neither the data nor the model's start is to blame.
SMALLER_STEPS = (
    "lower optimizer.learning_rate, set optimizer.clip_norm, or leave such updates out "
    "by optimizer.skip_nonfinite"
)
# Examples of each array that may be to blame for a loss that is not finite.
_TRIED = 8
# Inputs beyond it saturate every gate, and their squares soon overflow.
_LARGE = 1e6


def find(
    stepping: Stepping,
    keys: Keys,
    state: TrainState,
    examples: Buckets,
    last: int,
    run: Callable[..., TrainState],
) -> Finding | None:
    """Trains on, step by step, up to the first that leaves a number not finite.

    Args:
      stepping: of the run.
      keys: of the run.
      state: to begin from, as it was at that step of the run.
      examples: what the run trains on.
      last: the step to which the run got.
      run: `run(state, examples, bucket, count)`, the run's own program: it gives the
        same bits. It may take the state's memory.

    Returns:
      None where all steps up to `last` are finite.
    """
    copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
    whole = jax.jit(
        lambda keys, *trees: sharding.replicate(
            (jax.tree.map(jax.random.key_data, keys), *trees)
        )
    )
    is_finite, per_epoch = jax.jit(steps.is_finite), _per_epoch(stepping)
    schedule = jax.jit(lambda step: steps.schedule(stepping, keys, step // per_epoch))
    buckets = np.zeros(per_epoch, np.int32)
    first = int(state.step)
    for step in range(first, last):
        if step % per_epoch == 0 or step == first:
            buckets = np.asarray(schedule(jnp.int32(step))[0])
        before, bucket = copy(state), int(buckets[step % per_epoch])
        state = run(state, examples[bucket], np.int32(bucket), np.int32(1))
        if not is_finite(state):
            # Each process explains it alone, by what all have.
            seen = jax.device_get(whole(keys, before, examples[bucket]))
            with jax.set_mesh(devices.own_mesh(stepping.batch_size)):
                data, before, batch_of = jax.tree.map(jnp.asarray, seen)
                keys = jax.tree.map(jax.random.wrap_key_data, data)
                return _explain(stepping, keys, before, batch_of, bucket)
    return None


def _explain(
    stepping: Stepping, keys: Keys, state: TrainState, examples: PyTree, bucket: int
) -> Finding:
    """What is not finite in the step after `state`, in the order it is computed."""
    plan = steps.make_plan(
        stepping, keys, state.step, jnp.int32(bucket), size_of(examples)
    )
    chosen, weight = steps.take_indices(stepping, plan, state.step)
    batch = jax.tree.map(lambda a: a[chosen], examples)
    state = steps.begin_epoch(stepping, state)
    key = jax.random.fold_in(keys.noise, state.step)
    padded = np.where(np.asarray(weight) > 0, np.asarray(chosen), -1)

    def loss(params: Params, batch: PyTree) -> jax.Array:
        sums, _ = stepping.task.loss(params, batch, weight, key, state.carry)
        return sums["loss"] / sums["count"]

    def found(
        where: str,
        at: tuple[int | None, int | None] = (None, None),
        advice: str | None = None,
    ) -> Finding:
        if advice is None:
            advice = _standardise(batch) + SMALLER_STEPS
        number = int(state.step) + 1
        return Finding(number, where, *at, bucket, padded.tolist(), advice)

    for path, leaf in _leaves(state.params):
        if _first(leaf) is not None:  # what is saved later on is finite
            advice = "mend what the task's init, or the run of --init_from, gives"
            return found(f"{path} before the first update", advice=advice)
    losses = jax.jit(jax.value_and_grad(loss))
    # Padding may hold anything: is all finite without what is not in the batch?
    mended = losses(state.params, jax.tree.map(_zeroed, batch))
    if all(_first(leaf) is None for leaf in jax.tree.leaves(mended)):
        for path, leaf in _leaves(batch):
            if (at := _first(leaf)) is not None:
                several = len(stepping.task.examples) > 1
                whose = f"bucket {bucket} of the " if several else "the "
                array = np.asarray(leaf)
                known = [i for i in at if i is not None]
                rest = np.argwhere(~np.isfinite(array[tuple(known)]))[0].tolist()
                value = array[*known, *rest]
                place = int(padded[known[0]]), *known[1:], *rest
                advice = _mend(path, value, place, f"{whose}training")
                advice += ", or leave such updates out by optimizer.skip_nonfinite"
                return found(f"the batch's {path}", at, advice)
    outputs = _module_outputs(lambda: loss(state.params, batch))
    for path, leaf, reverse in outputs:
        if (at := _first(leaf, reverse)) is not None:
            return found(f"the output of {path or 'the model'}", at)
    value, gradient = losses(state.params, batch)
    if not jnp.isfinite(value):
        return found("the loss")
    order = [path for path, *_ in outputs]
    for path, leaf in sorted(_leaves(gradient), key=lambda of: _rank(of[0], order)):
        if _first(leaf) is not None:
            return found(f"the gradient of {path}")
    for path, leaf in _leaves(gradient):
        size = jnp.max(jnp.abs(leaf), initial=0)
        if not jnp.isfinite(jnp.square(size)):
            where = f"the square of the gradient of {path}, which is {size:.3g}"
            advice = "set optimizer.clip_norm, or give data or loss in smaller units"
            return found(where, advice=advice)
    return found("the update of the parameters")


def bad_input(
    task: Task, batch_size: int, params: Params, buckets: Buckets, split: str
) -> str | None:
    """Return advice about a number of a split that makes its loss not finite.

    Args:
      task: that has the split.
      batch_size: of the run.
      params: with which the loss is finite on other examples.
      buckets: of the split.
      split: its name.

    Returns:
      None where no such number is among the first.
    """

    @jax.jit
    def is_finite(params: Params, batch: PyTree) -> jax.Array:
        weight, carry = jnp.ones(batch_size), task.carry(batch_size)
        return jnp.isfinite(task.loss(params, batch, weight, None, carry)[0]["loss"])

    with jax.set_mesh(devices.own_mesh(batch_size)):
        for number, bucket in enumerate(buckets):
            for path, leaf in _leaves(bucket):
                array = np.asarray(leaf)
                if not jnp.issubdtype(array.dtype, jnp.inexact):
                    continue
                rows = np.isfinite(array).reshape(len(array), -1).all(1)
                for row in np.flatnonzero(~rows)[:_TRIED].tolist():
                    batch = jax.tree.map(lambda a, r=row: a[[r] * batch_size], bucket)
                    mended = jax.tree.map(_zeroed, batch)
                    # Padding may hold anything.
                    if is_finite(params, mended) and not is_finite(params, batch):
                        whose = f"bucket {number} of the " if len(buckets) > 1 else ""
                        at = row, *np.argwhere(~np.isfinite(array[row]))[0].tolist()
                        return _mend(path, array[at], at, f"{whose or 'the '}{split}")
    return None


def _zeroed(array: Any) -> Any:
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        return array
    return jnp.where(jnp.isfinite(array), array, 0)


def _mend(path: str, value: Any, place: tuple[int, ...], data: str) -> str:
    """Advice about a number of the data: which one of the task's arrays it is."""
    where = f"{path}[{', '.join(map(str, place))}] of {data} data"
    return f"{where} is {value}: mend that number, or mask its step"


def _standardise(batch: PyTree) -> str:
    """Advice about inputs of another order than a model's; "": there are none."""
    for path, leaf in _leaves(batch):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            largest = float(jnp.max(jnp.abs(_zeroed(leaf)), initial=0))
            if largest > _LARGE:
                return (
                    f"the batch's {path} are as large as {largest:.3g}: standardise "
                    "them (mean 0, deviation 1); or "
                )
    return ""


def _per_epoch(stepping: Stepping) -> int:
    return steps.steps_per_epoch(stepping.task, stepping.batch_size)


def _module_outputs(run: Callable[[], Any]) -> list[tuple[str, Any, bool]]:
    """Every array that a Linen module returned, inner ones first.

    With the module's path, and whether it runs from the last step to the first.
    """
    outputs: list[tuple[str, Any, bool]] = []

    def record(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        out = call(*args, **kwargs)
        if context.method_name == "__call__":
            path = "/".join(context.module.path)
            reverse = getattr(context.module, "reverse", False)
            # Of a recurrent layer (carry, ys): ys tell the step, so they come first.
            leaves = jax.tree.leaves(out)
            outputs.extend((path, leaf, reverse) for leaf in reversed(leaves))
        return out

    with nn.intercept_methods(record):
        run()
    return outputs


def _leaves(tree: PyTree) -> list[tuple[str, Any]]:
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def _first(array: Any, reverse: bool = False) -> tuple[int | None, int | None] | None:
    """Row and time of the first number that is not finite; None: there is none."""
    bad: np.ndarray = np.asarray(~jnp.isfinite(array))
    if not bad.any():
        return None
    if bad.ndim < 2:
        return (int(bad.argmax()), None) if bad.ndim else (None, None)
    if bad.ndim == 2:
        return int(bad.any(1).argmax()), None
    at_time: np.ndarray = np.any(bad.reshape(*bad.shape[:2], -1), axis=-1)
    times = np.flatnonzero(at_time.any(0))
    time = int(times[-1] if reverse else times[0])
    return int(at_time[:, time].argmax()), time


def _rank(path: str, order: list[str]) -> int:
    """When the module that has a parameter was first called."""
    holders = [
        i for i, module in enumerate(order) if f"{path}/".startswith(f"{module}/")
    ]
    return min(holders, default=len(order))

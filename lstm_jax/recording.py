"""A run of a cell over sequences, kept step by step, to look at one step of it again.

Shapes: B batch, T time, D input features.

The hidden part of a state is every array of it that is named `h`: one of most cells,
one a layer of a stack; of a state without any, all of its arrays. Its memories are all
other arrays but integers, and every `h` with nothing else beside it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer, PyTree, Shaped

from lstm_jax.cells import Cell, Params
from lstm_jax.layout import where_rows
from lstm_jax.replay import is_computed, replay
from lstm_jax.unroll import effective_resets, unroll, valid_steps


class Step(NamedTuple):
    """What a step begins with; leaves are [T, B, ...], of one step [B, ...].

    Attributes:
      carry: the state before it.
      x: [T, B, D], zero where the step is masked.
      valid: whether it is not masked.
      begins: whether the carry is the initial one in place of `carry`.
    """

    carry: Any
    x: Float[Array, "*T B D"]
    valid: Bool[Array, "*T B"]
    begins: Bool[Array, "*T B"]


class Recording(NamedTuple):
    """A run, in running order, each row's masked steps before all others.

    So every row ends with a valid step. (Deleting masked steps changes nothing, and so
    does moving them.)

    Attributes:
      cell: the cell; it draws no noise.
      params: its parameters.
      steps: [T, B, ...].
      last: the state after the last step.
      initial: the state that a reset goes back to.
      order: which step of the inputs each step is.
    """

    cell: Cell
    params: Params
    steps: Step
    last: Any
    initial: Any
    order: Int[Array, "B T"]


def record(
    cell: Cell,
    params: Params,
    xs: Shaped[Array, "B T D"],
    carry: Any = None,
    *,
    lengths: Integer[Array, " B"] | None = None,
    mask: Bool[Array, "B T"] | None = None,
    resets: Bool[Array, "B T"] | None = None,
    reverse: bool = False,
) -> Recording:
    """Runs a cell forward; arguments and errors are those of `lstm_jax.unroll`."""
    batch, time = xs.shape[:2]
    initial = cell.initial_carry(params, batch)
    first = initial if carry is None else carry
    valid = valid_steps(batch, time, lengths, mask)
    begins = jnp.zeros((batch, time), bool)
    if resets is not None:
        begins = effective_resets(resets, valid, reverse)
    if valid is None:
        valid = jnp.ones((batch, time), bool)
    running = jnp.arange(time)[::-1] if reverse else jnp.arange(time)
    order = running[jnp.argsort(valid[:, running], axis=1, stable=True)]
    valid, begins = (jnp.take_along_axis(a, order, axis=1) for a in (valid, begins))
    xs = jnp.take_along_axis(xs, jnp.expand_dims(order, -1), axis=1)
    xs = jnp.where(jnp.expand_dims(valid, -1), xs, 0)
    if not jnp.issubdtype(xs.dtype, jnp.floating):
        types = [leaf.dtype for leaf in jax.tree.leaves(params)]
        xs = xs.astype(next(d for d in types if jnp.issubdtype(d, jnp.floating)))
    last, _, after = unroll(
        cell, params, xs, first, mask=valid, resets=begins, return_carries=True
    )
    before = jax.tree.map(
        lambda a, b: jnp.concatenate([jnp.expand_dims(a, 0), b.swapaxes(0, 1)[:-1]]),
        first,
        after,
    )
    steps = Step(before, xs.swapaxes(0, 1), valid.T, begins.T)
    return Recording(cell, params, steps, last, initial, order)


def begun(recording: Recording, step: Step) -> Any:
    """The state that a step runs on."""
    return where_rows(step.begins, recording.initial, step.carry)


def again(
    recording: Recording, step: Step, hidden: list[Array] | None = None
) -> tuple[Any, PyTree]:
    """A step once more: the state after it, and its output.

    Args:
      recording: the run.
      step: the step.
      hidden: added to the arrays of the hidden part where the step computes them, so
        that all which it computes of them sees the sum, its output for example.
    """
    cell, params = recording.cell, recording.params
    before = begun(recording, step)
    if hidden is None:
        new, y = cell.step(params, before, step.x)
    else:
        new, y = _step_with(cell, params, before, step.x, hidden)
    new = where_rows(step.valid, new, step.carry)
    return new, where_rows(step.valid, y, jax.tree.map(jnp.zeros_like, y))


def _step_with(
    cell: Cell, params: Params, carry: Any, x: Array, hidden: list[Array]
) -> tuple[Any, PyTree]:
    traced, shapes = jax.make_jaxpr(cell.step, return_shape=True)(params, carry, x)
    jaxpr, tree = traced.jaxpr, jax.tree.structure(shapes)
    new = jax.tree.leaves(jax.tree.unflatten(tree, jaxpr.outvars)[0])
    to_add = dict(zip(hidden_part(shapes[0]), hidden, strict=True))
    # An h that the step hands back as it was given is no result of it: what is added
    # reaches the next step alone.
    handed_back = {i: a for i, a in to_add.items() if not is_computed(jaxpr, new[i])}
    added = {new[i]: a for i, a in to_add.items() if i not in handed_back}
    arguments = jax.tree.leaves((params, carry, x))
    out = replay(jaxpr, traced.consts, arguments, added=added)
    for i, a in handed_back.items():  # the leaves of the state come first
        out[i] = out[i] + a
    return jax.tree.unflatten(tree, out)


def named(state: Any, name: str) -> list[int]:
    """Which leaves of a state are arrays of that name."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    return [i for i, path in enumerate(paths) if name_of(path) == name]


def name_of(path: Any) -> str:
    """The field that a leaf is in, "" of no NamedTuple's."""
    return next((key.name for key in reversed(path) if hasattr(key, "name")), "")


def hidden_part(state: Any) -> list[int]:
    """Which leaves of a state are its hidden part."""
    return named(state, "h") or differentiable(state)


def memories(state: Any) -> dict[str, list[int]]:
    """Which leaves of a state are its memories, by field."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    known, found = set(differentiable(state)), {}
    for i in sorted(known):
        name, owner = name_of(paths[i]), paths[i][:-1]
        beside = (
            j != i and name_of(paths[j]) != "h" and paths[j][: len(owner)] == owner
            for j in known
        )
        if name != "h" or not any(beside):
            found.setdefault(name, []).append(i)
    return found


def differentiable(state: Any) -> list[int]:
    """Which leaves of a state have derivatives: all but integers."""
    leaves = jax.tree.leaves(state)
    return [i for i, a in enumerate(leaves) if jnp.issubdtype(a.dtype, jnp.inexact)]


def pick(state: Any, leaves: list[int]) -> list[Array]:
    """Some leaves of a state."""
    every = jax.tree.leaves(state)
    return [every[i] for i in leaves]


def put(state: Any, leaves: list[int], arrays: list[Array]) -> Any:
    """A state with other arrays in the place of some leaves."""
    every, tree = jax.tree.flatten(state)
    given = dict(zip(leaves, arrays, strict=True))
    return jax.tree.unflatten(tree, [given.get(i, a) for i, a in enumerate(every)])

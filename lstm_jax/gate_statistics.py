"""What the gates of a recorded run do: how often they are shut, how long they keep.

Shapes: B batch, T time, U units.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from lstm_jax.cells import Cell, extras_of, product, recurrent_product
from lstm_jax.layout import where_rows
from lstm_jax.recording import Recording, Step, begun, memories, pick, put
from lstm_jax.replay import replay

# The function, the name of its gates, and the ends of its range: beyond them it passes
# a fifth of its largest derivative or less.
_SQUASHING = {"logistic": ("sigmoid", 0.05, 0.95), "tanh": ("tanh", -0.95, 0.95)}
# Of `lstm_jax.lstm`, in the order in which its program has them.
_LSTM_GATES = ("f", "i", "g", "o", "c")


class Saturation(NamedTuple):
    """How often a gate is shut or wide open.

    Attributes:
      low: share of its values below 0.05; of a tanh, below -0.95.
      high: share of its values above 0.95.
    """

    low: Float[Array, ""]
    high: Float[Array, ""]


def saturation(recording: Recording) -> dict[str, Saturation]:
    """How often each sigmoid and each tanh of a step is near the end of its range.

    They are found in the program of `cell.step`, in its order: "sigmoid_0", "tanh_0"
    and so on, one for each call of the function; those of a plain `lstm_jax.lstm` have
    their letters, with "c" for the tanh of the cell state. A gate of another shape (a
    hard sigmoid, an exponential) is not seen.

    Returns:
      By name, over all units and valid steps.
    """
    cell, params = recording.cell, recording.params

    def of_row(carry: Any, x: Array) -> dict[str, Saturation]:
        # A batch of one: every array is the row's.
        row = (params, *jax.tree.map(lambda a: jnp.expand_dims(a, 0), (carry, x)))
        found: list[tuple[str, Saturation]] = []

        def see(primitive: str, values: Any) -> None:
            if primitive in _SQUASHING and not jnp.iscomplexobj(values[0]):
                name, low, high = _SQUASHING[primitive]
                value = values[0].astype(jnp.float32)
                shares = Saturation(jnp.mean(value < low), jnp.mean(value > high))
                found.append((name, shares))

        traced = jax.make_jaxpr(cell.step)(*row)
        replay(traced.jaxpr, traced.consts, jax.tree.leaves(row), see=see)
        names = _names(cell, [name for name, _ in found])
        return dict(zip(names, (shares for _, shares in found), strict=True))

    def of_step(_: None, step: Step) -> tuple[None, dict[str, Saturation]]:
        return None, jax.vmap(of_row)(begun(recording, step), step.x)

    _, shares = lax.scan(of_step, None, recording.steps)
    valid = recording.steps.valid
    return jax.tree.map(lambda a: jnp.mean(a, where=valid), shares)


def _names(cell: Cell, functions: list[str]) -> list[str]:
    fused = cell.fused
    if fused is not None and fused.gates is fused.lstm_gates:
        return list(_LSTM_GATES)
    return [f"{name}_{functions[:i].count(name)}" for i, name in enumerate(functions)]


def time_constants(
    recording: Recording, key: PRNGKeyArray | None = None
) -> dict[str, Float[Array, " U"]]:
    """Steps in which a unit's own memory falls to 1/e, if nothing is written to it.

    The memories are every array of the state but h (the c of an LSTM), or h where there
    is no other. Of a memory m a unit keeps the share f = |d m' / d m| in a step, all
    else held fixed, the gates' inputs zx and zh as well: the forget gate of an LSTM, z
    of a GRU, 0 of a simple RNN. With F the mean of f over rows and valid steps, the
    time constant is -1 / log F: about F^k of it is left after k steps. It is infinite
    where F is not below 1. Of a cell that `lstm_jax.gated` has not made, f is the
    derivative of a whole step.

    Args:
      recording: the run.
      key: of random signs, which matter only where a unit's memory depends on that of
        others: f is then an estimate of the diagonal. None: always the same ones.

    Returns:
      By field of the state, of each unit, in steps; layer after layer of a stack.
    """
    key = jax.random.key(0) if key is None else key
    fields = memories(recording.last)
    leaves = [leaf for own in fields.values() for leaf in own]
    keys = [jax.random.fold_in(key, leaf) for leaf in leaves]

    def of_step(sums: list[Array], step: Step) -> tuple[list[Array], None]:
        before = begun(recording, step)
        new = []
        for total, leaf, own in zip(sums, leaves, keys, strict=True):
            kept = jnp.abs(_diagonal(recording, step, before, leaf, own))
            kept = where_rows(step.valid, kept, jnp.zeros_like(kept))
            new.append(total + jnp.sum(kept, axis=0))
        return new, None

    zeros = [jnp.zeros(a.shape[1:], a.real.dtype) for a in pick(recording.last, leaves)]
    sums, _ = lax.scan(of_step, zeros, recording.steps)
    of_leaf, found = dict(zip(leaves, sums, strict=True)), {}
    for name, own in fields.items():
        total = jnp.concatenate([of_leaf[leaf].reshape(-1) for leaf in own])
        mean = total / jnp.sum(recording.steps.valid).astype(total.dtype)
        found[name] = jnp.where(mean < 1, -1 / jnp.log(mean), jnp.inf)
    return found


def _diagonal(
    recording: Recording, step: Step, before: Any, leaf: int, key: PRNGKeyArray
) -> Array:
    """d new / d old of each entry of one leaf of the state."""
    cell, params = recording.cell, recording.params
    (old,) = pick(before, [leaf])
    fused = cell.fused
    if fused is None:

        def run(state: Any) -> Any:
            return cell.step(params, state, step.x)[0]

    else:
        bias = jnp.expand_dims(params["bias"], 0)
        zx = product(step.x, params["kernel"], fused.dtype) + bias
        zh = recurrent_product(fused, params, before.h, None)

        def run(state: Any) -> Any:
            rows = jax.vmap(fused.gates, in_axes=(None, 0, 0, 0, None))
            return rows(extras_of(params), state, zx, zh, None)[0]

    def new(old: Array) -> Array:
        return pick(run(put(before, [leaf], [old])), [leaf])[0]

    # Of a diagonal matrix D any signs s give s * (D s), its diagonal; of another one
    # that is its mean.
    signs = jax.random.rademacher(key, old.shape, old.real.dtype).astype(old.dtype)
    return signs * jax.jvp(new, (old,), (signs,))[1]

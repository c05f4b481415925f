"""How the gradient flows back through time: where it vanishes, explodes or holds.

Shapes: B batch, T time, D input features, U hidden units, P probes. All is measured of
the deterministic cell, without noise, on sequences that are given: on others the gates
would stand elsewhere. `measure` finds everything; its parts take what `record` returns.

The hidden part of a state is every array of it that is named `h`: one of most cells,
one a layer of a stack. U counts the units of all of them. An LSTM's h is no memory:
what it remembers is in its c, whose gains are found beside those of h.

References:
  Hochreiter, Untersuchungen zu dynamischen neuronalen Netzen, diploma thesis, TU
  Munich (1991); Bengio, Simard and Frasconi, Learning long-term dependencies with
  gradient descent is difficult, IEEE Transactions on Neural Networks 5 (1994);
  Pascanu, Mikolov and Bengio, On the difficulty of training recurrent neural networks,
  ICML 2013.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree, Shaped

from lstm_jax.cells import Cell, Params
from lstm_jax.gate_statistics import Saturation, saturation, time_constants
from lstm_jax.recording import (
    Recording,
    Step,
    again,
    differentiable,
    hidden_part,
    memories,
    named,
    pick,
    put,
    record,
)

__all__ = [
    "Flow",
    "Recording",
    "Saturation",
    "lag_gains",
    "loss_gradients",
    "measure",
    "record",
    "saturation",
    "time_constants",
]


class Flow(NamedTuple):
    """What `measure` finds of a cell.

    Attributes:
      lag_gains: see `lag_gains`; "h", of the hidden part, and by field those of every
        memory that is not in it, as "c".
      loss_gradients: see `loss_gradients`; None where no loss was given.
      saturation: by gate, see `saturation`.
      time_constants: by field of the state, see `time_constants`.
    """

    lag_gains: dict[str, Float[Array, " T"]]
    loss_gradients: Float[Array, " T"] | None
    saturation: dict[str, Saturation]
    time_constants: dict[str, Float[Array, " U"]]


@functools.partial(jax.jit, static_argnames=("cell", "reverse", "probes"))
def measure(
    cell: Cell,
    params: Params,
    xs: Shaped[Array, "B T D"],
    cotangents: tuple[Any, Any] | None = None,
    key: PRNGKeyArray | None = None,
    *,
    probes: int = 8,
    **options: Any,
) -> Flow:
    """All of this module in one program, compiled once a cell and shape.

    To be run on one device: its loops do not divide the rows over several.

    >>> import jax, jax.numpy as jnp, lstm_jax as lj
    >>> from lstm_jax import flow
    >>> cell = lj.lstm(hidden_size=8)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> xs = jax.random.normal(jax.random.key(1), (2, 20, 3))
    >>> def loss(outputs):
    ...   carry, ys = outputs
    ...   return jnp.mean(ys[:, -1] ** 2)
    >>> cotangents = jax.grad(loss)(lj.unroll(cell, params, xs))
    >>> found = flow.measure(cell, params, xs, cotangents)
    >>> found.lag_gains["h"].shape, found.lag_gains["c"].shape
    ((20,), (20,))
    >>> found.loss_gradients.shape, sorted(found.saturation)
    ((20,), ['c', 'f', 'g', 'i', 'o'])

    Args:
      cell: any cell.
      params: its parameters.
      xs: its inputs.
      cotangents: as of `loss_gradients`; None: these are left out.
      key: of the probes; None: always the same ones.
      probes: as of `lag_gains`.
      **options: `carry`, `lengths`, `mask`, `resets` and `reverse` of
        `lstm_jax.unroll`.

    Returns:
      What `lag_gains`, `loss_gradients`, `saturation` and `time_constants` give.

    Raises:
      ValueError: as of `lstm_jax.unroll`.
    """
    key = jax.random.key(0) if key is None else key
    lag_key, sign_key = jax.random.split(key)
    recording = record(cell, params, xs, **options)
    hidden = hidden_part(recording.last)
    fields = [name for name, own in memories(recording.last).items() if own != hidden]
    return Flow(
        {
            field: lag_gains(recording, lag_key, field=field, probes=probes)
            for field in ("h", *fields)
        },
        None if cotangents is None else loss_gradients(recording, cotangents),
        saturation(recording),
        time_constants(recording, sign_key),
    )


def lag_gains(
    recording: Recording, key: PRNGKeyArray, *, field: str = "h", probes: int = 8
) -> Float[Array, " T"]:
    """How much of a change of the state is left, lag by lag; 1: all of it.

    At lag k it is |J|_F / sqrt(U), where J = d h_T / d h_{T-k} is the Jacobian of the
    last state with respect to the state k steps before, and |.|_F the Frobenius norm;
    of several rows the root mean square. That is what a random change of size 1
    becomes, as a root mean square: 1 of the identity, and of any rotation. One pass
    backward gives all lags, as |J|_F^2 / U is the mean of |J' q|^2 over random unit
    vectors q. A complex unit counts as two, its real and its imaginary part.

    Args:
      recording: the run.
      key: of the vectors.
      field: the part of the state: "h", or "c" for the cell state of an LSTM. All else
        is held fixed at step T-k.
      probes: P, vectors a row, at right angles to each other: U of them, or more, give
        no estimate but the gain itself.

    Returns:
      The gain at lags 0 (where it is 1) to T-1. T is a row's last valid step in running
      order, and lags count valid steps, back to the last boundary that `resets` marks;
      NaN where no row has as many.

    Raises:
      ValueError: no array of the state has that name.
    """
    last = recording.last
    chosen = hidden_part(last) if field == "h" else named(last, field)
    if not chosen:
        raise ValueError(f"no array of the state is named {field!r}: {last._fields}")
    ends, parts = differentiable(last), pick(last, chosen)
    sizes = [part[0].size * (1 + jnp.iscomplexobj(part)) for part in parts]
    vectors = _unit_vectors(key, parts[0].real, sum(sizes), probes)
    probes = len(vectors)
    bounds = list(itertools.accumulate(sizes))[:-1]
    vectors = jnp.split(vectors, bounds, axis=-1)
    zeros = jax.tree.map(lambda a: jnp.zeros((probes, *a.shape), a.dtype), last)
    shaped = [
        _as_complex(v, a).reshape(probes, *a.shape)
        for v, a in zip(vectors, parts, strict=True)
    ]
    start = pick(put(zeros, chosen, shaped), ends)
    within = [ends.index(leaf) for leaf in chosen]

    def back(cotangent: list[Array], step: Step) -> tuple[list[Array], Array]:
        pull, y = _pull(recording, step)
        before = jax.vmap(lambda c: pull(c, jax.tree.map(jnp.zeros_like, y))[0])
        squares = _square([cotangent[i] for i in within], axes=2)
        return before(cotangent), jnp.mean(squares, axis=0)

    _, squares = lax.scan(back, start, recording.steps, reverse=True)
    begins = recording.steps.begins.astype(jnp.int32)
    # No boundary between there and the end: none of the steps after it begins anew.
    after = lax.cumsum(begins, axis=0, reverse=True) - begins
    return _root_mean(squares, recording.steps.valid & (after == 0))[::-1]


def _unit_vectors(
    key: PRNGKeyArray, like: Array, units: int, probes: int
) -> Float[Array, "P B U"]:
    """At right angles to each other: the axes, or random ones, each row's its own."""
    batch = like.shape[0]
    if probes >= units:
        axes = jnp.expand_dims(jnp.eye(units, dtype=like.dtype), 1)
        return jnp.broadcast_to(axes, (units, batch, units))
    vectors = jax.random.orthogonal(key, units, (batch,), like.dtype, m=probes)
    return jnp.moveaxis(vectors, -1, 0)


def _as_complex(vectors: Array, like: Array) -> Array:
    """Vectors of real and imaginary parts as complex ones, where `like` is complex."""
    if not jnp.iscomplexobj(like):
        return vectors
    real, imaginary = jnp.split(vectors, 2, axis=-1)
    return lax.complex(real, imaginary)


def loss_gradients(
    recording: Recording, cotangents: tuple[Any, Any]
) -> Float[Array, " T"]:
    """|d loss / d h_t|, step by step; of several rows the root mean square.

    It is the total derivative: what the loss sees of h_t through later states, and
    through all that step t itself computes of it, its output and the layers of a stack
    above. The norm is Euclidean, over a row's units. Where the loss is a mean over B
    rows, it is a B-th of the row's own.

    Args:
      recording: the run.
      cotangents: the derivative of the loss with respect to what `lstm_jax.unroll`
        returns, (carry, ys); None in place of either stands for zeros.

    Returns:
      The norm at steps 0 to T-1 of the inputs; NaN where no row is valid.
    """
    last, order, steps = recording.last, recording.order, recording.steps
    of_carry, of_ys = cotangents
    if of_carry is None:
        of_carry = jax.tree.map(jnp.zeros_like, last)

    def in_running_order(a: Array) -> Array:
        index = order.reshape(*order.shape, *(1,) * (a.ndim - 2))
        return jnp.take_along_axis(a, index, axis=1).swapaxes(0, 1)

    def back(cotangent: list[Array], now: Any) -> tuple[list[Array], Array]:
        step, of_y = now
        pull, y = _pull(recording, step)
        of_y = jax.tree.map(jnp.zeros_like, y) if of_ys is None else of_y
        before, hidden = pull(cotangent, of_y)
        return before, _square(hidden, axes=1)

    start = pick(of_carry, differentiable(last))
    ys = jax.tree.map(in_running_order, of_ys)
    _, squares = lax.scan(back, start, (steps, ys), reverse=True)
    back_in_place = jnp.argsort(order, axis=1).T
    squares, valid = (
        jnp.take_along_axis(a, back_in_place, axis=0) for a in (squares, steps.valid)
    )
    return _root_mean(squares, valid)


def _pull(
    recording: Recording, step: Step
) -> tuple[Callable[[list[Array], PyTree], tuple[list[Array], list[Array]]], PyTree]:
    """A step backward, and its output.

    Backward, cotangents of the state after it (of its differentiable leaves) and of its
    output become those of the state before it, and the total derivative with respect to
    the hidden part after it.
    """
    leaves = differentiable(step.carry)

    def forward(before: list[Array], hidden: list[Array]) -> tuple[list[Array], PyTree]:
        changed = step._replace(carry=put(step.carry, leaves, before))
        new, y = again(recording, changed, hidden)
        return pick(new, leaves), y

    zeros = [jnp.zeros_like(a) for a in pick(step.carry, hidden_part(step.carry))]
    (_, y), pull = jax.vjp(forward, pick(step.carry, leaves), zeros)
    return lambda state, of_y: pull((state, of_y)), y


def _square(arrays: list[Array], axes: int) -> Array:
    """The sum of squares over all axes but the first ones."""
    flat = [
        (jnp.square(jnp.abs(a)) if jnp.iscomplexobj(a) else jnp.square(a)).reshape(
            *a.shape[:axes], -1
        )
        for a in arrays
    ]
    return jnp.sum(jnp.concatenate(flat, axis=-1), axis=-1)


def _root_mean(
    squares: Float[Array, "T B"], there: Bool[Array, "T B"]
) -> Float[Array, " T"]:
    """Over rows; NaN where none is there."""
    return jnp.sqrt(jnp.mean(squares, axis=1, where=there))

"""The loop over time: one function for every cell.

Shapes: B batch, T time, D input features. Arrays are batch first here; the loops
inside run over a leading time axis.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Bool, Integer, PRNGKeyArray, PyTree, Shaped

from lstm_jax import callers_mesh, sharding
from lstm_jax.cells import Cell, Noise, Params
from lstm_jax.cudnn import cudnn_unroll, why_not
from lstm_jax.fused import fused_unroll
from lstm_jax.gated_steps import Inputs, masked
from lstm_jax.layout import where_rows
from lstm_jax.pallas import pallas_unroll
from lstm_jax.schedule import schedule_for

Implementation = Literal["auto", "autodiff", "fused", "cudnn", "pallas"]

# What "auto" stands for: with `AUTO("autodiff")` a trace is the same on any machine.
# A context of jax's, for a variable of Python's would be no part of its caches' keys:
# a function that was traced once would keep what "auto" was then.
AUTO = jax.make_user_context("auto")


def unroll(
    cell: Cell,
    params: Params,
    xs: Shaped[Array, "B T D"],
    carry: Any = None,
    *,
    lengths: Integer[Array, " B"] | None = None,
    mask: Bool[Array, "B T"] | None = None,
    resets: Bool[Array, "B T"] | None = None,
    reverse: bool = False,
    key: PRNGKeyArray | None = None,
    return_carries: bool = False,
    implementation: Implementation = "auto",
) -> Any:
    """Runs a cell over a batch of sequences.

    At a masked step (past a row's length, or where `mask` is False) the carry passes
    through unchanged, `ys` is exactly zero, and the content of `xs` changes nothing,
    NaN and infinity included.
    The cell runs there all the same, on x = 0, and what it gives is not used: a cell
    whose derivative is not finite there (a norm without an epsilon) spoils gradients.

    In a program with a mesh of its own, rows of `xs` that are sharded over explicit
    axes stay where they are: each device runs its own, outputs and carries are sharded
    as the rows are, and gradients as what they are of; parameters that are sharded are
    gathered before the loop. Inside of `jax.shard_map`, with `check_vma` or without,
    and of `jax.pmap` the rows are a device's, and so are the draws of `key`: fold the
    device's number into it.

    >>> import jax, jax.numpy as jnp, lstm_jax as lj
    >>> cell = lj.lstm(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> xs = jnp.ones((2, 5, 3))
    >>> carry, ys = lj.unroll(cell, params, xs, lengths=jnp.array([5, 2]))
    >>> ys.shape, bool((carry.h[1] == ys[1, 1]).all()), float(ys[1, 2:].sum())
    ((2, 5, 4), True, 0.0)

    Args:
      cell: the cell.
      params: its parameters, as `cell.init` makes them.
      xs: inputs [B, T, D].
      carry: state before the first step; None: `cell.initial_carry`.
      lengths: number of valid steps of each row, 0 to T. Where it is traced, values
        outside are clamped.
      mask: which steps are valid, holes allowed; in place of `lengths`.
      resets: a boundary between step t-1 and t. The carry crosses none: forward, the
        carry before step t becomes `cell.initial_carry`; reversed, the carry before
        step t-1. A reset on a masked step waits for the row's next valid step in
        running order. For a rollout of episodes (`docs/resets.md`) it is "done" as it
        was before acting at step t.
      reverse: run from the last step to the first; ys stay aligned with xs.
      key: randomness of a cell with noise; None: deterministic.
      return_carries: also return the carry after each step.
      implementation: "autodiff" differentiates through `lax.scan`; "fused" has a
        backward pass of its own, for cells made by `lstm_jax.gated`; it is
        differentiable in reverse mode, any number of times: forward mode
        (`jax.jvp`, `jax.jacfwd`) needs "autodiff". "cudnn" is NVIDIA's own LSTM
        (`lstm_jax/cudnn.py`), differentiable once. "pallas" is a kernel for TPUs
        (`lstm_jax/pallas.py`), interpreted and slow elsewhere. "auto" takes "fused"
        where it can.

    Returns:
      (carry, ys), or (carry, ys, carries): the state after each row's last valid
      step in running order, the outputs [B, T, ...], the carries [B, T, ...].

    Raises:
      ValueError: both `lengths` and `mask`; a shape or type that does not fit;
        lengths outside [0, T]; an unknown implementation, or one that cannot run
        this cell or batch.
      TypeError: on the fused path, gates that close over a traced value.
    """
    batch, time = _check_inputs(xs, resets, implementation, cell)
    if implementation == "auto":
        implementation = AUTO.value
    valid = valid_steps(batch, time, lengths, mask)
    rows = (xs, carry, valid, resets)
    params, rows = callers_mesh.settle(params, rows)
    axes = callers_mesh.varying_axes(params, rows)
    params, (xs, carry, valid, resets) = callers_mesh.vary((params, rows), axes)
    initial = callers_mesh.vary(cell.initial_carry(params, batch), axes)
    _check_carry(carry, initial)
    if cell.unroll is not None:
        if valid is not None:
            xs = jnp.where(jnp.expand_dims(valid, -1), xs, 0)
        return cell.unroll(
            params,
            xs,
            initial if carry is None else carry,
            mask=valid,
            resets=resets,
            reverse=reverse,
            key=key,
            return_carries=return_carries,
            implementation=implementation,
        )
    noise = None
    if key is not None and cell.noise is not None:
        noise = _draw(cell, key, params, xs)
    run = functools.partial(
        _run_rows,
        cell,
        reverse=reverse,
        return_carries=return_carries,
        implementation=implementation,
        holes=mask is not None,
    )
    shared, drawn = (), None
    if noise is not None:
        shared, drawn = noise.shared, (noise.sequence, noise.step)
    whole, rows = (params, shared), (xs, carry, valid, resets, drawn)
    if not callers_mesh.is_sharded(rows):
        return run(whole, rows, initial)
    # What cuDNN and Pallas give does not say over which axes it varies.
    typed = implementation not in ("cudnn", "pallas")
    return callers_mesh.on_rows(run, whole, rows, check_vma=typed)


def _draw(cell: Cell, key: PRNGKeyArray, params: Params, xs: Array) -> Noise:
    """A cell's noise, of all rows: devices that drew for theirs would draw the same."""

    def draw(key: PRNGKeyArray, params: Params) -> Noise:
        assert cell.noise is not None
        return cell.noise(key, params, xs.shape[0], xs.shape[1])

    has_rows = Noise(shared=False, sequence=True, step=True)
    draw = callers_mesh.partitioned(draw, xs, has_rows)
    return lax.stop_gradient(draw(key, params))


def _run_rows(
    cell: Cell,
    whole: tuple[Params, PyTree],
    rows: tuple[Any, ...],
    initial: Any = None,
    *,
    reverse: bool,
    return_carries: bool,
    implementation: Implementation,
    holes: bool,
) -> Any:
    """As `unroll`, of what that has checked and drawn.

    Args:
      cell: a cell without an `unroll` of its own.
      whole: its parameters, and `Noise.shared`.
      rows: xs, the carry or None, valid steps or None, resets or None, and the noise
        (sequence, step) or None.
      initial: the cell's initial carry; None: it is made here.
      reverse: as in `unroll`.
      return_carries: as in `unroll`.
      implementation: as in `unroll`.
      holes: the valid steps are those of a `mask`.
    """
    axes = callers_mesh.varying_axes(whole, rows)
    whole, rows = callers_mesh.vary((whole, rows), axes)
    (params, shared), (xs, carry, valid, resets, drawn) = whole, rows
    batch, time = xs.shape[:2]
    if initial is None:
        initial = cell.initial_carry(params, batch)
    initial = callers_mesh.vary(initial, axes)
    carry = initial if carry is None else carry
    if not jnp.issubdtype(xs.dtype, jnp.floating):
        leaves = [a.dtype for a in jax.tree.leaves(initial)]
        xs = xs.astype(next(d for d in leaves if jnp.issubdtype(d, jnp.floating)))
    noise = None if drawn is None else Noise(shared, *drawn)
    resets = None if resets is None else effective_resets(resets, valid, reverse)
    inputs = Inputs(
        x=jnp.swapaxes(xs, 0, 1),
        valid=None if valid is None else valid.T,
        reset=None if resets is None else resets.T,
        noise=None if noise is None else _swap(noise.step),
    )
    if noise is not None:
        noise = noise._replace(step=())  # it is among the inputs
    options = {"reverse": reverse, "return_carries": return_carries}
    if implementation == "cudnn":
        reason = why_not(
            cell,
            params,
            xs,
            holes=holes,
            resets=resets is not None,
            noise=noise is not None,
            return_carries=return_carries,
        )
        if reason is not None:
            raise ValueError(f'implementation="cudnn" cannot run this: {reason}')
    # A loop of no steps has nothing to schedule.
    if implementation == "autodiff" or cell.fused is None or time == 0:
        run = functools.partial(_autodiff_unroll, cell, **options)
        run = _on_rows(run, params, batch, noise)
    elif implementation == "cudnn":
        run = functools.partial(cudnn_unroll, **options)
        run = _on_rows(run, params, batch, noise)
    elif implementation == "pallas":
        run = functools.partial(pallas_unroll, cell.fused, **options)
    else:
        each = batch // sharding.shards(batch)
        backend = jax.default_backend()
        drawn = None if noise is None else noise._replace(step=inputs.noise)
        schedule = schedule_for(backend, cell.fused, params, carry, each, time, drawn)
        run = functools.partial(fused_unroll, cell.fused, schedule=schedule, **options)
    carry, outs = run(params, inputs, carry, initial, noise)
    ys, carries = _swap(outs)
    return (carry, ys, carries) if return_carries else (carry, ys)


def _swap(tree: PyTree) -> PyTree:
    """Batch first to time first, and back."""
    return jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), tree)


def _autodiff_unroll(
    cell: Cell,
    params: Params,
    inputs: Inputs,
    carry: Any,
    initial: Any,
    noise: Noise | None,
    *,
    reverse: bool,
    return_carries: bool,
) -> tuple[Any, PyTree]:
    """As `fused_unroll`, differentiated through `lax.scan`."""

    def step(carry: Any, now: Inputs) -> tuple[Any, PyTree]:
        drawn = () if noise is None else (noise._replace(step=now.noise),)
        if now.reset is not None:
            carry = where_rows(now.reset, initial, carry)
        new, y = cell.step(params, carry, now.x, *drawn)
        if now.valid is not None:
            new = where_rows(now.valid, new, carry)
            y = where_rows(now.valid, y, jax.tree.map(jnp.zeros_like, y))
        # A step may give constants.
        new, y = callers_mesh.vary((new, y), callers_mesh.varying_axes(carry))
        return new, (y, new if return_carries else ())

    return lax.scan(step, carry, masked(inputs), reverse=reverse)


def _on_rows(
    run: Callable[..., Any], params: Params, batch: int, noise: Noise | None
) -> Callable[..., Any]:
    """`run(params, inputs, carry, initial, noise)` on each device's rows."""
    if not sharding.divides(batch):
        return run
    none, first, second = sharding.Rows()
    specs = sharding.param_specs(params)
    drawn = None if noise is None else Noise(none, first, second)

    def gathered(params: Params, *rest: Any) -> Any:
        return run(sharding.gather(params, specs), *rest)

    return sharding.on_each_device(
        gathered, (specs, second, first, first, drawn), (first, second)
    )


def effective_resets(
    resets: Bool[Array, "B T"], valid: Bool[Array, "B T"] | None, reverse: bool
) -> Bool[Array, "B T"]:
    """At which steps the carry goes back to its initial value before the step."""
    if reverse:
        # The boundary between t-1 and t stands before step t-1 in running order.
        resets = jnp.roll(resets, -1, axis=1).at[:, -1:].set(False)
    if valid is None:
        return resets
    # A reset on a masked step waits: the next valid step sees that the count of
    # resets has grown since the valid step before it.
    count = lax.cumsum(resets.astype(jnp.int32), axis=1, reverse=reverse)
    seen = lax.cummax(jnp.where(valid, count, 0), axis=1, reverse=reverse)
    if reverse:
        before = jnp.pad(seen[:, 1:], ((0, 0), (0, 1)))
    else:
        before = jnp.pad(seen[:, :-1], ((0, 0), (1, 0)))
    return valid & (count > before)


def valid_steps(
    batch: int, time: int, lengths: Array | None, mask: Array | None
) -> Bool[Array, "B T"] | None:
    """The mask that `lengths` or `mask` of `unroll` stands for; None: all are valid."""
    if lengths is not None and mask is not None:
        raise ValueError("give lengths or mask, not both")
    if mask is not None:
        _check_steps("mask", mask, (batch, time))
        return jnp.asarray(mask)
    if lengths is None:
        return None
    lengths = jnp.asarray(lengths)
    if lengths.shape != (batch,) or not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise ValueError(
            f"lengths must be integers [{batch}], got {lengths.dtype} "
            f"{list(lengths.shape)}"
        )
    if not isinstance(lengths, Tracer):
        known = np.asarray(lengths)
        if known.size and (known.min() < 0 or known.max() > time):
            raise ValueError(
                f"lengths must lie in [0, {time}], got {known.min()} to {known.max()}"
            )
    # int32: a smaller type may not count to T.
    steps, lengths = jnp.arange(time, dtype=jnp.int32), lengths.astype(jnp.int32)
    return jnp.expand_dims(steps, 0) < jnp.expand_dims(lengths, 1)


def _check_inputs(
    xs: Array, resets: Array | None, implementation: str, cell: Cell
) -> tuple[int, int]:
    if xs.ndim != 3:
        raise ValueError(f"xs must be [batch, time, input], got {list(xs.shape)}")
    known = get_args(Implementation)
    if implementation not in known:
        raise ValueError(
            f"implementation must be one of {known}, got {implementation!r}"
        )
    has_gates = cell.fused is not None or cell.unroll is not None
    if implementation in ("fused", "pallas") and not has_gates:
        raise ValueError(
            f"this cell has no gates for implementation={implementation!r} (it was not "
            'made by gated): use implementation="auto"'
        )
    if resets is not None:
        _check_steps("resets", resets, xs.shape[:2])
    return xs.shape[0], xs.shape[1]


def _check_steps(name: str, value: Array, shape: tuple[int, ...]) -> None:
    if value.shape != shape or value.dtype != bool:
        raise ValueError(
            f"{name} must be bool {list(shape)}, got {value.dtype} {list(value.shape)}"
        )


def _check_carry(carry: Any, initial: Any) -> None:
    if carry is None:
        return
    want, got = jax.tree.structure(initial), jax.tree.structure(carry)
    if want != got:
        if type(carry) is type(initial):
            raise ValueError(f"carry must be a {want}, got {got}")
        fields = ", ".join(getattr(initial, "_fields", ()))
        raise ValueError(
            f"carry must be a {type(initial).__name__}({fields}), as the cell's "
            f"initial_carry gives it, got a {type(carry).__name__}"
        )
    for a, b in zip(jax.tree.leaves(initial), jax.tree.leaves(carry), strict=True):
        if a.shape != jnp.shape(b) or a.dtype != jnp.result_type(b):
            raise ValueError(
                f"carry has an entry {jnp.result_type(b)} {list(jnp.shape(b))} where "
                f"this cell and batch need {a.dtype} {list(a.shape)}"
            )

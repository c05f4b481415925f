"""The fused path: a loop over time whose backward pass is scheduled by hand.

The gates stay the user's: their derivative is `jax.vjp` of `gates` and nothing else.
What this file schedules is everything around them:

- Forward saves the carry before each step and the gates' input: 6 arrays [T, B, H]
  for an LSTM, where differentiating through `lax.scan` saves 13. Gates that use zx or
  zh elsewhere than in the one sum zx + zh have both saved: 4 arrays more.
- Backward runs in chunks of steps. The loop over a chunk has one product a step, for
  the carry, and finds the gradient of the gates' input; those of the inputs and the
  weights are then large products over the chunk in place of small ones a step, and no
  step reads or writes the weight gradient.
- Rows are first or last in a step's arrays (`lstm_jax.layout`), as is faster.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import CustomVJPPrimal
from jaxtyping import Array, PyTree

from lstm_jax import callers_mesh, layout, sharding
from lstm_jax.cells import (
    Fused,
    Noise,
    Params,
    check_features,
    extras_of,
    product,
)
from lstm_jax.cotangents import add, drop_zeros, fill_zeros, map_cotangents, zero
from lstm_jax.gate_tracing import trace_gates
from lstm_jax.gated_steps import (
    Inputs,
    gates_of_rows,
    make_ready,
    masked,
    own_gradient,
    own_product,
    transpose,
    weight_gradient,
)
from lstm_jax.layout import FIRST, LAST, where_rows
from lstm_jax.schedule import Schedule
from lstm_jax.sharded_loop import on_each_device


def fused_unroll(
    fused: Fused,
    params: Params,
    inputs: Inputs,
    carry: Any,
    initial: Any,
    noise: Noise | None,
    *,
    reverse: bool,
    return_carries: bool,
    schedule: Schedule,
) -> tuple[Any, PyTree]:
    """Runs a gated cell over time.

    Args:
      fused: the cell's `fused`.
      params: its parameters.
      inputs: what each step reads.
      carry: state before the first step.
      initial: the state that a reset goes back to.
      noise: None, or the cell's noise without `step`, which is in `inputs`.
      reverse: run from the last step to the first.
      return_carries: also return the carry after each step.
      schedule: how the two loops are laid out; it changes no result.

    Returns:
      The carry after the last step, and (ys, carries), leaves [T, B, ...]; carries
      is () unless asked for.

    Raises:
      TypeError: `gates` or `recurrent` closes over a traced value.
      ValueError: x has another number of features than the kernel takes, or the
        schedule's layout cannot run this cell.
    """
    check_features(inputs.x, params["kernel"])
    if schedule.rows == LAST and (schedule.hoist or schedule.transposed):
        raise ValueError("rows last take neither hoist nor a transposed kernel")
    per_step = None if noise is None else noise._replace(step=inputs.noise)
    additive = trace_gates(fused, params, carry, per_step)
    rows, num_gates = schedule.rows, params["bias"].shape[0] // carry.h.shape[1]
    # Not the arrays: when the backward pass is traced, their own trace may be over.
    axes, carry_types = (
        callers_mesh.varying_axes(carry),
        jax.tree.map(jax.typeof, carry),
    )
    gates = gates_of_rows(
        fused, params, noise, rows, additive=additive, return_carries=return_carries
    )

    def zeros(tree: PyTree) -> PyTree:
        return callers_mesh.vary(jax.tree.map(zero, tree), axes)

    def filled(cotangents: PyTree, primals: PyTree) -> PyTree:
        return callers_mesh.vary(fill_zeros(cotangents, primals), axes)

    def at_step(noise: Noise | None, per_step: PyTree) -> Noise | None:
        return None if noise is None else noise._replace(step=per_step)

    def arrange_noise(
        inputs: Inputs, noise: Noise | None
    ) -> tuple[Inputs, Noise | None]:
        inputs = inputs._replace(noise=layout.arrange(inputs.noise, rows, axis=1))
        if noise is not None:
            noise = noise._replace(sequence=layout.arrange(noise.sequence, rows))
        return inputs, noise

    def forward(
        params: Params, inputs: Inputs, carry: Any, initial: Any, noise: Noise | None
    ) -> tuple[Any, Any]:
        inputs, noise = arrange_noise(masked(inputs), noise)
        carry, initial = layout.arrange((carry, initial), rows)
        ready = make_ready(fused, params, inputs.x.shape[1], rows)

        def of_inputs(x: Array) -> Array:
            z = layout.product(x, ready["kernel"], fused.dtype, rows)
            return layout.add_bias(z, params["bias"], rows)

        def of_state(h: Array, noise: Noise | None) -> Array:
            if fused.recurrent is not None:
                return own_product(fused, params, h, noise, rows)
            h = layout.restore(h, rows)
            return layout.product(h, ready["recurrent_kernel"], fused.dtype, rows)

        def step(carry: Any, now: Inputs) -> tuple[Any, Any]:
            drawn = at_step(noise, now.noise)
            if now.reset is not None:
                carry = where_rows(now.reset, initial, carry, rows)
            zx = now.x if schedule.hoist else of_inputs(now.x)
            zh = of_state(carry.h, drawn)
            z = (zx + zh,) if additive else (zx, zh)
            new, out = gates(extras_of(ready), carry, z, now.valid, drawn)
            return new, (out, (carry, z))

        read = inputs
        if schedule.hoist:
            read = inputs._replace(x=of_inputs(inputs.x))
        carry, (outs, saved) = lax.scan(
            step, carry, read, reverse=reverse, unroll=schedule.unroll
        )
        results = layout.restore(carry, rows), layout.restore(outs, rows, axis=1)
        return results, (params, inputs, noise, saved)

    def backward(residuals: Any, cotangents: Any) -> tuple[Any, ...]:
        params, inputs, noise, (carries, zs) = residuals
        dcarry, douts = layout.arrange(cotangents[0], rows), cotangents[1]
        ready, pull_ready = jax.vjp(
            lambda params: make_ready(fused, params, inputs.x.shape[1], rows), params
        )
        transposed = params["recurrent_kernel"].T if schedule.transposed else None

        def pull_state(dzh: Array, h: Array, noise: Noise | None) -> Array:
            if fused.recurrent is not None:
                _, pull = jax.vjp(
                    lambda h: own_product(fused, params, h, noise, rows), h
                )
                return pull(dzh)[0]
            if transposed is not None:
                return product(dzh, transposed, fused.dtype)
            return layout.pull_product(
                dzh, params["recurrent_kernel"], fused.dtype, rows
            )

        def step(totals: Any, at: Any) -> tuple[Any, Any]:
            (dcarry, dinitial, dextras), room = totals
            k, now, (carry, z), dout = at
            drawn = at_step(noise, now.noise)
            (_, out), pull = jax.vjp(
                lambda extras, carry, z: gates(extras, carry, z, now.valid, drawn),
                extras_of(ready),
                carry,
                z,
            )
            dextra, dcarry, dz = pull((dcarry, filled(dout, out)))
            if rows == LAST:
                written = [
                    layout.write(*both, k, num_gates)
                    for both in zip(room, dz, strict=True)
                ]
                room, dz = zip(*written, strict=True)
            dh = pull_state(dz[-1], carry.h, drawn)
            dcarry = dcarry._replace(h=dcarry.h + dh)
            if now.reset is not None:
                lost = map_cotangents(
                    lambda d: where_rows(now.reset, d, jnp.zeros_like(d), rows), dcarry
                )
                dinitial = add(dinitial, lost)
                dcarry = map_cotangents(
                    lambda d: where_rows(now.reset, jnp.zeros_like(d), d, rows), dcarry
                )
            totals = (dcarry, dinitial, add(dextras, dextra))
            return (totals, room), dz if rows == FIRST else ()

        def chunk(totals: Any, at: Any) -> tuple[Any, Array]:
            (rest, gradient, own), room = totals
            inputs, saved, douts = at
            # Not of all steps before the loop: a chunk is in the cache.
            douts = layout.arrange(douts, rows, axis=1)
            (carries, _), steps = saved, jnp.arange(inputs.x.shape[0])
            (rest, room), dzs = lax.scan(
                step,
                (rest, room),
                (steps, inputs._replace(x=None), saved, douts),
                reverse=not reverse,
                unroll=schedule.unroll,
            )
            dzs = room if rows == LAST else dzs
            dxs = layout.pull_product(dzs[0], params["kernel"], fused.dtype, rows)
            if rows == LAST:
                dxs = jnp.moveaxis(dxs, 0, -1)
            drawn = at_step(noise, inputs.noise)
            hs = layout.restore(carries.h, rows, axis=1)
            part = weight_gradient(fused, params, inputs.x, hs, dzs, rows)
            gradient = gradient | add({k: gradient[k] for k in part}, part)
            if fused.recurrent is not None:
                part = own_gradient(fused, params, carries.h, dzs[-1], drawn, rows)
                own = add(own, part)
            return ((rest, gradient, own), room), dxs.astype(inputs.x.dtype)

        def make_room(count: int) -> tuple[Array, ...]:
            room = tuple(layout.room_for(z, count) for z in zs if rows == LAST)
            return callers_mesh.vary(room, axes)

        dinitial = map_cotangents(jnp.zeros_like, dcarry)
        gradient = zeros(ready)
        dextras = extras_of(gradient)
        own = zeros(transpose(params) if fused.recurrent is not None else {})
        totals = ((dcarry, dinitial, dextras), gradient, own)
        totals, dxs = _scan_chunks(
            chunk,
            totals,
            make_room,
            (inputs, (carries, zs), douts),
            reverse=not reverse,
            length=schedule.chunk,
        )
        (dcarry, dinitial, dextras), gradient, own = totals
        gradient = gradient | add({k: gradient[k] for k in dextras}, dextras)
        (gradient,) = pull_ready(gradient)
        if fused.recurrent is not None:
            gradient = add(gradient, transpose(own))
        dxs = masked(inputs._replace(x=dxs)).x
        dcarry, dinitial = layout.restore((dcarry, dinitial), rows)
        return gradient, Inputs(dxs, None, None, None), dcarry, dinitial, None

    if sharding.divides(inputs.x.shape[1]):
        forward, backward = on_each_device(
            forward, backward, params, inputs, carry, noise, rows
        )

    # All that may be traced is an argument, nothing a closure.
    @jax.custom_vjp
    def run(
        params: Params, inputs: Inputs, carry: Any, initial: Any, noise: Noise | None
    ) -> Any:
        return forward(params, inputs, carry, initial, noise)[0]

    def forward_of(*primals: Any) -> Any:
        return forward(*jax.tree.map(lambda a: a.value, primals, is_leaf=_is_primal))

    def backward_of(saved: Any, cotangents: Any) -> Any:
        # What nothing read costs nothing: most often all outputs but the last.
        dcarry, douts = cotangents
        dcarry = filled(drop_zeros(dcarry), carry_types)
        return backward(saved, (dcarry, drop_zeros(douts)))

    run.defvjp(forward_of, backward_of, symbolic_zeros=True)
    if jax.sharding.get_abstract_mesh().manual_axes:
        # Outside of `jax.jit`, `jax.shard_map` cannot call what takes symbolic zeros.
        return jax.jit(run)(params, inputs, carry, initial, noise)
    return run(params, inputs, carry, initial, noise)


def _is_primal(tree: Any) -> bool:
    return isinstance(tree, CustomVJPPrimal)


def _scan_chunks(
    chunk: Callable[[Any, Any], tuple[Any, Array]],
    totals: Any,
    make_room: Callable[[int], Any],
    over_time: Any,
    *,
    reverse: bool,
    length: int,
) -> tuple[Any, Array]:
    """`lax.scan` over chunks of `length` steps; the last may be short.

    Chunks of one length share what `make_room(length)` makes, cleared once.
    """
    time = jax.tree.leaves(over_time)[0].shape[0]
    if length >= time:
        (totals, _), out = chunk((totals, make_room(time)), over_time)
        return totals, out
    whole = time - time % length
    chunks = jax.tree.map(
        lambda a: a[:whole].reshape(whole // length, length, *a.shape[1:]), over_time
    )
    tail, tail_out = jax.tree.map(lambda a: a[whole:], over_time), []
    if reverse and whole < time:
        (totals, _), out = chunk((totals, make_room(time - whole)), tail)
        tail_out = [out]
    (totals, _), out = lax.scan(
        chunk, (totals, make_room(length)), chunks, reverse=reverse
    )
    out = out.reshape(whole, *out.shape[2:])
    if not reverse and whole < time:
        (totals, _), last = chunk((totals, make_room(time - whole)), tail)
        tail_out = [last]
    return totals, jnp.concatenate([out, *tail_out]) if tail_out else out

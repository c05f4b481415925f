"""The loop over time as one Pallas kernel for TPUs, forward and backward.

The recurrent kernel is read once and stays on the chip through the whole loop, and so
does the carry; a step reads its zx and writes what it gives. Products that are no part
of the recurrence (of the inputs, and the weight gradients) are large ones outside.

The gates stay the user's: they, and their `jax.vjp`, are traced into the kernel. Where
there is no TPU the kernel runs in Pallas's interpreter, which is for tests.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, PyTree

from lstm_jax import callers_mesh, sharding
from lstm_jax.cells import Fused, Noise, Params, extras_of, product
from lstm_jax.gate_tracing import trace_gates
from lstm_jax.gated_steps import Inputs, gates_of_rows, masked, weight_gradient
from lstm_jax.layout import FIRST, pull_product, where_rows
from lstm_jax.sharded_loop import on_each_device

# Bytes of the recurrent kernel that leave room for a step's arrays beside it.
_LARGEST_KERNEL = 8 * 2**20


def pallas_unroll(
    fused: Fused,
    params: Params,
    inputs: Inputs,
    carry: Any,
    initial: Any,
    noise: Noise | None,
    *,
    reverse: bool,
    return_carries: bool,
) -> tuple[Any, PyTree]:
    """As `lstm_jax.fused.fused_unroll`.

    Raises:
      ValueError: the kernel cannot run this cell, batch or noise.
    """
    batch = inputs.x.shape[1]
    each = batch // sharding.shards(batch)
    reason = _why_not(fused, params, carry, each, noise)
    if reason is not None:
        raise ValueError(f'implementation="pallas" cannot run this: {reason}')
    additive = trace_gates(fused, params, carry, None)
    gates = gates_of_rows(
        fused, params, None, additive=additive, return_carries=return_carries
    )

    def masks(inputs: Inputs) -> tuple[Any, Any]:
        """[T, B, 1]: the kernel reads blocks of two axes and more."""

        def column(a: Array | None) -> Array | None:
            return None if a is None else jnp.expand_dims(a, -1).astype(jnp.float32)

        return column(inputs.valid), column(inputs.reset)

    def before(carry: Any, reset: Any, initial: Any) -> Any:
        return carry if reset is None else where_rows(reset[:, 0] > 0, initial, carry)

    def is_valid(valid: Any) -> Any:
        return None if valid is None else valid[:, 0] > 0

    def forward(
        params: Params, inputs: Inputs, carry: Any, initial: Any, noise: None
    ) -> Any:
        zxs = product(masked(inputs).x, params["kernel"], fused.dtype)
        zxs = zxs + jnp.reshape(params["bias"], (1, 1, -1))

        def step(state: Any, now: Any, fixed: Any) -> Any:
            zx, valid, reset = now
            kernel, extras, initial = fixed
            carry = before(state, reset, initial)
            zh = product(carry.h, kernel, fused.dtype)
            z = (zx + zh,) if additive else (zx, zh)
            new, out = gates(extras, carry, z, is_valid(valid), None)
            return new, (out, (carry, z))

        fixed = (params["recurrent_kernel"], extras_of(params), initial)
        carry, (outs, saved) = _loop(
            step, carry, (zxs, *masks(inputs)), fixed, reverse=reverse
        )
        if not all(jnp.issubdtype(a.dtype, jnp.inexact) for a in jax.tree.leaves(outs)):
            raise ValueError(
                'implementation="pallas" cannot run this: it gives real numbers alone'
            )
        return (carry, outs), (params, inputs, noise, saved)

    def backward(residuals: Any, cotangents: Any) -> Any:
        params, inputs, _, saved = residuals
        dcarry, douts = cotangents

        def step(state: Any, now: Any, fixed: Any) -> Any:
            dcarry, dinitial, dextras = state
            valid, reset, (carry, z), dout = now
            kernel, extras = fixed
            _, pull = jax.vjp(
                lambda extras, carry, z: gates(extras, carry, z, is_valid(valid), None),
                extras,
                carry,
                z,
            )
            dextra, dcarry, dz = pull((dcarry, dout))
            dh = pull_product(dz[-1], kernel, fused.dtype, FIRST)
            dcarry = dcarry._replace(h=dcarry.h + dh)
            if reset is not None:
                zero = jax.tree.map(jnp.zeros_like, dcarry)
                lost = where_rows(reset[:, 0] > 0, dcarry, zero)
                dinitial = jax.tree.map(jnp.add, dinitial, lost)
                dcarry = where_rows(reset[:, 0] > 0, zero, dcarry)
            dextras = jax.tree.map(jnp.add, dextras, dextra)
            return (dcarry, dinitial, dextras), dz

        extras = extras_of(params)
        zeros = jax.tree.map(jnp.zeros_like, (dcarry, extras))
        (dcarry, dinitial, dextras), dzs = _loop(
            step,
            (dcarry, *zeros),
            (*masks(inputs), saved, douts),
            (params["recurrent_kernel"], extras),
            reverse=not reverse,
        )
        xs = masked(inputs).x
        dxs = pull_product(dzs[0], params["kernel"], fused.dtype, FIRST)
        dxs = masked(inputs._replace(x=dxs.astype(xs.dtype))).x
        gradient = weight_gradient(fused, params, xs, saved[0].h, dzs)
        dinputs = Inputs(dxs, None, None, None)
        return gradient | dextras, dinputs, dcarry, dinitial, None

    if sharding.divides(batch):
        forward, backward = on_each_device(
            forward, backward, params, inputs, carry, None
        )

    @jax.custom_vjp
    def run(
        params: Params, inputs: Inputs, carry: Any, initial: Any, noise: None
    ) -> Any:
        return forward(params, inputs, carry, initial, noise)[0]

    run.defvjp(forward, backward)
    return run(params, inputs, carry, initial, None)


def _why_not(
    fused: Fused, params: Params, carry: Any, batch_size: int, noise: Noise | None
) -> str | None:
    if fused.recurrent is not None or noise is not None:
        return "the kernel knows no noise and no recurrent product of a cell's own"
    if callers_mesh.varying_axes(params, carry):
        return callers_mesh.UNTYPED
    kernel = params["recurrent_kernel"]
    if kernel.shape[0] % 128:
        return f"hidden_size={kernel.shape[0]} is no multiple of 128"
    if batch_size % 8:
        return f"{batch_size} rows, a device's, are no multiple of 8"
    if kernel.nbytes > _LARGEST_KERNEL:
        return (
            f"the recurrent kernel has {kernel.nbytes} bytes and {_LARGEST_KERNEL} "
            "fit on the chip"
        )
    return None


def _loop(
    step: Callable[[Any, Any, Any], tuple[Any, Any]],
    state: PyTree,
    over_time: PyTree,
    fixed: PyTree,
    *,
    reverse: bool,
) -> tuple[PyTree, PyTree]:
    """`lax.scan` with the state and `fixed` on the chip throughout.

    Args:
      step: `step(state, now, fixed) -> (state, out)`.
      state: leaves of any shape.
      over_time: leaves [T, B, ...]; a step gets [B, ...].
      fixed: what all steps read.
      reverse: from the last step to the first.
    """
    time = jax.tree.leaves(over_time)[0].shape[0]
    now = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), over_time)
    traced, (state_out, out) = jax.make_jaxpr(step, return_shape=True)(
        state, now, fixed
    )
    if traced.consts:
        raise ValueError(
            'implementation="pallas" cannot run this: the gates close over an array, '
            "which has to be among the extras (init_extra)"
        )
    outs = jax.tree.map(lambda a: jax.ShapeDtypeStruct((time, *a.shape), a.dtype), out)
    trees = (state, over_time, fixed, state_out, outs)
    flat, structures = zip(*(jax.tree.flatten(tree) for tree in trees), strict=True)
    sizes = [len(leaves) for leaves in flat]

    def two_axes(array: Any) -> tuple[int, ...]:
        return (1,) * (2 - array.ndim) + array.shape  # no block has fewer

    def whole(array: Any) -> pl.BlockSpec:
        shape = two_axes(array)
        return pl.BlockSpec(shape, lambda t: (0,) * len(shape))

    def at_step(array: Any) -> pl.BlockSpec:
        rest = (0,) * (array.ndim - 1)
        if reverse:
            return pl.BlockSpec((1, *array.shape[1:]), lambda t: (time - 1 - t, *rest))
        return pl.BlockSpec((1, *array.shape[1:]), lambda t: (t, *rest))

    def read(refs: Sequence[Any], arrays: Sequence[Any]) -> list[Array]:
        return [
            ref[...].reshape(array.shape)
            for ref, array in zip(refs, arrays, strict=True)
        ]

    def kernel(*refs: Any) -> None:
        groups: list[Sequence[Any]] = []
        place = 0
        for size in [*sizes, sizes[0]]:
            groups.append(refs[place : place + size])
            place += size
        first, now, fixed, last, out, kept = groups
        at = pl.program_id(0)

        @pl.when(at == 0)
        def _begin() -> None:
            for ref, other in zip(kept, first, strict=True):
                ref[...] = other[...]

        new, result = step(
            jax.tree.unflatten(structures[0], read(kept, flat[0])),
            jax.tree.unflatten(structures[1], [ref[0] for ref in now]),
            jax.tree.unflatten(structures[2], read(fixed, flat[2])),
        )
        for ref, value in zip(kept, jax.tree.leaves(new), strict=True):
            ref[...] = value.reshape(two_axes(value))
        for ref, value in zip(out, jax.tree.leaves(result), strict=True):
            ref[0] = value

        @pl.when(at == time - 1)
        def _end() -> None:
            for ref, other in zip(last, kept, strict=True):
                ref[...] = other[...]

    results = pl.pallas_call(
        kernel,
        grid=(time,),
        in_specs=[
            *map(whole, flat[0]),
            *map(at_step, flat[1]),
            *map(whole, flat[2]),
        ],
        out_specs=[*map(whole, flat[3]), *map(at_step, flat[4])],
        out_shape=[
            *(jax.ShapeDtypeStruct(two_axes(a), a.dtype) for a in flat[3]),
            *flat[4],
        ],
        scratch_shapes=[pltpu.VMEM(two_axes(a), a.dtype) for a in flat[0]],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",)),
        interpret=jax.default_backend() != "tpu",
    )(
        *(a.reshape(two_axes(a)) for a in flat[0]),
        *flat[1],
        *(a.reshape(two_axes(a)) for a in flat[2]),
    )
    last = [
        result.reshape(array.shape)
        for result, array in zip(results[: sizes[3]], flat[3], strict=True)
    ]
    return (
        jax.tree.unflatten(structures[3], last),
        jax.tree.unflatten(structures[4], results[sizes[3] :]),
    )

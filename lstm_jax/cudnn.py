"""The LSTM that NVIDIA ships: one call of cuDNN for the whole sequence.

It is `jax.experimental.rnn.lstm` under the semantics of `lstm_jax.unroll`. cuDNN has
one set of gate equations, and batches that end in padding; `why_not` says what else it
lacks.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import rnn
from jaxtyping import Array, Float, Integer

from lstm_jax import callers_mesh
from lstm_jax.cells import Cell, LSTMCarry, Noise, Params
from lstm_jax.gated_steps import Inputs, masked


def why_not(
    cell: Cell,
    params: Params,
    xs: Float[Array, "B T D"],
    *,
    holes: bool,
    resets: bool,
    noise: bool,
    return_carries: bool,
) -> str | None:
    """What of a call of `unroll` cuDNN cannot do; None: it can do it all.

    Args:
      cell: the cell.
      params: its parameters.
      xs: its inputs.
      holes: masked by a `mask`, whose holes may be anywhere.
      resets: there are resets.
      noise: the cell draws noise.
      return_carries: the carry of every step is asked for.
    """
    if cell.fused is None or cell.fused.gates is not cell.fused.lstm_gates:
        return "it has the LSTM with tanh and sigmoid alone"
    if cell.fused.recurrent is not None or noise:
        return "it knows no noise and no recurrent product of a cell's own"
    types = {leaf.dtype for leaf in jax.tree.leaves((params, xs))}
    if cell.fused.dtype is not None or types != {jnp.dtype(jnp.float32)}:
        return "it computes in float32 alone"
    if xs.shape[0] == 0:
        return "it takes no empty batch"
    if holes:
        return "it takes lengths, and no mask"
    if resets:
        return "it knows no resets"
    if return_carries:
        return "it gives the last carry alone"
    if callers_mesh.varying_axes(params, xs):
        return callers_mesh.UNTYPED
    if jax.default_backend() != "gpu":
        return f"this is a {jax.default_backend()}, and no GPU of NVIDIA's"
    return None


def cudnn_unroll(
    params: Params,
    inputs: Inputs,
    carry: LSTMCarry,
    initial: Any,
    noise: Noise | None,
    *,
    reverse: bool,
    return_carries: bool,
) -> tuple[LSTMCarry, tuple[Float[Array, "T B H"], tuple[()]]]:
    """As `lstm_jax.fused.fused_unroll`, of what `why_not` has no reason against."""
    del initial, noise, return_carries
    xs = jnp.swapaxes(masked(inputs).x, 0, 1)
    batch, time, features = xs.shape
    valid = inputs.valid
    steps = jnp.full(batch, time, jnp.int32)
    if valid is not None:
        steps = jnp.sum(valid, 0, jnp.int32)
    # cuDNN adds two biases, and takes the weights transposed, in one vector.
    weights = [
        params["kernel"].T.ravel(),
        params["recurrent_kernel"].T.ravel(),
        params["bias"],
        jnp.zeros_like(params["bias"]),
    ]
    run: Any = rnn.lstm  # a custom derivative hides its type
    ys, hs, cs = run(
        flip(xs, steps) if reverse else xs,
        jnp.expand_dims(carry.h, 0),
        jnp.expand_dims(carry.c, 0),
        jnp.concatenate(weights),
        jnp.maximum(steps, 1),  # cuDNN knows no row without steps
        features,
        carry.h.shape[1],
        1,
        0.0,
        False,
    )
    ys = flip(ys, steps) if reverse else ys
    new = LSTMCarry(hs[0], cs[0])
    if valid is not None:
        some = jnp.expand_dims(steps > 0, 1)
        new = LSTMCarry(
            jnp.where(some, new.h, carry.h), jnp.where(some, new.c, carry.c)
        )
        ys = jnp.where(jnp.expand_dims(valid.T, 2), ys, 0)
    return new, (jnp.swapaxes(ys, 0, 1), ())


def flip(xs: Float[Array, "B T D"], lengths: Integer[Array, " B"]) -> Array:
    """Each row's valid steps in reverse order; the padding stays at the end."""
    steps = jnp.expand_dims(jnp.arange(xs.shape[1], dtype=jnp.int32), 0)
    length = jnp.expand_dims(lengths, 1)
    index = jnp.where(steps < length, length - 1 - steps, steps)
    return jnp.take_along_axis(xs, jnp.expand_dims(index, 2), axis=1)

"""Functions from cell to cell; each result keeps the fused path.

Those here draw nothing and change a step; `lstm_jax.dropouts` has those that draw, and
`lstm_jax.stacking` those around a whole cell, both under names of this module as well.
They nest: `layer_norm(zoneout(lstm(8), 0.1))`. `residual`, `project` and `stack` change
what a cell puts out after its loop and so stand outside of the others.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from lstm_jax.cells import (
    Cell,
    CellError,
    Noise,
    Params,
    product,
    recurrent_product,
    with_fused,
)
from lstm_jax.dropouts import (
    drop_connect,
    gates_of,
    is_real,
    recurrent_dropout,
    usual_product,
    zoneout,
)
from lstm_jax.gate_tracing import run_gates
from lstm_jax.nested import named_leaves, nested, put_leaves
from lstm_jax.stacking import after, residual, stack

__all__ = [
    "block_diagonal",
    "clip",
    "drop_connect",
    "layer_norm",
    "learned_initial_carry",
    "project",
    "recurrent_dropout",
    "residual",
    "stack",
    "zoneout",
]

_EPSILON = 1e-6  # of layer_norm, in the variance


def layer_norm(cell: Cell) -> Cell:
    """Normalises both products over all gates of a row, each with a scale of its own.

    The bias that the cell begins with is added after the norms, so that a forget bias
    counts; `params["bias"]` itself, before the norm, begins at zero. The cell state is
    not normalised.

    Args:
      cell: a cell made by `lstm_jax.gated`.

    Raises:
      ValueError: a cell without gates.

    References:
      Ba, Kiros and Hinton, Layer normalization, arXiv:1607.06450 (2016), eq. 20.
    """
    inner = gates_of(cell, "layer_norm")

    def normalize(z: Float[Array, " G_H"]) -> Float[Array, " G_H"]:
        z = z - jnp.mean(z)
        return z * jax.lax.rsqrt(jnp.mean(jnp.square(z)) + _EPSILON)

    def init(key: PRNGKeyArray, input_size: int) -> Params:
        params = cell.init(key, input_size)
        bias = params["bias"]
        norm = {"x": jnp.ones_like(bias), "h": jnp.ones_like(bias), "shift": bias}
        return _with_extra(params, "layer_norm", norm) | {"bias": jnp.zeros_like(bias)}

    def gates(
        extras: Params, carry: Any, zx: Array, zh: Array, noise: Noise | None
    ) -> tuple[Any, PyTree]:
        norm, extras = _without_extra(extras, "layer_norm")
        zx = norm["x"] * normalize(zx) + norm["shift"]
        zh = norm["h"] * normalize(zh)
        return inner.gates(extras, carry, zx, zh, noise)

    fused = inner._replace(gates=gates)
    return with_fused(cell, fused, init=init)


def clip(cell: Cell, limit: float) -> Cell:
    """Keeps every entry of the carry within [-limit, limit], but for integers.

    Where the cell's output is its new h, so it is here.

    Args:
      cell: a cell made by `lstm_jax.gated`.
      limit: greater than 0.

    Raises:
      ValueError: another limit, a cell without gates, or one like `slstm`, whose c
        and n are over exp(m).
    """
    if not limit > 0:
        raise ValueError(f"limit must be greater than 0, got {limit}")
    inner = gates_of(cell, "clip", of_carry=True)

    def gates(
        extras: Params, carry: Any, zx: Array, zh: Array, noise: Noise | None
    ) -> tuple[Any, PyTree]:
        new, y, is_h = run_gates(inner.gates, extras, carry, zx, zh, noise)
        clipped = jax.tree.map(
            lambda a: jnp.clip(a, -limit, limit) if is_real(a) else a, new
        )
        return clipped, clipped.h if is_h else y

    fused = inner._replace(gates=gates)
    return with_fused(cell, fused)


def learned_initial_carry(cell: Cell) -> Cell:
    """A cell whose initial carry, the same for all rows, is learnt; it starts as it is.

    Integers in the carry are not learnt. The others are a dict under "initial_carry" of
    the parameters, by field: files give dicts back, and no NamedTuple.

    Args:
      cell: a cell made by `lstm_jax.gated`.

    Raises:
      ValueError: a cell without gates, or one like `slstm`, which begins with an m so
        low that nothing else of its carry counts.
    """
    inner = gates_of(cell, "learned_initial_carry", of_carry=True)

    def init(key: PRNGKeyArray, input_size: int) -> Params:
        params = cell.init(key, input_size)
        first = named_leaves(cell.initial_carry(params, 1))
        learnt = nested({name: a[0] for name, a in first.items() if is_real(a)})
        return _with_extra(params, "initial_carry", learnt)

    def initial_carry(params: Params, batch_size: int) -> Any:
        learnt, params = _without_extra(params, "initial_carry")
        first = cell.initial_carry(params, batch_size)
        rows = {
            name: jnp.broadcast_to(jnp.expand_dims(a, 0), (batch_size, *a.shape))
            for name, a in named_leaves(learnt).items()
        }
        return put_leaves(first, named_leaves(first) | rows)

    def gates(
        extras: Params, carry: Any, zx: Array, zh: Array, noise: Noise | None
    ) -> tuple[Any, PyTree]:
        return inner.gates(
            _without_extra(extras, "initial_carry")[1], carry, zx, zh, noise
        )

    fused = inner._replace(gates=gates)
    return with_fused(cell, fused, init=init, initial_carry=initial_carry)


def block_diagonal(cell: Cell, heads: int) -> Cell:
    """Units in heads of one size: h of a head feeds the gates of that head alone.

    `recurrent_kernel` is [heads, H / heads, G * H / heads], each head's begun as the
    cell begins its own. It costs 1 / heads of the recurrent product's operations.

    Args:
      cell: a cell made by `lstm_jax.gated`, with the usual recurrent product.
      heads: a divisor of H.

    Raises:
      ValueError: a cell without gates or with a recurrent product of its own; when
        `init` is called, heads that do not divide H.

    References:
      Beck et al., xLSTM: extended long short-term memory, arXiv:2405.04517 (2024),
      section 2.2.
    """
    inner = gates_of(cell, "block_diagonal")
    if inner.recurrent is not None:
        raise ValueError("block_diagonal takes a cell with the usual recurrent product")

    def init(key: PRNGKeyArray, input_size: int) -> Params:
        params = cell.init(key, input_size)
        kernel = params["recurrent_kernel"]
        hidden, gates = kernel.shape[0], kernel.shape[1] // kernel.shape[0]
        if heads < 1 or hidden % heads:
            raise CellError(f"heads={heads} must divide the {hidden} hidden units")
        size = hidden // heads
        # Of each gate's block the diagonal one.
        blocks = kernel.reshape(heads, size, gates, heads, size)
        own = jnp.stack([blocks[head, :, :, head] for head in range(heads)])
        # As if the kernel had as few rows: the variance of a product is kept.
        own = own * jnp.sqrt(jnp.asarray(heads, own.dtype))
        return params | {"recurrent_kernel": own.reshape(heads, size, gates * size)}

    def recurrent(params: Params, h: Array, noise: Noise | None) -> Array:
        del noise
        kernel = params["recurrent_kernel"]
        operand = kernel.dtype if inner.dtype is None else inner.dtype
        parts = h.reshape(h.shape[0], heads, kernel.shape[1])
        z = jnp.einsum(
            "bni,nio->bno",
            parts.astype(operand),
            kernel.astype(operand),
            preferred_element_type=kernel.dtype,
        )
        # From heads of gates to gates of heads.
        z = z.reshape(h.shape[0], heads, -1, kernel.shape[1])
        return jnp.swapaxes(z, 1, 2).reshape(h.shape[0], -1)

    fused = inner._replace(recurrent=recurrent)
    return with_fused(cell, fused, init=init)


def project(cell: Cell, size: int) -> Cell:
    """Outputs, and what feeds the recurrent product, projected to fewer numbers.

    y = h P and zh = (h P) U with P [H, size] and U [size, G * H]; the carry holds h
    before the projection. Noise of the recurrent product is of h P and U:
    `project(recurrent_dropout(lstm(H), 0.1), size)`.

    Args:
      cell: a cell made by `lstm_jax.gated` that outputs h.
      size: of the outputs, at most H.

    Raises:
      ValueError: a cell without gates or with a recurrent product of its own; when
        `init` is called, another size.

    References:
      Sak, Senior and Beaufays, Long short-term memory recurrent neural network
      architectures for large scale acoustic modeling, Interspeech 2014. Its state is
      h P, which is the same network.
    """
    inner = gates_of(cell, "project")
    if not usual_product(inner):
        raise ValueError("project takes a cell with the usual recurrent product")

    def init(key: PRNGKeyArray, input_size: int) -> Params:
        own_key, inner_key = jax.random.split(key)
        params = cell.init(inner_key, input_size)
        kernel = params["recurrent_kernel"]
        hidden = kernel.shape[0]
        if not 1 <= size <= hidden:
            raise CellError(f"size={size} must be at least 1 and at most {hidden}")
        projection = jax.nn.initializers.orthogonal()(own_key, (hidden, size))
        params = params | {"recurrent_kernel": kernel[:size]}
        return _with_extra(params, "projection", projection)

    def projected(params: Params, h: Array) -> Array:
        return product(h, params["projection"], inner.dtype)

    def recurrent(params: Params, h: Array, noise: Noise | None) -> Array:
        return recurrent_product(inner, params, projected(params, h), noise)

    def gates(
        extras: Params, carry: Any, zx: Array, zh: Array, noise: Noise | None
    ) -> tuple[Any, PyTree]:
        extras = _without_extra(extras, "projection")[1]
        return inner.gates(extras, carry, zx, zh, noise)

    unread = (*inner.unread, "projection")
    fused = inner._replace(
        gates=gates, recurrent=recurrent, unread=unread, any_width=False
    )
    narrow = with_fused(cell, fused, init=init)
    return after(narrow, lambda params, xs, ys: projected(params, ys))


def _with_extra(params: Params, name: str, extra: PyTree) -> Params:
    if name in params:
        raise CellError(f"the cell has parameters {name!r} already")
    return params | {name: extra}


def _without_extra(extras: Params, name: str) -> tuple[PyTree, Params]:
    rest = {key: value for key, value in extras.items() if key != name}
    return extras[name], rest

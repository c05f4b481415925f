"""Cells for the tests: the built-in ones, and inventions that `gated` must carry."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

import lstm_jax as lj

INPUT, HIDDEN = 3, 4
HEADS, RANK = 2, 2

Params = dict[str, Any]


class MemoryCarry(NamedTuple):
    """A scalar and a matrix a row, beside h."""

    h: Float[Array, "B H"]
    total: Float[Array, " B"]
    memory: Float[Array, "B H 2"]


def sigmoid(x: Array) -> Array:
    return jax.nn.sigmoid(x)


def lstm_gates(carry: lj.LSTMCarry, z: Array) -> lj.LSTMCarry:
    i, f, g, o = jnp.split(z, 4)
    c = sigmoid(f) * carry.c + sigmoid(i) * jnp.tanh(g)
    return lj.LSTMCarry(sigmoid(o) * jnp.tanh(c), c)


def coupled_peephole() -> lj.Cell:
    """Coupled gates, with a peephole as an extra."""

    def gates(extras: Params, carry: Any, zx: Array, zh: Array) -> tuple[Any, Array]:
        f, g, o = jnp.split(zx + zh, 3)
        f = sigmoid(f + extras["peephole"] * carry.c)
        c = f * carry.c + (1 - f) * jnp.tanh(g)
        h = sigmoid(o) * jnp.tanh(c)
        return lj.LSTMCarry(h, c), h

    def init_extra(key: Array, input_size: int) -> Params:
        return {"peephole": jax.random.normal(key, (HIDDEN,))}

    return lj.gated(HIDDEN, 3, gates, lj.LSTMCarry, init_extra=init_extra)


def layer_norm() -> lj.Cell:
    """Each product normalised over all gates: not a function of zx + zh."""

    def normalize(z: Array, scale: Array) -> Array:
        z = z - jnp.mean(z)
        return scale * z / jnp.sqrt(jnp.mean(z**2) + 0.1)

    def gates(extras: Params, carry: Any, zx: Array, zh: Array) -> tuple[Any, Array]:
        scale = extras["scale"]
        z = normalize(zx, scale["input"]) + normalize(zh, scale["recurrent"])
        new = lstm_gates(carry, z)
        return new, new.h

    def init_extra(key: Array, input_size: int) -> Params:
        ones = jnp.ones(4 * HIDDEN)
        return {"scale": {"input": ones, "recurrent": ones}}

    return lj.gated(HIDDEN, 4, gates, lj.LSTMCarry, init_extra=init_extra)


def memory() -> lj.Cell:
    """A carry of several shapes; y is a tree, and h is not in it."""

    def gates(extras: Params, carry: Any, zx: Array, zh: Array) -> tuple[Any, Any]:
        f, g, o = jnp.split(zx + zh, 3)
        total = jnp.tanh(0.7 * carry.total + jnp.mean(g))
        written = jnp.stack([jnp.tanh(g), jnp.sin(g)], axis=-1)
        kept = jnp.expand_dims(sigmoid(f), -1) * carry.memory + written
        h = sigmoid(o) * jnp.tanh(kept[:, 0] + total * kept[:, 1])
        return MemoryCarry(h, total, kept), {"out": 2 * h, "rest": (total, kept)}

    def initial_carry(params: Params, batch_size: int) -> MemoryCarry:
        zeros = jnp.zeros((batch_size, HIDDEN, 2), params["kernel"].dtype)
        return MemoryCarry(zeros[..., 0], zeros[:, 0, 0], zeros)

    return lj.gated(HIDDEN, 3, gates, MemoryCarry, initial_carry=initial_carry)


def learned_initial() -> lj.Cell:
    """The initial carry is an extra."""

    def gates(extras: Params, carry: Any, zx: Array, zh: Array) -> tuple[Any, Array]:
        new = lstm_gates(carry, zx + zh)
        return new, new.h

    def init_extra(key: Array, input_size: int) -> Params:
        h, c = jax.random.normal(key, (2, HIDDEN))
        return {"initial": lj.LSTMCarry(h, c)}

    def initial_carry(params: Params, batch_size: int) -> lj.LSTMCarry:
        return jax.tree.map(
            lambda a: jnp.tile(jnp.expand_dims(a, 0), (batch_size, 1)),
            params["initial"],
        )

    return lj.gated(
        HIDDEN,
        4,
        gates,
        lj.LSTMCarry,
        init_extra=init_extra,
        initial_carry=initial_carry,
    )


def zoneout() -> lj.Cell:
    """Entries of the carry that stay, drawn a step; without a key the expectation."""

    def gates(
        extras: Params, carry: Any, zx: Array, zh: Array, noise: lj.Noise | None
    ) -> tuple[Any, Array]:
        new = lstm_gates(carry, zx + zh)
        if noise is None:
            new = jax.tree.map(lambda a, b: 0.3 * a + 0.7 * b, carry, new)
        else:
            new = jax.tree.map(jnp.where, noise.step, carry, new)
        return new, new.h

    def noise(key: Array, params: Params, batch: int, time: int) -> lj.Noise:
        h, c = jax.random.bernoulli(key, 0.3, (2, batch, time, HIDDEN))
        return lj.Noise(step=lj.LSTMCarry(h, c))

    return lj.gated(HIDDEN, 4, gates, lj.LSTMCarry, noise=noise)


def noisy_hidden(extras: Params, carry: Any, zx: Array, zh: Array, noise: Any) -> Any:
    h = jnp.tanh(zx + zh)
    return lj.HiddenCarry(h), h


def recurrent_dropout() -> lj.Cell:
    """One mask of h a sequence."""

    def recurrent(params: Params, h: Array, noise: lj.Noise | None) -> Array:
        h = h if noise is None else h * noise.sequence
        return h @ params["recurrent_kernel"]

    def noise(key: Array, params: Params, batch: int, time: int) -> lj.Noise:
        keep = jax.random.bernoulli(key, 0.6, (batch, HIDDEN))
        return lj.Noise(sequence=keep.astype(params["kernel"].dtype) / 0.6)

    return lj.gated(HIDDEN, 1, noisy_hidden, recurrent=recurrent, noise=noise)


def drop_connect() -> lj.Cell:
    """One mask of the recurrent kernel for the whole batch."""

    def recurrent(params: Params, h: Array, noise: lj.Noise | None) -> Array:
        kernel = params["recurrent_kernel"]
        return h @ (kernel if noise is None else kernel * noise.shared)

    def noise(key: Array, params: Params, batch: int, time: int) -> lj.Noise:
        kernel = params["recurrent_kernel"]
        keep = jax.random.bernoulli(key, 0.6, kernel.shape)
        return lj.Noise(shared=keep.astype(kernel.dtype) / 0.6)

    return lj.gated(HIDDEN, 1, noisy_hidden, recurrent=recurrent, noise=noise)


def all_noise() -> lj.Cell:
    """Noise of all three kinds, read by the gates and by the recurrent product."""

    def gates(
        extras: Params, carry: Any, zx: Array, zh: Array, noise: lj.Noise | None
    ) -> tuple[Any, Array]:
        h = jnp.tanh(zx + zh)
        if noise is not None:
            h = h + 0.3 * noise.step * noise.sequence + jnp.mean(noise.shared)
        return lj.HiddenCarry(h), extras["gain"] * h

    def recurrent(params: Params, h: Array, noise: lj.Noise | None) -> Array:
        kernel = params["recurrent_kernel"]
        if noise is None:
            return h @ kernel
        return (h * noise.sequence * noise.step) @ (kernel * noise.shared)

    def noise(key: Array, params: Params, batch: int, time: int) -> lj.Noise:
        shared, sequence, step = jax.random.split(key, 3)
        return lj.Noise(
            jax.random.uniform(shared, params["recurrent_kernel"].shape),
            jax.random.uniform(sequence, (batch, HIDDEN)),
            jax.random.uniform(step, (batch, time, HIDDEN)),
        )

    def init_extra(key: Array, input_size: int) -> Params:
        return {"gain": jax.random.normal(key, (HIDDEN,))}

    return lj.gated(
        HIDDEN, 1, gates, recurrent=recurrent, noise=noise, init_extra=init_extra
    )


def block_diagonal() -> lj.Cell:
    """One recurrent kernel a head."""

    def gates(extras: Params, carry: Any, zx: Array, zh: Array) -> tuple[Any, Array]:
        new = lstm_gates(carry, zx + zh)
        return new, new.h

    def recurrent(params: Params, h: Array, noise: lj.Noise | None) -> Array:
        batch = h.shape[0]
        heads = h.reshape(batch, HEADS, HIDDEN // HEADS)
        z = jnp.einsum("bni,nio->bno", heads, params["recurrent_kernel"])
        z = z.reshape(batch, HEADS, 4, HIDDEN // HEADS).swapaxes(1, 2)
        return z.reshape(batch, 4 * HIDDEN)

    def recurrent_init(key: Array, shape: tuple[int, int]) -> Array:
        hidden, width = shape
        return jax.random.normal(key, (HEADS, hidden // HEADS, width // HEADS))

    return lj.gated(
        HIDDEN,
        4,
        gates,
        lj.LSTMCarry,
        recurrent=recurrent,
        recurrent_init=recurrent_init,
    )


def low_rank() -> lj.Cell:
    """A projection of h, an extra that the gates read too."""

    def gates(extras: Params, carry: Any, zx: Array, zh: Array) -> tuple[Any, Array]:
        h = jnp.tanh(zx * jnp.sum(extras["projection"], axis=1) + zh)
        return lj.HiddenCarry(h), h

    def recurrent(params: Params, h: Array, noise: lj.Noise | None) -> Array:
        return (h @ params["projection"]) @ params["recurrent_kernel"]

    def init_extra(key: Array, input_size: int) -> Params:
        return {"projection": jax.random.normal(key, (HIDDEN, RANK))}

    def recurrent_init(key: Array, shape: tuple[int, int]) -> Array:
        return jax.random.normal(key, (RANK, shape[1]))

    return lj.gated(
        HIDDEN,
        1,
        gates,
        recurrent=recurrent,
        init_extra=init_extra,
        recurrent_init=recurrent_init,
    )


BUILT_IN = {
    "lstm": lj.lstm(HIDDEN),
    "gru": lj.gru(HIDDEN),
    "simple_rnn": lj.simple_rnn(HIDDEN),
}
INVENTED = {
    make.__name__: make()
    for make in (
        coupled_peephole,
        layer_norm,
        memory,
        learned_initial,
        zoneout,
        recurrent_dropout,
        drop_connect,
        all_noise,
        block_diagonal,
        low_rank,
    )
}
CELLS = BUILT_IN | INVENTED | {"gru_before": lj.gru(HIDDEN, reset_after=False)}

# (cell, implementation, reverse): both implementations in both directions, and a cell
# whose initial carry is not zero; with those of `MORE_RUNS` all built-in cells.
RUNS = [
    ("lstm", "autodiff", False),
    ("lstm", "fused", True),
    ("gru", "fused", False),
    ("learned_initial", "autodiff", True),
    ("learned_initial", "fused", False),
]
MORE_RUNS = [
    ("gru", "autodiff", True),
    ("simple_rnn", "autodiff", False),
    ("simple_rnn", "fused", True),
    ("gru_before", "autodiff", False),
    ("gru_before", "autodiff", True),
]
MARKED_RUNS = RUNS + [pytest.param(*run, marks=pytest.mark.slow) for run in MORE_RUNS]


def random_params(cell: lj.Cell, seed: int = 0, input_size: int = INPUT) -> Params:
    """Parameters with no zero among them, biases and extras included."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda key: cell.init(key, input_size), jax.random.key(0))
    return jax.tree.map(
        lambda a: jnp.asarray(rng.normal(scale=0.6, size=a.shape), a.dtype), shapes
    )


def random_carry(cell: lj.Cell, params: Params, batch: int, seed: int = 1) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype),
        cell.initial_carry(params, batch),
    )


def random_xs(batch: int, time: int, seed: int = 2) -> Array:
    shape = (batch, time, INPUT)
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def noise_key(seed: int) -> Array:
    """A key of the generator that compiles fast."""
    return jax.random.key(seed, impl="rbg")

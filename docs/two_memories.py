# An LSTM with two memories: one as ever, and a slow mean of it.
import collections, jax, jax.numpy as jnp, lstm_jax as lj

Carry = collections.namedtuple("Carry", "h fast slow")


def gates(extras, carry, zx, zh):
    f, g, o = jnp.split(zx + zh, 3)
    f, keep = jax.nn.sigmoid(f), jax.nn.sigmoid(extras["keep"])
    fast = f * carry.fast + (1 - f) * jnp.tanh(g)
    slow = keep * carry.slow + (1 - keep) * fast
    h = jax.nn.sigmoid(o) * jnp.tanh(fast + slow)
    return Carry(h, fast, slow), h


def cell(hidden_size):
    def init_extra(key, input_size):
        return {"keep": jax.random.uniform(key, (hidden_size,), minval=1, maxval=5)}

    return lj.gated(hidden_size, 3, gates, Carry, init_extra=init_extra)

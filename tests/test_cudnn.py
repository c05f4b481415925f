"""cuDNN's LSTM under this project's semantics.

Without a GPU, jax's own reference of cuDNN's layout and equations stands in for it;
`JAX_PLATFORMS=cuda pytest tests/test_cudnn.py` runs the same tests on one.
"""

from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import rnn
from reference import assert_close, outputs_and_gradients

import lstm_jax as lj

BATCH, TIME, INPUTS, HIDDEN = 4, 6, 3, 5
CELL = lj.lstm(HIDDEN)
OTHER_GATES = CELL._replace(fused=CELL.fused._replace(gates=lambda *given: given))
LENGTHS = jnp.array([6, 3, 1, 0])


def reference(
    x: Any, h: Any, c: Any, weights: Any, lengths: Any, *sizes: Any
) -> tuple[Any, Any, Any]:
    inputs, hidden, layers, _, both = sizes
    unpacked = rnn.unpack_lstm_weights(weights, inputs, hidden, layers, both)
    return rnn.lstm_ref(x, h, c, *unpacked, lengths, *sizes)


@pytest.fixture(autouse=True)
def stand_in() -> Iterator[None]:
    if jax.default_backend() == "gpu":
        with jax.default_matmul_precision("highest"):
            yield
        return
    with (
        mock.patch.object(rnn, "lstm", reference),
        mock.patch("lstm_jax.cudnn.jax.default_backend", return_value="gpu"),
    ):
        yield


def arguments() -> dict[str, Any]:
    """Random parameters and carry; NaN in the padding of the inputs."""
    keys = iter(jax.random.split(jax.random.key(0), 9))
    params = CELL.init(next(keys), INPUTS)
    params = {k: a + jax.random.normal(next(keys), a.shape) for k, a in params.items()}
    padding = jnp.arange(TIME) >= LENGTHS[:, None]
    xs = jax.random.normal(next(keys), (BATCH, TIME, INPUTS))
    return {
        "params": params,
        "xs": jnp.where(padding[..., None], jnp.nan, xs),
        "carry": lj.LSTMCarry(*jax.random.normal(next(keys), (2, BATCH, HIDDEN))),
        "lengths": LENGTHS,
    }


@pytest.mark.parametrize(
    ("ragged", "reverse"),
    [
        (True, True),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((False, False), (False, True), (True, False))
        ),
    ],
)
def test_equals_the_fused_path(ragged: bool, reverse: bool) -> None:
    given = arguments()
    if not ragged:
        given |= {"lengths": None, "xs": jnp.nan_to_num(given["xs"])}
    results = [
        outputs_and_gradients(CELL, **given, reverse=reverse, implementation=which)
        for which in ("fused", "cudnn")
    ]
    assert_close(*results, 1e-5)


@pytest.mark.parametrize(
    ("cell", "options", "reason"),
    [
        (lj.gru(HIDDEN), {}, "the LSTM with tanh and sigmoid alone"),
        (lj.gru(HIDDEN, reset_after=False), {}, "the LSTM with tanh and sigmoid alone"),
        (OTHER_GATES, {}, "the LSTM with tanh and sigmoid alone"),
        (lj.lstm(HIDDEN, jax.nn.relu), {}, "the LSTM with tanh and sigmoid alone"),
        (lj.lstm(HIDDEN, dtype=jnp.bfloat16), {}, "float32 alone"),
        (CELL, {"mask": jnp.ones((BATCH, TIME), bool)}, "lengths, and no mask"),
        (CELL, {"resets": jnp.ones((BATCH, TIME), bool)}, "no resets"),
        (CELL, {"return_carries": True}, "the last carry alone"),
    ],
)
def test_says_what_it_cannot_do(cell: Any, options: Any, reason: str) -> None:
    params = cell.init(jax.random.key(0), INPUTS)
    xs = jnp.ones((BATCH, TIME, INPUTS))
    with pytest.raises(ValueError, match=reason):
        lj.unroll(cell, params, xs, implementation="cudnn", **options)


@pytest.mark.parametrize("which", ["params", "xs"])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_other_types_are_refused(which: str, dtype: Any) -> None:
    given = arguments()
    given[which] = jax.tree.map(lambda a: a.astype(dtype), given[which])
    given["carry"] = None
    with pytest.raises(ValueError, match="float32 alone"):
        lj.unroll(CELL, **given, implementation="cudnn")


def test_noise_is_refused() -> None:
    cell = CELL._replace(noise=lambda key, params, batch, time: lj.Noise())
    given = {**arguments(), "key": jax.random.key(1)}
    with pytest.raises(ValueError, match="no noise"):
        lj.unroll(cell, **given, implementation="cudnn")


def test_an_empty_batch_is_refused() -> None:
    params, xs = arguments()["params"], jnp.ones((0, TIME, INPUTS))
    with pytest.raises(ValueError, match="no empty batch"):
        lj.unroll(CELL, params, xs, implementation="cudnn")


def test_needs_a_gpu() -> None:
    xs = jnp.ones((BATCH, TIME, INPUTS))
    params = CELL.init(jax.random.key(0), INPUTS)
    with (
        mock.patch("lstm_jax.cudnn.jax.default_backend", return_value="cpu"),
        pytest.raises(ValueError, match="a cpu, and no GPU"),
    ):
        lj.unroll(CELL, params, xs, implementation="cudnn")

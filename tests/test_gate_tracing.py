"""What tracing tells of a cell, and a classifier that goes by it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from example_cells import CELLS, random_params
from random_modules import HIDDEN, LENGTHS, assert_close, draw_inputs, draw_params, head

import lstm_jax as lj
from lstm_jax.combinators import clip, layer_norm, zoneout
from lstm_jax.gate_tracing import mixes_units, outputs_state
from lstm_jax.models import SequenceClassifier

pytestmark = pytest.mark.usefixtures("strict")


def state(extras: Any, carry: Any, zx: Any, zh: Any) -> Any:
    h = jnp.tanh(zx + zh)
    return lj.HiddenCarry(h), h


def doubled(extras: Any, carry: Any, zx: Any, zh: Any) -> Any:
    h = jnp.tanh(zx + zh)
    return lj.HiddenCarry(h), 2 * h


def paired(extras: Any, carry: Any, zx: Any, zh: Any) -> Any:
    h = jnp.tanh(zx + zh)
    return lj.HiddenCarry(h), (h, h)


@jax.jit
def shares(z: Any) -> Any:
    return jax.nn.softmax(z)


def shared(extras: Any, carry: Any, zx: Any, zh: Any) -> Any:
    return lj.HiddenCarry(shares(zx) + zh), zx


@pytest.mark.parametrize(
    ("cell", "mixes"),
    [
        (layer_norm(lj.lstm(HIDDEN)), True),
        (zoneout(layer_norm(lj.gru(HIDDEN)), 0.1), True),
        (lj.gated(HIDDEN, 1, shared), True),
        (CELLS["low_rank"], True),  # its gates have a matrix
        (zoneout(lj.lstm(HIDDEN), 0.1), False),
        (CELLS["all_noise"], True),  # a mean, if of noise that all rows share
    ],
)
def test_gates_that_reduce_over_units(cell: lj.Cell, mixes: bool) -> None:
    assert cell.fused is not None
    params, noise = random_params(cell), None
    if cell.noise is not None:
        noise = cell.noise(jax.random.key(0), params, 2, 2)  # as many steps as rows
    carry = cell.initial_carry(params, 2)
    assert mixes_units(cell.fused, params, carry, noise) is mixes


@jax.jit
def twice(h: Any) -> Any:
    return 2 * h


def called_twice(extras: Any, carry: Any, zx: Any, zh: Any) -> Any:
    """One traced function, called for the output and for the state."""
    h = jnp.tanh(zx + zh)
    return lj.HiddenCarry(twice(h)), twice(twice(h))


def before(extras: Any, carry: Any, zx: Any, zh: Any) -> Any:
    return lj.HiddenCarry(jnp.tanh(zx + zh)), carry.h


def kept(extras: Any, carry: Any, zx: Any, zh: Any) -> Any:
    return carry, carry.h


def dropped(extras: Any, carry: Any, zx: Any, zh: Any, noise: Any) -> Any:
    """The output is the state only where there is no noise."""
    h = jnp.tanh(zx + zh)
    return lj.HiddenCarry(h), h if noise is None else h * noise.sequence


def keep(key: Any, params: Any, batch: int, time: int) -> lj.Noise:
    return lj.Noise(sequence=jnp.ones((batch, HIDDEN)))


def begun(params: Any, batch: int) -> lj.HiddenCarry:
    return lj.HiddenCarry(jnp.ones((batch, HIDDEN)))


differentiated = jax.custom_vjp(state)
differentiated.defvjp(state, state)  # neither is called

STATE = {
    "lstm": lj.lstm(HIDDEN),
    "gru": lj.gru(HIDDEN),
    "gru_before": lj.gru(HIDDEN, reset_after=False),  # has no gates
    "begun": lj.gated(HIDDEN, 1, state, initial_carry=begun),
    "zoneout": CELLS["zoneout"],
    "kept": lj.gated(HIDDEN, 1, jax.jit(kept)),
    **{
        call.__name__: lj.gated(HIDDEN, 1, call(state))
        for call in (jax.jit, jax.checkpoint)
    },
    "custom_vjp": lj.gated(HIDDEN, 1, differentiated),
    "calls": lj.gated(HIDDEN, 1, jax.jit(jax.checkpoint(jax.jit(state)))),
}
OTHER = {
    "doubled": lj.gated(HIDDEN, 1, doubled),
    "paired": lj.gated(HIDDEN, 1, paired),
    "jit_of_doubled": lj.gated(HIDDEN, 1, jax.jit(doubled)),
    "called_twice": lj.gated(HIDDEN, 1, jax.jit(called_twice)),
    "before": lj.gated(HIDDEN, 1, jax.jit(before)),
    "dropped": lj.gated(HIDDEN, 1, dropped, noise=keep),
}


@pytest.mark.parametrize("name", STATE | OTHER)
def test_outputs_state(name: str) -> None:
    assert outputs_state((STATE | OTHER)[name], 3) == (name in STATE)


@pytest.mark.parametrize("wrap", [lambda c: clip(c, 0.3), lambda c: zoneout(c, 0.4)])
@pytest.mark.parametrize(
    "call", [jax.jit, pytest.param(jax.checkpoint, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("gates", [state, doubled])
def test_a_decorator_of_gates_changes_no_number(
    gates: Any, call: Any, wrap: Any
) -> None:
    cells = [wrap(lj.gated(HIDDEN, 1, gates)) for gates in (gates, call(gates))]
    params = random_params(cells[0])
    carry = lj.HiddenCarry(jnp.ones((3, HIDDEN)))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3)), jnp.float32)
    plain, called = (cell.step(params, carry, x) for cell in cells)
    for a, b in zip(jax.tree.leaves(called), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert bool(jnp.all(called[0].h == called[1])) == (gates is state)


@pytest.mark.parametrize("name", ["gru", "begun", "doubled", "dropped"])
def test_classifier_reads_the_last_output(name: str) -> None:
    """Whether it is the state or not; zeros where a row is empty."""
    cell, xs = (STATE | OTHER)[name], draw_inputs()
    module = SequenceClassifier((cell,), 7)
    params = draw_params(module, xs)
    inner = params["recurrent"]["layer_0"]["cell"]
    ys = np.asarray(lj.unroll(cell, inner, xs, lengths=LENGTHS)[1])
    lengths = np.asarray(LENGTHS)
    last = ys[np.arange(len(lengths)), np.maximum(lengths - 1, 0)]
    assert min(lengths) == 0
    assert not last[lengths == 0].any()
    apply = jax.jit(functools.partial(module.apply, {"params": params}))
    assert_close(apply(xs, lengths=LENGTHS), head(params, last))


def test_classifier_of_a_cell_that_takes_one_size() -> None:
    """It is traced with the inputs that it gets, in a stack and in both directions."""
    inner, features = lj.lstm(HIDDEN), 2 * HIDDEN

    def init(key: Any, size: int) -> Any:
        if size != features:
            raise ValueError(f"{size} features")
        return inner.init(key, size)

    cells = lj.gru(HIDDEN), inner._replace(init=init)
    xs = draw_inputs()
    module = SequenceClassifier(cells, 7, bidirectional=True)
    params = draw_params(module, xs)
    plain = SequenceClassifier((cells[0], inner), 7, bidirectional=True)
    assert_close(
        module.apply({"params": params}, xs, lengths=LENGTHS),
        plain.apply({"params": params}, xs, lengths=LENGTHS),
    )

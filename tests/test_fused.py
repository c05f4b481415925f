"""The fused path equals autodiff, in values and in every gradient."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from example_cells import (
    BUILT_IN,
    CELLS,
    HIDDEN,
    INPUT,
    INVENTED,
    noise_key,
    random_carry,
    random_params,
    random_xs,
)
from reference import (
    assert_close,
    outputs_and_gradients,
    python_unroll,
    weighted_sum,
)
from schedules import LAYOUTS, ROWS_FIRST, ROWS_LAST, scheduled

import lstm_jax as lj
from lstm_jax.combinators import layer_norm
from lstm_jax.layout import FIRST, LAST
from lstm_jax.schedule import Schedule, schedule_for

pytestmark = pytest.mark.usefixtures("strict", "x64")

BATCH = 3
FUSED = BUILT_IN | INVENTED
# Cells that have in common what others show.
MORE = (
    *("drop_connect", "low_rank", "recurrent_dropout", "memory", "zoneout"),
    *("block_diagonal", "coupled_peephole", "simple_rnn", "learned_initial"),
    *("gru", "layer_norm"),
)


def random_steps(time: int) -> tuple[np.ndarray, np.ndarray, Any]:
    """Returns a mask with holes, resets, and inputs with NaN in the padding."""
    rng = np.random.default_rng(0)
    mask = rng.random((BATCH, time)) < 0.7
    mask[0] = True
    resets = rng.random((BATCH, time)) < 0.2
    xs = jnp.where(mask[..., None], random_xs(BATCH, time), jnp.nan)
    return mask, resets, xs


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in MORE else ())
        for name in FUSED
    ],
)
def test_equals_autodiff(name: str) -> None:
    cell = FUSED[name]
    time = 26  # two chunks
    mask, resets, xs = random_steps(time)
    params = random_params(cell)
    carry = random_carry(cell, params, BATCH)

    def run(implementation: str, schedule: Schedule | None = None) -> Any:
        return outputs_and_gradients(
            cell,
            params,
            xs,
            carry,
            schedule,
            mask=jnp.asarray(mask),
            resets=jnp.asarray(resets),
            key=noise_key(0),
            reverse=len(name) % 2 == 0,
            return_carries=True,
            implementation=implementation,
        )

    expected = run("autodiff")
    assert_close(run("fused", ROWS_LAST), expected)
    actual = run("fused", ROWS_FIRST)
    assert_close(actual, expected)
    gradients = actual[1]
    for leaf in jax.tree.leaves((gradients[0], gradients[2])):
        assert float(jnp.max(jnp.abs(leaf))) > 1e-6
    for leaf in jax.tree.leaves(actual[0][1]):
        assert np.all(np.asarray(leaf)[~mask] == 0)
    assert np.all(np.asarray(gradients[1])[~mask] == 0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "name", [pytest.param("drop_connect", marks=pytest.mark.slow), "gru"]
)
def test_equals_autodiff_without_options(name: str, layout: str) -> None:
    """No mask, no resets, no carry, no key."""
    cell = CELLS[name]
    params, xs = random_params(cell), random_xs(BATCH, 7)
    fused = outputs_and_gradients(
        cell, params, xs, schedule=LAYOUTS[layout], implementation="fused"
    )
    autodiff = outputs_and_gradients(cell, params, xs, implementation="autodiff")
    assert_close(fused, autodiff)


def test_schedule_by_backend_and_shape() -> None:
    def chosen(backend: str, cell: lj.Cell, batch: int, time: int) -> tuple[Any, ...]:
        assert cell.fused is not None
        params = jax.eval_shape(lambda key: cell.init(key, INPUT), jax.random.key(0))
        carry = jax.eval_shape(lambda p: cell.initial_carry(p, batch), params)
        noise = None
        if cell.noise is not None:
            noise = cell.noise(noise_key(0), random_params(cell), batch, time)
            step = jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), noise.step)
            noise = noise._replace(step=step)
        return schedule_for(backend, cell.fused, params, carry, batch, time, noise)[:-1]

    lstm, own = lj.lstm(HIDDEN), CELLS["drop_connect"]
    low_rank = CELLS["low_rank"]
    # Their own products are entry by entry, in part or whole.
    dropped, indrnn = CELLS["recurrent_dropout"], lj.indrnn(HIDDEN)
    # Its gates are given a matrix of parameters, or are said not to read it.
    matrix = lj.gated(
        HIDDEN,
        1,
        lambda extras, carry, zx, zh: (carry, zx),
        init_extra=lambda key, size: {"readout": jnp.ones((HIDDEN, HIDDEN))},
    )
    assert matrix.fused is not None
    unread = matrix._replace(fused=matrix.fused._replace(unread=("readout",)))
    assert chosen("cpu", lstm, 64, 500) == (LAST, False, False, 10, 1)
    assert chosen("cpu", own, 64, 500) == (LAST, False, False, 10, 1)
    assert chosen("cpu", low_rank, 64, 500) == (FIRST, False, False, 10, 1)
    assert chosen("cpu", unread, 64, 500) == (LAST, False, False, 10, 1)
    assert chosen("cpu", dropped, 64, 500) == (FIRST, False, False, 10, 1)
    assert chosen("cpu", indrnn, 64, 500) == (FIRST, False, False, 10, 1)
    assert chosen("cpu", lstm, 16, 28) == (FIRST, False, True, 28, 1)
    assert chosen("cpu", lstm, 1, 3) == (FIRST, False, False, 3, 1)
    assert chosen("cpu", lstm, 5000, 3) == (LAST, False, False, 2, 1)
    assert chosen("cpu", lstm, 64, 28) == (LAST, False, False, 7, 1)
    assert chosen("cpu", matrix, 64, 28) == (FIRST, False, True, 7, 1)
    # Its gates reduce over units.
    norm = layer_norm(lstm)
    assert chosen("cpu", norm, 64, 28) == (FIRST, False, True, 7, 1)
    assert chosen("gpu", norm, 64, 28) == (FIRST, True, False, 28, 8)
    assert chosen("gpu", lstm, 64, 500) == (FIRST, True, False, 500, 4)
    assert chosen("tpu", lstm, 64, 28) == (FIRST, True, False, 28, 8)


LONGEST = 41


@pytest.mark.parametrize(
    ("time", "reverse", "schedule"),
    [
        (1, False, ROWS_LAST),
        pytest.param(19, False, ROWS_FIRST, marks=pytest.mark.slow),
        (20, True, ROWS_LAST),
        pytest.param(41, True, ROWS_FIRST, marks=pytest.mark.slow),
        pytest.param(41, False, ROWS_LAST, marks=pytest.mark.slow),
        (41, True, ROWS_LAST),
    ],
)
def test_any_number_of_steps(time: int, reverse: bool, schedule: Schedule) -> None:
    """Whatever the number of steps leaves over for the last chunk."""
    cell = CELLS["simple_rnn"]
    mask, resets, xs = random_steps(LONGEST)
    mask[:, time:] = resets[:, time:] = False
    xs = jnp.where(jnp.asarray(mask)[..., None], xs, 0)
    params = random_params(cell)
    carry = random_carry(cell, params, BATCH)

    def loss(params: Any, xs: Any, carry: Any) -> Any:
        outputs = python_unroll(
            cell,
            params,
            xs,
            carry,
            valid=mask,
            resets=resets,
            reverse=reverse,
            steps=slice(time),
        )
        return weighted_sum(outputs), outputs

    (dparams, dxs, dcarry), expected = jax.grad(loss, (0, 1, 2), has_aux=True)(
        params, xs, carry
    )
    outputs, gradients = outputs_and_gradients(
        cell,
        params,
        xs[:, :time],
        carry,
        schedule,
        mask=jnp.asarray(mask[:, :time]),
        resets=jnp.asarray(resets[:, :time]),
        reverse=reverse,
        return_carries=True,
        implementation="fused",
    )
    assert_close(outputs, expected)
    assert_close(gradients, (dparams, dxs[:, :time], dcarry))


def compared(zx: Any, zh: Any) -> Any:
    return jnp.where(zx > 0, jnp.tanh(zx + zh), 0.1)


def stopped(zx: Any, zh: Any) -> Any:
    return jnp.tanh(zx + zh) * jax.lax.stop_gradient(zx)


def only_input(zx: Any, zh: Any) -> Any:
    return jnp.tanh(zx)


def only_recurrent(zx: Any, zh: Any) -> Any:
    return jnp.tanh(0.5 + zh)


@pytest.mark.parametrize(
    "schedule", [pytest.param(ROWS_FIRST, marks=pytest.mark.slow), ROWS_LAST]
)
@pytest.mark.parametrize("function", [compared, stopped, only_input, only_recurrent])
def test_gates_that_use_the_two_products_apart(
    function: Any, schedule: Schedule
) -> None:
    """The sum of the products is not all that counts, gradient or no gradient."""

    def gates(extras: Any, carry: Any, zx: Any, zh: Any) -> Any:
        h = function(zx, zh) + 0.1 * carry.h
        return lj.HiddenCarry(h), h

    cell = lj.gated(HIDDEN, 1, gates)
    params, xs = random_params(cell), random_xs(BATCH, 7)
    fused = outputs_and_gradients(
        cell, params, xs, schedule=schedule, implementation="fused"
    )
    autodiff = outputs_and_gradients(cell, params, xs, implementation="autodiff")
    assert_close(fused, autodiff)


@pytest.mark.parametrize(
    ("shape", "schedule"),
    [
        ((2,), ROWS_LAST),
        *(
            pytest.param(shape, schedule, marks=pytest.mark.slow)
            for shape, schedule in (
                *(((), ROWS_FIRST), ((), ROWS_LAST)),
                ((2,), ROWS_FIRST),
            )
        ),
    ],
)
def test_integers_in_carry_and_outputs(
    shape: tuple[int, ...], schedule: Schedule
) -> None:
    """A step counter, and choices as outputs: nothing to differentiate."""

    def gates(extras: Any, carry: Any, zx: Any, zh: Any) -> Any:
        h = jnp.tanh(zx + zh) / (1 + jnp.max(carry.c)).astype(zx.dtype)
        return lj.LSTMCarry(h, carry.c + 1), (h, jnp.argmax(h), h > 0)

    def initial_carry(params: Any, batch_size: int) -> Any:
        h = jnp.zeros((batch_size, HIDDEN), params["kernel"].dtype)
        return lj.LSTMCarry(h, jnp.zeros((batch_size, *shape), jnp.int32))

    cell = lj.gated(HIDDEN, 1, gates, lj.LSTMCarry, initial_carry=initial_carry)
    params = random_params(cell)
    mask, resets, xs = random_steps(26)

    def run(implementation: str, schedule: Schedule | None = None) -> Any:
        return outputs_and_gradients(
            cell,
            params,
            xs,
            schedule=schedule,
            mask=jnp.asarray(mask),
            resets=jnp.asarray(resets),
            implementation=implementation,
        )

    assert_close(run("fused", schedule), run("autodiff"))


@pytest.mark.parametrize(
    "schedule", [pytest.param(ROWS_FIRST, marks=pytest.mark.slow), ROWS_LAST]
)
def test_outputs_that_nothing_reads(schedule: Schedule) -> None:
    """Gradients of the last carry alone, of one entry of the outputs, of no output."""

    def gates(extras: Any, carry: Any, zx: Any, zh: Any) -> Any:
        h = jnp.tanh(zx + zh)
        return lj.HiddenCarry(h), (h, None, {"twice": 2 * h, "count": jnp.argmax(h)})

    cell = lj.gated(HIDDEN, 1, gates)
    params, xs = random_params(cell), random_xs(BATCH, 26)

    def read(which: str, implementation: str) -> Any:
        def loss(params: Any, xs: Any) -> Any:
            carry, (h, _, more) = lj.unroll(
                cell, params, xs, implementation=implementation
            )
            parts = {"carry": carry, "h": h, "twice": more["twice"], "none": ()}
            return weighted_sum(parts[which])

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(params, xs)

    for which in ("carry", "h", "twice", "none"):
        with scheduled(schedule):
            fused = read(which, "fused")
        assert_close(fused, read(which, "autodiff"))


@pytest.mark.parametrize(
    "schedule",
    [
        pytest.param(
            layout, id=name, marks=() if layout == ROWS_LAST else pytest.mark.slow
        )
        for name, layout in LAYOUTS.items()
    ],
)
def test_few_rows(schedule: Schedule) -> None:
    """None, and one."""
    cell = CELLS["gru"]
    params = random_params(cell)
    for batch in (0, 1):
        xs = random_xs(batch, 26)
        fused = outputs_and_gradients(
            cell, params, xs, schedule=schedule, implementation="fused"
        )
        autodiff = outputs_and_gradients(cell, params, xs, implementation="autodiff")
        assert_close(fused, autodiff)


def test_layouts_that_cannot_be() -> None:
    cell = CELLS["lstm"]
    for other in ({"hoist": True}, {"transposed": True}):
        schedule = ROWS_LAST._replace(**other)
        with scheduled(schedule), pytest.raises(ValueError, match="rows last"):
            lj.unroll(cell, random_params(cell), random_xs(BATCH, 2))

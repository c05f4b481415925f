"""Rows on several devices give what they give on one, and no loop over time waits."""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from example_cells import (
    BUILT_IN,
    INVENTED,
    noise_key,
    random_carry,
    random_params,
    random_xs,
)
from reference import assert_close, outputs_and_gradients
from schedules import ROWS_FIRST, ROWS_LAST, scheduled
from toy_runs import ragged_task, rows_of, saved_state, toy_config, toy_task

import lstm_jax as lj
from lstm_jax import devices, sharding, steps, training
from lstm_jax.schedule import Schedule

CELLS = BUILT_IN | INVENTED
BATCH, TIME = 4, 26  # two chunks
# Has what the others have.
MOST = ("all_noise", "auto")


def on(count: int, fsdp: bool = False) -> Any:
    """A context with that many devices."""
    mesh = devices.make_mesh(count, BATCH, fsdp=fsdp)
    return jax.set_mesh(mesh)


@pytest.fixture
def all_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small parameters are divided as well."""
    monkeypatch.setattr(sharding, "_LEAST_ENTRIES", 1)


@pytest.mark.usefixtures("strict", "x64")
@pytest.mark.parametrize(
    ("name", "implementation"),
    [
        pytest.param(
            name,
            implementation,
            marks=() if (name, implementation) == MOST else pytest.mark.slow,
        )
        for implementation in ("auto", "autodiff")
        for name in CELLS
    ],
)
def test_devices_equal_one(name: str, implementation: str) -> None:
    cell = CELLS[name]
    params = random_params(cell)
    rng = np.random.default_rng(0)

    def run(count: int, schedule: Schedule) -> Any:
        with on(count):
            return outputs_and_gradients(
                cell,
                params,
                random_xs(BATCH, TIME),
                random_carry(cell, params, BATCH),
                schedule,
                mask=jnp.asarray(rng.random((BATCH, TIME)) < 0.7),
                resets=jnp.asarray(rng.random((BATCH, TIME)) < 0.2),
                key=noise_key(0),
                return_carries=True,
                implementation=implementation,
            )

    rng = np.random.default_rng(0)
    one = run(1, ROWS_FIRST)
    # In either layout: what is saved has its rows elsewhere.
    for count, schedule in ((2, ROWS_LAST), (4, ROWS_FIRST)):
        rng = np.random.default_rng(0)
        assert_close(run(count, schedule), one)


@pytest.mark.usefixtures("strict", "x64", "all_divided")
@pytest.mark.parametrize(
    "implementation", ["auto", pytest.param("autodiff", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    "name",
    [
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("lstm", "gru")),
        pytest.param("learned_initial", marks=pytest.mark.slow),
        "memory",
    ],
)
def test_divided_parameters_equal_whole_ones(name: str, implementation: str) -> None:
    """Values and gradients; of each gradient a device has its part."""
    cell = CELLS[name]
    params, xs = random_params(cell), random_xs(BATCH, 5)

    def run() -> Any:
        def loss(params: Any, xs: Any) -> Any:
            options = {"key": noise_key(0), "implementation": implementation}
            _, ys = lj.unroll(cell, params, xs, **options)
            return sum(jnp.sum(jnp.square(y)) for y in jax.tree.leaves(ys))

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, xs)

    with on(1):
        one = run()
    with on(2, fsdp=True):
        params = sharding.put(params, sharding.param_specs(params))
        divided = run()
    assert_close(divided, one)
    for kernel in (divided[1][0]["kernel"], divided[1][0]["recurrent_kernel"]):
        assert kernel.addressable_shards[0].data.size == kernel.size / 2


@pytest.mark.slow
@pytest.mark.usefixtures("strict", "x64", "all_divided")
def test_second_derivatives_on_devices() -> None:
    cell = lj.lstm(3)
    params, xs = random_params(cell), random_xs(BATCH, 5)

    def penalty(params: Any, xs: Any) -> Any:
        def loss(params: Any, xs: Any) -> Any:
            return jnp.sum(jnp.square(lj.unroll(cell, params, xs)[1]))

        gradients = jax.grad(loss, argnums=(0, 1))(params, xs)
        return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradients))

    with on(1):
        one = jax.jit(jax.grad(penalty, argnums=(0, 1)))(params, xs)
    for fsdp in (False, True):
        with on(2, fsdp), scheduled(ROWS_LAST):
            two = jax.jit(jax.grad(penalty, argnums=(0, 1)))(params, xs)
        assert_close(two, one)


def test_rows_that_do_not_divide_stay_together() -> None:
    cell = lj.lstm(3)
    params, xs = random_params(cell), random_xs(3, 5)
    with on(2):
        assert not sharding.divides(3)
        two = lj.unroll(cell, params, xs)
    np.testing.assert_array_equal(two[1], lj.unroll(cell, params, xs)[1])


def collectives_in_loops(program: str) -> list[str]:
    """Collective operations of a compiled program that a while loop runs."""
    bodies = {}
    for match in re.finditer(
        r"^(?:ENTRY )?%([\w.-]+) .*?\{\n(.*?)^\}", program, re.M | re.S
    ):
        bodies[match[1]] = match[2]
    calls = {
        name: set(re.findall(r"%([\w.-]+)", body)) & bodies.keys()
        for name, body in bodies.items()
    }
    looped = {
        name
        for body in bodies.values()
        for line in re.findall(r"^.* while\(.*$", body, re.M)
        for name in re.findall(r"(?:body|condition)=%([\w.-]+)", line)
    }
    while more := {called for name in looped for called in calls[name]} - looped:
        looped |= more
    kinds = r" (?:all-|reduce-scatter|collective-)[\w-]*\("
    return [
        line
        for name in looped
        for line in bodies[name].splitlines()
        if re.search(kinds, line)
    ]


@pytest.mark.usefixtures("fast_runs", "all_divided")
@pytest.mark.parametrize(
    ("count", "fsdp"),
    [pytest.param(4, True, marks=pytest.mark.slow), (2, False)],
)
def test_training_on_devices_equals_one(count: int, fsdp: bool, tmp_path: Path) -> None:
    """With dropout, and a last batch that is padded."""
    task = ragged_task(2, cells=(lj.lstm(3),), dropout=0.5, embedding_dropout=0.5)
    assert any(len(bucket["labels"]) % BATCH for bucket in task.examples)
    states, rows = [], []
    for on_devices in ((1, False), (count, fsdp)):
        workdir = tmp_path / str(on_devices[0])
        config = toy_config(batch_size=BATCH)
        config.devices.count, config.devices.fsdp = on_devices
        training.fit(config, task, workdir)
        states.append(saved_state(workdir, config, task))
        rows.append(rows_of(workdir))
    assert_close(states[1].params, states[0].params, 1e-5)
    for row, expected in zip(rows[1], rows[0], strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert row["accuracy"] == expected["accuracy"]


def compiled_step(count: int, fsdp: bool, **fields: Any) -> str:
    """The program of an update."""
    task = toy_task(cells=(lj.lstm(3), lj.gru(2)), dropout=0.5, **fields)
    keys = steps.make_keys(0)
    stepping = steps.Stepping(task, optax.adam(1e-3), BATCH)

    def update(state: Any, examples: Any, numbers: Any) -> Any:
        batch, weight = steps.take_batch(examples, numbers, jnp.int32(0), BATCH)
        return steps.train_step(stepping, keys, state, batch, weight)

    with on(count, fsdp):
        state, numbers = steps.init_state(stepping, keys), jnp.arange(BATCH)
        state = sharding.put(state, steps.state_specs(state))
        lowered = jax.jit(update, donate_argnums=0).lower(
            state, sharding.put(task.examples[0]), numbers
        )
        return lowered.compile().as_text()


def test_no_loop_over_time_waits_for_other_devices() -> None:
    program = compiled_step(2, fsdp=False)
    assert " while(" in program
    # Of all gradients, the count and the metrics together.
    assert program.count(" all-reduce(") == 1
    assert collectives_in_loops(program) == []


@pytest.mark.slow
def test_divided_parameters_are_gathered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "_LEAST_ENTRIES", 13)
    program = compiled_step(2, fsdp=True, dense=(6,))
    assert " while(" in program
    # Both kernels of the first layer, the kernel of the second, that of the head.
    assert program.count(" all-gather(") == 4
    assert program.count(" reduce-scatter(") == 4
    # Of biases, the count and the metrics.
    assert program.count(" all-reduce(") == 1
    assert collectives_in_loops(program) == []


def test_a_collective_in_a_loop_is_found() -> None:
    def looped(xs: Any) -> Any:
        return jax.lax.fori_loop(
            0, xs.shape[1], lambda _, s: s + jax.lax.psum(s, sharding.ROWS), xs
        )

    with on(2):
        specs = sharding.Rows().first
        run = jax.jit(sharding.on_each_device(looped, specs, specs))
        program = run.lower(jnp.ones((4, 9))).compile().as_text()
    assert len(collectives_in_loops(program)) == 1

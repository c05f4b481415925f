"""Tests of lstm_jax.steps: the pure steps of training and evaluation."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import assert_same_bits
from toy_runs import (
    BATCH,
    CLASSES,
    SIZE,
    logits_of,
    losses_and_hits,
    toy_arrays,
    toy_config,
    toy_task,
)

from lstm_jax import steps
from lstm_jax.steps import Stepping, TrainState
from lstm_jax.tasks import Task, make_task

KEYS = steps.make_keys(0)
ADAM = optax.adam(0.01, eps=1e-7)


pytestmark = pytest.mark.usefixtures("fast_runs")


def stepping(task: Task, ema: float = 0.0) -> Stepping:
    return Stepping(task, ADAM, BATCH, ema)


def state_at(task: Task, step: int) -> TrainState:
    """A state with sums and moments that are not zero."""
    state = jax.jit(functools.partial(steps.init_state, stepping(task)))(KEYS)
    gradient = jax.tree.map(jnp.ones_like, state.params)
    _, opt_state = ADAM.update(gradient, state.opt_state)
    sums = {name: jnp.float32(i + 1) for i, name in enumerate(state.sums)}
    return state._replace(step=jnp.int32(step), opt_state=opt_state, sums=sums)


def run_steps(task: Task, state: TrainState, count: int = 1) -> TrainState:
    run = jax.jit(functools.partial(steps.train_steps, stepping(task), KEYS))
    return run(state, task.examples[0], jnp.int32(0), jnp.int32(count))


def order_of(task: Task, epoch: int, keys: steps.Keys = KEYS) -> np.ndarray:
    """The examples of an epoch in their order."""
    order = steps.epoch_order(task, keys, jnp.int32(epoch), jnp.int32(0), SIZE)
    return np.asarray(order)


# Steps 3 to 5 are the second epoch; the last batch of an epoch is half padding.
@pytest.mark.parametrize(("step", "places"), [(0, slice(0, 4)), (5, slice(8, 10))])
def test_train_step_is_an_optax_step_on_the_gathered_batch(
    step: int, places: slice
) -> None:
    task = toy_task()
    state = state_at(task, step)
    got = run_steps(task, state)
    chosen = order_of(task, step // 3)[places]
    inputs, labels = (array[chosen] for array in toy_arrays())

    @jax.jit
    def update(params: Any, opt_state: Any) -> Any:
        updates, opt_state = ADAM.update(jax.grad(loss)(params), opt_state)
        return optax.apply_updates(params, updates), opt_state

    def loss(params: Any) -> Any:
        log_p = jax.nn.log_softmax(logits_of(params, inputs))
        return -sum(log_p[row, label] for row, label in enumerate(labels)) / len(labels)

    assert got.step == step + 1
    assert (got.average, got.carry) == ((), ())
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7),
        (got.params, got.opt_state),
        update(state.params, state.opt_state),
    )
    losses, hits = losses_and_hits(logits_of(state.params, inputs), labels)
    sums = {"count": len(labels), "loss": losses.sum(), "accuracy": hits.sum()}
    for name, value in sums.items():
        np.testing.assert_allclose(got.sums[name] - state.sums[name], value, rtol=1e-5)


def test_steps_are_pure() -> None:
    task = toy_task(dropout=0.5)
    state = state_at(task, 5)
    before = jax.tree.map(np.array, state)
    first = run_steps(task, state)
    assert_same_bits(run_steps(task, state), first)
    run_steps(task, state._replace(step=jnp.int32(1)))
    assert_same_bits(run_steps(task, state), first)

    def evaluate(number: int) -> Any:
        run = jax.jit(functools.partial(steps.eval_step, task, BATCH))
        sums, carry = run(state.params, task.examples[0], number, ())
        assert carry == ()
        return sums

    sums = evaluate(1)
    assert sums["loss"] != evaluate(0)["loss"]
    assert_same_bits(evaluate(1), sums)
    assert_same_bits(state, before)


def test_every_parameter_changes_in_a_step() -> None:
    task = make_task(toy_config(**{"model.cell": "lstm"}))
    made = Stepping(task, optax.sgd(0.1), 16)
    state = steps.init_state(made, KEYS)
    run = jax.jit(functools.partial(steps.train_steps, made, KEYS))
    after = run(state, task.examples[0], jnp.int32(0), jnp.int32(1)).params
    leaves = jax.tree_util.tree_leaves_with_path(after)
    assert len(leaves) == 6
    for (path, new), old in zip(leaves, jax.tree.leaves(state.params), strict=True):
        assert jnp.isfinite(new).all()
        assert (new != old).any(), jax.tree_util.keystr(path)


def test_dropout_in_training_only() -> None:
    plain, dropped = toy_task(), toy_task(dropout=0.5)
    state = state_at(plain, 0)

    def losses(task: Task, step: int, key: int) -> tuple[float, ...]:
        """Of the same batch at another step and with another key."""
        run = jax.jit(functools.partial(steps.train_step, stepping(task)))
        start = state._replace(step=jnp.int32(step))
        keys = KEYS._replace(noise=jax.random.key(key))
        after = run(keys, start, task.examples[0], jnp.ones(SIZE))
        return float(after.sums["loss"]), float(jnp.sum(after.params["head"]["kernel"]))

    exact = losses(plain, 0, 0)
    assert losses(plain, 1, 0) == losses(plain, 0, 1) == exact
    noisy = {losses(dropped, step, key) for step in (0, 1) for key in (0, 1)}
    assert len(noisy) == 4
    assert exact not in noisy
    assert losses(dropped, 0, 0) in noisy

    evaluated = [
        jax.jit(functools.partial(steps.evaluate, task, BATCH))(
            state.params, task.examples[0]
        )
        for task in (plain, dropped)
    ]
    assert_same_bits(evaluated[1], evaluated[0])


@pytest.mark.parametrize("size", [1, 4, 10, 12])
def test_evaluation_is_over_all_examples_and_no_padding(size: int) -> None:
    inputs, _ = toy_arrays(size)
    task = toy_task()
    params = state_at(task, 0).params
    # All but one are hits: were padding counted, it would be seen in the accuracy too.
    labels = np.asarray(logits_of(params, inputs)).argmax(-1)
    labels[0] = (labels[0] + 1) % CLASSES
    examples = {"inputs": inputs, "labels": labels}
    sums = jax.jit(functools.partial(steps.evaluate, task, BATCH))(params, examples)
    losses, hits = losses_and_hits(logits_of(params, inputs), labels)
    assert sums["count"] == size
    np.testing.assert_allclose(sums["loss"], losses.sum(), rtol=1e-5)
    assert sums["accuracy"] == hits.sum() == size - 1
    run = jax.jit(functools.partial(steps.eval_step, task, BATCH))
    for number in range(-(-size // BATCH)):
        part = slice(BATCH * number, BATCH * number + BATCH)
        sums, _ = run(params, examples, number, ())
        assert sums["count"] == len(labels[part])
        np.testing.assert_allclose(sums["loss"], losses[part].sum(), rtol=1e-5)
        assert sums["accuracy"] == hits[part].sum()


def counting_task() -> Task:
    """Training adds to each parameter how often its example was visited."""

    def loss(params: Any, examples: Any, weight: Any, key: Any, carry: Any) -> Any:
        count = jnp.sum(weight)
        visits = jnp.sum(weight * params["visits"][examples["number"]])
        # The slope of its mean is -1.
        return {"count": count, "loss": -count * visits}, carry

    return toy_task()._replace(
        init=lambda key: {"visits": jnp.zeros(SIZE)},
        loss=loss,
        examples=({"number": np.arange(SIZE)},),
        splits={},
    )


def test_an_epoch_visits_every_example_once() -> None:
    task = counting_task()
    made = Stepping(task, optax.sgd(1.0), BATCH)
    run = jax.jit(functools.partial(steps.train_steps, made, KEYS))
    bucket = jnp.int32(0)
    state = steps.init_state(made, KEYS)
    visits = [state.params["visits"]]
    # An epoch is three steps; the counts do not care.
    for count in (1, 1, 1, 2, 1, 3):
        state = run(state, task.examples[0], bucket, jnp.int32(count))
        visits.append(state.params["visits"])
    assert state.step == 9
    for epoch, seen in enumerate([visits[3], visits[5], visits[6]], 1):
        assert seen.tolist() == [epoch] * SIZE
    first = [visits[1], visits[4] - visits[3] > 0]
    assert [int(seen.sum()) for seen in visits[:4]] == [0, 4, 8, 10]
    assert first[0].tolist() != first[1].tolist()
    fresh = steps.init_state(made, KEYS)
    long = run(fresh, task.examples[0], bucket, jnp.int32(300))
    assert long.params["visits"].tolist() == [100] * SIZE
    assert long.sums["count"] == 1000


def test_an_order_of_the_tasks_own_is_visited_as_it_is() -> None:
    order = np.array([3, 3, 0, 7, 9, 3], np.int32)  # two steps, the second padded
    task = counting_task()._replace(order=order)
    assert steps.steps_per_epoch(task, BATCH) == 2
    made = Stepping(task, optax.sgd(1.0), BATCH)
    run = jax.jit(functools.partial(steps.train_steps, made, KEYS))
    state = steps.init_state(made, KEYS)
    for times in (1, 2):
        state = run(state, task.examples[0], jnp.int32(0), jnp.int32(2))
        want = times * np.bincount(order, minlength=SIZE)
        assert state.params["visits"].tolist() == want.tolist()


def test_order_is_of_the_seed_and_the_epoch() -> None:
    task = toy_task()
    orders = {
        tuple(order_of(task, epoch, steps.make_keys(seed)).tolist())
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9
    assert all(sorted(order) == list(range(SIZE)) for order in orders)


@pytest.mark.parametrize("step", [0, 2, 3, 7])
def test_next_example_is_the_next_batches_first(step: int) -> None:
    task = toy_task()
    examples = task.examples[0]
    example = steps.next_example(stepping(task), KEYS, jnp.int32(step), examples)
    index = int(order_of(task, step // 3)[step % 3 * BATCH])
    assert example["inputs"].tolist() == toy_arrays()[0][index].tolist()
    assert example["labels"] == toy_arrays()[1][index]

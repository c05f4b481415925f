"""Training on examples in buckets of several padded lengths."""

import functools
import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import assert_close, assert_same_bits
from toy_runs import (
    BATCH,
    climbing_config,
    ragged_arrays,
    ragged_task,
    rows_of,
    saved_state,
    stopped_at,
    toy_config,
    toy_model,
    toy_task,
)

import lstm_jax as lj
from lstm_jax import steps, training, workdirs
from lstm_jax.steps import Stepping
from lstm_jax.tasks import Task, classification

SIZES = (9, 2, 4, 6)  # batches: 3, 1, 1, 2
CELLS = {"cells": (lj.simple_rnn(3),)}


pytestmark = pytest.mark.usefixtures("fast_runs")


def counting_task(sizes: tuple[int, ...] = SIZES) -> Task:
    """Training adds to each parameter how often its example was visited."""

    def loss(params: Any, examples: Any, weight: Any, key: Any, carry: Any) -> Any:
        count = jnp.sum(weight)
        visits = jnp.sum(weight * params["visits"][examples["number"]])
        # The slope of its mean is -1.
        return {"count": count, "loss": -count * visits}, carry

    numbers = np.split(np.arange(sum(sizes), dtype=np.int32), np.cumsum(sizes)[:-1])
    return toy_task()._replace(
        init=lambda key: {"visits": jnp.zeros(sum(sizes))},
        loss=loss,
        examples=tuple({"number": part} for part in numbers),
        splits={},
    )


def planned(
    seed: int, epoch: int, sizes: tuple[int, ...] = SIZES
) -> list[tuple[int, int]]:
    """Bucket and number of each batch of an epoch."""
    stepping = Stepping(counting_task(sizes), optax.sgd(1.0), BATCH)
    both = steps.schedule(stepping, steps.make_keys(seed), jnp.int32(epoch))
    return list(zip(*(part.tolist() for part in both), strict=True))


def test_plan_holds_every_batch_once() -> None:
    assert steps.steps_per_epoch(counting_task(), BATCH) == 7
    counts = (11, 1, 4, 6)
    sizes = tuple(count * BATCH - 1 for count in counts)
    plans = [planned(seed, epoch, sizes) for seed in range(3) for epoch in range(3)]
    batches = [(bucket, i) for bucket, size in enumerate(counts) for i in range(size)]
    for plan in plans:
        assert sorted(plan) == batches
        # In each bucket from the first batch on; what is in it is the epoch's order.
        for bucket in range(4):
            numbers = [number for chosen, number in plan if chosen == bucket]
            assert numbers == sorted(numbers)
    assert len({tuple(plan) for plan in plans}) == 9
    assert planned(1, 2, sizes) == planned(1, 2, sizes)


def test_batches_of_a_bucket_come_in_runs() -> None:
    """Of 11, 1, 4 and 6 batches 4 at a time: 7 runs, 3 of them cut short."""
    sizes = tuple(count * BATCH for count in (11, 1, 4, 6))
    for seed in range(5):
        chosen = [bucket for bucket, _ in planned(seed, 0, sizes)]
        met = [(k, len(list(run))) for k, run in itertools.groupby(chosen)]
        assert len(met) <= 7  # two runs of a bucket may meet
        assert {k: n for k, n in met if k in (1, 2)} == {1: 1, 2: 4}
        assert {n for k, n in met if k == 0} <= {3, 4, 7, 8, 11}
        assert {n for k, n in met if k == 3} <= {2, 4, 6}
    assert len({tuple(planned(seed, 0, sizes)) for seed in range(5)}) > 1


def test_orders_within_buckets_are_their_own() -> None:
    task, keys = counting_task(), steps.make_keys(0)
    orders = [
        steps.epoch_order(task, keys, jnp.int32(epoch), jnp.int32(bucket), 9).tolist()
        for epoch in range(3)
        for bucket in range(3)
    ]
    assert all(sorted(order) == list(range(9)) for order in orders)
    assert len({tuple(order) for order in orders}) == 9


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 1000])
def test_fit_visits_every_example_once_an_epoch(tmp_path: Path, every: int) -> None:
    config = climbing_config(num_steps=0, num_epochs=3, **{"report.every": every})
    config.checkpoint.keep = 3
    training.fit(config, counting_task(), tmp_path)
    for epoch, step in enumerate((7, 14, 21), 1):
        visits = workdirs.load_params(tmp_path, step)["visits"]
        assert visits.tolist() == [epoch] * sum(SIZES)


@pytest.mark.slow
def test_a_step_visits_a_batch_of_its_bucket() -> None:
    task, keys = counting_task(), steps.make_keys(0)
    stepping = Stepping(task, optax.sgd(1.0), BATCH)
    run = jax.jit(functools.partial(steps.train_steps, stepping, keys))
    state, start = steps.init_state(stepping, keys), np.cumsum((0, *SIZES))
    for bucket, number in planned(0, 0):
        before = np.asarray(state.params["visits"])
        at = jnp.int32(bucket)
        state = run(state, task.examples[bucket], at, jnp.int32(1))
        order = steps.epoch_order(task, keys, jnp.int32(0), at, SIZES[bucket])
        rows = start[bucket] + np.asarray(order)[BATCH * number :][:BATCH]
        visited = np.flatnonzero(np.asarray(state.params["visits"]) - before)
        assert visited.tolist() == sorted(rows.tolist())
    assert state.params["visits"].tolist() == [1] * sum(SIZES)


def test_evaluation_is_that_of_masking() -> None:
    plain, bucketed = ragged_task(1, **CELLS), ragged_task(3, **CELLS)
    widths = [bucket["inputs"].shape[1] for bucket in bucketed.examples]
    assert len(widths) == 3
    assert widths == sorted(set(widths))
    assert widths[-1] == 6
    params = jax.jit(plain.init)(jax.random.key(0))

    def evaluated(task: Task) -> Any:
        run = jax.jit(functools.partial(steps.evaluate, task, BATCH))
        return steps.total([run(params, bucket) for bucket in task.splits["all"]])

    got, want = evaluated(bucketed), evaluated(plain)
    assert got["count"] == want["count"] == 10
    assert got["accuracy"] == want["accuracy"]
    np.testing.assert_allclose(got["loss"], want["loss"], rtol=1e-6)


@pytest.mark.parametrize(
    "pooling", ["last", pytest.param("mean", marks=pytest.mark.slow)]
)
def test_gradient_of_a_batch_is_that_of_masking(pooling: str) -> None:
    inputs, labels, lengths = ragged_arrays()
    fields = {**CELLS, "pooling": pooling, "bidirectional": True}
    task = ragged_task(3, **fields)
    params = jax.jit(task.init)(jax.random.key(0))

    @jax.jit
    def gradient(examples: Any) -> Any:
        def mean(params: Any) -> Any:
            sums, _ = task.loss(params, examples, jnp.ones(len(rows)), None, ())
            return sums["loss"] / sums["count"]

        return jax.grad(mean)(params)

    bucket = task.examples[1]
    width = bucket["inputs"].shape[1]
    rows = np.flatnonzero(
        (lengths <= width) & (lengths > task.examples[0]["inputs"].shape[1])
    )
    np.testing.assert_array_equal(bucket["labels"], labels[rows])
    whole = {"inputs": inputs[rows], "labels": labels[rows], "lengths": lengths[rows]}
    assert width < 6
    assert_close(gradient(bucket), gradient(whole), 1e-6)


@pytest.mark.slow
def test_resumes_bit_for_bit(tmp_path: Path) -> None:
    """Stopped and interrupted, with many steps a dispatch or one at a time."""
    task = ragged_task(2, size=16, dropout=0.5)
    fields = {"optimizer.name": "sgd", "optimizer.momentum": 0.9}
    config = toy_config(num_steps=20, **fields, **{"report.every": 1000})
    assert len(task.examples) == 2
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    training.fit(config, task, whole)
    config.num_steps = 8
    training.fit(config, task, parts)
    config.num_steps = 20
    config.report.every = config.report.evaluate_every = 1
    config.checkpoint.every = 5
    with stopped_at(13, "all"):
        training.fit(config, task, parts)
    assert int(saved_state(parts, config, task).step) == 10
    config.report.every, config.report.evaluate_every = 1000, 0
    training.fit(config, task, parts)
    wanted = saved_state(whole, config, task)
    assert wanted.step == 20
    assert_same_bits(saved_state(parts, config, task), wanted)


@pytest.mark.slow
def test_train_rows_count_each_example_once(tmp_path: Path) -> None:
    """At a rate of zero an epoch's row is the evaluation of the same examples."""
    fields = {"optimizer.learning_rate": 0.0, "report.every": 1000}
    config = toy_config(num_steps=0, num_epochs=2, **fields)
    config.optimizer.name = "sgd"
    training.fit(config, ragged_task(2), tmp_path)
    rows = rows_of(tmp_path)
    assert [row["split"] for row in rows] == ["train", "all"] * 2
    for row in rows[1:]:
        assert row["accuracy"] == pytest.approx(rows[0]["accuracy"], rel=1e-6)
        assert row["loss"] == pytest.approx(rows[0]["loss"], rel=1e-5)


def test_buckets_without_lengths() -> None:
    inputs, labels, _ = ragged_arrays()
    with pytest.raises(ValueError, match="2 buckets need the lengths of the sequences"):
        classification(toy_model(), inputs, labels, buckets=2)

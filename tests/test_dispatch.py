"""Between two rows of metrics the host hands the device work, and nothing else."""

import contextlib
import logging
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import pytest
from jax._src.array import ArrayImpl
from toy_runs import BATCH, ragged_task, toy_config, toy_task

import lstm_jax as lj
from lstm_jax import reporting, steps, training
from lstm_jax.reporting import read_metrics
from lstm_jax.tasks import Task

EPOCHS = 4
TASKS = {"one bucket": toy_task, "buckets": lambda: ragged_task(buckets=2)}
each_task = pytest.mark.parametrize(
    "name", [pytest.param("one bucket", marks=pytest.mark.slow), "buckets"]
)


def config_of(task: Task, every: int = 2) -> Any:
    steps = EPOCHS * training.steps.steps_per_epoch(task, BATCH)
    # Evaluated after each epoch, saved at the end.
    return toy_config(
        **{
            "num_steps": steps,
            "report.every": every,
            "report.evaluate_every": steps // EPOCHS,
            "checkpoint.every": 0,
            "devices.count": 2,
        }
    )


@contextlib.contextmanager
def after_the_first_epoch(begin: Any, end: Any) -> Iterator[None]:
    """Calls `begin` when the first epoch is evaluated, and `end` with the last."""
    add_row, seen = reporting.add_row, []

    def add(out: Any, row: dict[str, Any]) -> None:
        add_row(out, row)
        if row["split"] == "all":
            seen.append(row)
            if len(seen) == 1:
                begin()
            if len(seen) == EPOCHS:
                end()

    with mock.patch.object(reporting, "add_row", add):
        try:
            yield
        finally:
            end()
    assert len(seen) == EPOCHS


@each_task
def test_no_transfer_to_the_device(tmp_path: Path, name: str) -> None:
    def guard(level: str) -> Any:
        return lambda: jax.config.update("jax_transfer_guard_host_to_device", level)

    task = TASKS[name]()
    with after_the_first_epoch(guard("disallow_explicit"), guard("allow")):
        # Longer than an epoch of one bucket, whose second has a dispatch of two steps
        # where the first one had none.
        lj.fit(config_of(task, every=4), task, tmp_path)


@pytest.mark.slow
def test_the_guard_sees_a_transfer(tmp_path: Path) -> None:
    """What the test above would see."""

    def guard(level: str) -> Any:
        return lambda: jax.config.update("jax_transfer_guard_host_to_device", level)

    def fetch(tree: Any) -> Any:
        jax.device_put(1.5)
        return jax.device_get(tree)

    task = toy_task()
    with (
        pytest.raises(Exception, match="Disallowed host-to-device transfer"),
        mock.patch.object(training, "fetch", fetch),
        after_the_first_epoch(guard("disallow_explicit"), guard("allow")),
    ):
        lj.fit(config_of(task), task, tmp_path)


@contextlib.contextmanager
def reads_outside_of_fetch() -> Iterator[list[str]]:
    """After the first epoch: where an array's content is asked for elsewhere."""
    fetch, content = training.fetch, ArrayImpl._value
    outside: list[str] = []
    watching = False

    def watch(wanted: bool) -> Any:
        def begin_or_end() -> None:
            nonlocal watching
            watching = wanted

        return begin_or_end

    def read(array: Any) -> Any:
        stack = traceback.extract_stack()
        if watching and not any(frame.name == "fetch_inside" for frame in stack):
            outside.append(str(stack[-2]))
        return content.fget(array)

    def fetch_inside(tree: Any) -> Any:
        return fetch(tree)

    with (
        mock.patch.object(ArrayImpl, "_value", property(read)),
        mock.patch.object(training, "fetch", fetch_inside),
        after_the_first_epoch(watch(True), watch(False)),
    ):
        yield outside


@each_task
def test_nothing_is_read_outside_of_fetch(tmp_path: Path, name: str) -> None:
    task = TASKS[name]()
    with reads_outside_of_fetch() as outside:
        lj.fit(config_of(task), task, tmp_path)
    assert outside == []


@pytest.mark.slow
def test_a_read_outside_of_fetch_is_seen(tmp_path: Path) -> None:
    """What the test above would see."""
    predicting, task = steps.predicting_params, toy_task()

    def reading(state: Any) -> Any:
        float(state.sums["loss"])
        return predicting(state)

    with (
        mock.patch.object(steps, "predicting_params", reading),
        reads_outside_of_fetch() as outside,
    ):
        lj.fit(config_of(task), task, tmp_path)
    assert len(outside) >= EPOCHS - 1


@each_task
def test_no_compilation_after_the_first_epoch(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    def log(wanted: bool) -> Any:
        return lambda: jax.config.update("jax_log_compiles", wanted)

    task = TASKS[name]()
    with caplog.at_level(logging.WARNING), after_the_first_epoch(log(True), log(False)):
        lj.fit(config_of(task), task, tmp_path)
    assert [r.message for r in caplog.records if "ompil" in r.message] == []


@pytest.mark.slow
def test_a_compilation_after_the_first_epoch_is_seen(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What the test above would see."""
    evaluate = training._evaluate

    def compiling(*arguments: Any) -> Any:
        jax.jit(lambda a: a + len(caplog.records))(1)
        return evaluate(*arguments)

    def log(wanted: bool) -> Any:
        return lambda: jax.config.update("jax_log_compiles", wanted)

    task = toy_task()
    with (
        caplog.at_level(logging.WARNING),
        after_the_first_epoch(log(True), log(False)),
        mock.patch.object(training, "_evaluate", compiling),
    ):
        lj.fit(config_of(task), task, tmp_path)
    assert [r.message for r in caplog.records if "ompil" in r.message] != []


@each_task
def test_at_most_one_read_a_dispatch(tmp_path: Path, name: str) -> None:
    programs, events = training._programs, []

    def counted(*arguments: Any) -> Any:
        made = programs(*arguments)

        def counting(name: str) -> Any:
            run = getattr(made, name)

            def call(*values: Any) -> Any:
                events.append("dispatch")
                return run(*values)

            return call

        names = ("run", "measure", "schedule", "is_finite")
        return made._replace(**{name: counting(name) for name in names})

    fetch = training.fetch

    def counted_fetch(tree: Any) -> Any:
        events.append("read")
        return fetch(tree)

    task = TASKS[name]()
    with (
        mock.patch.object(training, "_programs", counted),
        mock.patch.object(training, "fetch", counted_fetch),
    ):
        lj.fit(config_of(task), task, tmp_path)
    events = events[events.index("dispatch") :]  # before, the config is checked
    assert events.count("read") > EPOCHS
    for end in range(1, len(events) + 1):
        assert events[:end].count("read") <= events[:end].count("dispatch")
    # One a row, an epoch's order of the buckets, and whether a save is of numbers.
    schedules, saves = EPOCHS if len(task.examples) > 1 else 0, 1
    assert events.count("read") == len(read_metrics(tmp_path)) + schedules + saves


def test_the_next_steps_run_while_a_row_is_read(tmp_path: Path) -> None:
    """Metrics are read one dispatch late: the device has work meanwhile."""
    task, order = toy_task(), []
    programs, fetch = training._programs, training.fetch

    def watched(*arguments: Any) -> Any:
        made = programs(*arguments)

        def run(*values: Any) -> Any:
            order.append("run")
            return made.run(*values)

        return made._replace(run=run)

    def watched_fetch(tree: Any) -> Any:
        order.append("read")
        return fetch(tree)

    config = config_of(task)
    config.report.evaluate_every = 0
    with (
        mock.patch.object(training, "_programs", watched),
        mock.patch.object(training, "fetch", watched_fetch),
    ):
        lj.fit(config, task, tmp_path)
    order = order[order.index("run") :]
    assert order[:5] == ["run", "run", "read", "run", "read"]

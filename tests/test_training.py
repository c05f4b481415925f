"""Tests of lstm_jax.training: the steps, and fit on small tasks."""

import collections
import functools
import logging
from collections.abc import Iterator
from pathlib import Path
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
    compilation_cached,
    saved_state,
    toy_arrays,
    toy_config,
    toy_model,
    toy_task,
)

import lstm_jax as lj
from lstm_jax import reporting, training, workdirs
from lstm_jax.errors import UserError
from lstm_jax.models import SequenceClassifier
from lstm_jax.optimizers import make_optimizer
from lstm_jax.tasks import Task, classification, make_task

KEYS = training.make_keys(0)
ADAM = optax.adam(0.01, eps=1e-7)


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with compilation_cached(tmp_path_factory.mktemp("cache")):
        yield


def state_at(task: Task, step: int) -> training.TrainState:
    """A state with sums and moments that are not zero."""
    state = jax.jit(functools.partial(training.init_state, task, ADAM))(KEYS)
    gradient = jax.tree.map(jnp.ones_like, state.params)
    _, opt_state = ADAM.update(gradient, state.opt_state)
    sums = {name: jnp.float32(i + 1) for i, name in enumerate(state.sums)}
    return state._replace(step=jnp.int32(step), opt_state=opt_state, sums=sums)


def one_step(task: Task, state: training.TrainState) -> training.TrainState:
    order = task.order(KEYS.order, state.step // 3)
    step = functools.partial(training.train_step, task, ADAM, BATCH, KEYS.noise)
    return jax.jit(step)(state, task.examples, order)


def reference(logits: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """Loss and accuracy of each example, in float64."""
    logits = np.asarray(logits, np.float64)
    log_sum = np.log(np.exp(logits).sum(-1))
    rows = np.arange(len(labels))
    return log_sum - logits[rows, labels], logits.argmax(-1) == labels


def logits_of(
    params: Any, inputs: np.ndarray, model: SequenceClassifier | None = None
) -> Any:
    return jax.jit((model or toy_model()).apply)({"params": params}, inputs)


# Steps 3 to 5 are the second epoch; the last batch of an epoch is half padding.
@pytest.mark.parametrize(("step", "places"), [(0, slice(0, 4)), (5, slice(8, 10))])
def test_train_step_is_an_optax_step_on_the_gathered_batch(
    step: int, places: slice
) -> None:
    task = toy_task()
    state = state_at(task, step)
    got = one_step(task, state)

    order = jax.random.permutation(jax.random.fold_in(KEYS.order, step // 3), SIZE)
    chosen = np.asarray(order)[places]
    inputs, labels = (array[chosen] for array in toy_arrays())

    @jax.jit
    def update(params: Any, opt_state: Any) -> Any:
        updates, opt_state = ADAM.update(jax.grad(loss)(params), opt_state)
        return optax.apply_updates(params, updates), opt_state

    def loss(params: Any) -> Any:
        log_p = jax.nn.log_softmax(logits_of(params, inputs))
        return -sum(log_p[row, label] for row, label in enumerate(labels)) / len(labels)

    assert got.step == step + 1
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7),
        (got.params, got.opt_state),
        update(state.params, state.opt_state),
    )
    losses, hits = reference(logits_of(state.params, inputs), labels)
    sums = {"count": len(labels), "loss": losses.sum(), "accuracy": hits.sum()}
    for name, value in sums.items():
        np.testing.assert_allclose(got.sums[name] - state.sums[name], value, rtol=1e-5)


def test_steps_are_pure() -> None:
    task = toy_task(dropout=0.5)
    state = state_at(task, 5)
    before = jax.tree.map(np.array, state)
    first = one_step(task, state)
    assert_same_bits(one_step(task, state), first)
    one_step(task, state._replace(step=jnp.int32(1)))
    assert_same_bits(one_step(task, state), first)

    def evaluate(step: int) -> Any:
        run = jax.jit(functools.partial(training.eval_step, task, BATCH))
        return run(state.params, task.examples, step)

    sums = evaluate(1)
    assert sums["loss"] != evaluate(0)["loss"]
    assert_same_bits(evaluate(1), sums)
    assert_same_bits(state, before)


def test_every_parameter_changes_in_a_step() -> None:
    task = make_task(toy_config(**{"model.cell": "lstm"}))
    optimizer = optax.sgd(0.1)
    state = training.init_state(task, optimizer, KEYS)
    step = functools.partial(training.train_step, task, optimizer, 16, KEYS.noise)
    order = task.order(KEYS.order, 0)
    after = jax.jit(step)(state, task.examples, order).params
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
        run = jax.jit(functools.partial(training.train_step, task, ADAM, SIZE))
        start = state._replace(step=jnp.int32(step))
        after = run(jax.random.key(key), start, task.examples, jnp.arange(SIZE))
        return float(after.sums["loss"]), float(jnp.sum(after.params["head"]["kernel"]))

    exact = losses(plain, 0, 0)
    assert losses(plain, 1, 0) == losses(plain, 0, 1) == exact
    noisy = {losses(dropped, step, key) for step in (0, 1) for key in (0, 1)}
    assert len(noisy) == 4
    assert exact not in noisy
    assert losses(dropped, 0, 0) in noisy

    evaluated = [
        jax.jit(functools.partial(training.evaluate, task, BATCH))(
            state.params, task.examples
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
    sums = jax.jit(functools.partial(training.evaluate, task, BATCH))(params, examples)
    losses, hits = reference(logits_of(params, inputs), labels)
    assert sums["count"] == size
    np.testing.assert_allclose(sums["loss"], losses.sum(), rtol=1e-5)
    assert sums["accuracy"] == hits.sum() == size - 1
    run = jax.jit(functools.partial(training.eval_step, task, BATCH))
    for step in range(-(-size // BATCH)):
        part = slice(BATCH * step, BATCH * step + BATCH)
        sums = run(params, examples, step)
        assert sums["count"] == len(labels[part])
        np.testing.assert_allclose(sums["loss"], losses[part].sum(), rtol=1e-5)
        assert sums["accuracy"] == hits[part].sum()


def counting_task() -> Task:
    """Training adds to each parameter how often its example was visited."""

    def loss(params: Any, examples: Any, weight: Any, key: Any) -> Any:
        count = jnp.sum(weight)
        visits = jnp.sum(weight * params["visits"][examples["number"]])
        return {"count": count, "loss": -count * visits}  # its mean's slope is -1

    return toy_task()._replace(
        init=lambda key: {"visits": jnp.zeros(SIZE)},
        loss=loss,
        examples={"number": np.arange(SIZE)},
        splits={},
    )


def test_an_epoch_visits_every_example_once() -> None:
    task, optimizer = counting_task(), optax.sgd(1.0)
    steps = functools.partial(training.train_steps, task, optimizer, BATCH, KEYS)
    run = jax.jit(steps)
    state = training.init_state(task, optimizer, KEYS)
    visits = [state.params["visits"]]
    # An epoch is three steps; the counts do not care.
    for count in (1, 1, 1, 2, 1, 3):
        state = run(state, task.examples, jnp.int32(count))
        visits.append(state.params["visits"])
    assert state.step == 9
    for epoch, seen in enumerate([visits[3], visits[5], visits[6]], 1):
        assert seen.tolist() == [epoch] * SIZE
    first = [visits[1], visits[4] - visits[3] > 0]
    assert [int(seen.sum()) for seen in visits[:4]] == [0, 4, 8, 10]
    assert first[0].tolist() != first[1].tolist()
    long = run(
        training.init_state(task, optimizer, KEYS), task.examples, jnp.int32(300)
    )
    assert long.params["visits"].tolist() == [100] * SIZE
    assert long.sums["count"] == 1000


def test_order_is_of_the_seed_and_the_epoch() -> None:
    task = toy_task()
    orders = {
        tuple(task.order(training.make_keys(seed).order, jnp.int32(epoch)).tolist())
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9
    assert all(sorted(order) == list(range(SIZE)) for order in orders)


@pytest.mark.parametrize("step", [0, 2, 3, 7])
def test_next_example_is_the_next_batches_first(step: int) -> None:
    task = toy_task()
    example = training.next_example(task, BATCH, KEYS, jnp.int32(step), task.examples)
    order = task.order(KEYS.order, step // 3)
    index = int(order[step % 3 * BATCH])
    assert example["inputs"].tolist() == toy_arrays()[0][index].tolist()
    assert example["labels"] == toy_arrays()[1][index]


def test_train_rows_are_means_since_the_row_before(tmp_path: Path) -> None:
    config = toy_config(**{"num_steps": 11, "report.every": 4})
    config.report.evaluate_every = 3
    config.checkpoint.every = 5
    task = toy_task(dropout=0.5)
    result = training.fit(config, task, tmp_path / "run")
    rows = reporting.read_metrics(tmp_path / "run")
    assert [(row["step"], row["split"]) for row in rows] == [
        *((3, "all"), (4, "train"), (6, "all"), (8, "train"), (9, "all")),
        *((11, "train"), (11, "all")),
    ]
    # A step at a time, with the sums of each step alone.
    optimizer = make_optimizer(config.optimizer, 11)
    state = training.init_state(task, optimizer, KEYS)
    run = jax.jit(functools.partial(training.train_steps, task, optimizer, BATCH, KEYS))
    steps, params = [], {}
    for step in range(1, 12):
        state = run(state, task.examples, jnp.int32(1))
        steps.append({name: float(value) for name, value in state.sums.items()})
        state = state._replace(sums=jax.tree.map(jnp.zeros_like, state.sums))
        params[step] = state.params
    assert [sums["count"] for sums in steps] == [4, 4, 2, 4, 4, 2, 4, 4, 2, 4, 4]
    since = {4: slice(0, 4), 8: slice(4, 8), 11: slice(8, 11)}
    for row in rows:
        assert set(row) == {"step", "epoch", "split", "loss", "accuracy", "seconds"}
        assert row["epoch"] == row["step"] / 3
        if row["split"] == "train":
            part = steps[since[row["step"]]]
            count = sum(sums["count"] for sums in part)
            want = [sum(s[name] for s in part) / count for name in ("loss", "accuracy")]
        else:
            logits = logits_of(params[row["step"]], toy_arrays()[0])
            want = [a.mean() for a in reference(logits, toy_arrays()[1])]
        np.testing.assert_allclose([row["loss"], row["accuracy"]], want, rtol=1e-5)
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0
    assert result["seconds"] >= seconds[-1]
    assert_same_bits(workdirs.load_params(tmp_path / "run", 11), state.params)


def test_bits_do_not_depend_on_where_the_loop_stops(tmp_path: Path) -> None:
    states = []
    for every, evaluate_every, save_every in ((1, 0, 0), (7, 10, 9), (50, 0, 100)):
        config = toy_config(num_steps=100)
        config.optimizer.clip_norm = 0.1
        config.optimizer.schedule = "cosine"
        config.report.every = every
        config.report.evaluate_every = evaluate_every
        config.checkpoint.every = save_every
        workdir, task = tmp_path / str(every), toy_task(dropout=0.5)
        training.fit(config, task, workdir)
        states.append(saved_state(workdir, config, task))
        assert states[-1].step == 100
    assert_same_bits(states[1], states[0])
    assert_same_bits(states[2], states[0])


def test_fit_learns_a_task_of_own_arrays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrays of NumPy's own types, int64 and float64, do as well."""
    monkeypatch.chdir(tmp_path)
    inputs, labels = (np.asarray(a.tolist()) for a in toy_arrays(60))
    model = toy_model(cells=(lj.simple_rnn(4),))
    test = toy_arrays(30)
    task = classification(model, inputs[30:], labels[30:], {"my_test": test})
    config = toy_config(num_steps=300)
    config.checkpoint.best = "my_test_accuracy"
    result = lj.fit(config, task)
    workdir = Path("checkpoints", config.task)
    rows = [row for row in reporting.read_metrics(workdir) if row["split"] == "train"]
    assert rows[0]["loss"] > 0.9
    assert rows[-1]["loss"] < 0.15
    assert rows[-1]["accuracy"] > 0.95
    params = workdirs.load_params(workdir, 300)
    losses, hits = reference(logits_of(params, test[0], model), test[1])
    np.testing.assert_allclose(result["my_test_loss"], losses.mean(), rtol=1e-4)
    np.testing.assert_allclose(result["my_test_accuracy"], hits.mean(), rtol=1e-6)
    assert result["my_test_accuracy"] > 0.7
    assert list(result) == [
        *("step", "epoch", "my_test_loss", "my_test_accuracy"),
        *("best_step", "seconds", "workdir"),
    ]
    assert (result["step"], result["epoch"], result["best_step"]) == (300, 37.5, 300)
    assert result["workdir"] == str(workdir)
    assert result["seconds"] >= rows[-1]["seconds"] > 0
    assert "Total Parameters" in (workdir / "summary.txt").read_text()


def test_nothing_compiles_after_the_first_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = toy_config(**{"batch_size": 16, "num_steps": 60, "report.every": 4})
    config.report.evaluate_every = 5
    config.report.samples = True
    config.checkpoint.every = 7
    config.checkpoint.best = "windows_loss"
    task = make_task(config)._replace(demonstrate=None)
    compiled: list[str] = []
    first_epoch: list[str] = []
    add_row = reporting.add_row

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            words = record.getMessage().split()
            if words[0] == "Compiling":
                compiled.append(words[1])

    def add_row_and_look(report: reporting.Report, row: reporting.Row) -> None:
        add_row(report, row)
        if row["epoch"] <= 1:
            first_epoch[:] = compiled

    monkeypatch.setattr(reporting, "add_row", add_row_and_look)
    listener = Listener()
    logging.getLogger("jax").addHandler(listener)
    with jax.log_compiles():
        result = training.fit(config, task, tmp_path)
    logging.getLogger("jax").removeHandler(listener)
    caplog.clear()
    assert result["epoch"] > 4
    times = collections.Counter(compiled)
    assert times["jit(train_steps)"] == times["jit(evaluate)"] == 1
    assert compiled == first_epoch


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("batch_size", 0, "batch_size=0 must be at least 1"),
        ("num_steps", 0, "num_steps=0 must be at least 1"),
        ("checkpoint.keep", 0, "checkpoint.keep=0 must be at least 1"),
        ("checkpoint.every", -1, r"checkpoint.every=-1 must be at least 0 \(0: only"),
        ("report.every", 0, "report.every=0 must be at least 1"),
        ("report.evaluate_every", -1, "report.evaluate_every=-1 must be at least 0"),
        ("checkpoint.best", "test_loss", "'test_loss' is never evaluated: choose"),
        ("checkpoint.best", "all_f1", "choose one of all_accuracy, all_loss$"),
        ("optimizer.name", "lion", "unknown optimizer.name 'lion'"),
    ],
)
def test_fields_that_are_no_use_make_no_folder(
    tmp_path: Path, field: str, value: Any, message: str
) -> None:
    config = toy_config(**{field: value})
    with pytest.raises(UserError, match=message):
        training.fit(config, toy_task(), tmp_path / "run")
    assert not (tmp_path / "run").exists()

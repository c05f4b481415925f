"""Training: pure steps, and `fit`, the one place with jit and side effects."""

import functools
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lstm_jax import checkpoints, reporting, workdirs
from lstm_jax.cells import Params
from lstm_jax.config import Config, check_config
from lstm_jax.errors import UserError
from lstm_jax.optimizers import make_optimizer
from lstm_jax.tasks import Examples, Sums, Task


class TrainState(NamedTuple):
    """All that a step changes; what a checkpoint holds.

    Attributes:
      step: number of updates done.
      params: the parameters.
      opt_state: the optimizer's state.
      sums: of the metrics since the last row of `metrics.jsonl`.
    """

    step: Int[Array, ""]
    params: Params
    opt_state: optax.OptState
    sums: Sums


class Keys(NamedTuple):
    """Where the randomness of a run comes from; all of it follows from the seed."""

    init: PRNGKeyArray
    order: PRNGKeyArray
    noise: PRNGKeyArray


def make_keys(seed: int) -> Keys:
    """The keys of a run."""
    return Keys(*jax.random.split(jax.random.key(seed), 3))


def init_state(
    task: Task, optimizer: optax.GradientTransformation, keys: Keys
) -> TrainState:
    """The state before the first step."""
    params: Any = task.init(keys.init)
    zero = jnp.zeros((1,))
    one = jax.tree.map(lambda a: jnp.zeros_like(a[:1]), task.examples)
    sums = jax.eval_shape(task.loss, params, one, zero, None)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        sums=jax.tree.map(jnp.zeros_like, sums),
    )


def train_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    batch_size: int,
    noise_key: PRNGKeyArray,
    state: TrainState,
    examples: Examples,
    order: Int[Array, " epoch_size"],
) -> TrainState:
    """One update on the batch that follows from the step and the epoch's order."""
    batch, weight = _batch(task.epoch_size, batch_size, state.step, examples, order)
    key = jax.random.fold_in(noise_key, state.step)

    def mean_loss(params: Params) -> tuple[Float[Array, ""], Sums]:
        sums = task.loss(params, batch, weight, key)
        return sums["loss"] / sums["count"], sums

    gradient, sums = jax.grad(mean_loss, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params: Any = optax.apply_updates(state.params, updates)
    return TrainState(
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        sums=jax.tree.map(jnp.add, state.sums, sums),
    )


def train_steps(
    task: Task,
    optimizer: optax.GradientTransformation,
    batch_size: int,
    keys: Keys,
    state: TrainState,
    examples: Examples,
    count: Int[Array, ""],
) -> TrainState:
    """`count` updates in one dispatch.

    The count is an argument of the compiled program, not a part of it: any number of
    steps runs the same code, and so gives the same bits, however it is divided.
    """
    steps_per_epoch = _num_batches(task.epoch_size, batch_size)

    def order_at(step: Int[Array, ""]) -> Int[Array, " epoch_size"]:
        return task.order(keys.order, step // steps_per_epoch)

    def body(_: Any, carried: Any) -> Any:
        state, order = carried
        order = jax.lax.cond(
            state.step % steps_per_epoch == 0,
            lambda: order_at(state.step),
            lambda: order,
        )
        state = train_step(
            task, optimizer, batch_size, keys.noise, state, examples, order
        )
        return state, order

    return jax.lax.fori_loop(0, count, body, (state, order_at(state.step)))[0]


def eval_step(
    task: Task,
    batch_size: int,
    params: Params,
    examples: Examples,
    step: Int[Array, ""],
) -> Sums:
    """Sums over batch number `step` of a split, in the order of its examples."""
    size = jax.tree.leaves(examples)[0].shape[0]
    batch, weight = _batch(size, batch_size, step, examples, jnp.arange(size))
    return task.loss(params, batch, weight, None)


def evaluate(task: Task, batch_size: int, params: Params, examples: Examples) -> Sums:
    """Sums over all examples of a split."""
    size = jax.tree.leaves(examples)[0].shape[0]
    sums = jax.lax.map(
        lambda step: eval_step(task, batch_size, params, examples, step),
        jnp.arange(_num_batches(size, batch_size)),
    )
    return jax.tree.map(lambda a: jnp.sum(a, 0), sums)


def _num_batches(size: int, batch_size: int) -> int:
    return -(-size // batch_size)


def _batch(
    size: int,
    batch_size: int,
    step: Int[Array, ""],
    examples: Examples,
    order: Int[Array, " size"],
) -> tuple[Examples, Float[Array, " B"]]:
    """The examples of a step, and their weights: 0 for what pads the last batch."""
    first = step % _num_batches(size, batch_size) * batch_size
    places = first + jnp.arange(batch_size)
    chosen = order[jnp.minimum(places, size - 1)]
    weight = (places < size).astype(jnp.float32)
    return jax.tree.map(lambda a: a[chosen], examples), weight


def fit(
    config: Config,
    task: Task,
    workdir: str | Path | None = None,
    init_from: str | Path | None = None,
) -> dict[str, Any]:
    """Trains, or goes on with what was begun in `workdir`.

    Prints the model's summary and, at the end, what the task demonstrates to stdout;
    progress goes to stderr.

    Args:
      config: as `lstm_jax.config.base_config` makes it.
      task: what to train: `lstm_jax.tasks.make_task(config)`, or one made from your
        own arrays by `lstm_jax.tasks.classification`.
      workdir: folder of the run: config, metrics, curves, checkpoints. None:
        `checkpoints/<config.task>`.
      init_from: folder of another run, whose matching parameters a new run starts
        from.

    Returns:
      The metrics of the checkpoint that `predict.py` would load, with its `step`,
      `epoch` and `seconds` (of training, over restarts), `best_step` and `workdir`.

    Raises:
      UserError: the config is no use, or `workdir` holds another run.
    """
    check_config(config)
    workdir = Path("checkpoints", config.task) if workdir is None else Path(workdir)
    optimizer = make_optimizer(config.optimizer, config.num_steps)
    keys = make_keys(config.seed)
    fresh = jax.jit(functools.partial(init_state, task, optimizer))
    abstract = jax.eval_shape(fresh, keys)
    _check_best(config.checkpoint.best, task, abstract.sums)
    # Read before the folder is claimed: a wrong name leaves no folder behind.
    source = None if init_from is None else workdirs.load_source(init_from, workdir)
    workdirs.claim(workdir, config, task.files)
    print(task.summary, flush=True)
    best = config.checkpoint.best or None
    with checkpoints.open_checkpoints(workdir, config.checkpoint.keep, best) as manager:
        step = checkpoints.latest_step(manager)
        if step is None:
            state, seconds = fresh(keys), 0.0
            if source is not None:
                params = workdirs.matching_params(source, state.params)
                state = state._replace(params=params)
        else:
            state, meta = checkpoints.restore(manager, step, abstract)
            seconds = meta["seconds"]
        if int(state.step) < config.num_steps:
            _train(config, task, optimizer, keys, workdir, manager, state, seconds)
    result = workdirs.result(workdir, best)
    if task.demonstrate is not None:
        print(task.demonstrate(workdirs.load_params(workdir, result["step"])))
    return result


def _train(
    config: Config,
    task: Task,
    optimizer: optax.GradientTransformation,
    keys: Keys,
    workdir: Path,
    manager: Any,
    state: TrainState,
    seconds: float,
) -> None:
    """Runs the steps that are left; the loop stops where the host has to look in."""
    batch_size, report = config.batch_size, config.report
    steps = functools.partial(train_steps, task, optimizer, batch_size, keys)
    run = jax.jit(steps, donate_argnums=0)
    measure = jax.jit(functools.partial(evaluate, task, batch_size))
    peek = jax.jit(functools.partial(next_example, task, batch_size, keys))
    zeros = jax.jit(lambda tree: jax.tree.map(jnp.zeros_like, tree))
    examples, splits = jax.device_put((task.examples, task.splits))
    size = jax.tree.leaves(examples)[0].shape[0]
    step = int(state.step)
    begun = time.perf_counter() - seconds
    periods = [report.every, report.evaluate_every, config.checkpoint.every]
    texts = {"config": config.to_json_best_effort(indent=2), "summary": task.summary}
    out = reporting.open_report(
        workdir, step=step, total_steps=config.num_steps, texts=texts
    )

    files = {**task.files, workdirs.SUMMARY_FILE: task.summary}
    workdirs.store(workdir, config, files)  # not before all that a resume needs is read

    def add_row(split: str, step: int, sums: Sums) -> dict[str, float | None]:
        means = _means(sums)  # waits for the device
        row = {"step": step, "epoch": step / _num_batches(size, batch_size)}
        row |= {"split": split, **means, "seconds": time.perf_counter() - begun}
        reporting.add_row(out, row)
        # Not finite is null, in the checkpoint's metrics as in metrics.jsonl.
        return {
            f"{split}_{name}": value if math.isfinite(value) else None
            for name, value in means.items()
        }

    late: tuple[int, Sums] | None = None  # a row that the device may still compute

    def add_late_row() -> None:
        nonlocal late
        if late is not None:
            add_row("train", *late)
            late = None

    try:
        while step < config.num_steps:
            stop = min(_next_stop(step, period) for period in periods if period)
            stop = min(stop, config.num_steps)
            state = run(state, examples, jnp.int32(stop - step))
            step, last = stop, stop == config.num_steps
            add_late_row()  # only now, with the next steps under way
            if last or step % report.every == 0:
                late = (step, state.sums)
                state = state._replace(sums=zeros(state.sums))
            sampled = report.samples and late is not None and task.sample is not None
            measured = last or _is_due(step, report.evaluate_every)
            saved = last or _is_due(step, config.checkpoint.every)
            saved = saved or (measured and bool(config.checkpoint.best))
            if sampled or measured or saved:
                add_late_row()
            if sampled and task.sample is not None:
                reporting.say(
                    out, task.sample(state.params, peek(state.step, examples))
                )
            metrics = {}
            if measured:
                for name, split in splits.items():
                    metrics |= add_row(name, step, measure(state.params, split))
            if saved:
                epoch = step / _num_batches(size, batch_size)
                spent = time.perf_counter() - begun
                meta = {"metrics": metrics, "epoch": epoch, "seconds": spent}
                checkpoints.save(manager, step, state, meta)
    finally:
        reporting.close_report(out)


def next_example(
    task: Task, batch_size: int, keys: Keys, step: Int[Array, ""], examples: Examples
) -> Examples:
    """The first example of the batch that comes next: one not yet trained on."""
    epoch = step // _num_batches(task.epoch_size, batch_size)
    order = task.order(keys.order, epoch)
    batch, _ = _batch(task.epoch_size, batch_size, step, examples, order)
    return jax.tree.map(lambda a: a[0], batch)


def _means(sums: Sums) -> dict[str, float]:
    known = {name: float(value) for name, value in jax.device_get(sums).items()}
    count = known.pop("count")
    means = {name: value / count for name, value in known.items()}
    return {"loss": means.pop("loss"), **means}


def _next_stop(step: int, period: int) -> int:
    return step // period * period + period


def _is_due(step: int, period: int) -> bool:
    return period > 0 and step % period == 0


def _check_best(best: str, task: Task, sums: Any) -> None:
    metrics = [name for name in sums if name != "count"]
    known = [f"{split}_{name}" for split in task.splits for name in metrics]
    if best and best not in known:
        raise UserError(
            f"checkpoint.best={best!r} is never evaluated: choose one of "
            f"{', '.join(known)}"
        )

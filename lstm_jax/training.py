"""`fit`: the one place with jit and side effects."""

import contextlib
import functools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Int

from lstm_jax import (
    checkpoints,
    devices,
    diagnosis,
    interrupts,
    layer_flow,
    prediction,
    processes,
    remarks,
    reporting,
    sharding,
    steps,
    sweeps,
    transfer,
    workdirs,
)
from lstm_jax.config import Config, check_config
from lstm_jax.data.files import local_path
from lstm_jax.errors import UserError
from lstm_jax.evaluation import (
    Metrics,
    Record,
    check_best,
    means_of,
    metrics_of,
    with_evaluation,
)
from lstm_jax.identity import Identity
from lstm_jax.loop import Host, run_loop
from lstm_jax.members import is_sweep
from lstm_jax.nested import named_leaves
from lstm_jax.steps import Keys, Stepping, TrainState
from lstm_jax.tasks.task import Buckets, Sums, Task


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
      workdir: folder of the run: config, metrics, curves, checkpoints. A run that it
        holds goes on, if it is of this config, model, loss and data. None: a new one,
        `checkpoints/<config.task>-<number>`, whose name is printed.
      init_from: folder of another run, whose matching parameters a new run starts
        from: by their names and shapes, and where `task.names` says so by the words
        or labels that the files of both runs name. What is new begins anew; a line
        on stdout lists it.

    Returns:
      The metrics of the checkpoint that `predict.py` would load, with its `step`,
      `epoch` and `seconds` (of training, over restarts), `best_step` and `workdir`.
      Of a config with a `sweep` what `lstm_jax.sweeps.fit` returns.

    Raises:
      UserError: the config is no use, or `workdir` holds another run.
    """
    check_config(config)
    if jax.process_count() != processes.count():
        raise UserError(
            f"{jax.process_count()} processes have the devices and have not joined: "
            "start train.py with --distributed, or call jax.distributed.initialize"
        )
    init_from = None if init_from is None else local_path(init_from)
    if workdir is not None:
        if not os.fspath(workdir):
            raise UserError("workdir is empty: name a folder; . is this one")
        return _fit_in(local_path(workdir), config, task, init_from)
    with contextlib.ExitStack() as stack:
        if processes.leads():
            workdir = stack.enter_context(workdirs.new_folder(config.task))
            print(f"training in {workdir}", file=sys.stderr)
        workdir = Path(processes.from_leader(str(workdir)))
        return _fit_in(workdir, config, task, init_from)


def _fit_in(
    workdir: Path, config: Config, task: Task, init_from: Path | None
) -> dict[str, Any]:
    """Trains as `fit` does, in a folder that is known."""
    if is_sweep(config):
        result = sweeps.fit(config, task, workdir, init_from)
        if result["best"] is not None:
            _show(task, Path(result["best"]["workdir"]), result["best"]["step"])
        return result
    mesh = devices.make_mesh(
        config.devices.count,
        config.batch_size,
        workdirs.stored_count(workdir),
        config.devices.fsdp,
    )
    config = config.copy_and_resolve_references()
    config.devices.count = mesh.size
    best = config.checkpoint.best or None
    with jax.set_mesh(mesh):
        _fit(config, task, workdir, init_from)
        processes.wait()  # for the last files
        own = devices.own_mesh(config.batch_size)
    result = workdirs.result(workdir, best)
    if processes.leads():
        with jax.set_mesh(own):
            _show(task, workdir, result["step"])
    return result


def _show(task: Task, workdir: Path, step: int) -> None:
    """What a task shows at the end."""
    if task.demonstrate is None and task.pictures is None:
        return
    params = workdirs.load_params(workdir, step)
    if task.pictures is not None:
        draw = functools.partial(task.pictures, params)
        for name, png in (reporting.drawn("a picture", draw) or {}).items():
            reporting.write_file(workdir / name, png)
    if task.demonstrate is not None:
        print(task.demonstrate(params))


def _fit(
    config: Config, task: Task, workdir: Path, init_from: str | Path | None
) -> None:
    """Trains as `fit` does, on the devices of the context."""
    num_steps = steps.count_steps(config, task)
    stepping = steps.make_stepping(config, task)
    keys = steps.make_keys(config.seed)
    abstract = jax.eval_shape(functools.partial(steps.init_state, stepping), keys)
    places = sharding.shardings(steps.state_specs(abstract))
    check_best(config.checkpoint.best, task, abstract.sums)
    probe = None
    if config.report.flow_every:
        probe = layer_flow.make_probe(task, config.batch_size)
    # Read before the folder is claimed: a wrong name leaves no folder behind.
    source = None
    if init_from is not None:
        source = transfer.load(init_from, workdir, task, abstract.params)
    best = config.checkpoint.best or None
    computed = prediction.identify(config, task)
    made = workdirs.digest(config, task.files, computed)
    processes.agree("config, data or model", made)
    with contextlib.ExitStack() as stack:
        if processes.leads():
            claimed = workdirs.claimed(workdir, config, task.files, computed)
            stack.enter_context(claimed)
        processes.wait()
        stack.enter_context(workdirs.unwritable(workdir))
        if processes.leads():
            print(task.summary, flush=True)
        opened = stack.enter_context(
            checkpoints.open_checkpoints(workdir, config.checkpoint.keep, best)
        )

        def fresh(source: transfer.Source | None) -> TrainState:
            state = steps.init_state(stepping, steps.make_keys(config.seed))
            return transfer.begun_from(source, state)

        def begin() -> tuple[TrainState, dict[str, Any]]:
            step = processes.from_leader(checkpoints.latest_step(opened))
            if step is None:
                state = jax.jit(fresh, out_shardings=places)(sharding.put(source))
                return state, {"seconds": 0.0}
            wanted = jax.tree.map(
                lambda a, place: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place),
                abstract,
                places,
            )
            return checkpoints.restore(opened, step, wanted)

        state, meta = begin()
        at = int(state.step)
        if why := _why_ended(config, at, num_steps, meta):
            if processes.leads():
                print(f"{why}: not trained again", file=sys.stderr)
                workdirs.store_ended(workdir, config, task.files)
        else:
            if at and processes.leads():
                print(f"going on from step {at}", file=sys.stderr)
            _train(
                *(config, stepping, keys, num_steps, workdir, opened),
                *(state, meta, begin, probe, computed),
            )


def _why_ended(
    config: Config, at: int, num_steps: int, meta: dict[str, Any]
) -> str | None:
    """Why a run is not trained on; None: it is."""
    if at >= num_steps:
        return f"finished before, at step {at}"
    record = Record(**(meta.get("record") or {}))
    if meta.get("ended", False) and 0 < config.patience <= record.waited:
        return (
            f"patience ended it at step {at} of {num_steps}, {record.metric} not "
            f"having improved {record.waited} times (patience={config.patience}; a "
            "larger one, or 0 for none, goes on)"
        )
    return None


# Steps of a dispatch whose number is on the device from the beginning.
_KNOWN = 256


class Programs(NamedTuple):
    """What the device runs for `_train`; each compiles once for each shape.

    Attributes:
      run: `run(state, examples, bucket, count)`, as `steps.train_steps`.
      measure: `measure(params, examples)`, as `steps.evaluate`.
      total: `total(sums)`, as `steps.total`.
      peek: `peek(step, examples)`, as `steps.next_example`.
      begin_row: `begin_row(state)`, as `steps.begin_row`.
      has_gradient: `has_gradient(state, examples)`, as `steps.has_gradient`.
      number: a number on the device, where it is left for the next time.
      schedule: `schedule(step)`: the bucket of each step of that step's epoch.
      is_finite: `is_finite(state)`, as `steps.is_finite`.
    """

    run: Callable[..., TrainState]
    measure: Callable[..., Sums]
    total: Callable[[list[Sums]], Sums]
    peek: Callable[..., Any]
    begin_row: Callable[[TrainState], tuple[Sums, Array]]
    has_gradient: Callable[[TrainState, Any], Array]
    number: Callable[[int], Array]
    schedule: Callable[[Array], Array]
    is_finite: Callable[[TrainState], Array]


def _programs(stepping: Stepping, keys: Keys) -> Programs:
    per_epoch = steps.steps_per_epoch(stepping.task, stepping.batch_size)
    run = functools.partial(steps.train_steps, stepping, keys)
    measure = functools.partial(steps.evaluate, stepping.task, stepping.batch_size)
    return Programs(
        run=jax.jit(run, donate_argnums=0),
        measure=jax.jit(measure),
        total=jax.jit(steps.total),
        peek=jax.jit(functools.partial(steps.next_example, stepping, keys)),
        begin_row=jax.jit(steps.begin_row),
        has_gradient=jax.jit(functools.partial(steps.has_gradient, stepping, keys)),
        number=_numbers(),
        schedule=jax.jit(
            lambda step: steps.schedule(stepping, keys, step // per_epoch)[0]
        ),
        is_finite=jax.jit(steps.is_finite),
    )


def _numbers() -> Callable[[int], Array]:
    """Makes `Programs.number`: small ones are put on the device at once."""
    known = sharding.put([np.int32(number) for number in range(_KNOWN)])
    further = functools.cache(lambda number: sharding.put(np.int32(number)))
    return lambda number: known[number] if number < _KNOWN else further(number)


def _train(
    config: Config,
    stepping: Stepping,
    keys: Keys,
    num_steps: int,
    workdir: Path,
    opened: checkpoints.Checkpoints,
    state: TrainState,
    meta: dict[str, Any],
    begin: Callable[[], tuple[TrainState, dict[str, Any]]],
    probe: layer_flow.Probe | None,
    computed: Identity,
) -> None:
    """Runs the steps that are left.

    `begin()` gives the state and the meta of the last checkpoint, now and later;
    `probe`, if there is one, is called every `report.flow_every` steps.
    """
    task, best = stepping.task, config.checkpoint.best
    names = list(named_leaves(state.params))
    per_epoch = steps.steps_per_epoch(task, stepping.batch_size)
    programs = _programs(stepping, keys)
    examples, splits = sharding.put((task.examples, task.splits))
    step = at = int(state.step)  # `at`: to which it got
    begun = time.perf_counter() - meta["seconds"]
    texts = {"config": config.to_json_best_effort(indent=2), "summary": task.summary}
    out = None
    if processes.leads():
        out = reporting.open_report(
            workdir, step=step, total_steps=num_steps, texts=texts
        )
        # Not before all that a resume needs is read.
        files = {**task.files, workdirs.SUMMARY_FILE: task.summary}
        workdirs.store(workdir, config, files, computed)

    def follow(state: TrainState, step: int) -> None:
        assert probe is not None
        flows = probe(state.params)
        row = {"step": step, "epoch": step / per_epoch, "split": reporting.FLOW}
        row |= layer_flow.metrics(flows)
        seconds = time.perf_counter() - begun
        reporting.add_flow(out, row | {"seconds": seconds}, flows)

    buckets: np.ndarray | None = None  # of the steps of this epoch
    record = Record(**(meta.get("record") or {}))

    def advance(state: TrainState, step: int, count: int) -> tuple[TrainState, int]:
        nonlocal at, buckets
        if len(examples) > 1 and (buckets is None or step % per_epoch == 0):
            buckets = fetch(programs.schedule(state.step))
        bucket, count = _same_bucket(buckets, step % per_epoch, count)
        at = step + count
        where = programs.number(bucket), programs.number(count)
        return programs.run(state, examples[bucket], *where), count

    start, checksums_at_start = step, programs.begin_row(state)[1]
    updates: remarks.Updates | None = None
    rows = [] if out is None else [r for r in out.rows if r["split"] == "train"]
    losses = [row["loss"] for row in rows if row.get("loss") is not None]

    def check_updates(state: TrainState) -> None:
        nonlocal updates
        if updates and (unchecked := remarks.unchecked(updates)).any():
            stuck = unchecked & fetch(programs.has_gradient(state, examples[0]))
            updates = updates._replace(checked=updates.checked | unchecked)
            if stuck.any():
                reporting.say(out, remarks.line_about(names, stuck))

    def cut(state: TrainState) -> tuple[tuple[Sums, Array], TrainState]:
        check_updates(state)
        zeros, checksums = programs.begin_row(state)
        return (state.sums, checksums), state._replace(sums=zeros)

    def add_row(split: str, step: int, sums: Mapping[str, Any]) -> Metrics:
        if split == "train" and not math.isfinite(sums["loss"]):
            raise _NotFiniteError
        means = means_of(task, sums)
        row = {"step": step, "epoch": step / per_epoch, "split": split, **means}
        reporting.add_row(out, row | {"seconds": time.perf_counter() - begun})
        return metrics_of(split, means)

    def add_train_row(step: int, since: tuple[Sums, Array]) -> None:
        nonlocal updates
        sums, checksums, first = fetch((*since, checksums_at_start))
        loss = add_row("train", step, sums).get("train_loss")  # `finish` may drop it
        updates = updates or remarks.begin(start, first)
        updates = remarks.compare(updates, step, checksums)
        if loss is not None:
            if line := remarks.jump(losses, loss):
                reporting.say(out, f"step {step}: {line}")
            losses.append(loss)

    def sample(state: TrainState) -> None:
        assert task.sample is not None
        shown = programs.peek(state.step, examples[0])
        reporting.say(out, task.sample(state.params, shown))

    looked_at: set[str] = set()  # splits, for numbers that are not finite

    def evaluate(state: TrainState, step: int) -> tuple[TrainState, Metrics, bool]:
        nonlocal record
        check_updates(state)  # no row follows the last one
        metrics = _evaluate(programs, splits, state, step, add_row)
        for name in splits:
            if metrics.get(f"{name}_loss", 0.0) is None and name not in looked_at:
                looked_at.add(name)
                if not processes.several():  # or no process has all of it
                    params = fetch(steps.predicting_params(state))
                    size, buckets = config.batch_size, task.splits[name]
                    advice = diagnosis.bad_input(task, size, params, buckets, name)
                    if advice is not None:
                        reporting.say(out, advice)
        record = with_evaluation(record, metrics, best)
        ended = bool(config.patience) and record.waited >= config.patience
        if ended and step < num_steps:
            reporting.say(
                out, f"{best} has not improved {record.waited} times: the end"
            )
        return state, metrics, ended

    def save(state: TrainState, step: int, metrics: Metrics, ended: bool) -> None:
        if not fetch(programs.is_finite(state)):
            raise _NotFiniteError
        meta = {
            "metrics": metrics,
            "epoch": step / per_epoch,
            "seconds": time.perf_counter() - begun,
            "record": record._asdict(),
            "ended": ended,
        }
        checkpoints.save(opened, step, state, meta)

    samples = config.report.samples and task.sample is not None
    host = Host(
        advance,
        cut,
        add_train_row,
        sample if samples else None,
        None if probe is None else follow,
        evaluate,
        save,
    )
    try:
        with interrupts.noted() as received:
            try:
                run_loop(config, host, state, step, num_steps, per_epoch, received)
            except _NotFiniteError:
                reporting.say(out, "a number is not finite: looking where")
                state, _ = begin()
                raise _where_not_finite(
                    stepping, keys, workdir, state, examples, at, programs.run
                ) from None
    finally:
        reporting.close_report(out)


class _NotFiniteError(Exception):
    """A loss or a parameter is not finite."""


def _where_not_finite(
    stepping: Stepping,
    keys: Keys,
    workdir: Path,
    state: TrainState,
    examples: Buckets,
    last: int,
    run: Callable[..., TrainState],
) -> UserError:
    """Trains once more from the last checkpoint, `state`, to say what happened."""
    begun = int(state.step)
    found = diagnosis.find(stepping, keys, state, examples, last, run)
    if found is None:
        what = f"between steps {begun} and {last}, and not when they are run again"
        advice = diagnosis.SMALLER_STEPS
    else:
        advice = found.advice
        path = workdir / "not_finite.json"
        if processes.leads():
            reporting.write_file(path, json.dumps(found._asdict()) + "\n")
        processes.wait()  # none ends while another still writes
        places = ((found.row, "row"), (found.time, "time"))
        at = [f"{name} {place}" for place, name in places if place is not None]
        where = ", ".join([found.where, *at])
        what = f"at step {found.step}, first in {where} (the batch is in {path})"
    kept = f"the checkpoint of step {begun} is kept" if begun else "nothing was saved"
    return UserError(
        f"numbers are not finite {what}; {kept}: {advice}, in another --workdir"
    )


def _evaluate(
    programs: Programs,
    splits: dict[str, Buckets],
    state: TrainState,
    step: int,
    add_row: Callable[[str, int, Mapping[str, Any]], Metrics],
) -> Metrics:
    """A row of metrics for each split; all of their metrics."""
    params = steps.predicting_params(state)
    metrics: Metrics = {}
    for name, buckets in splits.items():
        sums = [programs.measure(params, bucket) for bucket in buckets]
        metrics |= add_row(name, step, fetch(programs.total(sums)))
    return metrics


def _same_bucket(
    buckets: Int[np.ndarray, " S"] | None, first: int, count: int
) -> tuple[int, int]:
    """The bucket of an epoch's step, and how many of `count` steps stay in it."""
    if buckets is None:
        return 0, count
    here = buckets[first : first + count]
    others = np.flatnonzero(here != here[0])
    return int(here[0]), int(others[0]) if others.size else len(here)


def fetch(tree: Any) -> Any:
    """Reads arrays from the device, when it has computed them.

    Nothing else waits for it but a save, and the line of a sample where a config asks
    for these.
    """
    return jax.device_get(tree)

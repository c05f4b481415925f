"""Many runs as one, a run each seed and learning rate: `fit` of a config's `sweep`.

All are trained by one compiled program. A member whose patience is at an end, or whose
loss is not finite, stays as it is while the others go on. At the end each member that
answers has a folder of its own, `<workdir>/members/seed0_lr0.001`, which is a run's.
"""

import contextlib
import functools
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax import (
    checkpoints,
    diagnosis,
    interrupts,
    members,
    prediction,
    processes,
    remarks,
    reporting,
    steps,
    sweep_report,
    transfer,
    workdirs,
)
from lstm_jax.config import Config
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
from lstm_jax.members import Drawn, Member, MemberSums, SweepState
from lstm_jax.nested import named_leaves
from lstm_jax.pictures import Row
from lstm_jax.steps import Stepping
from lstm_jax.sweep_folders import (
    Progress,
    folder_of,
    refuse_trained_on,
    write_members,
)
from lstm_jax.tasks.task import Task


def device_count(config: Config, available: int) -> int:
    """How many devices a config's sweep takes; 0 where there is no sweep."""
    count = len(members.members_of(config))
    return count and (config.devices.count or min(count, available))


def fit(
    config: Config, task: Task, workdir: Path, init_from: str | Path | None
) -> dict[str, Any]:
    """As `lstm_jax.training.fit`, of a config with a sweep.

    Returns:
      What `lstm_jax.sweep_report.outcome` tells: the `best` member with its `seed`,
      `learning_rate`, metrics, `step` and `workdir`, or None where none has a number
      to compare; `metric`, by which it is; `learning_rates`; `seconds`, `workdir`.
    """
    if processes.several():
        raise UserError(
            "a sweep is one process: start it without --distributed, or the members "
            "one by one"
        )
    if len(task.examples) > 1:
        raise UserError(
            f"{len(task.examples)} buckets of lengths are nothing for a sweep, whose "
            "members would be in different ones: make the task with 1"
        )
    config = config.copy_and_resolve_references()
    own = members.members_of(config)
    mesh = members.make_mesh(config.devices.count, len(own))
    config.devices.count = mesh.size
    with jax.set_mesh(mesh):
        made = _setup(config, task, own)
        source = None
        if init_from is not None:
            params = jax.eval_shape(task.init, steps.make_keys(config.seed).init)
            source = transfer.load(init_from, workdir, task, params)
        computed = prediction.identify(config, task)
        with contextlib.ExitStack() as stack:
            claimed = workdirs.claimed(workdir, config, task.files, computed)
            stack.enter_context(claimed)
            stack.enter_context(workdirs.unwritable(workdir))
            print(task.summary, flush=True)
            opened = stack.enter_context(
                checkpoints.open_checkpoints(workdir, config.checkpoint.keep)
            )
            state, meta, at = _begin(made, opened, source)
            progress = [_progress(entry) for entry in meta["members"]]
            if at >= made.num_steps or meta["ended"]:
                why = f"finished before, at step {at}"
                if at < made.num_steps:
                    why = (
                        f"all members have ended by step {at} of {made.num_steps} (one "
                        f"whose patience did goes on alone, in its folder of {workdir}/"
                        f"{workdirs.MEMBERS_FOLDER}, with a larger patience)"
                    )
                print(f"{why}: not trained again", file=sys.stderr)
                workdirs.store_ended(workdir, config, task.files)
            else:
                if at:
                    print(f"going on from step {at}", file=sys.stderr)
                refuse_trained_on(config, workdir, state, progress)
                state, progress, meta = _train(
                    made, workdir, opened, state, meta, progress, at, computed
                )
            write_members(config, task, workdir, jax.device_get(state), progress, meta)
    return _result(made, workdir, progress, meta["seconds"])


class Setup(NamedTuple):
    """What all of a sweep is made of.

    Attributes:
      config: with the number of devices.
      task: what is trained.
      own: the members.
      num_steps: of each.
      stepping: that of a learning rate.
      programs: of the devices.
      drawn: what the members follow from, `padded` as the states are.
      abstract: the shapes of the states.
      best: the metric that the best member has the best of.
    """

    config: Config
    task: Task
    own: tuple[Member, ...]
    num_steps: int
    stepping: Callable[[Any], Stepping]
    programs: members.Programs
    drawn: Drawn
    abstract: SweepState
    best: str


def _setup(config: Config, task: Task, own: tuple[Member, ...]) -> Setup:
    num_steps = steps.count_steps(config, task)
    steps.make_stepping(config, task)  # refuses what is no use
    stepping = functools.partial(steps.make_stepping, config, task)
    drawn = members.draw(members.padded(own))
    programs = members.make_programs(task, stepping, config.batch_size)
    init = functools.partial(_init, stepping, bool(config.checkpoint.best), None)
    abstract = jax.eval_shape(init, drawn)
    check_best(config.checkpoint.best, task, abstract.members.sums)
    best = config.checkpoint.best or f"{next(iter(task.splits), 'train')}_loss"
    return Setup(
        config, task, own, num_steps, stepping, programs, drawn, abstract, best
    )


def _init(
    stepping: Callable[[Any], Stepping], keeps_best: bool, source: Any, drawn: Drawn
) -> SweepState:
    begin = functools.partial(transfer.begun_from, source)
    states = members.init_states(stepping, drawn, begin)
    if not keeps_best:
        return SweepState(states, ())
    return SweepState(states, jax.tree.map(jnp.copy, steps.predicting_params(states)))


def _begin(
    made: Setup, opened: checkpoints.Checkpoints, source: Any
) -> tuple[SweepState, dict[str, Any], int]:
    """The state that is gone on with, what was stored with it, and its step."""
    step = checkpoints.latest_step(opened)
    if step is None:
        keeps_best = bool(made.config.checkpoint.best)
        init = functools.partial(_init, made.stepping, keeps_best, source)
        state = jax.jit(init, out_shardings=members.divided())(made.drawn)
        fresh = [_stored(Progress()) for _ in made.own]
        return state, {"seconds": 0.0, "members": fresh, "ended": False}, 0
    # Without what pads: another number of devices pads otherwise.
    whole = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(
            (len(made.own), *a.shape[1:]), a.dtype, sharding=members.whole()
        ),
        made.abstract,
    )
    saved, meta = checkpoints.restore(opened, step, whole)
    pad = functools.partial(members.resize, count=len(made.drawn.learning_rate))
    return jax.jit(pad, out_shardings=members.divided())(saved), meta, step


def _stored(progress: Progress) -> dict[str, Any]:
    return progress._asdict() | {"record": progress.record._asdict()}


def _progress(stored: dict[str, Any]) -> Progress:
    return Progress(**{**stored, "record": Record(**stored["record"])})


def _train(
    made: Setup,
    workdir: Path,
    opened: checkpoints.Checkpoints,
    state: SweepState,
    meta: dict[str, Any],
    progress: list[Progress],
    at: int,
    computed: Identity,
) -> tuple[SweepState, list[Progress], dict[str, Any]]:
    """Trains what is left to the end; the last state, and what is stored with it."""
    config, task, programs = made.config, made.task, made.programs
    names = list(named_leaves(state.members.params))
    best, count = config.checkpoint.best, len(made.own)
    per_epoch = steps.steps_per_epoch(task, config.batch_size)
    examples, splits = jax.device_put((task.examples[0], task.splits), members.whole())
    begun = time.perf_counter() - meta["seconds"]
    progress = list(progress)
    texts = {"config": config.to_json_best_effort(indent=2), "summary": task.summary}
    out = reporting.open_report(
        workdir,
        step=at,
        total_steps=made.num_steps,
        texts=texts,
        draw=sweep_report.draw,
    )
    files = {**task.files, workdirs.SUMMARY_FILE: task.summary}
    workdirs.store(workdir, config, files, computed)
    # Whole on each device only where the devices cannot divide what pads nothing.
    even = len(made.drawn.learning_rate) == count
    unpad = jax.jit(
        lambda state: jax.tree.map(jnp.copy, members.resize(state, count)),
        out_shardings=members.divided() if even else members.whole(),
    )
    last: tuple[SweepState, dict[str, Any]] = state, meta

    def put_active() -> Any:
        missing = len(made.drawn.learning_rate) - count
        flags = [p.is_active() for p in progress] + [False] * missing
        return jax.device_put(np.array(flags, np.int32), members.divided())

    active = put_active()
    numbers = functools.cache(lambda n: jax.device_put(np.int32(n), members.whole()))

    def advance(state: SweepState, step: int, number: int) -> tuple[SweepState, int]:
        del step
        states = programs.run(
            state.members, made.drawn, active, examples, numbers(number)
        )
        return state._replace(members=states), number

    checksums = jax.device_get(programs.begin_row(state.members, active)[1])
    updates = remarks.begin(at, checksums)
    losses: list[list[float]] = [[] for _ in made.own]
    numbers_of = {member: number for number, member in enumerate(made.own)}
    for row in out.rows:
        if row["split"] == "train" and row["loss"] is not None:
            member = Member(*(row[name] for name in Member._fields))
            losses[numbers_of[member]].append(row["loss"])

    def check_updates(state: SweepState) -> None:
        nonlocal updates
        active_only = np.zeros((len(updates.checked), 1), bool)
        active_only[:count, 0] = [p.is_active() for p in progress]
        if (unchecked := remarks.unchecked(updates) & active_only).any():
            gradient = programs.has_gradient(state.members, made.drawn, examples)
            stuck = unchecked & jax.device_get(gradient)
            updates = updates._replace(checked=updates.checked | unchecked)
            for number in np.flatnonzero(stuck.any(1)).tolist():
                say_of(number, remarks.line_about(names, stuck[number]))

    def cut(state: SweepState) -> tuple[tuple[MemberSums, Any], SweepState]:
        check_updates(state)
        sums = state.members.sums
        zeros, checksums = programs.begin_row(state.members, active)
        states = state.members._replace(sums=zeros)
        return (sums, checksums), state._replace(members=states)

    def stop(number: int, why: str, **change: Any) -> None:
        nonlocal active
        progress[number] = progress[number]._replace(**change)
        active = put_active()
        say_of(number, why)

    def say_of(number: int, what: str) -> None:
        seed, rate = made.own[number]
        reporting.say(out, f"seed {seed}, learning rate {rate:g}: {what}")

    def add_rows(split: str, step: int, sums: MemberSums) -> list[Metrics]:
        found = jax.device_get(sums)  # waits for the device
        rows: dict[int, Row] = {}
        metrics = []
        seconds = time.perf_counter() - begun
        for number, member in enumerate(made.own):
            means = means_of(task, {k: v[number] for k, v in found.items()})
            metrics.append(metrics_of(split, means))
            if progress[number].is_active():
                row = {"step": step, "epoch": step / per_epoch, "split": split}
                row = {**member._asdict(), **row, **means, "seconds": seconds}
                rows[number] = row
        if rows:
            sweep_report.add_rows(out, list(rows.values()))
        if split == "train":
            for number, row in rows.items():
                if line := remarks.jump(losses[number], row["loss"]):
                    say_of(number, f"step {step}: {line}")
                if math.isfinite(row["loss"]):
                    losses[number].append(row["loss"])
        return metrics

    def add_train_row(step: int, since: tuple[MemberSums, Any]) -> None:
        nonlocal updates
        sums, checksums = since
        updates = remarks.compare(updates, step, jax.device_get(checksums))
        # The sums: the means of steps whose updates were all skipped are no numbers.
        finite = np.isfinite(jax.device_get(sums["loss"]))
        for number, metrics in enumerate(add_rows("train", step, sums)):
            if not progress[number].is_active():
                continue
            if not finite[number]:
                stop(number, "a number is not finite: it ends", diverged=True)
            elif not splits and metrics["train_loss"] is not None:
                progress[number] = progress[number]._replace(step=step, metrics=metrics)
        check_any(step)

    def check_any(step: int) -> None:
        if all(p.diverged and not p.answers() for p in progress):
            params = jax.device_get(task.init(steps.make_keys(config.seed).init))
            advice = diagnosis.bad_input(
                task, config.batch_size, params, task.examples, "training"
            )
            raise UserError(
                f"numbers are not finite in all of the {count} members by step {step}: "
                f"{advice or 'lower the learning rates, set optimizer.clip_norm'}, or "
                "leave such updates out by optimizer.skip_nonfinite, in another "
                "--workdir"
            )

    looked_at: set[str] = set()  # splits, for numbers that are not finite

    def evaluate(state: SweepState, step: int) -> tuple[SweepState, Metrics, bool]:
        check_updates(state)  # no row follows the last one
        params = steps.predicting_params(state.members)
        found: list[Metrics] = [{} for _ in made.own]
        for name, buckets in splits.items():
            sums = [programs.measure(params, bucket) for bucket in buckets]
            rows = add_rows(name, step, programs.total(sums))
            failed = [i for i, row in enumerate(rows) if row[f"{name}_loss"] is None]
            if name not in looked_at and failed and progress[failed[0]].is_active():
                looked_at.add(name)
                one = jax.device_get(members.take(params, failed[0]))
                size, buckets = config.batch_size, task.splits[name]
                if advice := diagnosis.bad_input(task, size, one, buckets, name):
                    reporting.say(out, advice)
            for all_of, of in zip(found, rows, strict=True):
                all_of |= of
        better = np.zeros(len(made.drawn.learning_rate), bool)
        for number, metrics in enumerate(found):
            if not progress[number].is_active() or not splits:
                continue
            progress[number] = _evaluated(progress[number], metrics, step, best)
            better[number] = progress[number].step == step
            waited = progress[number].record.waited
            if config.patience and waited >= config.patience:
                why = f"{best} has not improved {waited} times: it ends"
                stop(number, why, ended=True)
        if best and better.any():
            mask = jax.device_put(better, members.divided())
            state = state._replace(best=programs.keep(state.best, state.members, mask))
        return state, {}, not any(p.is_active() for p in progress)

    def save(state: SweepState, step: int, metrics: Metrics, ended: bool) -> None:
        nonlocal last
        finite = jax.device_get(programs.is_finite(state.members))
        for number in np.flatnonzero(~finite[:count]).tolist():
            if progress[number].is_active():
                stop(number, "a number is not finite: it ends", diverged=True)
        check_any(step)
        meta = {
            "metrics": metrics,
            "step": step,
            "epoch": step / per_epoch,
            "seconds": time.perf_counter() - begun,
            "members": [_stored(p) for p in progress],
            "ended": not any(p.is_active() for p in progress),
        }
        whole = unpad(state)
        checkpoints.save(opened, step, whole, meta)
        last = whole, meta

    host = Host(advance, cut, add_train_row, None, None, evaluate, save)
    try:
        with interrupts.noted() as received:
            run_loop(config, host, state, at, made.num_steps, per_epoch, received)
    finally:
        reporting.close_report(out)
    return last[0], progress, last[1]


def _evaluated(progress: Progress, metrics: Metrics, step: int, best: str) -> Progress:
    record = with_evaluation(progress.record, metrics, best)
    progress = progress._replace(record=record, latest=metrics)
    least = -math.inf if record.score is None else record.score
    # Of equals the newest, as of a run's checkpoints; of none that is finite the last.
    if best and checkpoints.score(metrics, best) < least:
        return progress
    return progress._replace(step=step, metrics=metrics)


def _result(
    made: Setup, workdir: Path, progress: list[Progress], seconds: float
) -> dict[str, Any]:
    """What was reached; a table of it is printed to stderr."""
    reached = [p.metrics if p.answers() else None for p in progress]
    diverged = [p.diverged for p in progress]
    number, rates = sweep_report.outcome(made.own, reached, diverged, made.best)
    print(sweep_report.table(rates, made.best), file=sys.stderr)
    best = None
    if number is not None:
        best = {
            **made.own[number]._asdict(),
            "step": progress[number].step,
            **progress[number].metrics,
            "workdir": str(folder_of(workdir, made.own[number])),
        }
    return {
        "best": best,
        "metric": made.best,
        "learning_rates": rates,
        "seconds": seconds,
        "workdir": str(workdir),
    }

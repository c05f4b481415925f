"""What a sweep's members leave on disk: each a folder that is a run of its own."""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

from lstm_jax import checkpoints, identity, members, reporting, workdirs
from lstm_jax.config import Config
from lstm_jax.errors import UserError
from lstm_jax.evaluation import Metrics, Record
from lstm_jax.members import Member, SweepState
from lstm_jax.steps import TrainState
from lstm_jax.tasks.task import Task


class Progress(NamedTuple):
    """What the host knows of a member; stored with each checkpoint.

    Attributes:
      step: of the parameters that answer: the best, where a metric tells, or the last.
      metrics: of the same.
      latest: of its last evaluation.
      record: for early stopping.
      ended: its patience is at an end.
      diverged: a number was not finite; what it had before, where a metric tells
        which was its best, still answers.
    """

    step: int = 0
    metrics: Metrics = {}  # noqa: RUF012
    latest: Metrics = {}  # noqa: RUF012
    record: Record = Record()
    ended: bool = False
    diverged: bool = False

    def is_active(self) -> bool:
        """Whether it is trained on."""
        return not self.ended and not self.diverged

    def answers(self) -> bool:
        """Whether there are parameters that predict."""
        return not self.diverged or self.record.score is not None


class Best(NamedTuple):
    """What a member's checkpoint of its best step holds: what predicts."""

    params: Any


def folder_of(workdir: str | Path, member: Member) -> Path:
    """The folder of a member's own run."""
    return Path(
        workdir,
        workdirs.MEMBERS_FOLDER,
        f"seed{member.seed}_lr{member.learning_rate!r}",
    )


def write_members(
    config: Config,
    task: Task,
    workdir: Path,
    state: SweepState,
    progress: list[Progress],
    meta: dict[str, Any],
) -> None:
    """Makes the folders of the members, but for those that are there as they ended.

    Args:
      config: of the sweep.
      task: what was trained.
      workdir: of the sweep.
      state: at its end.
      progress: of each member; one that answers nothing gets no folder.
      meta: of the sweep's last checkpoint.
    """
    rows = reporting.read_metrics(workdir)
    computed = identity.read(workdir)  # of each member what is the sweep's
    for number, member in enumerate(members.members_of(config)):
        folder, reached = folder_of(workdir, member), progress[number]
        end = int(state.members.step[number])
        if not reached.answers() or step_of(folder) == (
            reached.step if reached.diverged else end
        ):
            continue
        begun = folder.with_name(f"{folder.name}.tmp")  # until all is in it
        shutil.rmtree(begun, ignore_errors=True)
        begun.mkdir(parents=True)
        rows_of = [
            {k: v for k, v in row.items() if k not in Member._fields}
            for row in rows
            if Member(row["seed"], row["learning_rate"]) == member
        ]
        reporting.write_metrics(begun, rows_of)
        reporting.write_curves(begun, rows_of, folder.name)
        own = _member_config(config, member)
        files = {**task.files, workdirs.SUMMARY_FILE: task.summary}
        workdirs.store(begun, own, files, computed)
        last, params = members.take((state.members, state.best), number)
        _save_member(begun, own, reached, last, Best(params), meta)
        if folder.exists():
            shutil.rmtree(folder)
        begun.rename(folder)


def step_of(folder: Path) -> int | None:
    """The last step that a member's folder holds; None: it holds none."""
    if not folder.exists():
        return None
    with checkpoints.open_checkpoints(folder) as opened:
        return checkpoints.latest_step(opened)


def refuse_trained_on(
    config: Config, workdir: Path, state: SweepState, progress: list[Progress]
) -> None:
    """Raises a `UserError` where going on would replace a member's own further run."""
    for number, member in enumerate(members.members_of(config)):
        folder, end = folder_of(workdir, member), int(state.members.step[number])
        step = None if progress[number].diverged else step_of(folder)
        if step is not None and step > end:
            raise UserError(
                f"{folder} was trained on to step {step} and the sweep would replace "
                "it: move it elsewhere, or give the sweep another --workdir"
            )


def _save_member(
    folder: Path,
    config: Config,
    reached: Progress,
    last: TrainState,
    best: Best,
    meta: dict[str, Any],
) -> None:
    """Saves a member's best and last step; of the best what predicts alone."""
    name, end = config.checkpoint.best or None, int(last.step)
    per_step = meta["epoch"] / meta["step"]
    kept: list[tuple[int, Any, Metrics]] = []
    if name is not None and (reached.step < end or reached.diverged):
        kept.append((reached.step, best, reached.metrics))
    if not reached.diverged:
        kept.append((end, last, reached.latest))
    with checkpoints.open_checkpoints(folder, config.checkpoint.keep, name) as opened:
        for step, state, metrics in kept:
            own = {
                "metrics": metrics,
                "epoch": step * per_step,
                "seconds": meta["seconds"],
                "record": reached.record._asdict(),
                "ended": reached.ended,
            }
            checkpoints.save(opened, step, state, own)


def _member_config(config: Config, member: Member) -> Config:
    """The config of a member's own run."""
    config = config.copy_and_resolve_references()
    config.seed = member.seed
    config.optimizer.learning_rate = member.learning_rate
    config.sweep.seeds, config.sweep.learning_rates = 0, ()
    config.devices.count = 1
    return config

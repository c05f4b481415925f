"""What a sweep's members leave on disk: each a folder, as its run alone would have."""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

from lstm_jax import checkpoints, members, reporting, workdirs
from lstm_jax.config import Config
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
      diverged: a number was not finite; it answers nothing any more.
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
    """Makes the folders of the members that are not there yet.

    Args:
      config: of the sweep.
      task: what was trained.
      workdir: of the sweep.
      state: at its end.
      progress: of each member; one that diverged gets no folder.
      meta: of the sweep's last checkpoint.
    """
    rows = reporting.read_metrics(workdir)
    for number, member in enumerate(members.members_of(config)):
        folder, reached = folder_of(workdir, member), progress[number]
        if reached.diverged or folder.exists():
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
        own = _member_config(config, member)
        files = {**task.files, workdirs.SUMMARY_FILE: task.summary}
        workdirs.store(begun, own, files)
        last, params = members.take((state.members, state.best), number)
        _save_member(begun, own, reached, last, Best(params), meta)
        begun.rename(folder)


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
    kept: list[tuple[int, Any, Metrics]] = [(end, last, reached.latest)]
    if name is not None and reached.step < end:
        kept.insert(0, (reached.step, best, reached.metrics))
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

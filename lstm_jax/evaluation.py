"""From the sums of an evaluation to metrics, and what early stopping makes of them."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

from lstm_jax import checkpoints
from lstm_jax.errors import UserError
from lstm_jax.tasks.task import Task

# By split and name, such as "test_loss"; None: not finite.
Metrics: TypeAlias = dict[str, float | None]


def means_of(task: Task, sums: Mapping[str, Any]) -> dict[str, float]:
    """What is reported of sums over examples."""
    known = {name: float(value) for name, value in sums.items()}
    count = known.pop("count")  # 0: all updates were skipped
    means = {k: value / count if count else math.nan for k, value in known.items()}
    means = {"loss": means.pop("loss"), **means}
    return means if task.finish is None else task.finish(means)


def metrics_of(split: str, means: dict[str, float]) -> Metrics:
    """The metrics of a split as a checkpoint has them: not finite is null."""
    return {
        f"{split}_{name}": value if math.isfinite(value) else None
        for name, value in means.items()
    }


def check_best(best: str, task: Task, sums: Any) -> None:
    """Raises a `UserError` where no split has the metric."""
    metrics = list(means_of(task, dict.fromkeys(sums, 1.0)))
    known = [f"{split}_{name}" for split in task.splits for name in metrics]
    if best and best not in known:
        raise UserError(
            f"checkpoint.best={best!r} is never evaluated: choose one of "
            f"{', '.join(known)}"
        )


class Record(NamedTuple):
    """What early stopping knows; stored with each checkpoint.

    Attributes:
      metric: which is scored; with another one, all begins anew.
      score: of the best evaluation so far, the greater the better; None: of none.
      waited: evaluations since.
    """

    metric: str = ""
    score: float | None = None
    waited: int = 0


def with_evaluation(record: Record, metrics: Metrics, best: str) -> Record:
    """What is known after an evaluation.

    Args:
      record: before it.
      metrics: of the evaluation.
      best: the metric that counts.
    """
    record = record if record.metric == best else Record(best)
    score = checkpoints.score(metrics, best or None)
    if score > (-math.inf if record.score is None else record.score):
        return Record(best, score, 0)
    return record._replace(waited=record.waited + 1)

"""The loop on the host that a run and a sweep share: when to do what."""

from collections.abc import Callable
from typing import Any, NamedTuple

from lstm_jax.config import Config
from lstm_jax.errors import Interrupted
from lstm_jax.evaluation import Metrics


class Host(NamedTuple):
    """What the loop does between and after steps.

    Attributes:
      advance: `advance(state, step, count)` hands the device up to so many steps; the
        state after them, and how many they are.
      cut: `cut(state)`: the sums of the metrics since the last row, and the state with
        those of the next.
      add_train_row: `add_train_row(step, sums)` waits for the device.
      sample: `sample(state)` shows an example; None: it does not.
      follow: `follow(state, step)` measures gradient flow; None: it does not.
      evaluate: `evaluate(state, step)`: the state, its metrics, and whether it is to
        end here.
      save: `save(state, step, metrics, ended)`; the metrics are {} where the state was
        not evaluated.
    """

    advance: Callable[[Any, int, int], tuple[Any, int]]
    cut: Callable[[Any], tuple[Any, Any]]
    add_train_row: Callable[[int, Any], None]
    sample: Callable[[Any], None] | None
    follow: Callable[[Any, int], None] | None
    evaluate: Callable[[Any, int], tuple[Any, Metrics, bool]]
    save: Callable[[Any, int, Metrics, bool], None]


def run_loop(
    config: Config,
    host: Host,
    state: Any,
    step: int,
    num_steps: int,
    per_epoch: int,
    received: Callable[[], int | None],
) -> None:
    """Runs the steps that are left; it stops where the host has to look in.

    Args:
      config: of the run.
      host: what it does.
      state: after `step` steps; its memory is used anew.
      step: from which it goes on.
      num_steps: to which.
      per_epoch: steps of an epoch.
      received: the number of a signal that asks for an end, or None.

    Raises:
      Interrupted: a signal was received; what was done is saved.
    """
    report, best = config.report, bool(config.checkpoint.best)
    # Without epochs in the config, an epoch's end is nothing to stop for.
    epoch_period = per_epoch if config.num_epochs else 0
    evaluate_periods = (report.evaluate_every, epoch_period)
    save_periods = (config.checkpoint.every, epoch_period)
    report_periods = (report.every, epoch_period)
    flow_periods = () if host.follow is None else (report.flow_every,)
    periods = (*report_periods, *evaluate_periods, *save_periods, *flow_periods)
    late: tuple[int, Any] | None = None  # a row that the device may still compute

    def add_late_row() -> None:
        nonlocal late
        if late is not None:
            host.add_train_row(*late)
            late = None

    ended, signal = False, None
    if step == 0 and host.follow is not None:
        host.follow(state, step)
    while step < num_steps and not ended and signal is None:
        stop = min([num_steps, *(_next_stop(step, p) for p in periods if p)])
        while step < stop and signal is None:
            state, count = host.advance(state, step, stop - step)
            step += count
            add_late_row()  # only now, with the next steps under way
            signal = received()
        last = step == num_steps
        if last or _is_due(step, report_periods):
            sums, state = host.cut(state)
            late = (step, sums)
        sampled = host.sample is not None and late is not None
        measured = last or _is_due(step, evaluate_periods)
        followed = host.follow is not None and (last or _is_due(step, flow_periods))
        saved = last or _is_due(step, save_periods) or signal is not None
        if sampled or measured or followed or saved:
            add_late_row()
        if followed and host.follow is not None:
            host.follow(state, step)
        if sampled and host.sample is not None:
            host.sample(state)
        metrics: Metrics = {}
        if measured:
            state, metrics, ended = host.evaluate(state, step)
        if saved or (measured and best):
            host.save(state, step, metrics, ended)
    if signal is not None:
        raise Interrupted(signal, step)


def _next_stop(step: int, period: int) -> int:
    return step // period * period + period


def _is_due(step: int, periods: tuple[int, ...]) -> bool:
    return any(step % period == 0 for period in periods if period)

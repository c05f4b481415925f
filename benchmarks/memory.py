"""The memory of a run that nobody touches, minute by minute. Linux only."""

import signal
import statistics
import time
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from benchmarks import runs
from lstm_jax import reporting

# Dispatches, rows and evaluations by the hundred a minute, saves by the ten; no end.
ARGUMENTS = (
    "--config=configs/fable.py",
    "--config.devices.count=1",
    "--config.model.hidden_size=64",
    "--config.num_steps=1000000000",
    "--config.report.every=100",
    "--config.report.evaluate_every=1000",
    "--config.checkpoint.every=5000",
)
MINUTE = 60.0  # seconds
# Minutes at the beginning that do not count: caches fill, and the allocator's pools.
WARM_UP = 3
# MB a minute, above which memory grows: about 60 bytes a step, or 6 KB a row. Far
# below it are the rows, which a run keeps to draw its curves, and 40 KB that Orbax and
# TensorStore do not give back of each save. Garbage that Python has not yet collected
# makes a sawtooth of some 20 MB, whose slope over minutes can come near to it.
MOST = 3.0


def watch(
    workdir: Path,
    cache: Path,
    minutes: float,
    arguments: Sequence[str] = ARGUMENTS,
    every: float = 1.0,
) -> dict[str, Any]:
    """Trains for some minutes from the first row on, and ends the run by SIGTERM.

    Args:
      workdir: a new folder.
      cache: as for `runs.start`.
      minutes: more than `WARM_UP` and two more, or nothing can be said.
      arguments: of a run that is longer.
      every: seconds from one look at its memory to the next.

    Returns:
      "MB": the median resident set of each minute; "MB a minute": what is added after
      the warm-up, see `slope`; "grows"; "steps" and "rows" of the run.

    Raises:
      RuntimeError: the run ended by itself, or not as SIGTERM has it end.
    """
    run = runs.start(arguments, workdir, cache)
    while run.process.poll() is None and not reporting.read_metrics(workdir):
        time.sleep(every)
    begun, found = time.monotonic(), []
    while run.process.poll() is None and time.monotonic() < begun + MINUTE * minutes:
        minute = int((time.monotonic() - begun) // MINUTE)
        found += [[] for _ in range(minute + 1 - len(found))]
        if (size := resident(run.process.pid)) is not None:
            found[minute].append(size)
        time.sleep(every)
    run.process.terminate()
    if (code := runs.wait(run)) != 128 + signal.SIGTERM:
        raise RuntimeError(f"exit code {code}: {run.err.read_text()[-2000:]}")
    rows = reporting.read_metrics(workdir)
    medians = [statistics.median(minute) / 1e6 for minute in found if minute]
    added = slope(medians[WARM_UP:])
    return {
        "MB": medians,
        "MB a minute": added,
        "grows": added > MOST,
        "steps": rows[-1]["step"],
        "rows": len(rows),
    }


def resident(pid: int) -> int | None:
    """Bytes of memory that a process uses, as Linux tells; None: it has ended."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    sizes = [line.split()[1] for line in lines if line.startswith("VmRSS")]
    return 1024 * int(sizes[0]) if sizes else None


def slope(values: Sequence[float]) -> float:
    """What is added from one value to the next: the median over all pairs.

    A straight line by Theil and Sen, which a few values that stick out do not tilt.

    >>> slope([1.0, 2.0, 9.0, 4.0])
    1.0
    """
    pairs = combinations(range(len(values)), 2)
    return statistics.median((values[j] - values[i]) / (j - i) for i, j in pairs)


def text(found: dict[str, Any]) -> str:
    """What `watch` has found, in sentences."""
    medians = found["MB"]
    return (
        f"A run of {found['steps']} steps and {found['rows']} rows that nobody "
        f"touched, for {len(medians)} minutes: its resident set had a median of "
        f"{medians[0]:.0f} MB in the first minute and of {medians[-1]:.0f} MB in the "
        f"last; after {WARM_UP} minutes the median slope was "
        f"{found['MB a minute']:+.2f} MB a minute (bound: {MOST}).\n"
    )

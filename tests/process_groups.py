"""train.py in several processes on one machine."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import groups
from benchmarks.groups import Ended

# Runs train.py; process NUMBER has an accident where MOMENT says. At "idle" the others
# wait for nothing but the time.
DRIVER = """
import os, runpy, signal, sys, time

from jax._src import distributed
from lstm_jax import processes, training

number, moment = int(sys.argv.pop(1)), sys.argv.pop(1)
# After how many seconds without a sign of it a process is lost; as it is, unless said.
moment, _, silence = moment.partition(" after ")
processes._SILENCE = int(silence or processes._SILENCE)
sys.argv[0] = "train.py"
# What is called at a moment, the how manieth time, and what happens there.
name, call, accident = {
    "collective": ("fetch", 3, signal.SIGKILL),
    "evaluation": ("_evaluate", 2, signal.SIGKILL),
    "idle": ("_same_bucket", 3, signal.SIGKILL),
    "asked": ("_same_bucket", 3, signal.SIGTERM),
    "asked early": ("_programs", 1, signal.SIGTERM),
    "raises": ("_evaluate", 2, RuntimeError("on purpose")),
    "memory": ("_evaluate", 2, MemoryError("on purpose")),
}[moment]
original, calls = getattr(training, name), []


def wrapped(*args, **options):
    calls.append(name)
    if len(calls) == call:
        if distributed.global_state.process_id != number:
            time.sleep(90 if moment == "idle" else 0)
        elif isinstance(accident, Exception):
            raise accident
        else:
            os.kill(os.getpid(), accident)
            time.sleep(3)  # jax looks for signals once a second
    return original(*args, **options)


setattr(training, name, wrapped)
runpy.run_path("train.py", run_name="__main__")
"""


def run_group(
    count: int,
    workdir: Path,
    cache: Path,
    fields: dict[str, Any],
    killed: tuple[int, str] | None = None,
    last: Sequence[str] = (),
    scheduler: Callable[[int], dict[str, str]] | None = None,
) -> list[Ended]:
    """Runs train.py in several processes.

    Args:
      count: of processes; 1: as without any of this.
      workdir: of the run.
      cache: folder of compiled programs.
      fields: of the config.
      killed: the number of the process that has an accident, and a moment of
        `DRIVER`, such as "idle" or "idle after 8".
      last: further arguments of the last process.
      scheduler: the environment of a process by its number, in place of flags.
    """

    def environment(number: int) -> dict[str, str]:
        return {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        } | ({} if scheduler is None else scheduler(number))

    return groups.run(
        count,
        [
            f"--workdir={workdir}",
            *(f"--config.{name}={value}" for name, value in fields.items()),
        ],
        workdir.with_name(f"{workdir.name} said"),
        program=["train.py"] if killed is None else ["-c", DRIVER, *map(str, killed)],
        last=last,
        environment=environment,
        flags=scheduler is None,
    )

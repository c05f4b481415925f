"""train.py in several processes on one machine."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import groups
from benchmarks.groups import Ended

# Runs train.py in process N, which KILLED where MOMENT says; process N itself dies
# there, the others go on. At "idle" the others wait for nothing but the time.
DRIVER = """
import os, runpy, signal, sys, time

from lstm_jax import processes, training

number, moment = int(sys.argv.pop(1)), sys.argv.pop(1)
sys.argv[0] = "train.py"
calls = []


def at(name, own, original):
    def wrapped(*args, **options):
        from jax._src import distributed
        calls.append(name)
        here = distributed.global_state.process_id == number
        if name == moment and calls.count(name) == 3:
            if here:
                os.kill(os.getpid(), own)
            elif moment == "idle":
                time.sleep(90)
        return original(*args, **options)

    return wrapped


own = signal.SIGTERM if moment == "asked" else signal.SIGKILL
training._evaluate = at("evaluation", own, training._evaluate)
training._same_bucket = at("idle", own, training._same_bucket)
training._same_bucket = at("asked", own, training._same_bucket)
training.fetch = at("collective", own, training.fetch)
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
      killed: the number of the process that is killed, and a moment of `DRIVER`.
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

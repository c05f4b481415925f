"""Processes on this machine that train one run."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
_LONGEST = 900.0  # seconds until a group is said to hang


class Ended(NamedTuple):
    """What a process left behind, and the seconds from the group's start to its end."""

    code: int
    out: str
    err: str
    seconds: float


def run(
    count: int,
    arguments: Sequence[str],
    logs: Path,
    *,
    program: Sequence[str] = ("train.py",),
    last: Sequence[str] = (),
    environment: Callable[[int], Mapping[str, str]] = lambda number: {},
    flags: bool = True,
    kill: tuple[int, Callable[[], bool]] | None = None,
) -> list[Ended]:
    """Runs a program in several processes, each with one device of the processor.

    Args:
      count: of processes; 1: as without any of this.
      arguments: of each.
      logs: a folder for what they print.
      program: what Python runs.
      last: further arguments of the last process.
      environment: of a process, by its number, beside this one's.
      flags: whether the places are given by flags.
      kill: the number of a process to kill, and whether the moment has come.

    Raises:
      TimeoutError: they hang.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    logs.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    running = []
    for number in range(count):
        place = [
            f"--coordinator=127.0.0.1:{port}",
            f"--num_processes={count}",
            f"--process_id={number}",
        ]
        with (
            (logs / f"{number}.out").open("w") as out,
            (logs / f"{number}.err").open("w") as err,
        ):
            process = subprocess.Popen(
                [
                    *(sys.executable, *program, *arguments),
                    *(place if flags and count > 1 else ()),
                    *(last if number == count - 1 else ()),
                ],
                stdout=out,
                stderr=err,
                cwd=ROOT,
                env={
                    **os.environ,
                    "JAX_PLATFORMS": "cpu",
                    "JAX_NUM_CPU_DEVICES": "1",
                    **environment(number),
                },
            )
        running.append(process)
    seconds: dict[int, float] = {}
    try:
        while len(seconds) < count:
            time.sleep(0.05)
            now = time.monotonic() - begun
            if kill is not None and kill[1]():
                if running[kill[0]].poll() is None:
                    running[kill[0]].send_signal(signal.SIGKILL)
                kill = None
            for number, process in enumerate(running):
                if number not in seconds and process.poll() is not None:
                    seconds[number] = now
            if now > _LONGEST:
                raise TimeoutError(f"after {now:.0f} s they still run")
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                process.wait()
    time.sleep(0.2)  # what relays their stderr may be behind
    return [
        Ended(
            process.returncode,
            (logs / f"{number}.out").read_text(),
            (logs / f"{number}.err").read_text(),
            seconds[number],
        )
        for number, process in enumerate(running)
    ]

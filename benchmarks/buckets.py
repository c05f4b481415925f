"""Epochs of `imdb_fast` beside those of `imdb_lstm`: `python -m benchmarks.buckets`.

`train.py` with the one config and then with the other, in turn, each a process of its
own; seconds of each epoch with its evaluation, the first with its compilations, and the
most memory that a run had.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

# As it ends, a process tells the most memory that it had, in KiB.
RUN = """
import atexit, resource, runpy, sys
usage = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
atexit.register(lambda: print(f"\\n{usage()}"))
sys.argv[0] = "train.py"
runpy.run_path("train.py", run_name="__main__")
"""


def epochs(config: str, seed: int, count: int, folder: Path) -> tuple[list[float], int]:
    """Seconds of each epoch, and the run's memory in MB."""
    workdir = folder / f"{config}_{seed}"
    command = [
        f"--config=configs/{config}.py",
        f"--config.seed={seed}",
        f"--config.num_epochs={count}",
        f"--workdir={workdir}",
    ]
    done = subprocess.run(
        [sys.executable, "-c", RUN, *command],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    ends = [row["seconds"] for row in rows if row["split"] == "test"]
    memory = int(done.stdout.split()[-1]) // 1024
    return np.diff(ends, prepend=0.0).tolist(), memory


def main() -> None:
    """Prints the seconds and the ratios of each round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.rounds):
            seconds = {}
            for config in ("imdb_lstm", "imdb_fast"):
                found = epochs(config, seed, options.epochs, Path(folder))
                seconds[config], memory = found
                told = ", ".join(f"{s:.1f}" for s in seconds[config])
                print(f"{config}: epochs of {told} s, {memory} MB", flush=True)
            ratios = np.divide(seconds["imdb_fast"], seconds["imdb_lstm"])
            print(f"ratios: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")


if __name__ == "__main__":
    main()

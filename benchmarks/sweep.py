"""Many runs as one, beside as many runs: `python -m benchmarks.sweep`.

A sweep of `configs/fable.py` over seeds, and the same seeds one by one, by the commands
that a user would type, in turn; each run is a process of its own from start to end. A
round before the first fills the caches of compiled programs.
"""

import argparse
import subprocess
import sys
import tempfile
import time

import numpy as np


def seconds(*flags: str) -> float:
    """How long a run of `train.py` takes."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["train.py", "--config=configs/fable.py", f"--workdir={folder}/run"]
        begun = time.perf_counter()
        subprocess.run(
            [sys.executable, *command, *flags], check=True, capture_output=True
        )
        return time.perf_counter() - begun


def main() -> None:
    """Prints seconds of each, and the median of the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=8)
    options = parser.parse_args()
    sweep = f"--config.sweep.seeds={options.seeds}"
    seconds(sweep), seconds()
    ratios = []
    for _ in range(options.rounds):
        together = seconds(sweep)
        alone = sum(seconds(f"--config.seed={i}") for i in range(options.seeds))
        ratios.append(together / alone)
        print(
            f"sweep {together:.1f} s, {options.seeds} runs {alone:.1f} s, "
            f"ratio {ratios[-1]:.2f}",
            flush=True,
        )
    print(f"median of {options.rounds} rounds: {np.median(ratios):.2f}")


if __name__ == "__main__":
    main()

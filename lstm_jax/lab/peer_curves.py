"""Learning curves of `lstm` and `gru`, beside which the lab draws a new cell's.

`python -m lstm_jax.lab.peer_curves` trains them anew, on this machine: after a change
of a problem of the lab, whose old curves are no measure any more.
"""

import json
import sys
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from lstm_jax import command_line
from lstm_jax.errors import UserError
from lstm_jax.lab import examine
from lstm_jax.lab.trials import Trial
from lstm_jax.reporting import write_file

FILE = "peer_curves.json"


def read() -> dict[str, Any]:
    """The command and date of the curves, and for each problem those of each cell."""
    text = (resources.files("lstm_jax.lab") / FILE).read_text(encoding="utf-8")
    return json.loads(text)


def check(found: dict[str, Any], problem: Trial) -> None:
    """Refuses curves of a problem that is another one today.

    Raises:
      UserError: it is.
    """
    if found["problems"].get(problem.name) != examine.describe(problem):
        raise UserError(
            f"the reference curves of {problem.name} are of another problem: make them "
            "anew by python -m lstm_jax.lab.peer_curves"
        )


def make(problems: Sequence[Trial], say: Callable[[str], None]) -> dict[str, Any]:
    """Trains the reference cells.

    Args:
      problems: on which.
      say: is given lines of progress.
    """
    found = examine.about("python -m lstm_jax.lab.peer_curves")
    found["problems"] = {p.name: examine.describe(p) for p in problems}
    found["curves"] = {}
    for problem in problems:
        curves = {}
        for name, cell in examine.PEERS.items():
            say(f"{name} on {problem.name}")
            curves[name] = examine.learnt(problem, cell(examine.HIDDEN), say)
        found["curves"][problem.name] = curves
    return found


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    """Writes the file of the package."""
    found = make(examine.quick_trials(), _say)
    path = Path(__file__).with_name(FILE)
    try:
        write_file(path, json.dumps(found, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror})") from None


if __name__ == "__main__":
    command_line.run(main)

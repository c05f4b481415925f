"""Tries a cell of your own: `python lab.py my_cell.py` writes one page about it.

The exit code is 0 where the cell obeys every law, 1 where it breaks one, a gradient is
wrong or missing or its code fails at a section of the page, 2 where no page is written.
"""

import json
import os
import shlex
import sys
from pathlib import Path

from absl import flags

from lstm_jax import command_line, devices
from lstm_jax.compilation import keep_compiled
from lstm_jax.data.files import local_path
from lstm_jax.errors import UserError
from lstm_jax.lab import cost, examine, own_cell, page, peer_curves

FULL = flags.DEFINE_bool(
    "full",
    False,
    "Also learn at T = 100, and rows of MNIST, beside lstm and gru: takes its time.",
)
OUT = flags.DEFINE_string(
    "out", None, "The page; its JSON lies beside it. Default: my_cell.lab.html."
)


def main(path: str) -> None:
    """Tries the cell of a file, and says in short what was found."""
    own = own_cell.load(path)
    out = local_path(OUT.value or f"{own.name}.lab.html")
    check_out(out)
    about = examine.about(shlex.join(["python", "lab.py", *sys.argv[1:]]))
    devices.use_cpus(0, cost.BATCH)
    keep_compiled()
    curves = peer_curves.read()
    problems = examine.quick_trials()
    for problem in problems:
        peer_curves.check(curves, problem)
    if FULL.value:
        further = examine.further_trials()
        curves["curves"] |= peer_curves.make(further, say)["curves"]
        problems += further
    found = examine.examine(own, problems, say)
    text = json.dumps({**about, **found}, indent=1, allow_nan=False)
    try:
        out.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
        out.write_text(page.render(found, curves, about), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}") from None
    for good, line in page.summary(found, curves):
        print(f"{'ok ' if good else 'NO '} {line}")
    print(f"the page: {out}")
    if page.broken(found):
        sys.exit(1)


def check_out(out: Path) -> None:
    """Refuses what could not be written in the end, or is not the lab's to replace.

    Raises:
      UserError: as it says.
    """
    numbers = out.with_suffix(".json")
    if out.suffix != ".html" or not out.parent.is_dir():
        raise UserError(f"--out={out} has to end in .html, in a folder that is there")
    for path in (out, numbers):
        where = path if path.exists() else path.parent
        if path.is_dir() or not os.access(where, os.W_OK):
            raise UserError(f"{path} cannot be written: name another page with --out")
    if not numbers.exists():
        return
    try:
        found = json.loads(numbers.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or not {"laws", "cost", "curves"} <= found.keys():
        raise UserError(
            f"{numbers} is not of the lab, which would write its own there: name "
            "another page with --out"
        )


def say(line: str) -> None:
    """Shows progress."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    command_line.run(main, takes="the file of a cell, as my_cell.py")

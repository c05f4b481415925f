"""Tries a cell of your own: `python lab.py my_cell.py` writes one page about it."""

import json
import shlex
import sys
from pathlib import Path

from absl import flags

from lstm_jax import command_line, devices
from lstm_jax.compilation import keep_compiled
from lstm_jax.errors import UserError
from lstm_jax.lab import cost, examine, own_cell, page, references

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
    out = Path(OUT.value or f"{own.name}.lab.html")
    if out.suffix != ".html" or not out.parent.is_dir():
        raise UserError(f"--out={out} has to end in .html, in a folder that is there")
    devices.use_cpus(0, cost.BATCH)
    keep_compiled()
    curves = references.read()
    problems = examine.quick_trials()
    for problem in problems:
        references.check(curves, problem)
    if FULL.value:
        further = examine.further_trials()
        curves["curves"] |= references.make(further, say)["curves"]
        problems += further
    found = examine.examine(own, problems, say)
    about = examine.about(shlex.join(["python", "lab.py", *sys.argv[1:]]))
    text = json.dumps({**about, **found}, indent=1, allow_nan=False)
    try:
        out.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
        out.write_text(page.render(found, curves, about), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}") from None
    for good, line in page.summary(found, curves):
        print(f"{'ok ' if good else 'NO '} {line}")
    print(f"the page: {out}")


def say(line: str) -> None:
    """Shows progress."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    command_line.run(main, takes="the file of a cell, as my_cell.py")

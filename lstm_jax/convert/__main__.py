r"""Converts a file of weights: `python -m lstm_jax.convert --help`.

python -m lstm_jax.convert --from=torch --file=model.safetensors --prefix=encoder. \
    --cell=lstm --out=stack.safetensors
python -m lstm_jax.convert --file=stack.safetensors --cell=lstm --to=torch \
    --out=lstm.safetensors

Where nothing else is said, weights are this package's own.
"""

from pathlib import Path

import jax
from absl import flags

from lstm_jax import command_line
from lstm_jax.cells import Params
from lstm_jax.convert.files import (
    LIBRARIES,
    give_stack,
    take_stack,
)
from lstm_jax.convert.weights import GATES, flat
from lstm_jax.errors import UserError
from lstm_jax.weights import load_weights, save_weights
from lstm_jax.workdirs import answering_step, load_params, read_config

FROM = flags.DEFINE_enum("from", "lstm_jax", LIBRARIES, "Whose weights these are.")
TO = flags.DEFINE_enum("to", "lstm_jax", LIBRARIES, "Whose weights to write.")
CELL = flags.DEFINE_enum("cell", None, list(GATES), "The cell of all layers.")
FILE = flags.DEFINE_string("file", None, "A safetensors file, or a run's folder.")
OUT = flags.DEFINE_string("out", None, "The safetensors file to write.")
PREFIX = flags.DEFINE_list(
    "prefix",
    [],
    "Where in the file: of torch what the module's names begin with, of others the "
    "folder of each cell, layer by layer.",
)
BIDIRECTIONAL = flags.DEFINE_bool(
    "bidirectional", False, "The prefixes are of forward and backward cells in turn."
)


def main() -> None:
    """Reads, converts and writes."""
    for flag in (FILE, CELL, OUT):
        if flag.value is None:
            raise UserError(f"--{flag.name} is missing: see --help")
    if Path(OUT.value or "").exists():
        raise UserError(f"{OUT.value} is there already: name another file")
    tree = _read(Path(FILE.value or ""))
    params = take_stack(
        tree, FROM.value or "", CELL.value or "", PREFIX.value, BIDIRECTIONAL.value
    )
    given = give_stack(params, TO.value or "", CELL.value or "")
    save_weights(given, OUT.value or "")
    for name, array in flat(given).items():
        print(f"{name} {list(array.shape)} {array.dtype}")


def _read(path: Path) -> Params:
    if not path.is_dir():
        return load_weights(path)
    config = read_config(path)
    params = load_params(path, answering_step(path, config.checkpoint.best or None))
    if "recurrent" not in params:
        raise UserError(f"the model of {path} has no recurrent layers")
    return jax.device_get(params["recurrent"])


if __name__ == "__main__":
    command_line.run(main)

r"""Converts a file of weights: `python -m lstm_jax.convert --help`.

python -m lstm_jax.convert --from=torch --file=model.safetensors --prefix=encoder. \
    --cell=lstm --out=stack.safetensors
python -m lstm_jax.convert --file=stack.safetensors --cell=lstm --to=torch \
    --out=lstm.safetensors

Where nothing else is said, weights are this package's own.
"""

import sys
from pathlib import Path

import jax
from absl import flags

from lstm_jax import command_line
from lstm_jax.cell_grammar import parse_cell
from lstm_jax.cells import Params
from lstm_jax.convert.files import (
    LIBRARIES,
    give_stack,
    take_stack,
)
from lstm_jax.convert.weights import GATES, flat
from lstm_jax.convert.written import to_be_told
from lstm_jax.data.files import local_path
from lstm_jax.errors import UserError
from lstm_jax.prediction import check_described
from lstm_jax.weights import load_weights, save_weights
from lstm_jax.workdirs import answering_step, load_params, read_config


def main() -> None:
    """Reads, converts and writes."""
    values = flags.FLAGS
    path, cell, out = local_path(values.file), values.cell, local_path(values.out)
    source, target = str(values["from"].value), values.to
    if flags.FLAGS["forget_bias"].present and (
        cell != "lstm" or "tf1" not in (source, target)
    ):
        raise UserError("--forget_bias is of TensorFlow 1's lstm alone: leave it out")
    if out.exists():
        raise UserError(f"{out} is there already: name another file")
    tree, told = (
        _read(path, cell, target) if path.is_dir() else (load_weights(path), [])
    )
    bias = values.forget_bias
    params = take_stack(tree, source, cell, values.prefix, values.bidirectional, bias)
    given = give_stack(params, target, cell, bias)
    save_weights(given, out)
    for name, array in flat(given).items():
        print(f"{name} {list(array.shape)} {array.dtype}")
    if told:
        print(f"trained with {', '.join(told)}: tell the cell there", file=sys.stderr)


def _read(run: Path, cell: str, target: str) -> tuple[Params, list[str]]:
    """A run's recurrent layers, and what the target's must be told."""
    config = read_config(run)
    parse_cell(config.model.cell, config.model.hidden_size)  # refuses what is none
    told = to_be_told(config.model.cell, cell, target)
    check_described(run, config)
    params = load_params(run, answering_step(run, config.checkpoint.best or None))
    if "recurrent" not in params:
        raise UserError(f"the model of {run} has no recurrent layers")
    return jax.device_get(params["recurrent"]), told


if __name__ == "__main__":
    flags.DEFINE_enum("from", "lstm_jax", LIBRARIES, "Whose weights these are.")
    flags.DEFINE_enum("to", "lstm_jax", LIBRARIES, "Whose weights to write.")
    flags.DEFINE_enum(
        "cell", None, list(GATES), "The cell of all layers.", required=True
    )
    flags.DEFINE_string(
        "file", None, "A safetensors file, or a run's folder.", required=True
    )
    flags.DEFINE_string("out", None, "The safetensors file to write.", required=True)
    flags.DEFINE_list(
        "prefix",
        [],
        "Where in the file: of torch what the module's names begin with, of others the "
        "folder of each cell, layer by layer.",
    )
    flags.DEFINE_bool(
        "bidirectional",
        False,
        "The prefixes are of forward and backward cells in turn.",
    )
    flags.DEFINE_float(
        "forget_bias",
        1.0,
        "What TensorFlow 1's lstm adds to its forget gate in the forward pass.",
    )
    command_line.run(main)

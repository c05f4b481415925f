"""Trains what a config says: `python train.py --config=configs/fable.py`."""

import json
from pathlib import Path

from absl import flags

from lstm_jax import command_line
from lstm_jax.tasks import make_task
from lstm_jax.training import fit

CHECKOUT = Path(__file__).parent
CONFIG = command_line.define_config(default=CHECKOUT / "configs" / "fable.py")
flags.adopt_module_key_flags(command_line)  # --help lists --config as well
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run. Default: checkpoints/<name of the config>."
)
INIT_FROM = flags.DEFINE_string(
    "init_from", None, "Folder of another run, to start from its parameters."
)


def main() -> None:
    """Trains, and prints what was reached as one line of JSON."""
    name = command_line.config_path().stem
    workdir = WORKDIR.value
    if workdir is None:
        workdir = CHECKOUT / "checkpoints" / name
    result = fit(CONFIG.value, make_task(CONFIG.value), workdir, INIT_FROM.value)
    print(json.dumps(result))


if __name__ == "__main__":
    command_line.run(main)

"""Trains what a config says: `python train.py --config=configs/fable.py`."""

import json
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from lstm_jax import command_line
from lstm_jax.tasks import make_task
from lstm_jax.training import fit

CHECKOUT = Path(__file__).parent
CONFIG = config_flags.DEFINE_config_file(
    "config",
    default=str(CHECKOUT / "configs" / "fable.py"),
    help_string="The experiment; --config.FIELD=VALUE changes a field of it.",
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run. Default: checkpoints/<name of the config>."
)
INIT_FROM = flags.DEFINE_string(
    "init_from", None, "Folder of another run, to start from its parameters."
)


def main() -> None:
    name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
    workdir = WORKDIR.value or CHECKOUT / "checkpoints" / name
    result = fit(CONFIG.value, make_task(CONFIG.value), workdir, INIT_FROM.value)
    print(json.dumps(result))


if __name__ == "__main__":
    command_line.run(main)

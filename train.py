"""Trains what a config says: `python train.py --config=configs/fable.py`."""

import json
import signal
from pathlib import Path

signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback while this imports

import jax
from absl import flags

from lstm_jax import command_line, devices, explain, interrupts, workdirs
from lstm_jax.compilation import keep_compiled
from lstm_jax.config import check_config
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
EXPLAIN_ENGINE = flags.DEFINE_bool(
    "explain_engine",
    False,
    "Prints how the recurrent layers are run, what they compute and save and how long "
    "they take, and trains nothing.",
)


def main() -> None:
    """Trains, and prints what was reached as one line of JSON."""
    name = command_line.config_path().stem
    workdir = WORKDIR.value
    if workdir is None:
        workdir = CHECKOUT / "checkpoints" / name
    check_config(CONFIG.value)
    count, batch_size = CONFIG.value.devices.count, CONFIG.value.batch_size
    stored = workdirs.stored_count(workdir)
    devices.use_cpus(count or stored, batch_size)
    keep_compiled()
    task = make_task(CONFIG.value)
    if EXPLAIN_ENGINE.value:
        with jax.set_mesh(devices.make_mesh(count, batch_size, stored)):
            for line in explain.explain_task(task, batch_size):
                print(line, flush=True)
        return
    print(json.dumps(fit(CONFIG.value, task, workdir, INIT_FROM.value)))


if __name__ == "__main__":
    interrupts.exit_at_once()
    command_line.run(main)

"""Trains what a config says: `python train.py --config=configs/fable.py`."""

import json
import signal
from pathlib import Path

signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback while this imports

import jax
from absl import flags

from lstm_jax import (
    command_line,
    devices,
    explain,
    interrupts,
    processes,
    sweeps,
    workdirs,
)
from lstm_jax.compilation import keep_compiled
from lstm_jax.config import check_config
from lstm_jax.data.files import local_path
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
DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    None,
    "One of several processes that train one run (docs/scaling.md). Default: if Slurm, "
    "Open MPI, Kubernetes or a TPU pod began several.",
)
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT where process 0 listens, if no scheduler tells."
)
NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "How many there are, if no scheduler tells."
)
PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "The number of this one, from 0, if no scheduler tells."
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
    workdir, init_from = CHECKOUT / "checkpoints" / name, INIT_FROM.value
    if WORKDIR.value is not None:
        workdir = local_path(WORKDIR.value)
    if init_from is not None:
        init_from = local_path(init_from)
    check_config(CONFIG.value)
    count, batch_size = CONFIG.value.devices.count, CONFIG.value.batch_size
    stored = workdirs.stored_count(workdir)
    _join_processes()
    swept = sweeps.device_count(CONFIG.value, devices.allowed_cpus())
    devices.use_cpus(swept or count or stored, batch_size)
    keep_compiled()
    with processes.leader_first():  # who may have to fetch or encode the data
        task = make_task(CONFIG.value, workdir)
    if EXPLAIN_ENGINE.value:
        with jax.set_mesh(devices.make_mesh(count, batch_size, stored)):
            for line in explain.explain_task(task, batch_size):
                if processes.leads():
                    print(line, flush=True)
        return
    result = fit(CONFIG.value, task, workdir, init_from)
    if processes.leads():
        print(json.dumps(result))


def _join_processes() -> None:
    place = COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value
    wanted = DISTRIBUTED.value
    if wanted is None:
        wanted = place != (None, None, None) or processes.expected()
    if wanted:
        processes.start(*place)


if __name__ == "__main__":
    interrupts.exit_at_once()
    command_line.run(main)

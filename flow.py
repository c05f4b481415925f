"""The vanishing gradient of some cells, measured: `python flow.py`."""

from pathlib import Path

from absl import flags

from lstm_jax import command_line, devices, flow_comparison
from lstm_jax.compilation import keep_compiled
from lstm_jax.config import check_config
from lstm_jax.data.files import local_path
from lstm_jax.errors import UserError

CHECKOUT = Path(__file__).parent
CONFIG = command_line.define_config(default=CHECKOUT / "configs" / "gradient_flow.py")
flags.adopt_module_key_flags(command_line)  # --help lists --config as well
WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of the picture, the numbers and a run each cell. Default: "
    "checkpoints/<name of the config>_cells.",
)


def main() -> None:
    """Trains each cell, and prints what is left of a gradient at some lags."""
    name = command_line.config_path().stem
    workdir = CHECKOUT / "checkpoints" / f"{name}_cells"
    if WORKDIR.value is not None:
        workdir = local_path(WORKDIR.value)
    changed = command_line.changed_fields()
    if "model.cell" in changed:
        raise UserError(
            "--config.model.cell is nothing for flow.py, whose cells are those of "
            "lstm_jax/flow_comparison.py; another cell: train.py with "
            "--config.report.flow_every, or lstm_jax.flow.measure"
        )
    if {"sweep.seeds", "sweep.learning_rates"} & {*changed}:
        raise UserError(flow_comparison.NO_SWEEP)
    check_config(CONFIG.value)
    devices.use_cpus(CONFIG.value.devices.count, CONFIG.value.batch_size)
    keep_compiled()
    found = flow_comparison.compare(CONFIG.value, workdir)
    print(flow_comparison.table(found))
    print(f"the picture is in {workdir / 'gradient_flow.png'}")


if __name__ == "__main__":
    command_line.run(main)

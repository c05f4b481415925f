"""Which devices a run uses: the batch is divided over them."""

import os
import platform
import sys
from pathlib import Path
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from lstm_jax import processes
from lstm_jax.errors import UserError
from lstm_jax.sharding import PARAMS, ROWS

# Fewer rows leave a core's vector units idle in a step's product.
LEAST_ROWS = 16

_CGROUP = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def allowed_cpus(cgroup: Path = _CGROUP, own: Path = _OWN_CGROUP) -> int:
    """CPUs that this process may use: its affinity and its cgroup's share of time.

    Args:
      cgroup: where the tree of cgroups is.
      own: the file that says where in it this process is.
    """
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    quotas = [_quota(folder) for folder in _cgroups(cgroup, own)]
    return max(1, min([count, *(int(quota) for quota in quotas if quota is not None)]))


def processor() -> str:
    """The name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(": ")[1] for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _cgroups(root: Path, own: Path) -> list[Path]:
    """Folders whose quota holds for this process: its own and those above."""
    try:
        # "0::/path", and of version 1 "4:cpu,cpuacct:/path".
        lines = [line.split(":", 2)[1:] for line in own.read_text().splitlines()]
    except OSError:
        lines = []
    found = [root, root / "cpu"]
    for controllers, path in lines:
        if not controllers or "cpu" in controllers.split(","):
            top = root / "cpu" if controllers else root
            place = top / path.lstrip("/")
            found += [place, *(p for p in place.parents if p.is_relative_to(top))]
    return list(dict.fromkeys(found))


def _quota(cgroup: Path) -> float | None:
    """CPUs' time a second that a cgroup, of version 2 or 1, has; None: all."""
    try:
        try:
            quota, period = (cgroup / "cpu.max").read_text().split()
        except FileNotFoundError:
            quota = (cgroup / "cpu.cfs_quota_us").read_text()
            period = (cgroup / "cpu.cfs_period_us").read_text()
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError):  # no cgroups, or "max"
        return None


def automatic_count(batch_size: int, available: int) -> int:
    """The most devices that divide a batch evenly and have `LEAST_ROWS` each, or 1."""
    counts = range(1, min(available, batch_size // LEAST_ROWS) + 1)
    return max((n for n in counts if batch_size % n == 0), default=1)


def use_cpus(count: int, batch_size: int) -> None:
    """Makes the processor that many devices, 0: as many as `automatic_count` takes.

    To be called before jax computes. Each of several processes makes its share of
    them, by default one.

    What a user has set (`JAX_NUM_CPU_DEVICES`, `XLA_FLAGS`) stays.

    Raises:
      UserError: as of `all_devices`.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    untouched = "xla_force_host_platform_device_count" not in flags
    config: Any = jax.config  # whose options have no types
    if config.jax_num_cpu_devices < 1 and untouched:
        if processes.several():
            count = max(count // processes.count(), 1)
        count = count or automatic_count(batch_size, allowed_cpus())
        jax.config.update("jax_num_cpu_devices", count)
    all_devices()


def all_devices() -> list[Any]:
    """Return jax's devices.

    Raises:
      UserError: there are none of the platforms that `JAX_PLATFORMS` names.
    """
    config: Any = jax.config  # whose options have no types
    try:
        return jax.devices()
    except (AssertionError, RuntimeError) as error:  # as jax raises them for it
        platforms = config.jax_platforms
        if not platforms:
            raise
        reason = str(error).split(" (set JAX_PLATFORMS", maxsplit=1)[0].rstrip(".")
        raise UserError(
            f"JAX_PLATFORMS={platforms}, and jax finds no such devices"
            f"{reason and f' ({reason[:200]})'}: unset it, set it to cpu, or install "
            "jax for these devices"
        ) from None


def make_mesh(count: int, batch_size: int, stored: int = 0, fsdp: bool = False) -> Mesh:
    """The devices of a run; its batch is divided over them.

    Args:
      count: of devices; 0: as many as the run was on before, or else as many as there
        are and `automatic_count` takes.
      batch_size: rows of a batch.
      stored: the devices that the run was on before; 0: it begins. Where there are not
        so many now, a line on stderr says so.
      fsdp: whether the parameters are divided as well, see
        `lstm_jax.sharding`.

    Raises:
      UserError: there are not so many, or they do not divide the batch.
    """
    devices = all_devices()
    if jax.process_count() > 1:
        # What is left out would be some process's all.
        if count not in (0, len(devices)) or batch_size % len(devices):
            raise UserError(
                f"{jax.process_count()} processes have {len(devices)} devices, and "
                f"devices.count={count} and batch_size={batch_size}: leave the count "
                "at 0, and take a batch that the number of devices divides"
            )
        if stored not in (0, len(devices)):
            _warn_of_others(stored)
        count = len(devices)
    if count < 0 or batch_size % (count or 1):
        raise UserError(
            f"devices.count={count} must divide batch_size={batch_size} (0: as many "
            "as do)"
        )
    if count > len(devices):
        raise UserError(
            f"devices.count={count} and there are {len(devices)}: ask for fewer, or "
            "0 for as many as there are"
        )
    if not count and stored:
        count = stored if stored <= len(devices) and batch_size % stored == 0 else 0
        if not count:
            _warn_of_others(stored)
    count = count or automatic_count(batch_size, len(devices))
    return _mesh(devices[:count], fsdp)


def _mesh(devices: list[Any], fsdp: bool = False) -> Mesh:
    axes = {ROWS: len(devices)} | ({PARAMS: 1} if fsdp else {})
    return jax.make_mesh(
        tuple(axes.values()),
        tuple(axes),
        axis_types=(AxisType.Auto,) * len(axes),
        devices=devices,
    )


def _warn_of_others(stored: int) -> None:
    if not processes.leads():
        return
    print(
        f"this run was on {stored} devices and goes on with others: the same up to "
        "rounding",
        file=sys.stderr,
    )


def own_mesh(batch_size: int) -> Mesh:
    """Devices of this process alone, to answer with what all have trained."""
    mesh = jax.sharding.get_mesh()
    if jax.process_count() == 1:
        return mesh
    devices = jax.local_devices()
    return _mesh(devices[: automatic_count(batch_size, len(devices))])


def one_device() -> Mesh:
    """A device of this process alone."""
    return _mesh(jax.local_devices()[:1])

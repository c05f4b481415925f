"""What a benchmark found: as tables in markdown, as JSON, as pictures."""

import datetime
import importlib.metadata
import json
from pathlib import Path
from typing import Any

from lstm_jax.devices import allowed_cpus, processor

Row = dict[str, Any]

# Okabe and Ito's palette, which the colour-blind can tell apart.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def about() -> dict[str, Any]:
    """The date, the machine, and the versions of what is compared."""
    import jax

    versions = {}
    packages = ("jax", "flax", "torch", "keras", "tensorflow", "tensorflow-cpu")
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    device = jax.devices()[0]
    machine = f"{processor()}, {allowed_cpus()} cores"
    return {
        "date": datetime.date.today().isoformat(),
        "machine": machine if device.platform == "cpu" else device.device_kind,
        "versions": versions,
    }


def write(
    folder: Path, name: str, found: dict[str, Any], text: str, png: bytes = b""
) -> None:
    """Writes NAME.md, NAME.json and, of a benchmark with a picture, NAME.png."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(text)
    (folder / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    if png:
        (folder / f"{name}.png").write_bytes(png)


def heading(found: dict[str, Any]) -> str:
    """A line on where and when; `peaks` are of a large product, all that were timed."""
    versions = ", ".join(f"{k} {v}" for k, v in found["versions"].items())
    ends = min(found["peaks"]), max(found["peaks"])
    peak = " to ".join(dict.fromkeys(f"{end / 1e9:.0f}" for end in ends))
    return (
        f"{found['date']}, {found['machine']}; {versions}; a large float32 product "
        f"runs at {peak} GFLOP/s; medians of {found['rounds']} rounds.\n"
    )

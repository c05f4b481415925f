"""How the cost of a layer grows: `python -m benchmarks.scaling`.

One LSTM layer as wide as its inputs, forward and backward, on all devices that the
batch divides over; steps, rows and units are varied one at a time. The floor is what
its operations take at the speed of a large product, measured in the same run. Beside
the time stand what the compiler needs for the program, and the memory it needs.
"""

import argparse
import io
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import lstm_jax as lj
from benchmarks import report
from benchmarks.report import Row
from lstm_jax import devices, explain, sharding
from lstm_jax.pictures import make_figure

BASE = {"steps": 128, "rows": 64, "units": 128}
VARIED = {
    "steps": (16, 32, 64, 128, 256, 512, 1024),
    "rows": (1, 4, 16, 64, 256, 1024),
    "units": (16, 32, 64, 128, 256, 512, 1024),
}


def measure(size: dict[str, int], peak: float) -> Row:
    """Seconds of a forward pass and of a training step's, and what they need."""
    rows, steps, units = size["rows"], size["steps"], size["units"]
    cell = lj.lstm(units)

    def forward(params: Any, xs: Any) -> Any:
        return lj.unroll(cell, params, xs)[1]

    def training(params: Any, xs: Any) -> Any:
        ys, pull = jax.vjp(forward, params, xs)
        return pull(ys)

    operations = 2 * 4 * units * (2 * units) * rows * steps
    row: Row = {**size}
    with jax.set_mesh(devices.make_mesh(0, rows)):
        params = sharding.put(cell.init(jax.random.key(0), units))
        xs = jax.random.normal(jax.random.key(1), (rows, steps, units), jnp.float32)
        arguments = (params, sharding.put_rows(xs))
        for name, program, times in (
            ("forward", forward, 1),
            ("training", training, 3),
        ):
            begun = time.perf_counter()
            compiled = jax.jit(program).lower(*arguments).compile()
            row[f"{name} compile s"] = time.perf_counter() - begun
            row[f"{name} ms"] = 1000 * explain.measure(compiled, arguments)
            row[f"{name} floor ms"] = 1000 * times * operations / peak
            memory: Any = compiled.memory_analysis()
            needed = memory.temp_size_in_bytes + memory.output_size_in_bytes
            row[f"{name} MB"] = needed / 1e6
    return row


def table(rows: list[Row]) -> str:
    """A table in markdown."""
    names = [name for name in rows[0] if name != "varied"]
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    for row in rows:
        shown = (
            f"{row[name]:.3g}" if isinstance(row[name], float) else str(row[name])
            for name in names
        )
        lines.append(f"| {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def plot(rows: list[Row]) -> bytes:
    """Time over size on logarithmic axes, a panel each size, beside the floor."""
    figure = make_figure(12, 4)
    panels = figure.subplots(1, len(VARIED), sharey=True)
    for panel, varied in zip(panels, VARIED, strict=True):
        points = [row for row in rows if row["varied"] == varied]
        sizes = [row[varied] for row in points]
        for color, name in zip(report.COLORS, ("training", "forward"), strict=False):
            for column, style, label in (
                ("ms", "o-", name),
                ("floor ms", ":", f"{name}, floor"),
            ):
                values = [row[f"{name} {column}"] for row in points]
                panel.loglog(
                    sizes, values, style, color=color, label=label, markersize=4
                )
        others = ", ".join(
            f"{BASE[other]} {other}" for other in BASE if other != varied
        )
        panel.set_xlabel(f"{varied} ({others})")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("milliseconds")
    panels[0].legend(frameon=False)
    png = io.BytesIO()
    figure.savefig(png, dpi=120)
    return png.getvalue()


def main() -> None:
    """Prints the table's rows as they are measured; then writes table and plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmark_results"))
    options = parser.parse_args()
    devices.use_cpus(0, devices.allowed_cpus() * devices.LEAST_ROWS)
    with jax.set_mesh(devices.make_mesh(0, 2**16)):
        peak = explain.product_peak()
    found: dict[str, Any] = {**report.about(), "rounds": 5, "peaks": [peak]}
    rows = found["rows"] = []
    for varied, sizes in VARIED.items():
        for size in sizes:
            rows.append({"varied": varied, **measure({**BASE, varied: size}, peak)})
            lines = table(rows[-1:]).splitlines()
            print(*(lines if len(rows) == 1 else lines[-1:]), sep="\n", flush=True)
    text = f"{report.heading(found)}\n{table(rows)}"
    report.write(options.out, "scaling", found, text, plot(rows))


if __name__ == "__main__":
    main()

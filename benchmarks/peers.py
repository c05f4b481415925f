"""Times this project against its peers: `python -m benchmarks.peers`.

One worker process a candidate, all started and warmed first; then a step of each in
turn, so that a machine whose speed drifts slows all of them alike. A ratio is the
median over rounds of (candidate / fastest peer in the same round); the fastest peer is
the one with the least median. The share is that of a large float32 product's speed,
measured in the same run: operations of the layers over that speed, over the step's
time. A candidate that is not installed is left out, with a line that says so. Where jax
and PyTorch see a GPU, they are compared there.
"""

import argparse
import importlib
import io
import multiprocessing
import os
import random
import sys
import time
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np

from benchmarks import report
from benchmarks.report import Row
from benchmarks.work import WORKS, Work, operations
from lstm_jax import explain
from lstm_jax.devices import allowed_cpus
from lstm_jax.pictures import make_figure

STEPS = ("training step", "forward")


class Candidate(NamedTuple):
    """A worker: its module in `benchmarks.candidates`, and how it is started."""

    module: str
    package: str
    devices: int | None = None
    environment: tuple[tuple[str, str], ...] = ()


def candidates(cpus: int) -> dict[str, Candidate]:
    """By name; those that can divide a batch over processors do so as well."""
    many = ("JAX_NUM_CPU_DEVICES", str(cpus))
    on_tensorflow = ("KERAS_BACKEND", "tensorflow")
    on_jax = ("KERAS_BACKEND", "jax")
    found = {
        "lstm_jax": Candidate("with_lstm_jax", "jax"),
        "PyTorch": Candidate("with_torch", "torch"),
        "Keras, TensorFlow": Candidate("with_keras", "tensorflow", 1, (on_tensorflow,)),
        "Keras, JAX": Candidate("with_keras", "keras", 1, (on_jax,)),
        "Flax": Candidate("with_flax", "flax", 1),
    }
    if cpus > 1:
        found |= {
            "lstm_jax, 1 device": Candidate("with_lstm_jax", "jax", 1),
            f"Keras, JAX, {cpus} devices": Candidate(
                "with_keras", "keras", cpus, (on_jax, many)
            ),
            f"Flax, {cpus} devices": Candidate("with_flax", "flax", cpus, (many,)),
        }
    return found


def work_on(candidate: Candidate, work: Work, pipe: Connection) -> None:
    """A worker: runs a step when told to, and answers its seconds."""
    warnings.simplefilter("ignore")
    try:
        module = importlib.import_module(f"benchmarks.candidates.{candidate.module}")
        steps = module.make(work, candidate.devices)
        for step in steps.values():
            step()
            step()
    except Exception as error:  # a peer that cannot do this work is no failure
        first = (str(error).splitlines() or [""])[0]
        pipe.send(f"{type(error).__name__}: {first[:100]}")
        return
    pipe.send("")
    while (which := pipe.recv()) is not None:
        begun = time.perf_counter()
        steps[which]()
        pipe.send((time.perf_counter() - begun) / work.steps)


def measure(
    chosen: dict[str, Candidate], work: Work, rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Seconds a step of each candidate, a list over rounds each, by kind of step."""
    spawn = multiprocessing.get_context("spawn")
    started = []
    for name, candidate in chosen.items():
        ours, theirs = spawn.Pipe()
        worker = spawn.Process(target=work_on, args=(candidate, work, theirs))
        # Before the worker imports anything.
        with mock.patch.dict(os.environ, dict(candidate.environment)):
            worker.start()
        theirs.close()  # or a worker that dies would be waited for
        started.append((name, ours, worker))
    pipes = {}
    for name, pipe, _ in started:
        try:
            problem = pipe.recv()
        except EOFError:
            problem = "it died"
        if problem:
            print(f"{name} is left out ({problem})", file=sys.stderr)
        else:
            pipes[name] = pipe
    seconds: dict[str, dict[str, list[float]]] = {}
    for which in STEPS:
        times = seconds[which] = {name: [] for name in pipes}
        for i in range(rounds):
            # In another order each time: nobody always follows the same one.
            for name in random.Random(i).sample(list(pipes), len(pipes)):
                pipes[name].send(which)
                times[name].append(pipes[name].recv())
    for name, pipe, worker in started:
        if name in pipes:
            pipe.send(None)
        worker.join()
    return seconds


def compare(
    name: str, work: Work, seconds: dict[str, dict[str, list[float]]], peak: float
) -> list[Row]:
    """Rows of the table for one work."""
    rows = []
    for which, times in seconds.items():
        if not times:
            continue
        medians = {name: float(np.median(values)) for name, values in times.items()}
        peers = {k: v for k, v in medians.items() if not k.startswith("lstm_jax")}
        fastest = min(peers, key=peers.__getitem__) if peers else next(iter(medians))
        floor = operations(work, training=which != "forward") / peak
        for candidate, values in times.items():
            ratio = np.median(np.divide(values, times[fastest]))
            rows.append(
                {
                    "work": name,
                    "step": which,
                    "candidate": candidate,
                    "ms": 1000 * medians[candidate],
                    "ratio": float(ratio),
                    "peak": peak,
                    "share": floor / medians[candidate],
                    "fastest peer": candidate == fastest,
                }
            )
    return rows


def table(rows: list[Row]) -> str:
    """Tables in markdown, one a work."""
    parts = []
    for work in dict.fromkeys(row["work"] for row in rows):
        parts.append(f"### {work}\n")
        parts.append("| step | candidate | ms | ratio | share of peak |")
        parts.append("|---|---|---|---|---|")
        parts += [
            "| {step} | {candidate} | {ms:.3g} | {ratio:.2f} | {share:.0%} |".format(
                **row
            )
            for row in rows
            if row["work"] == work
        ]
        parts.append("")
    return "\n".join(parts)


def chart(rows: list[Row]) -> bytes:
    """Bars of the ratios: a panel each kind of step, a group each work."""
    works = list(dict.fromkeys(row["work"] for row in rows))
    names = list(dict.fromkeys(row["candidate"] for row in rows))
    figure = make_figure(2 + 1.7 * len(works), 7)
    panels = figure.subplots(len(STEPS), squeeze=False)[:, 0]
    for panel, which in zip(panels, STEPS, strict=True):
        for i, name in enumerate(names):
            ratios = {
                row["work"]: row["ratio"]
                for row in rows
                if row["candidate"] == name and row["step"] == which
            }
            places = [works.index(work) + 0.8 * i / len(names) for work in ratios]
            # No other candidate has our colour.
            others = report.COLORS[1:]
            ours = name.startswith("lstm_jax")
            color = report.COLORS[0] if ours else others[i % len(others)]
            width = 0.8 / len(names)
            hatch = "//" if "device" in name else None
            panel.bar(
                places,
                list(ratios.values()),
                width,
                color=color,
                label=name,
                hatch=hatch,
            )
        panel.axhline(1, color="black", linewidth=0.8)
        panel.set_xticks([i + 0.35 for i in range(len(works))], works)
        panel.set_yscale("log", base=2)
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        panel.set_ylabel(f"{which}: time / fastest peer's")
        panel.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
    png = io.BytesIO()
    figure.savefig(png, dpi=120)
    return png.getvalue()


def main() -> None:
    """Prints and writes tables and the chart as they are measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    works = ", ".join(WORKS)
    parser.add_argument(
        "--works", nargs="+", default=list(WORKS), help=f"starts of these: {works}"
    )
    names = list(candidates(max(2, allowed_cpus())))
    parser.add_argument("--candidates", nargs="+", choices=names, help="default: all")
    parser.add_argument("--out", type=Path, default=Path("benchmark_results"))
    options = parser.parse_args()
    if not any(name.startswith(tuple(options.works)) for name in WORKS):
        parser.error(f"--works: {' '.join(options.works)}: none of {works}")
    # The parent's and the workers' programs share a GPU's memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    cpus = allowed_cpus() if jax.default_backend() == "cpu" else 1
    known = candidates(cpus)
    chosen = {k: v for k, v in known.items() if k in (options.candidates or known)}
    found: dict[str, Any] = {**report.about(), "rounds": options.rounds, "peaks": []}
    rows = found["rows"] = []
    for name, work in WORKS.items():
        if not any(name.startswith(start) for start in options.works):
            continue
        # Beside each work: a machine's speed drifts.
        peak = explain.product_peak()
        found["peaks"].append(peak)
        seconds = measure(chosen, work, options.rounds)
        rows += compare(name, work, seconds, peak)
        print(table([row for row in rows if row["work"] == name]), flush=True)
        text = f"{report.heading(found)}\n{table(rows)}"
        report.write(options.out, "peers", found, text, chart(rows))


if __name__ == "__main__":
    main()

"""What a cell costs beside others: time and memory of a layer."""

import time
from typing import Any, NamedTuple

import jax
import numpy as np

from lstm_jax import explain, sharding
from lstm_jax.cells import Cell

BATCH, TIME, FEATURES, HIDDEN = 128, 200, 32, 96
ROUNDS = 7


class Cost(NamedTuple):
    """Of a layer of `HIDDEN` units on a batch of `BATCH` rows and `TIME` steps.

    Attributes:
      parameters: how many.
      path: which implementation runs it, and why.
      layout: how its loops are laid out, and why; "": they are not fused.
      fast: jax differentiates through no loop of it.
      forward: ms of a forward pass.
      training: ms of a forward and a backward pass.
      forward_ratio: of lstm's, in turn.
      training_ratio: of lstm's, in turn.
      autodiff_ratio: of training where jax differentiates through the loop, of the
        cell's own training; None of a cell that is not fused, or has a sequence
        function of its own, which need not have that loop.
      saved: MB that the forward pass keeps for the backward pass, on all devices.
      peak: MB of temporary arrays of training, on all devices.
    """

    parameters: int
    path: str
    layout: str
    fast: bool
    forward: float
    training: float
    forward_ratio: float
    training_ratio: float
    autodiff_ratio: float | None
    saved: float
    peak: float


def measure(cells: dict[str, Cell], features: int = FEATURES) -> dict[str, Cost]:
    """The cost of each cell, on the devices of the context, in turn.

    Args:
      cells: by name; "lstm" among them.
      features: D of the inputs.
    """
    calls = {
        name: explain.Call(
            name, cell, BATCH, TIME, features, noisy=cell.noise is not None
        )
        for name, cell in cells.items()
    }
    seconds: dict[tuple[str, str], list[float]] = {}
    runs, known = {}, {}
    for name, call in calls.items():
        forward, training, saved = explain.programs(call)
        programs = {"forward": forward, "training": training}
        if call.cell.unroll is None and call.cell.fused is not None:
            plain = call._replace(implementation="autodiff")
            programs["autodiff"] = explain.programs(plain)[1]
        arguments = explain.arguments_of(call)
        for which, program in programs.items():
            compiled = jax.jit(program).lower(*arguments).compile()
            jax.block_until_ready(compiled(*arguments))
            runs[name, which] = compiled, arguments
        memory: Any = runs[name, "training"][0].memory_analysis()
        count = sum(leaf.size for leaf in jax.tree.leaves(arguments[0]))
        # XLA tells of one device, though the program is of all.
        peak = memory.temp_size_in_bytes * sharding.shards(BATCH)
        known[name] = count, explain.path(call), saved, peak
    for _ in range(ROUNDS):
        for key, (compiled, arguments) in runs.items():
            begun = time.perf_counter()
            jax.block_until_ready(compiled(*arguments))
            seconds.setdefault(key, []).append(time.perf_counter() - begun)

    def ratio(one: tuple[str, str], other: tuple[str, str]) -> float:
        return float(np.median(np.divide(seconds[one], seconds[other])))

    def of_autodiff(name: str) -> float | None:
        key = name, "autodiff"
        return ratio(key, (name, "training")) if key in seconds else None

    paths = {name: known[name][1].text.partition("\n") for name in cells}
    return {
        name: Cost(
            parameters=known[name][0],
            path=paths[name][0],
            layout=paths[name][2].strip().removeprefix("layout").strip(),
            fast=known[name][1].fast,
            forward=1000 * float(np.median(seconds[name, "forward"])),
            training=1000 * float(np.median(seconds[name, "training"])),
            forward_ratio=ratio((name, "forward"), ("lstm", "forward")),
            training_ratio=ratio((name, "training"), ("lstm", "training")),
            autodiff_ratio=of_autodiff(name),
            saved=known[name][2] / 1e6,
            peak=known[name][3] / 1e6,
        )
        for name in cells
    }

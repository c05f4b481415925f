"""A certificate as Markdown and as JSON."""

import datetime
import itertools
import json
import math
import platform
from collections.abc import Sequence
from importlib import metadata

import jax
import numpy as np

from lstm_jax.certify.cases import Case
from lstm_jax.certify.compare import EPSILONS, STEPS, Result, tolerance
from lstm_jax.certify.peer import RATE, Peer

HERE = {"lstm": "i f g o", "gru": "r z n", "gru(reset_after=False)": "r z n"}


def as_json(peer: Peer, results: Sequence[Result], today: datetime.date) -> str:
    """All results, with the versions."""
    return (
        json.dumps(
            {
                "against": peer.title,
                "date": today.isoformat(),
                "versions": versions(peer),
                "device": _device(),
                "passed": all(result.passed for result in results),
                "gate_orders": dict(peer.gate_orders),
                "results": [
                    {
                        **result.case._asdict(),
                        "shape": result.case.shape._asdict(),
                        "what": result.what,
                        "absolute": _number(result.error.absolute),
                        "relative": _number(result.error.relative),
                        "array": result.error.array,
                        "tolerance": result.tolerance,
                        "passed": result.passed,
                    }
                    for result in results
                ],
            },
            indent=1,
        )
        + "\n"
    )


def as_markdown(peer: Peer, results: Sequence[Result], today: datetime.date) -> str:
    """The largest errors of each kind, then those of each case."""
    failed = [result for result in results if not result.passed]
    verdict = "all within their tolerance" if not failed else f"{len(failed)} FAILED"
    used = ", ".join(f"{name} {number}" for name, number in versions(peer).items())
    kinds = list(dict.fromkeys(result.what for result in results))
    lines = [
        f"# lstm_jax against {peer.title}",
        "",
        f"{today.isoformat()}: {len(results)} comparisons, {verdict}. With {used}, "
        f"on {_device()}.",
        "",
        "Both sides run the same random weights, inputs and initial states. *Forward* "
        "compares outputs and final states; *gradient* the gradients of a weighted sum "
        "of these, its mean over the rows, by inputs, initial states and every weight; "
        "an optimizer's name, of masked rows in every direction, the way of all "
        f"weights in {STEPS} steps with a learning rate of {RATE:g}, gradients anew at "
        "each. The error is the largest difference of two arrays' entries, relative to "
        "the largest entry of the array. It passes up to "
        f"{EPSILONS} times the type's epsilon: {tolerance('float64'):.2g} in float64, "
        f"{tolerance('float32'):.2g} in float32.",
        "",
        *[f"- {note}" for note in peer.notes],
        "",
        "## Largest errors",
        "",
        "| type | what | absolute | relative | of |",
        "|---|---|---|---|---|",
    ]
    for dtype, what in itertools.product(("float64", "float32"), kinds):
        mine = [r for r in results if (r.case.dtype, r.what) == (dtype, what)]
        if not mine:
            continue
        worst = max(mine, key=lambda r: r.error.relative)
        error, case = worst.error, worst.case
        lines.append(
            f"| {dtype} | {what} | {error.absolute:.1e} | {error.relative:.1e} | "
            f"{case.cell}, {case.mode}: {error.array} |"
        )
    lines += ["", "## Gates", "", "| cell | here | there |", "|---|---|---|"]
    for cell, order in peer.gate_orders.items():
        lines.append(f"| {cell} | {HERE.get(cell, '-')} | {order} |")
    lines += [
        "",
        "## Cases",
        "",
        "Relative errors. A shape is rows x steps x inputs x units.",
        "",
        f"| type | shape | cell | mode | {' | '.join(kinds)} | |",
        f"|{'---|' * (5 + len(kinds))}",
    ]
    for case, group in itertools.groupby(results, key=lambda r: r.case):
        found = {result.what: result for result in group}
        errors = [
            f"{found[kind].error.relative:.1e}" if kind in found else ""
            for kind in kinds
        ]
        passed = all(result.passed for result in found.values())
        lines.append(
            f"| {case.dtype} | {_shape(case)} | {case.cell} | {case.mode} | "
            f"{' | '.join(errors)} | {'' if passed else 'FAILED'} |"
        )
    return "\n".join(lines) + "\n"


def versions(peer: Peer) -> dict[str, str]:
    """Of all that takes part."""
    return {
        "lstm_jax": metadata.version("lstm_jax"),
        **peer.versions(),
        "jax": jax.__version__,
        "numpy": np.__version__,
        "Python": platform.python_version(),
    }


def _device() -> str:
    """What jax computes on; the other library may compute on the processor."""
    backend, kind = jax.default_backend(), jax.devices()[0].device_kind
    return backend if kind == backend else f"{backend} ({kind})"


def _number(error: float) -> float | None:
    """JSON has no infinity."""
    return error if math.isfinite(error) else None


def _shape(case: Case) -> str:
    return "x".join(str(size) for size in case.shape)

"""Writes what other libraries compute, which test_parity.py compares with.

Run by hand where the library is installed; the tests read only the files:

    python tests/golden/make_parity.py torch keras flax

One file a library, parity_<library>.safetensors: under `<number of the case>/` the
arrays of `lstm_jax.certify.cases.Problem`, the values, the gradients, and under
`steps/` the weights after steps of the optimizers. The metadata have the versions and,
as JSON, the cases. TensorFlow 1's is written by make_tf1.py.
"""

import importlib
import json
import pathlib
import sys

import jax
import safetensors.numpy

from lstm_jax.certify.cases import Case, Shape, draw
from lstm_jax.certify.compare import trained_by
from lstm_jax.certify.peer import Peer

SHAPE = Shape(3, 5, 2, 3)


def write(peer: Peer) -> None:
    """Writes the golden file of a library."""
    cases, arrays = [], {}
    for cell in peer.cells:
        case = Case(cell, "float64", SHAPE, masked=True)
        cases.append(case._replace(reverse=True))
        layers = peer.layers if cell == "lstm" else 1
        cases.append(case._replace(bidirectional=True, layers=layers))
    for number, case in enumerate(cases):
        problem = draw(case, peer.library)
        values, gradients = peer.run(case, problem)
        groups = {
            "weights": problem.weights,
            "inputs": problem.inputs,
            "factors": problem.factors,
            "values": values,
            "gradients": gradients,
        }
        if case.cell in ("lstm", "gru") and case.reverse:
            for name in peer.optimizers():
                groups[f"steps/{name}"] = trained_by(case, peer, problem, name)
        arrays[f"{number}/lengths"] = problem.lengths
        for group, found in groups.items():
            arrays |= {f"{number}/{group}/{name}": a for name, a in found.items()}
    metadata = {
        "versions": json.dumps(peer.versions()),
        "cases": json.dumps([case._asdict() for case in cases]),
    }
    path = pathlib.Path(__file__).parent / f"parity_{peer.library}.safetensors"
    path.write_bytes(safetensors.numpy.save(arrays, metadata))
    print(path, path.stat().st_size)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    for library in sys.argv[1:]:
        write(importlib.import_module(f"lstm_jax.certify.against_{library}").PEER)

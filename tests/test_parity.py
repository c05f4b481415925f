"""Values, gradients and steps equal other libraries' (tests/golden has their numbers).

`python -m lstm_jax.certify` compares with the libraries themselves, on more cases.
"""

import datetime
import functools
import importlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import safetensors

from lstm_jax.certify import against_tf1, compare, ours
from lstm_jax.certify.cases import SHAPES, Arrays, Case, Problem, Shape, cases, draw
from lstm_jax.certify.compare import Error, Result, difference, steps_apart
from lstm_jax.certify.peer import Peer
from lstm_jax.certify.report import as_json, as_markdown

pytestmark = pytest.mark.usefixtures("x64")

GOLDEN = Path(__file__).parent / "golden"
LIBRARIES = ("torch", "keras", "flax", "tf1")
TOLERANCE = 1e-12  # relative to the largest entry


class Golden(NamedTuple):
    """What a library computed in a case."""

    case: Case
    problem: Problem
    values: Arrays
    gradients: Arrays
    steps: dict[str, Arrays]


@functools.cache
def read(library: str) -> tuple[Golden, ...]:
    """All cases of a golden file."""
    path = GOLDEN / f"parity_{library}.safetensors"
    with safetensors.safe_open(path, "numpy") as opened:
        fields = json.loads(opened.metadata()["cases"])
        arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118

    def group(start: str) -> Arrays:
        return {
            name.removeprefix(start): array
            for name, array in arrays.items()
            if name.startswith(start)
        }

    found = []
    for number, field in enumerate(fields):
        case = Case(**field | {"shape": Shape(*field["shape"])})
        weights, inputs, factors, values, gradients = (
            group(f"{number}/{name}/")
            for name in ("weights", "inputs", "factors", "values", "gradients")
        )
        problem = Problem(weights, inputs, arrays[f"{number}/lengths"], factors)
        steps = {}
        for name in ("SGD", "Adam", "RMSprop"):
            if after := group(f"{number}/steps/{name}/"):
                steps[name] = after
        found.append(Golden(case, problem, values, gradients, steps))
    return tuple(found)


def peer_of(library: str) -> Peer:
    return importlib.import_module(f"lstm_jax.certify.against_{library}").PEER


@pytest.mark.parametrize("library", LIBRARIES)
def test_values_and_gradients_equal_the_librarys(library: str) -> None:
    seen = set()
    for golden in read(library):
        values, gradients = ours.run(golden.case, library, golden.problem)
        for actual, expected in (
            (values, golden.values),
            (gradients, golden.gradients),
        ):
            error = difference(actual, expected)
            assert error.relative < TOLERANCE, (golden.case, error)
        seen.add(golden.case.cell)
    assert seen == set(peer_of(library).cells)


@pytest.mark.parametrize("library", LIBRARIES)
def test_steps_of_the_optimizers_equal_the_librarys(library: str) -> None:
    optimizers = peer_of(library).optimizers()
    seen = set()
    for case, problem, _, _, steps in read(library):
        for name, after in steps.items():
            error = steps_apart(case, library, problem, optimizers[name].ours, after)
            assert error.relative < TOLERANCE, (case, name, error)
            seen.add((case.cell, name))
    cells = {"lstm", "gru"} & set(peer_of(library).cells)
    assert seen == set(itertools.product(cells, ("SGD", "Adam", "RMSprop")))


@pytest.mark.slow
def test_definitions_of_tensorflow_1_are_its_codes() -> None:
    """The certificate has the definitions, the golden file what the code gives."""
    peer = against_tf1.PEER
    for golden in read("tf1"):
        values, gradients = peer.run(golden.case, golden.problem)
        assert difference(values, golden.values).relative < TOLERANCE
        assert difference(gradients, golden.gradients).relative < TOLERANCE
        for name, after in golden.steps.items():
            found = compare.trained_by(golden.case, peer, golden.problem, name)
            assert difference(found, after).relative < TOLERANCE


def wrong(peer: Peer, **changed: Any) -> Peer:
    return peer._replace(cells=("simple_rnn",), **changed)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Certificates of one case."""

    def one(cells: Any, layers: int) -> Iterator[Case]:
        del layers
        yield Case(cells[0], "float64", SHAPES[0], masked=True, reverse=True)

    monkeypatch.setattr(compare, "cases", one)


@pytest.mark.usefixtures("few")
def test_certificates_tell_rounding_from_errors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    day = datetime.date(2026, 1, 2)
    peer = wrong(against_tf1.PEER)
    found = list(compare.results(peer))
    assert [r.what for r in found] == ["forward", "gradient", "SGD", "Adam", "RMSprop"]
    assert all(result.passed for result in found)
    assert 0 < found[1].error.relative < 1e-13
    assert "5 comparisons, all within" in as_markdown(peer, found, day)
    assert json.loads(as_json(peer, found, day))["passed"]

    def slightly_off(case: Case, problem: Problem) -> tuple[Arrays, Arrays]:
        values, gradients = against_tf1.run(case, problem)
        last = gradients["initial_h"].copy()
        last[0, 0, 0] += 1e-9
        return values, gradients | {"initial_h": last}

    found = list(compare.results(wrong(peer, run=slightly_off)))
    assert [result.passed for result in found] == [True, False, True, True, True]
    assert found[1].error.array == "initial_h"
    assert found[1].error.absolute == pytest.approx(1e-9, rel=1e-5)
    assert "5 comparisons, 1 FAILED" in as_markdown(peer, found, day)
    assert not json.loads(as_json(peer, found, day))["passed"]


def test_what_is_not_a_number_passes_nowhere() -> None:
    case = Case("lstm", "float64", SHAPES[0])
    some = {"a": np.array([1.0, 4.0]), "b": np.array([0.0, 90.0])}
    error = difference({"a": np.array([1.0, 5.0]), "b": np.array([9.0, 90.0])}, some)
    assert error == Error(1.0, 0.25, "a")  # both of one array
    both = [Result(case, "forward", e, 1.0) for e in (error, Error(9.0, 0.1, "b"))]
    day = datetime.date(2026, 1, 2)
    assert (
        "| float64 | forward | 1.0e+00 | 2.5e-01 | lstm, plain: a |\n"
        in as_markdown(against_tf1.PEER, both, day)
    )
    for bad in (np.nan, np.inf):
        for a, b in ((bad, 1.0), (1.0, bad), (bad, bad)):
            arrays = ({"a": np.array([x]), "b": np.ones(1)} for x in (a, b))
            error = difference(*arrays)
            assert error.relative == np.inf
            assert not Result(case, "forward", error, 1.0).passed
    for other in (
        {"a": some["a"]},
        some | {"b": np.zeros(3)},
        some | {"b": np.zeros(2, np.float32)},
    ):
        with pytest.raises(ValueError, match="compared with"):
            difference(other, some)


def test_every_mode_of_every_cell_is_compared() -> None:
    every = list(cases(("lstm", "gru"), 2))
    assert len(set(every)) == len(every) == 2 * 2 * (8 + 2 + 2)
    modes = {case.mode for case in every if case.dtype == "float32"}
    assert modes == {
        *("plain", "reversed", "bidirectional", "2 layers, bidirectional"),
        *("masked", "reversed, masked", "bidirectional, masked"),
        "2 layers, bidirectional, masked",
    }
    problem = draw(every[-1], "torch")
    assert problem.weights.keys() > {"weight_ih_l1_reverse", "bias_hh_l0"}
    again = draw(every[-1], "torch")
    jax.tree.map(np.testing.assert_array_equal, problem, again)
    assert all(np.abs(array).min() > 0 for array in problem.weights.values())
    rows = draw(every[-5], "torch")  # their mean, not their sum
    assert rows.factors["ys"].shape[0] == 16
    assert np.std(rows.factors["ys"]) == pytest.approx(1 / 16, rel=0.05)
    assert rows.factors["ys"].dtype == np.float32

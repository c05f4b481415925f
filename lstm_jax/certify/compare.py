"""The measure: the largest difference of two sides, and when it is too large."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from lstm_jax.certify import ours
from lstm_jax.certify.cases import SHAPES, Arrays, Case, Problem, cases, draw
from lstm_jax.certify.peer import Peer

STEPS = 3  # of an optimizer; the first alone tells little of its decays
# Rounding errors of a few hundred sums and products add up.
EPSILONS = 1000


class Error(NamedTuple):
    """The largest difference of arrays.

    Attributes:
      absolute: that of `array`.
      relative: it as a share of the array's largest entry.
      array: where that share is the largest.
    """

    absolute: float
    relative: float
    array: str


class Result(NamedTuple):
    """What came of a case.

    Attributes:
      case: which.
      what: "forward" (outputs and final states), "gradient" (by inputs, initial states
        and weights), or of which optimizer the steps are.
      error: the difference.
      tolerance: what its relative part may be.
    """

    case: Case
    what: str
    error: Error
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the difference is rounding."""
        return self.error.relative <= self.tolerance


def tolerance(dtype: str) -> float:
    """The relative error that passes."""
    return EPSILONS * float(np.finfo(dtype).eps)


def difference(actual: Mapping[str, Any], expected: Mapping[str, Any]) -> Error:
    """The largest difference of arrays by name, infinite where one is not finite.

    Raises:
      ValueError: other names, shapes or types.
    """
    if actual.keys() != expected.keys():
        raise ValueError(f"{sorted(actual)} are compared with {sorted(expected)}")
    worst = Error(0.0, 0.0, "")
    for name, b in expected.items():
        a = np.asarray(actual[name])
        if a.shape != b.shape or a.dtype != b.dtype:
            raise ValueError(
                f"{name}: {a.dtype} {a.shape} is compared with {b.dtype} {b.shape}"
            )
        largest = float(np.max(np.abs(b)))
        finite = np.isfinite(a).all() and np.isfinite(b).all()
        apart = float(np.max(np.abs(a - b))) if finite else math.inf
        relative = apart / (largest or 1.0) if finite else math.inf
        if relative > worst.relative:
            worst = Error(apart, relative, name)
    return worst


def trained_by(case: Case, peer: Peer, problem: Problem, name: str) -> Arrays:
    """The library's weights after `STEPS` steps of its optimizer."""
    update = peer.optimizers()[name].theirs(problem.weights)
    weights = problem.weights
    for _ in range(STEPS):
        _, gradients = peer.run(case, problem._replace(weights=weights))
        weights = update(
            {
                weight: 0 * gradients[weight]
                if peer.held(case, weight)
                else gradients[weight]
                for weight in weights
            }
        )
    return weights


def steps_apart(
    case: Case,
    library: str,
    problem: Problem,
    optimizer: optax.GradientTransformation,
    weights: Arrays,
) -> Error:
    """How far the weights after `STEPS` steps differ, as a share of their way.

    Args:
      case: which.
      library: whose weights these are.
      problem: the start.
      optimizer: this package's.
      weights: after the library's steps.
    """
    begun = ours.taken(case, library, problem.weights)
    params = ours.train(case, library, problem, optimizer, STEPS)
    theirs = ours.taken(case, library, weights)

    def moved(tree: Any) -> dict[str, Any]:
        way = jax.tree.map(np.subtract, tree, begun)
        leaves = jax.tree_util.tree_leaves_with_path(way)
        return {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf
            for path, leaf in leaves
        }

    return difference(moved(params), moved(theirs))


def results(peer: Peer) -> Iterator[Result]:
    """Runs all cases; steps of the optimizers on masked ones of the first shape."""
    for case in cases(peer.cells, peer.layers):
        limit = tolerance(case.dtype)
        problem = draw(case, peer.library)
        sides = ours.run(case, peer.library, problem), peer.run(case, problem)
        for what, actual, expected in zip(("forward", "gradient"), *sides, strict=True):
            yield Result(case, what, difference(actual, expected), limit)
        if case.shape != SHAPES[0] or not case.masked:
            continue
        for name, optimizer in peer.optimizers().items():
            weights = trained_by(case, peer, problem, name)
            error = steps_apart(case, peer.library, problem, optimizer.ours, weights)
            yield Result(case, name, error, limit)
